//! Addresses at which something else than memory answers: a request for them may be passed on to it on its way to the
//! unit, so they are no IOVAs; and firmware does not get them for a device.

use driven::Driven;
use iommu::{DmaError, Iova, Options, ToDevice};
use mm::{PhysAddr, PhysRange};
use vtd_model::{MachineConfig, ReservedMemory};

const PAGE: u64 = 0x1000;
const MIB: u64 = 1 << 20;

fn range(first: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(first), bytes)
}

/// Windows of bridges and BARs below 4 GiB, one over what raises interrupts, one far above.
fn machine() -> MachineConfig {
    let mut config = MachineConfig::plain(2);
    config.registers = vec![
        range(0x0800_0000, 16 * MIB),
        range(0x0900_0000, MIB),
        range(0x0a00_0800, 0x100),
        range(0xfed0_0000, 4 * MIB),
        range(0x80_0000_0000, MIB),
    ];
    config
}

fn meets(config: &MachineConfig, first: u64, last: u64) -> bool {
    config.registers.iter().any(|range| {
        let (start, end) = (range.start.as_u64() & !(PAGE - 1), range.start.as_u64() + range.bytes - 1);
        first <= end | (PAGE - 1) && start <= last
    })
}

#[test]
fn what_others_decode_is_never_an_iova() {
    let driven = Driven::start(machine()).expect("a unit that works");
    let config = driven.machine.config().clone();
    let handle = driven.iommu.claim(driven.function(0)).expect("free");
    let at = |iova: u64| {
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        handle.dma_map_at(buffer, ToDevice, Iova::new(iova)).map(drop).map_err(|rejected| rejected.error)
    };
    for range in &config.registers {
        let (first, last) = (range.start.as_u64() & !(PAGE - 1), range.start.as_u64() + range.bytes - 1);
        for iova in [first, last & !(PAGE - 1), (first + (last - first) / 2) & !(PAGE - 1)] {
            assert_eq!(at(iova), Err(DmaError::IovaReserved { iova: Iova::new(iova) }), "{iova:#x}");
        }
    }
    for free in [0x0800_0000 - PAGE, 0x0910_0000, 0x0a00_1000, 0x80_0010_0000] {
        assert_eq!(at(free), Ok(()), "{free:#x}");
    }
    driven.pump();

    // A device of 28 bits takes all that there is, in pieces of all sizes.
    handle.set_address_bits(28);
    let mut mappings = Vec::new();
    for pages in (0..=4).rev().map(|order| 1 << order) {
        loop {
            let Some(buffer) = driven.machine.allocate_buffer(pages, 1) else { break };
            let Ok(mapping) = handle.dma_map(buffer, ToDevice) else { break };
            let first = mapping.iova().as_u64();
            assert!(!meets(&config, first, first + u64::from(pages) * PAGE - 1), "{first:#x}");
            mappings.push(mapping);
        }
    }
    assert!(mappings.len() > 100, "{}", mappings.len());
    for mapping in mappings {
        mapping.unmap().expect("a unit that works");
    }
    driven.machine.audit();
    driven.assert_content("with registers about");
}

#[test]
fn the_same_holds_in_a_domain_that_was_created() {
    let driven = Driven::start(machine()).expect("a unit that works");
    let domain = driven.iommu.create_domain(&[driven.function(0)]).expect("a unit that works");
    let iova = Iova::new(0x0900_0000);
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let refused = domain.dma_map_at(buffer, ToDevice, iova).map(drop);
    assert!(refused.is_err_and(|rejected| rejected.error == DmaError::IovaReserved { iova }));
    domain.destroy().expect("nobody is there");
    driven.assert_content("with registers about");
}

fn reach(driven: &Driven, index: usize) -> Vec<u64> {
    let reach = driven.device(driven.function(index)).reach_of_tables().unwrap_or_default();
    reach.iter().map(|run| run.address).collect()
}

#[test]
fn firmware_does_not_get_registers_for_a_device() {
    let machine = |base: u64, bytes: u64| {
        let mut config = machine();
        let function = config.functions[0].address;
        // As firmware leaves what it reserves memory for.
        config.functions[0].bus_master = true;
        config.reserved.push(ReservedMemory { function, base, limit: base + bytes - 1 });
        let driven = Driven::start_with(config, Options::default()).expect("units that work");
        (reach(&driven, 0), driven.device(driven.function(0)).is_bus_master())
    };
    let refused =
        [(0x0800_0000, PAGE), (0x08ff_f000, 2 * PAGE), (0x0a00_0000, PAGE), (0x07ff_0000, 32 * MIB)];
    for (base, bytes) in refused {
        assert_eq!(
            machine(base, bytes),
            (vec![], false),
            "{base:#x}: nothing is left that it could go on using"
        );
    }
    for base in [0x0800_0000 - PAGE, 0x0910_0000, 0x0a00_1000] {
        assert_eq!(machine(base, PAGE), (vec![base], true));
    }
}

/// Where its registers end, only the unit says; firmware says a page.
#[test]
fn all_registers_of_a_unit_are_out_of_reach_however_many_firmware_says_there_are() {
    let unit = |base: u64| {
        let mut config = MachineConfig::plain(1);
        (config.units[0].fault_offset, config.units[0].fault_records) = (0x3f0, 64);
        let function = config.functions[0].address;
        let base = config.units[0].base + base;
        config.reserved.push(ReservedMemory { function, base, limit: base + PAGE - 1 });
        let driven = Driven::start(config).expect("a unit that works");
        reach(&driven, 0).len()
    };
    // Records from 0x3f00 on, 0x400 bytes of them.
    for inside in [0, PAGE, 3 * PAGE, 4 * PAGE] {
        assert_eq!(unit(inside), 0, "{inside:#x}");
    }
    assert_eq!(unit(5 * PAGE), 1);
}

#[test]
fn what_is_decoded_may_begin_at_page_0() {
    for bytes in [PAGE, 2 * PAGE] {
        let mut config = machine();
        config.registers.push(range(0, bytes));
        let driven = Driven::start(config).expect("a unit that works");
        let handle = driven.iommu.claim(driven.function(0)).expect("what is free can be claimed");
        let iova = Iova::new(bytes - PAGE);
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        let refused = handle.dma_map_at(buffer, ToDevice, iova).map(drop).map_err(|rejected| rejected.error);
        assert_eq!(refused, Err(DmaError::IovaReserved { iova }));
    }
}
