//! The invariants of the design that need hardware to fail: 4, 5, 6, 11 and 12. The one about status slots (10) is held
//! by `traps::a_late_answer_completes_nothing_that_came_after`.

mod unit;

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaError, Options, PciAddress,
    dma::Stuck,
    platform::Event,
    vtd::{
        InterruptSetup, Invalidation, InvalidationError, IotlbScope,
        spec::{DeviceTlbScope, DomainId},
    },
};
use unit::UnitBench;
use vtd_model::{
    Access, Device, FunctionConfig, FunctionKind, Machine, MachineConfig, Misbehaviour, ModelBuffer, Random,
    UnitConfig,
};

const SECOND_NS: u64 = 1_000_000_000;

/// Two units, one function behind each.
fn two_units() -> MachineConfig {
    let mut config = MachineConfig::plain(2);
    config.units.push(UnitConfig::plain(0xfed9_8000));
    config.functions[1].unit = 1;
    config.seed = 0;
    config.relax_ns = 1_000_000;
    config
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

struct Way {
    name: &'static str,
    prepare: fn(&mut UnitConfig),
    break_it: fn(&mut Misbehaviour),
}

const WAYS: [Way; 5] = [
    Way { name: "the queue fetches nothing", prepare: |_| {}, break_it: |unit| unit.queue_stalled = true },
    Way { name: "no status is written", prepare: |_| {}, break_it: |unit| unit.statuses_lost = true },
    Way { name: "the unit is gone", prepare: |_| {}, break_it: |unit| unit.gone = true },
    Way {
        name: "register invalidations never finish",
        prepare: |unit| (unit.queued, unit.interrupt_remapping, unit.device_tlb) = (false, false, false),
        break_it: |unit| unit.registers_stalled = true,
    },
    Way {
        name: "register invalidations are refused",
        prepare: |unit| (unit.queued, unit.interrupt_remapping, unit.device_tlb) = (false, false, false),
        break_it: |unit| unit.registers_refuse = true,
    },
];

// Invariants 6 and 12.

#[test]
fn a_stuck_unit_keeps_what_it_owns_and_the_others_go_on() {
    for Way { name, prepare, break_it } in WAYS {
        let mut config = two_units();
        prepare(&mut config.units[0]);
        let driven = Driven::start(config).expect("units that work");
        let ((stuck, stuck_device), (fine, fine_device)) = (claim(&driven, 0), claim(&driven, 1));
        let mappings: Vec<_> =
            (0..4).map(|_| stuck.dma_map(buffer(&driven), Bidirectional).expect("room")).collect();
        let addresses: Vec<u64> = mappings.iter().map(|mapping| mapping.iova().as_u64()).collect();
        let physical: Vec<u64> =
            addresses.iter().map(|&iova| stuck_device.probe(iova, Access::Read).expect("mapped")).collect();
        driven.machine.misbehave(0, break_it);
        let pages = driven.machine.live_table_pages();
        let mut mappings = mappings.into_iter();

        // The first to notice waits its time out, and no longer.
        let error = Err(DmaError::Stuck(Stuck { unit: 0 }));
        let start = driven.machine.clock().now_ns();
        assert_eq!(mappings.next().map(|m| m.unmap().map(drop)), Some(error), "{name}");
        let waited = driven.machine.clock().now_ns() - start;
        let at_once = name.contains("gone") || name.contains("refused");
        assert!((at_once || waited >= SECOND_NS) && waited < 20 * SECOND_NS, "{name}: {waited} ns");
        driven.pump();
        assert!(!stuck_device.is_bus_master(), "{name}");
        assert!(fine_device.is_bus_master(), "{name}");

        // From then on nothing waits, and no flush is attempted.
        let (start, writes) = (driven.machine.clock().now_ns(), driven.machine.register_writes(0));
        assert_eq!(mappings.next().map(|m| m.unmap().map(drop)), Some(error), "{name}");
        let refused = stuck.dma_map(buffer(&driven), Bidirectional);
        assert!(
            matches!(refused, Err(rejected) if rejected.error == DmaError::Stuck(Stuck { unit: 0 })),
            "{name}"
        );
        drop(mappings);
        driven.iommu.reap();
        driven.pump();
        assert!(driven.machine.clock().now_ns() - start < SECOND_NS, "{name}");
        assert_eq!(driven.machine.register_writes(0), writes, "{name}");
        assert!(physical.iter().all(|&memory| driven.machine.is_lent(memory)), "{name}: a buffer came back");
        assert!(driven.machine.live_table_pages() >= pages, "{name}: a table page came back");

        // A unit that answers again is not trusted again.
        driven.machine.misbehave(0, |unit| *unit = Misbehaviour::default());
        assert!(stuck.dma_map(buffer(&driven), Bidirectional).is_err(), "{name}");
        let mapping = fine.dma_map(buffer(&driven), Bidirectional).expect("room");
        fine_device.write(mapping.iova().as_u64(), b"on").expect("mapped");
        assert_eq!(&mapping.unmap().expect("a unit that works").as_slice()[..2], b"on");
        driven.assert_content(name);
    }
}

#[test]
fn a_unit_that_refuses_something_while_another_is_waited_for_is_not_given_up() {
    for dead in [0, 1] {
        let mut config = two_units();
        // Two functions of one device: one group, one domain, two units.
        let function = |number: u8| PciAddress::from_devfn(0, 0, 8 << 3 | number);
        config.functions = [0_u8, 1].map(|unit| FunctionConfig::endpoint(function(unit), unit.into())).into();
        let driven = Driven::start(config).expect("units that work");
        let (handles, devices): (Vec<_>, Vec<_>) = (0..2).map(|index| claim(&driven, index)).unzip();
        let mapping = handles[0].dma_map(buffer(&driven), Bidirectional).expect("room");
        let iova = mapping.iova().as_u64();
        assert!(devices.iter().all(|device| device.probe(iova, Access::Write).is_ok()));
        driven.machine.misbehave(dead, |unit| unit.queue_stalled = true);
        driven.machine.misbehave(1 - dead, |unit| unit.refused_descriptors = 1);
        let stuck = DmaError::Stuck(Stuck { unit: dead });
        assert_eq!(mapping.unmap().map(drop), Err(stuck), "unit {dead} is dead");
        let alive: Vec<_> = driven.units().iter().map(|unit| unit.alive).collect();
        assert_eq!((alive[dead], alive[1 - dead]), (false, true));
        assert!(devices[1 - dead].probe(iova, Access::Write).is_err());
    }
}

#[test]
fn a_function_behind_a_stuck_unit_cannot_be_claimed() {
    let mut config = two_units();
    config.functions.push(vtd_model::FunctionConfig::endpoint(iommu::PciAddress::from_devfn(0, 0, 0x40), 0));
    let driven = Driven::start(config).expect("units that work");
    let (handle, _) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    driven.machine.misbehave(0, |unit| unit.gone = true);
    assert!(mapping.unmap().is_err());
    let error = driven.iommu.claim(driven.function(2)).err();
    assert_eq!(error, Some(ClaimError::Domain(DmaError::Stuck(Stuck { unit: 0 }))));
}

/// A bridge to conventional PCI with a function behind it: their requests carry two ids, which share a domain.
fn behind_a_bridge() -> MachineConfig {
    let mut config = two_units();
    let function = |bus, devfn| {
        let address = iommu::PciAddress::from_devfn(0, bus, devfn);
        vtd_model::FunctionConfig::endpoint(address, 0)
    };
    let kind = FunctionKind::PciBridge { secondary: 2, subordinate: 2 };
    config.functions.push(FunctionConfig { kind, ..function(0, 0xe8) });
    let kind = FunctionKind::Conventional;
    config.functions.push(FunctionConfig { kind, requester: 0x200, ..function(2, 0x10) });
    config
}

#[test]
fn a_claim_that_fails_half_way_leaves_nothing_behind() {
    const BEHIND: usize = 3;
    let mut config = behind_a_bridge();
    // Each entry is looked at as soon as it is written back.
    config.units[0].coherent = false;
    config.audit_once_in = 1;
    let driven = Driven::start(config).expect("units that work");
    let device = driven.device(driven.function(BEHIND));
    let mut failures = 0;
    let handle = loop {
        driven.machine.set_shortage(Some(failures));
        let claimed = driven.iommu.claim(driven.function(BEHIND));
        driven.machine.set_shortage(None);
        let Err(error) = claimed else { break claimed };
        assert_eq!(error, ClaimError::Domain(DmaError::OutOfMemory));
        assert_eq!(device.reach_of_tables(), Some(Vec::new()));
        assert!(device.probe(0x5000, Access::Write).is_err());
        failures += 1;
        assert!(failures < 64, "it always fails");
    };
    assert!(failures >= 3, "{failures}: the second id of the group was never the one to fail");
    let mapping = handle.and_then(|h| Ok(h.dma_map(buffer(&driven), Bidirectional).map_err(|r| r.error)?));
    let mapping = mapping.expect("memory again");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    mapping.unmap().expect("a unit that works");
    driven.machine.audit();
    driven.assert_content("after failed claims");
}

#[test]
fn bring_up_of_interrupt_remapping_ends_too() {
    const IRE: u32 = 1 << 25;
    const SIRTP: u32 = 1 << 24;
    const CFI: u32 = 1 << 23;
    for deaf_to in [IRE, SIRTP, CFI] {
        let mut config = two_units();
        config.units[0].leftovers.queue = true;
        config.units[0].leftovers.interrupts = true;
        let machine = Machine::new(config);
        machine.misbehave(0, |unit| unit.deaf_to = deaf_to);
        let setup = InterruptSetup { entries_order: 8, x2apic: false };
        let started = UnitBench::on(machine.clone(), Some(setup));
        assert!(started.is_err(), "deaf to {deaf_to:#x}");
        assert!(machine.clock().now_ns() < 20 * SECOND_NS);
    }
}

// Invariant 11.

#[test]
fn a_slow_device_tlb_does_not_fail_the_unit() {
    let mut config = two_units();
    config.functions[0].ats = true;
    let bench = UnitBench::new(config);
    let source = bench.source(0);
    let queue_depth = std::num::NonZeroU8::MIN;
    let device =
        Invalidation::DeviceTlb { source, physical_function: 0, queue_depth, scope: DeviceTlbScope::All };
    let domain = Invalidation::Iotlb(IotlbScope::Domain(DomainId::new(3)));
    // Slower than any IOTLB may be, faster than the limit of devices.
    bench.device(0).set_answers_from_ns(bench.machine.clock().now_ns() + 30 * SECOND_NS);
    bench.invalidate(&[domain, device]);
    assert!(bench.machine.clock().now_ns() >= 30 * SECOND_NS);
    // Past the limit: an error that names the device, and the unit goes on.
    bench.device(0).set_answers_from_ns(u64::MAX);
    let error = bench.unit.invalidate(&bench.platform, &[domain, device]);
    assert!(matches!(error, Err(InvalidationError::DeviceTimeout { source: named, .. }) if named == source));
    bench.invalidate(&[domain]);
    assert!(!bench.unit.is_stuck());
    bench.assert_content();
}

// Invariants 4 and 5: what hardware says is not to be trusted.

#[test]
fn records_that_are_pending_for_ever_end_every_loop() {
    let driven = Driven::start(two_units()).expect("units that work");
    let (handle, device) = claim(&driven, 0);
    assert!(device.write(0x5000, b"x").is_err());
    driven.machine.stick_fault_records(0, true);
    driven.iommu.handle_event(Event::Fault { unit: 0 });
    driven.iommu.process_faults();
    let _ = handle.fault_count();
    driven.machine.stick_fault_records(0, false);
    driven.pump();
    driven.assert_content("with records that stay");
}

#[test]
fn events_of_units_that_are_gone_or_never_were_do_nothing() {
    let driven = Driven::start(two_units()).expect("units that work");
    let (_, device) = claim(&driven, 0);
    driven.machine.misbehave(0, |unit| unit.gone = true);
    for unit in [0, 0, 2, usize::MAX] {
        driven.iommu.handle_event(Event::Fault { unit });
        driven.iommu.process_faults();
    }
    driven.pump();
    assert!(!device.is_bus_master(), "the unit is known to be gone");
}

#[test]
fn capabilities_that_cannot_be_are_an_error_and_never_a_panic() {
    let mut random = Random::new(5);
    let (mut refused, mut accepted) = (0, 0);
    for round in 0..3_000 {
        let mut config = MachineConfig::plain(1);
        config.relax_ns = 10_000_000;
        config.memory.table_pages = 1024;
        let plain = (config.units[0].cap(), config.units[0].ecap());
        let machine = Machine::new(config);
        let mut flip = |value: u64| match round % 3 {
            0 => random.bits(),
            1 => value ^ 1 << random.below(64),
            _ => value ^ 1 << random.below(64) ^ 1 << random.below(64),
        };
        let capability = (flip(plain.0), flip(plain.1));
        machine.misbehave(0, |unit| unit.capability = Some(capability));
        match Driven::start_on(machine.clone(), Options::default()) {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
        assert!(machine.clock().now_ns() < 100 * SECOND_NS, "{capability:#x?}");
    }
    assert!(refused > 500 && accepted > 500, "{refused} refused, {accepted} accepted");
}

#[test]
fn a_machine_without_vectors_is_refused() {
    let machine = Machine::new(two_units());
    machine.exhaust_vectors();
    assert!(Driven::start_on(machine.clone(), Options::default()).is_err());
    assert!(!machine.is_on(0).0 && machine.is_content());
}

#[test]
fn a_shortage_at_any_point_of_bring_up_is_an_error() {
    let mut failed = 0;
    for remaining in 0..64 {
        let machine = Machine::new(MachineConfig::random(11));
        machine.set_shortage(Some(remaining));
        match Driven::start_on(machine.clone(), Options::default()) {
            Err(_) => failed += 1,
            Ok(_) => break,
        }
        assert!(machine.is_content(), "{:#?}", machine.take_complaints());
    }
    assert!((2..64).contains(&failed), "{failed}");
}

/// Two functions that nothing keeps apart, behind units whose tables have no width in common: there is no table that
/// both could walk.
#[test]
fn a_group_that_no_table_can_serve_is_refused_and_stays_blocked() {
    let mut config = two_units();
    (config.units[0].sagaw, config.units[1].sagaw) = (0b0010, 0b0100);
    (config.units[0].mgaw, config.units[1].mgaw) = (39, 48);
    for function in 0..2_usize {
        let address = iommu::PciAddress::from_devfn(0, 0, 0x40 | function as u8);
        config.functions.push(FunctionConfig::endpoint(address, function));
    }
    let driven = Driven::start(config).expect("units that work");
    for index in [2, 3] {
        let error = driven.iommu.claim(driven.function(index)).err();
        assert_eq!(error, Some(ClaimError::Domain(DmaError::NoCommonFormat)));
        assert!(driven.device(driven.function(index)).probe(0x5000, Access::Read).is_err());
    }
    claim(&driven, 0);
    driven.assert_content("after refused claims");
}
