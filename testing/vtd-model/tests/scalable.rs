//! The driver on units in scalable mode: the same domains behind other tables, and one cache more.

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaError, FromDevice, Iova, Options, PciAddress, StartError,
    ToDevice,
    dump::{Leads, StepReport, TableKind, Visitor},
    fault::{Fault, FaultKind},
    options::Quarantine,
    vtd::{BringUpError, VtdError},
};
use vtd_model::{
    Access, Denied, Device, FunctionConfig, MachineConfig, ModelBuffer, Reason, Rule, UnitConfig,
};

const PAGE: u64 = 4096;

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

fn buffer(driven: &Driven) -> ModelBuffer {
    driven.machine.allocate_buffer(2, 1).expect("memory")
}

/// Each way in which the unit can look at tables, of either stage.
fn kinds_of_units() -> impl Iterator<Item = UnitConfig> {
    const BASE: u64 = 0xfed9_0000;
    (0..32_u32).map(|bits| UnitConfig {
        coherent: bits & 1 != 0,
        scalable_coherent: bits & 2 != 0,
        caching_mode: bits & 4 != 0,
        write_buffer: bits & 8 != 0,
        ..if bits & 16 != 0 { UnitConfig::scalable(BASE) } else { UnitConfig::first_stage(BASE) }
    })
}

#[test]
fn a_device_reaches_what_is_mapped_and_nothing_else_on_every_kind_of_unit() {
    for unit in kinds_of_units() {
        let when = format!("{unit:?}");
        let mut config = MachineConfig::scalable(2);
        config.units[0] = unit;
        config.audit_once_in = 1;
        let driven = start(config);
        let (handle, device) = claim(&driven, 0);
        let other = driven.device(driven.function(1));
        driven.enable(driven.function(1));
        for _ in 0..4 {
            let to = handle.dma_map(buffer(&driven), ToDevice).expect("room");
            let from = handle.dma_map(buffer(&driven), FromDevice).expect("room");
            let (read, written) = (to.iova().as_u64(), from.iova().as_u64());
            assert!(device.probe(read + PAGE, Access::Read).is_ok(), "{when}");
            assert!(device.probe(written + PAGE, Access::Write).is_ok(), "{when}");
            let denied = Err(Denied::Fault(Reason::ScalableNoWrite));
            assert_eq!(device.probe(read, Access::Write), denied, "{when}");
            let blocked = other.probe(read, Access::Read);
            assert!(
                matches!(blocked, Err(Denied::Fault(reason)) if reason as u8 == 0x39 || reason as u8 == 0x41)
            );
            to.unmap().expect("a unit that works");
            from.unmap().expect("a unit that works");
            assert!(
                device.probe(read, Access::Read).is_err() && device.probe(written, Access::Write).is_err()
            );
        }
        driven.machine.audit();
        driven.assert_content(&when);
    }
}

#[test]
fn a_source_changes_its_domain_any_number_of_times() {
    for unit in kinds_of_units() {
        let when = format!("{unit:?}");
        let mut config = MachineConfig::scalable(1);
        config.units[0] = unit;
        config.audit_once_in = 1;
        let driven = start(config);
        let function = driven.function(0);
        let mut before = None;
        for round in 0..6 {
            let (handle, device) = claim(&driven, 0);
            let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
            let iova = mapping.iova().as_u64();
            let at = device.probe(iova, Access::Write).expect("mapped");
            mapping.unmap().expect("a unit that works");
            drop(handle);
            driven.iommu.release(function, |_| true).expect("a device that is quiet");
            driven.enable(function);
            assert!(device.probe(iova, Access::Write).is_err(), "{when}: {at:#x} in round {round}");
            driven.disable(function);
            let pages = driven.machine.live_table_pages();
            assert_eq!(*before.get_or_insert(pages), pages, "{when}: pages are lost");
        }
        driven.machine.audit();
        driven.assert_content(&when);
    }
}

/// Functions on both sides of the boundary between the two context tables of a bus.
#[test]
fn both_halves_of_a_bus_have_a_context_table() {
    let mut config = MachineConfig::scalable(1);
    let devfns = [0x7f, 0x80, 0xff];
    config.functions =
        devfns.map(|devfn| FunctionConfig::endpoint(PciAddress::from_devfn(0, 0, devfn), 0)).to_vec();
    config.audit_once_in = 1;
    let driven = start(config);
    let claimed: Vec<_> = (0..devfns.len()).map(|index| claim(&driven, index)).collect();
    let mapped: Vec<_> = claimed
        .iter()
        .map(|(handle, _)| handle.dma_map(buffer(&driven), Bidirectional).expect("room"))
        .collect();
    let place = |index: usize, of: usize| claimed[index].1.probe(mapped[of].iova().as_u64(), Access::Write);
    let own: Vec<u64> = (0..devfns.len()).map(|index| place(index, index).expect("mapped")).collect();
    assert!(own[0] != own[1] && own[1] != own[2] && own[0] != own[2]);
    mapped.into_iter().for_each(|mapping| drop(mapping.unmap().expect("a unit that works")));
    driven.assert_content("after functions of both halves");
}

