//! The driver on units that translate by first-stage tables: the same domains behind tables in the CPU's format.

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Iova, Options, ToDevice,
    dump::{Leads, StepReport, TableKind, Visitor},
    fault::{Fault, FaultKind},
};
use vtd_model::{Access, Denied, Device, MachineConfig, ModelBuffer, Reason, UnitConfig};

const PAGE: u64 = 4096;
const M2: u64 = 2 << 20;

fn options() -> Options {
    Options { scalable: true, ..Options::default() }
}

fn start(config: MachineConfig) -> Driven {
    let driven = Driven::start_with(config, options()).expect("units that work");
    assert!(driven.units().iter().all(|unit| unit.is_scalable() && unit.translates()));
    driven
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}

/// There is no entry for writes alone. It is a device's own memory that it can read besides.
#[test]
fn what_a_device_may_write_it_may_read_and_not_the_other_way_round() {
    let driven = start(MachineConfig::first_stage(1));
    let (handle, device) = claim(&driven, 0);
    let from = handle.dma_map(buffer(&driven, 1), FromDevice).expect("room");
    let to = handle.dma_map(buffer(&driven, 1), ToDevice).expect("room");
    let (written, read) = (from.iova().as_u64(), to.iova().as_u64());
    assert!(device.probe(written, Access::Write).is_ok() && device.probe(written, Access::Read).is_ok());
    assert!(device.probe(read, Access::Read).is_ok());
    assert_eq!(device.probe(read, Access::Write), Err(Denied::Fault(Reason::ScalableNoWrite)));
    from.unmap().expect("a unit that works");
    to.unmap().expect("a unit that works");
    let gone = Err(Denied::Fault(Reason::FirstStageNotPresent));
    assert_eq!((device.probe(written, Access::Write), device.probe(read, Access::Read)), (gone, gone));
    driven.assert_content("after both");
}

/// A domain and a device each: what one has mapped the other does not reach, at the same address either.
#[test]
fn domains_are_apart() {
    let driven = start(MachineConfig::first_stage(2));
    let ((first, one), (second, other)) = (claim(&driven, 0), claim(&driven, 1));
    let of_first = first.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    let of_second = second.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    let (iova, theirs) = (of_first.iova().as_u64(), of_second.iova().as_u64());
    let at = one.probe(iova, Access::Write).expect("mapped");
    if theirs == iova {
        assert_ne!(other.probe(iova, Access::Write).expect("mapped"), at);
    } else {
        assert!(other.probe(iova, Access::Write).is_err() && one.probe(theirs, Access::Write).is_err());
    }
    of_first.unmap().expect("a unit that works");
    assert!(one.probe(iova, Access::Write).is_err());
    assert!(other.probe(theirs, Access::Write).is_ok(), "the flush of one is not for the other");
    of_second.unmap().expect("a unit that works");
    driven.assert_content("two domains");
}

/// With and without leaves of 1 GiB: what is long enough gets large leaves, and all of it goes again.
#[test]
fn superpages_are_mapped_and_flushed() {
    for first_stage_1g in [false, true] {
        let mut config = MachineConfig::first_stage(1);
        config.units[0].first_stage_1g = first_stage_1g;
        config.audit_once_in = 1;
        let driven = start(config);
        let (handle, device) = claim(&driven, 0);
        for round in 0..4 {
            let buffer = driven.machine.allocate_buffer(3 * (M2 / PAGE) as u32, 512).expect("memory");
            let mapping = handle.dma_map(buffer, Bidirectional).expect("room");
            let iova = mapping.iova().as_u64();
            for offset in [0, M2 - PAGE, M2, 3 * M2 - PAGE] {
                assert!(device.probe(iova + offset, Access::Write).is_ok(), "round {round}, {offset:#x}");
            }
            mapping.unmap().expect("a unit that works");
            for offset in [0, M2, 3 * M2 - PAGE] {
                assert!(device.probe(iova + offset, Access::Read).is_err(), "round {round}, {offset:#x}");
            }
        }
        driven.assert_content("superpages");
    }
}

/// What is reported of page-selective invalidation is of the second stage alone.
#[test]
fn pages_are_invalidated_by_one_descriptor_whatever_the_unit_reports() {
    for page_selective in [None, Some(0), Some(18)] {
        let mut config = MachineConfig::first_stage(1);
        config.units[0].page_selective = page_selective;
        config.audit_once_in = 1;
        let driven = start(config);
        let (handle, device) = claim(&driven, 0);
        let kept = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
        let mapped = handle.dma_map_at(buffer(&driven, 4), Bidirectional, Iova::new(0x10_0000));
        let mapping = mapped.expect("room");
        let probe = || [0, 1, 2, 3].map(|page| device.probe(0x10_0000 + page * PAGE, Access::Write).is_ok());
        assert_eq!(probe(), [true; 4]);
        let before = driven.units()[0].descriptors;
        mapping.unmap().expect("a unit that works");
        // That, and the wait for it.
        assert_eq!(driven.units()[0].descriptors - before, 2, "{page_selective:?}");
        assert_eq!(probe(), [false; 4]);
        kept.unmap().expect("a unit that works");
        driven.assert_content("page-selective");
    }
}

