//! Memory beyond the addresses that an entry can name, because firmware says so (host address width of the DMAR table).

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, Options, StartError, TableKind,
    dma::DmaError,
    dump::GroupStanding,
    options::Quarantine,
    vtd::{BringUpError, VtdError},
};
use vtd_model::{Access, Machine, MachineConfig, MemoryMap};

/// A machine whose memory for buffers is beyond.
fn start(host_address_bits: u8) -> Driven {
    let mut config = MachineConfig::plain(1);
    assert_eq!((config.memory.tables >> 33, config.memory.buffers >> 34), (1, 1));
    config.host_address_bits = host_address_bits;
    Driven::start(config).expect("units that work")
}

#[test]
fn a_buffer_beyond_is_refused_and_named() {
    let driven = start(34);
    let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let rejected = handle.dma_map(buffer, Bidirectional).expect_err("an address that is too long");
    let DmaError::OutOfRange { memory } = rejected.error else { panic!("{}", rejected.error) };
    assert!(memory.start.as_u64() >> 34 != 0 && memory.bytes == 4096, "{memory:?}");
    assert!(rejected.buffer.is_some(), "nothing was mapped");
    driven.assert_content("refused");
}

/// Allocates the `after`th page beyond, starts, and gives what came of it.
fn start_with_a_page_beyond(after: u64, options: Options) -> Result<Driven, StartError> {
    let machine = Machine::new(MachineConfig::plain(1));
    machine.place_beyond(after);
    Driven::start_on(machine, options)
}

#[test]
fn each_table_of_a_unit_that_lies_beyond_is_refused_and_named() {
    let mut refused = Vec::new();
    let driven = loop {
        let error = match start_with_a_page_beyond(refused.len() as u64, Options::default()) {
            Ok(driven) => break driven,
            Err(error) => error,
        };
        let StartError::Unit(VtdError::BringUp(BringUpError::Unreachable { unit: 0, table })) = error else {
            panic!("{error}")
        };
        assert!(table.address.as_u64() >> 39 == 1 && table.width == 39, "{table}");
        assert!(error.to_string().contains(&table.address.to_string()), "{error}");
        refused.push(table.table);
    };
    assert_eq!(refused, [TableKind::Root, TableKind::Queue, TableKind::Status, TableKind::Interrupts]);
    driven.machine.audit();
    driven.assert_content("nothing beyond was needed");
}

#[test]
fn each_table_page_of_a_claim_that_lies_beyond_goes_back_and_is_never_linked() {
    let mut refused = Vec::new();
    for after in 0..8 {
        let driven = Driven::start(MachineConfig::plain(1)).expect("units that work");
        let pages = driven.machine.live_table_pages();
        driven.machine.place_beyond(after);
        if let Err(error) = driven.iommu.claim(driven.function(0)) {
            assert_eq!(driven.machine.live_table_pages(), pages, "after {after} others");
            drop(driven.iommu.claim(driven.function(0)).expect("the next page is not beyond"));
            refused.push(error);
        }
        driven.machine.audit();
        driven.assert_content("with a page beyond");
    }
    // What only the CPU reads may lie anywhere.
    let [ClaimError::Domain(root), ClaimError::Domain(DmaError::Unreachable(context))] = &refused[..] else {
        panic!("{refused:?}")
    };
    assert_eq!((*root, context.table, context.width), (DmaError::OutOfMemory, TableKind::Context, 39));
    assert_eq!(context.address.as_u64() >> 39, 1, "{context}");
}

#[test]
fn tables_of_a_map_that_lie_beyond_go_back() {
    for after in 0..8 {
        let driven = Driven::start(MachineConfig::plain(1)).expect("units that work");
        let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
        driven.enable(handle.function());
        driven.machine.place_beyond(after);
        let map = || handle.dma_map(driven.machine.allocate_buffer(1, 1).expect("memory"), Bidirectional);
        let mapping = map().or_else(|rejected| {
            assert_eq!(rejected.error, DmaError::OutOfMemory);
            map()
        });
        let mapping = mapping.expect("the next page is not beyond");
        let device = driven.device(handle.function());
        assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
        mapping.unmap().expect("a unit that works");
        driven.machine.audit();
        driven.assert_content("mapped the second time");
    }
}

/// A group whose scratch page, or a table of it, lies beyond is blocked.
#[test]
fn a_scratch_page_beyond_leads_nowhere() {
    let quarantined = |host_address_bits, after: Option<u64>| {
        let mut config = MachineConfig::plain(1);
        config.host_address_bits = host_address_bits;
        let options = Options { quarantine: Quarantine::ScratchPage, ..Options::default() };
        let driven = Driven::start_with(config, options).expect("units that work");
        let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
        after.into_iter().for_each(|after| driven.machine.place_beyond(after));
        driven.iommu.quarantine(handle.function()).expect("a unit that works");
        let (standing, _) = driven.standing(handle.function());
        let GroupStanding::Quarantined { on_scratch_page, .. } = standing else { panic!("{standing:?}") };
        driven.enable(handle.function());
        let anywhere = driven.device(handle.function()).probe(0x1234_5000, Access::Write);
        assert_eq!(anywhere.is_ok(), on_scratch_page);
        driven.machine.audit();
        driven.assert_content("in quarantine");
        on_scratch_page
    };
    assert!(MemoryMap::small().foreign >> 35 == 1, "where the page itself is");
    assert!(quarantined(36, None) && !quarantined(35, None));
    let levels = 4;
    for after in 0..=levels {
        assert_eq!(quarantined(39, Some(after)), after == levels, "after {after} others");
    }
}