#[derive(Default)]
struct Shown {
    steps: Vec<StepReport>,
    faults: Vec<Fault>,
}

impl Visitor for Shown {
    fn step(&mut self, step: &StepReport) {
        self.steps.push(*step);
    }

    fn fault(&mut self, fault: &Fault) {
        self.faults.push(*fault);
    }
}

fn way(driven: &Driven, iova: u64) -> Vec<(TableKind, Leads)> {
    let mut shown = Shown::default();
    assert!(driven.iommu.trace(driven.function(0), Some(Iova::new(iova)), &mut shown));
    shown.steps.iter().map(|step| (step.table, step.leads)).collect()
}

#[test]
fn the_way_of_a_request_goes_through_the_pasid_tables() {
    let driven = start(MachineConfig::scalable(1));
    assert_eq!(way(&driven, 0), [(TableKind::Root, Leads::Nowhere)]);
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let iova = mapping.iova().as_u64();
    let at = device.probe(iova, Access::Write).expect("mapped");
    let shown = way(&driven, iova);
    let above = [TableKind::Root, TableKind::Context, TableKind::PasidDirectory, TableKind::Pasid];
    assert_eq!(shown[..4], above.map(|table| (table, Leads::On)));
    assert!(matches!(shown[..], [.., (_, Leads::Memory { start, .. })] if start.as_u64() == at), "{shown:?}");
    mapping.unmap().expect("a unit that works");
    drop(handle);
    driven.iommu.release(driven.function(0), |_| true).expect("a device that is quiet");
    assert_eq!(way(&driven, iova), [(TableKind::Root, Leads::On), (TableKind::Context, Leads::Nowhere)]);
}

#[test]
fn faults_are_reported_with_the_reasons_of_scalable_mode() {
    let driven = start(MachineConfig::scalable(2));
    let (_handle, device) = claim(&driven, 0);
    let stranger = driven.device(driven.function(1));
    driven.enable(driven.function(1));
    assert!(device.write(0x5000, b"x").is_err());
    driven.pump();
    assert!(stranger.write(0x6000, b"x").is_err());
    driven.pump();
    let mut shown = Shown::default();
    driven.iommu.visit(&mut shown);
    let told: Vec<_> = shown.faults.iter().map(|fault| (fault.reason.code, fault.reason.kind)).collect();
    assert_eq!(told, [(0x85, FaultKind::Denied), (0x41, FaultKind::Blocked)]);
    driven.assert_content("after faults");
}

#[test]
fn a_claim_that_fails_half_way_leaves_nothing_behind() {
    let mut config = MachineConfig::scalable(1);
    config.units[0].coherent = false;
    config.audit_once_in = 1;
    let driven = start(config);
    let device = driven.device(driven.function(0));
    let mut failures = 0;
    let handle = loop {
        driven.machine.set_shortage(Some(failures));
        let claimed = driven.iommu.claim(driven.function(0));
        driven.machine.set_shortage(None);
        let Err(error) = claimed else { break claimed.expect("checked") };
        assert_eq!(error, ClaimError::Domain(DmaError::OutOfMemory));
        driven.enable(driven.function(0));
        assert!(device.probe(0x5000, Access::Write).is_err());
        driven.disable(driven.function(0));
        failures += 1;
        assert!(failures < 64, "it always fails");
    };
    // The table of the domain, the context table, the directory, the PASID table.
    assert!(failures >= 4, "{failures}");
    driven.enable(driven.function(0));
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("memory again");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    mapping.unmap().expect("a unit that works");
    driven.machine.audit();
    driven.assert_content("after failed claims");
}

#[test]
fn a_trusted_function_has_a_tlb() {
    let mut config = MachineConfig::scalable(1);
    config.functions[0].ats = true;
    config.relax_ns = 1_000_000;
    let driven = start(config);
    let function = driven.function(0);
    let handle = driven.iommu.claim_trusted(function).expect("a free function");
    driven.enable(function);
    let device = driven.device(function);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let iova = mapping.iova().as_u64();
    (0..50).for_each(|_| device.write(iova, b"in").expect("mapped"));
    assert!(device.cached_translations().iter().any(|&(address, _)| address == iova));
    mapping.unmap().expect("a device that answers");
    assert!(device.probe(iova, Access::Write).is_err());
    driven.assert_content("after a function with a TLB");
}

/// Functions that nobody trusts get no translations, whatever they ask for.
#[test]
fn a_function_that_nobody_trusts_has_none() {
    const ATS_CONTROL: u16 = 0x104;
    const ATS_ENABLE: u32 = 1 << 31;
    let mut config = MachineConfig::scalable(1);
    config.functions[0].ats = true;
    let driven = start(config);
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    iommu::Platform::write_config(&*driven.platform, driven.function(0), ATS_CONTROL, ATS_ENABLE);
    let iova = mapping.iova().as_u64();
    // Now and then the device asks for no translation, and gets through.
    let refused = std::iter::repeat_with(|| device.write(iova, b"x")).take(1000).find_map(Result::err);
    assert_eq!(refused, Some(Denied::Fault(Reason::DeviceTlbNotEnabled)));
    mapping.unmap().expect("a unit that works");
    driven.assert_content("after a function that translates by itself");
}