/// Caching mode is about all entries but those of first-stage tables.
#[test]
fn new_leaves_are_not_invalidated_in_caching_mode() {
    for (unit, invalidates) in
        [(UnitConfig::first_stage(0xfed9_0000), false), (UnitConfig::scalable(0xfed9_0000), true)]
    {
        for write_buffer in [false, true] {
            let mut config = MachineConfig::first_stage(1);
            config.units[0] = UnitConfig { caching_mode: true, write_buffer, ..unit.clone() };
            let driven = start(config);
            let descriptors = || driven.units()[0].descriptors;
            let before = descriptors();
            let (handle, device) = claim(&driven, 0);
            assert!(descriptors() > before, "the context entry is new");
            let mut mappings = Vec::new();
            let before = descriptors();
            for at in [0x10_0000, 0x10_1000, 0x4000_0000] {
                assert!(device.probe(at, Access::Write).is_err());
                let mapped = handle.dma_map_at(buffer(&driven, 1), Bidirectional, Iova::new(at));
                mappings.push(mapped.expect("room"));
                assert!(device.probe(at, Access::Write).is_ok(), "{at:#x}, {write_buffer}");
            }
            assert_eq!(descriptors() > before, invalidates);
            mappings.into_iter().for_each(|mapping| drop(mapping.unmap().expect("a unit that works")));
            driven.assert_content("caching mode");
        }
    }
}

#[test]
fn addresses_are_canonical_and_in_the_lower_half() {
    let driven = start(MachineConfig::first_stage(1));
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    assert!(mapping.iova().as_u64() < 1 << 47);
    let denied = |address| device.probe(address, Access::Read).expect_err("nothing is there");
    assert_eq!(denied(1 << 47), Denied::Fault(Reason::NotCanonical));
    assert_eq!(denied(u64::MAX << 47), Denied::Fault(Reason::FirstStageNotPresent));
    mapping.unmap().expect("a unit that works");
    driven.assert_content("beyond");
}

/// What the unit reports of addresses limits those of either stage.
#[test]
fn addresses_end_where_the_unit_says() {
    const BITS: u32 = 39;
    let mut config = MachineConfig::first_stage(1);
    config.units[0].mgaw = BITS as u8;
    let driven = start(config);
    assert_eq!(driven.units()[0].address_bits, BITS);
    let (handle, device) = claim(&driven, 0);
    let last = Iova::new((1 << BITS) - PAGE);
    let mapping = handle.dma_map_at(buffer(&driven, 1), Bidirectional, last).expect("room");
    assert!(device.probe(last.as_u64(), Access::Write).is_ok());
    let beyond = Iova::new(1 << BITS);
    let rejected = handle.dma_map_at(buffer(&driven, 1), Bidirectional, beyond).expect_err("it is too high");
    assert_eq!(rejected.error, DmaError::IovaBeyond { iova: beyond, last: beyond.as_u64() - 1 });
    let denied = Err(Denied::Fault(Reason::NotCanonical));
    assert_eq!(device.probe(beyond.as_u64(), Access::Write), denied);
    let free = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    assert!(free.iova() < last);
    free.unmap().expect("a unit that works");
    mapping.unmap().expect("a unit that works");
    driven.assert_content("a narrow unit");
}

#[derive(Default)]
struct Shown {
    faults: Vec<Fault>,
    steps: Vec<(TableKind, Leads)>,
    pasid_entry: u128,
}

impl Visitor for Shown {
    fn fault(&mut self, fault: &Fault) {
        self.faults.push(*fault);
    }

    fn step(&mut self, step: &StepReport) {
        self.steps.push((step.table, step.leads));
        if step.table == TableKind::Pasid {
            self.pasid_entry = step.raw;
        }
    }
}