/// A group on a scratch page is not heard, though its entries are present again.
#[test]
fn in_quarantine_a_source_stays_muted() {
    let mut config = MachineConfig::scalable(1);
    config.units[0].mgaw = 40;
    let quarantined = Options { quarantine: Quarantine::ScratchPage, ..options() };
    let driven = Driven::start_with(config, quarantined).expect("a unit that works");
    let (handle, device) = claim(&driven, 0);
    let function = driven.function(0);
    driven.iommu.quarantine(function).expect("a unit that works");
    // As it does in quarantine when it does not obey.
    driven.enable(function);
    let before = handle.fault_count();
    assert!(device.probe(0x5000, Access::Write).is_ok(), "a scratch page");
    for _ in 0..8 {
        let beyond = device.write(1 << 41, b"x");
        assert!(matches!(beyond, Err(Denied::Fault(Reason::BeyondSecondStage))), "{beyond:?}");
        driven.pump();
    }
    assert_eq!(handle.fault_count(), before);
    drop(handle);
    driven.iommu.release(function, |_| true).expect("a quiet device");
    let (handle, device) = claim(&driven, 0);
    let before = handle.fault_count();
    assert!(device.write(1 << 41, b"x").is_err());
    driven.pump();
    assert_eq!(handle.fault_count(), before + 1, "a new driver hears them");
    driven.assert_content("after a scratch page");
}

/// The mode of the one unit, with `options`.
fn mode_of(unit: UnitConfig, options: Options) -> bool {
    let mut config = MachineConfig::scalable(1);
    config.units[0] = unit;
    let driven = Driven::start_with(config, options).expect("a unit that works");
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    mapping.unmap().expect("a unit that works");
    driven.assert_content("in either mode");
    driven.units()[0].is_scalable()
}

#[test]
fn scalable_mode_takes_a_stage_the_queue_and_somebody_who_asks() {
    let unit = || UnitConfig::scalable(0xfed9_0000);
    assert!(mode_of(unit(), options()));
    assert!(!mode_of(unit(), Options::default()));
    assert!(!mode_of(unit(), Options { queued_invalidation: false, ..options() }));
    assert!(!mode_of(UnitConfig { scalable_second_stage: false, ..unit() }, options()));
    assert!(mode_of(UnitConfig::first_stage(0xfed9_0000), options()));
    assert!(!mode_of(UnitConfig::first_stage(0xfed9_0000), Options::default()));
    assert!(!mode_of(UnitConfig::plain(0xfed9_0000), options()));
}

#[test]
fn a_unit_with_nothing_but_a_first_stage_works_if_somebody_asks() {
    let config = || {
        let mut config = MachineConfig::first_stage(1);
        config.units[0].sagaw = 0;
        config
    };
    assert!(mode_of(config().units[0].clone(), options()));
    let started = Driven::start_with(config(), Options::default());
    let refused = started.map(|_| ()).expect_err("nothing translates");
    let expected = BringUpError::NoTranslation { unit: 0, first_stage: true };
    assert!(refused.to_string().contains("iommu=scalable"), "{refused}");
    assert!(
        matches!(refused, StartError::Unit(VtdError::BringUp(error)) if error == expected),
        "{refused:?}"
    );
}

/// Units of both modes share what spans them.
#[test]
fn a_unit_that_has_no_scalable_mode_works_beside_one_that_has() {
    let mut config = MachineConfig::scalable(2);
    config.units.push(UnitConfig { coherent: false, ..UnitConfig::plain(0xfeda_0000) });
    config.functions[1].unit = 1;
    let driven = Driven::start_with(config, options()).expect("units that work");
    assert_eq!(driven.units().iter().map(|unit| unit.is_scalable()).collect::<Vec<_>>(), [true, false]);
    for index in 0..2 {
        let (handle, device) = claim(&driven, index);
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
        mapping.unmap().expect("a unit that works");
    }
    driven.assert_content("units of both modes");
}

/// Taking over from firmware that left translation on in legacy mode.
#[test]
fn caches_and_tables_of_firmware_are_gone() {
    for translation in [false, true] {
        let mut config = MachineConfig::scalable(1);
        config.units[0].leftovers.translation = translation;
        let driven = start(config);
        let (handle, device) = claim(&driven, 0);
        assert!(device.probe(0x5000, Access::Read).is_err());
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        let at = device.probe(mapping.iova().as_u64(), Access::Write).expect("mapped");
        device.write(mapping.iova().as_u64(), b"where it belongs").expect("mapped");
        assert_ne!(at, 0);
        mapping.unmap().expect("a unit that works");
        let rules: Vec<Rule> = driven.machine.take_complaints().into_iter().map(|c| c.rule).collect();
        assert_eq!(rules, []);
    }
}