#[test]
fn faults_and_the_way_of_a_request_are_those_of_the_first_stage() {
    let driven = start(MachineConfig::first_stage(1));
    let (handle, device) = claim(&driven, 0);
    assert!(device.write(0x5000, b"x").is_err());
    driven.pump();
    let mapping = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    let at = device.probe(mapping.iova().as_u64(), Access::Write).expect("mapped");
    let mut shown = Shown::default();
    driven.iommu.visit(&mut shown);
    let told: Vec<_> = shown.faults.iter().map(|fault| (fault.reason.code, fault.reason.kind)).collect();
    assert_eq!(told, [(0x71, FaultKind::Denied)]);
    assert!(driven.iommu.trace(driven.function(0), Some(mapping.iova()), &mut shown));
    assert_eq!(shown.steps[3], (TableKind::Pasid, Leads::On));
    let last = shown.steps.last().expect("steps");
    assert!(matches!(last.1, Leads::Memory { start, .. } if start.as_u64() == at), "{:?}", shown.steps);
    mapping.unmap().expect("a unit that works");
    driven.assert_content("after a fault");
}

/// What leads the first function of a machine with such a unit to its page table, which works.
fn pasid_entry(unit: UnitConfig, options: Options) -> u128 {
    let mut config = MachineConfig::first_stage(1);
    config.units[0] = unit;
    let driven = Driven::start_with(config, options).expect("a unit that works");
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    let mut shown = Shown::default();
    assert!(driven.iommu.trace(driven.function(0), Some(mapping.iova()), &mut shown));
    mapping.unmap().expect("a unit that works");
    driven.assert_content("with a PASID entry");
    shown.pasid_entry
}

/// 48 bits if the second stage could have them, else the most that it could, if anything.
#[test]
fn the_width_in_a_pasid_entry_is_one_that_the_unit_reports() {
    for (sagaw, width) in [(0b0110, 2), (0b1110, 2), (0b0010, 1), (0b1000, 3), (0, 0)] {
        let unit = UnitConfig { sagaw, ..UnitConfig::first_stage(0xfed9_0000) };
        assert_eq!(pasid_entry(unit, options()) >> 2 & 7, width, "{sagaw:#b}");
    }
}

/// In either stage, if the unit has that and options do not forbid it.
#[test]
fn accesses_are_made_to_snoop() {
    const PGSNP: u32 = 88;
    for unit in [UnitConfig::first_stage(0xfed9_0000), UnitConfig::scalable(0xfed9_0000)] {
        for (snoop_control, snoop) in [(false, false), (false, true), (true, false), (true, true)] {
            let unit = UnitConfig { snoop_control, ..unit.clone() };
            let when = format!("{snoop}, {unit:?}");
            let entry = pasid_entry(unit, Options { snoop, ..options() });
            assert_eq!(entry >> PGSNP & 1 != 0, snoop_control && snoop, "{when}");
        }
    }
}

/// All units use tables of one stage, so that a domain can span any of them. One that has the first alone goes back to
/// legacy mode beside one that does not have it. Where all have the second, which keeps reads and writes apart, it is
/// that.
#[test]
fn units_agree_on_a_stage() {
    let both = |base| UnitConfig { first_stage: true, ..UnitConfig::scalable(base) };
    const FIRST: u64 = 0xfed9_0000;
    const SECOND: u64 = 0xfeda_0000;
    for (one, other, scalable, first_stage) in [
        (UnitConfig::first_stage(FIRST), UnitConfig::scalable(SECOND), [false, true], false),
        (UnitConfig::first_stage(FIRST), UnitConfig::plain(SECOND), [false, false], false),
        (UnitConfig::first_stage(FIRST), both(SECOND), [true, true], true),
        (UnitConfig::first_stage(FIRST), UnitConfig::first_stage(SECOND), [true, true], true),
        (both(FIRST), both(SECOND), [true, true], false),
        (both(FIRST), UnitConfig::scalable(SECOND), [true, true], false),
    ] {
        let mut config = MachineConfig::first_stage(2);
        config.units = vec![one, other];
        config.functions[1].unit = 1;
        let driven = Driven::start_with(config, options()).expect("units that work");
        let units = driven.units();
        assert_eq!([units[0].is_scalable(), units[1].is_scalable()], scalable);
        let both = [driven.function(0), driven.function(1)];
        let domain = driven.iommu.create_domain(&both).expect("a table for both");
        for function in both {
            let handle = driven.iommu.assign(function, &domain, |_| true).expect("a free function");
            driven.enable(function);
            let iova = Iova::new(0x10_0000);
            let mapping = handle.dma_map_at(buffer(&driven, 1), FromDevice, iova).expect("room");
            let device = driven.device(function);
            assert!(device.probe(0x10_0000, Access::Write).is_ok());
            assert_eq!(device.probe(0x10_0000, Access::Read).is_ok(), first_stage);
            mapping.unmap().expect("units that work");
            handle.release(|_| true).expect("a device that is quiet");
        }
        domain.destroy().expect("nothing is left in it");
        driven.assert_content("units that agree");
    }
}
