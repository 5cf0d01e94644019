//! What becomes of a group whose devices fault too much, or whose driver goes: quarantine, release, and the memory that
//! was mapped.

use std::{
    sync::{Arc, Mutex},
    thread,
};

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaError, Incident, ReleaseError,
    dump::GroupStanding,
    interrupts::{Destination, MessageSource},
    policy::Limits,
};
use vtd_model::{
    Access, Device, InterruptOutcome, MachineConfig, ModelBuffer, ReservedMemory, UnitConfig, become_cpu,
};

/// An address that nothing is mapped at.
const NOWHERE: u64 = 0x7000_0000;

fn machine() -> Driven {
    let mut config = MachineConfig::plain(3);
    config.relax_ns = 1_000_000;
    Driven::start(config).expect("units that work")
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven) -> ModelBuffer {
    driven.machine.allocate_buffer(1, 1).expect("memory")
}

/// Makes `device` fault `count` times, with the records read after each `burst`.
fn storm(driven: &Driven, device: &Device, count: u64, burst: u64) {
    for fault in 1..=count {
        let _ = device.write(NOWHERE + fault * 0x1000, b"x");
        if fault % burst == 0 {
            driven.pump();
        }
    }
    driven.pump();
}

#[test]
fn a_storm_ends_in_quarantine_at_the_threshold_and_harms_nobody_else() {
    let threshold = u64::from(Limits::default().quarantine_at());
    for burst in [1, 3, 100] {
        let driven = machine();
        driven.iommu.set_fault_limits(Limits::default().without_decay());
        let ((wild, wild_device), (calm, calm_device)) = (claim(&driven, 0), claim(&driven, 1));
        let mapped = wild.dma_map(buffer(&driven), Bidirectional).expect("room");
        let other = calm.dma_map(buffer(&driven), Bidirectional).expect("room");
        storm(&driven, &wild_device, 4_000, burst);
        assert_eq!(
            driven.standing(wild.function()).0,
            GroupStanding::Quarantined { on_scratch_page: false, condemned_at: Some(threshold) },
            "burst {burst}"
        );
        assert!(!wild_device.is_bus_master());
        // Even if it masters the bus all the same it reaches nothing, and is not heard any more.
        driven.enable(wild.function());
        let before = driven.standing(wild.function()).1;
        assert!(wild_device.probe(mapped.iova().as_u64(), Access::Read).is_err());
        assert_eq!(wild_device.reach_of_tables(), Some(Vec::new()));
        storm(&driven, &wild_device, 50, 1);
        assert_eq!(driven.standing(wild.function()).1, before, "what it does in there is no news");
        // The others go on.
        assert!(calm_device.is_bus_master());
        assert!(calm_device.probe(other.iova().as_u64(), Access::Write).is_ok());
        assert_eq!(driven.standing(calm.function()), (GroupStanding::Claimed, 0));
        other.unmap().expect("a unit that works");
        assert_eq!(mapped.unmap().map(drop), Err(DmaError::Revoked));
        driven.machine.audit();
        driven.assert_content("after a storm");
    }
}

#[test]
fn two_units_that_storm_at_once_cost_their_own_offenders_alone() {
    let threshold = u64::from(Limits::default().quarantine_at());
    for burst in [1, 7] {
        let mut config = MachineConfig::plain(4);
        config.relax_ns = 1_000_000;
        config.units.push(UnitConfig::plain(0xfeda_0000));
        config.functions[2..].iter_mut().for_each(|function| function.unit = 1);
        let driven = Driven::start(config).expect("units that work");
        let (wild, calm) =
            ([0, 2].map(|index| claim(&driven, index)), [1, 3].map(|index| claim(&driven, index)));
        let mapped =
            calm.each_ref().map(|(handle, _)| handle.dma_map(buffer(&driven), Bidirectional).expect("room"));
        thread::scope(|scope| {
            for (cpu, (_, device)) in wild.iter().enumerate() {
                let driven = &driven;
                scope.spawn(move || {
                    become_cpu(cpu);
                    storm(driven, device, 2_000, burst);
                });
            }
        });
        driven.pump();
        for (handle, device) in &wild {
            let standing = driven.standing(handle.function());
            assert_eq!(
                standing.0,
                GroupStanding::Quarantined { on_scratch_page: false, condemned_at: Some(threshold) },
                "burst {burst}"
            );
            assert!(!device.is_bus_master());
        }
        for ((handle, device), mapping) in calm.iter().zip(mapped) {
            assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
            assert_eq!(driven.standing(handle.function()), (GroupStanding::Claimed, 0));
            mapping.unmap().expect("a unit that works");
        }
        driven.machine.audit();
        driven.assert_content("after two storms");
    }
}

#[test]
fn a_fault_before_the_host_can_take_events_is_read_by_its_first_worker() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    let faults = || driven.standing(handle.function()).1;
    let _ = device.write(NOWHERE, b"x");
    // The host has no handle yet that it could tell of the event, and there is no second one before the record is read.
    assert_eq!(driven.machine.deliver_events(|_| ()), 1);
    let _ = device.write(NOWHERE + 0x1000, b"x");
    assert_eq!((driven.machine.deliver_events(|_| ()), faults()), (0, 0));
    driven.iommu.process_faults();
    assert_eq!(faults(), 2);
    let _ = device.write(NOWHERE + 0x2000, b"x");
    driven.pump();
    assert_eq!(faults(), 3, "from then on by events");
    driven.assert_content("after early faults");
}

#[test]
fn a_few_faults_now_and_then_are_put_up_with() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    for _ in 0..20 {
        storm(&driven, &device, 5, 1);
        driven.machine.clock().advance(1_000_000_000);
    }
    assert_eq!(driven.standing(handle.function()), (GroupStanding::Claimed, 100));
    assert!(handle.dma_map(buffer(&driven), Bidirectional).is_ok());
}

#[test]
fn drivers_are_told() {
    let driven = machine();
    let ((wild, wild_device), (calm, _)) = (claim(&driven, 0), claim(&driven, 1));
    let told = Arc::new(Mutex::new(Vec::new()));
    for (name, handle) in [("wild", &wild), ("calm", &calm)] {
        let told = told.clone();
        handle.on_incident(Arc::new(move |incident| told.lock().unwrap().push((name, incident))));
    }
    storm(&driven, &wild_device, 40, 1);
    let told = told.lock().unwrap();
    assert!(told.iter().all(|(name, _)| *name == "wild"));
    assert!(
        matches!(told.first(), Some((_, Incident::Fault(fault))) if fault.source.devfn() == wild.function().devfn())
    );
    assert_eq!(told.last(), Some(&("wild", Incident::Quarantined)));
    assert_eq!(told.iter().filter(|(_, incident)| *incident == Incident::Quarantined).count(), 1);
}

/// Whoever takes the device is faster than its driver, who has just claimed it.
#[test]
fn a_driver_that_listens_late_is_told_what_it_missed() {
    let driven = machine();
    let told = |handle: &DmaDevice| {
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = told.clone();
        handle.on_incident(Arc::new(move |incident| teller.lock().unwrap().push(incident)));
        told.lock().unwrap().clone()
    };
    let (handle, _) = claim(&driven, 0);
    let function = handle.function();
    assert_eq!(told(&handle), []);
    driven.iommu.quarantine(function).expect("a unit that works");
    assert_eq!(told(&handle), [Incident::Quarantined]);
    driven.iommu.release(function, |_| true).expect("a quiet device");
    assert_eq!(told(&handle), [Incident::Released]);
    // Nor does it hear of what the next one's device does.
    let (next, _) = claim(&driven, 0);
    assert_eq!((told(&handle), told(&next)), (vec![Incident::Released], vec![]));
    // While it is being taken back: how that will end.
    let mut meanwhile = Vec::new();
    let mut reset = |told: Vec<Incident>| {
        meanwhile.extend(told);
        true
    };
    driven.iommu.release(function, |_| reset(told(&next))).expect("a quiet device");
    let (last, _) = claim(&driven, 0);
    driven.iommu.functions_gone(&[function], |_| reset(told(&last))).expect("a unit that works");
    assert_eq!(meanwhile, [Incident::Released, Incident::Removed]);
    assert_eq!((told(&next), told(&last)), (vec![Incident::Removed], vec![Incident::Removed]));
}

#[test]
fn memory_comes_back_when_the_device_is_quiet_and_not_before() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    let function = handle.function();
    let kept = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let dropped = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let physical = [&kept, &dropped].map(|m| device.probe(m.iova().as_u64(), Access::Read).expect("mapped"));
    driven.iommu.quarantine(function).expect("a unit that works");
    assert!(matches!(
        driven.standing(function).0,
        GroupStanding::Quarantined { on_scratch_page: false, condemned_at: None }
    ));
    drop(dropped);
    driven.pump();
    let refused = handle.dma_map(buffer(&driven), Bidirectional).map(drop).map_err(|r| r.error);
    assert_eq!(refused, Err(DmaError::Revoked));
    let again = driven.iommu.claim(function).map(drop);
    assert_eq!(again, Err(ClaimError::Quarantined { function }));
    // It cannot be reset: nothing comes back.
    assert_eq!(driven.iommu.release(function, |_| false), Err(ReleaseError::NotQuiet { function }));
    driven.pump();
    assert!(physical.iter().all(|&memory| driven.machine.is_lent(memory)), "a buffer came back");
    assert_eq!(driven.iommu.claim(function).map(drop), Err(ClaimError::Quarantined { function }));
    // It can.
    let mut reset = Vec::new();
    let released = driven.iommu.release(function, |function| {
        assert!(!driven.device(function).is_bus_master());
        assert!(physical.iter().all(|&memory| driven.machine.is_lent(memory)), "too early");
        reset.push(function);
        true
    });
    assert_eq!((released, reset), (Ok(()), vec![function]));
    driven.pump();
    assert!(!driven.machine.is_lent(physical[1]), "the dropped buffer is free");
    drop(kept.unmap().expect("the device is quiet"));
    drop(handle);
    assert_eq!(driven.iommu.live_mappings(), 0);
    // And the next driver starts anew.
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    let before = handle.fault_count();
    assert!(device.write(NOWHERE, b"x").is_err());
    assert_eq!(handle.fault_count(), before + 1, "its faults are heard again");
    mapping.unmap().expect("a unit that works");
    driven.machine.audit();
    driven.assert_content("after a release");
}

#[test]
fn a_driver_that_goes_in_peace_leaves_nothing() {
    let driven = machine();
    let pages = driven.machine.live_table_pages();
    for round in 0..10 {
        let (handle, device) = claim(&driven, 0);
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        let (iova, physical) = (mapping.iova().as_u64(), device.probe(mapping.iova().as_u64(), Access::Read));
        driven.iommu.release(handle.function(), |_| true).expect("a unit that works");
        assert!(!device.is_bus_master());
        driven.enable(handle.function());
        assert!(device.probe(iova, Access::Read).is_err(), "round {round}");
        drop(mapping);
        drop(handle);
        driven.pump();
        assert!(!driven.machine.is_lent(physical.expect("it was mapped")));
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
    // One context table stays, for the bus, and a page with room for dropped mappings.
    assert!(driven.machine.live_table_pages() <= pages + 2);
    driven.machine.audit();
    driven.assert_content("after ten drivers");
}

#[test]
fn reserved_memory_stays_reachable_in_quarantine_and_after() {
    let (base, limit) = (0x5000_0000, 0x5000_3fff);
    let mut config = MachineConfig::plain(2);
    config.relax_ns = 1_000_000;
    let function = config.functions[0].address;
    config.reserved.push(ReservedMemory { function, base, limit });
    let driven = Driven::start(config).expect("units that work");
    let reaches = |when: &str| {
        let reach = driven.device(function).reach_of_tables().expect("translated");
        let reach: Vec<_> = reach.iter().map(|run| (run.address, run.bytes)).collect();
        assert_eq!(reach, [(base, limit - base + 1)], "{when}");
    };
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let is_heard = || {
        driven.enable(function);
        let before = driven.standing(function).1;
        assert!(driven.device(function).write(NOWHERE, b"x").is_err());
        driven.pump();
        driven.standing(function).1 > before
    };
    assert!(is_heard());
    driven.iommu.quarantine(function).expect("a unit that works");
    reaches("in quarantine");
    assert!(device.probe(mapping.iova().as_u64(), Access::Read).is_err());
    assert!(!is_heard(), "what it tries in quarantine is no news");
    driven.iommu.release(function, |_| true).expect("a unit that works");
    reaches("after release");
    assert!(is_heard());
    // The same without a driver, which leaves the group in the domain that it had.
    driven.iommu.quarantine(function).expect("a unit that works");
    reaches("in quarantine, unclaimed");
    assert!(!is_heard());
    driven.iommu.release(function, |_| true).expect("a unit that works");
    reaches("after release, unclaimed");
    assert!(is_heard());
    mapping.unmap().expect("the device is quiet");
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    assert!(device.probe(mapping.iova().as_u64(), Access::Read).is_ok());
    driven.iommu.release(function, |_| true).expect("a unit that works");
    reaches("after a driver");
    drop(mapping);
    driven.pump();
    driven.machine.audit();
    driven.assert_content("reserved memory");
}

#[test]
fn a_stuck_unit_gives_nothing_back() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let physical = device.probe(mapping.iova().as_u64(), Access::Read).expect("mapped");
    driven.machine.misbehave(0, |unit| unit.statuses_lost = true);
    let released = driven.iommu.release(handle.function(), |_| panic!("not even asked"));
    assert!(matches!(released, Err(ReleaseError::Stuck(_))));
    assert!(!device.is_bus_master());
    drop(mapping);
    driven.pump();
    assert!(driven.machine.is_lent(physical));
    let function = handle.function();
    assert!(driven.iommu.claim(function).is_err());
    // Not even when it is asked again, and the unit seems to be well.
    driven.machine.misbehave(0, |unit| unit.statuses_lost = false);
    assert!(driven.iommu.quarantine(function).is_err());
    assert_eq!(driven.iommu.release(function, |_| panic!("not even asked")), released);
    driven.pump();
    assert!(driven.machine.is_lent(physical));
    assert!(matches!(driven.standing(function).0, GroupStanding::Quarantined { .. }));
}

/// The last that a release asks of a unit is to record again what the device tries.
#[test]
fn a_unit_that_falls_silent_at_the_end_of_a_release_has_not_released() {
    let mut config = MachineConfig::plain(1);
    config.relax_ns = 1_000_000;
    config.units[0].caching_mode = true;
    let driven = Driven::start(config).expect("units that work");
    let (handle, _) = claim(&driven, 0);
    let function = handle.function();
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let released = driven.iommu.release(function, |_| {
        driven.machine.misbehave(0, |unit| unit.statuses_lost = true);
        true
    });
    assert!(matches!(released, Err(ReleaseError::Stuck(_))), "{released:?}");
    assert!(matches!(driven.standing(function).0, GroupStanding::Quarantined { .. }));
    drop(mapping);
    assert!(driven.iommu.claim(function).is_err());
}

#[test]
fn a_release_that_fails_is_a_quarantine() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    let function = handle.function();
    let told = Arc::new(Mutex::new(Vec::new()));
    let listener = told.clone();
    handle.on_incident(Arc::new(move |incident| listener.lock().unwrap().push(incident)));
    let source = MessageSource::Function(function);
    let interrupts = driven.iommu.message_interrupts(source, 1).expect("an entry");
    let message = interrupts.route(0, Destination { apic: 0, vector: 0x31 }).expect("a route");
    assert!(matches!(device.interrupt(message), InterruptOutcome::Delivered(_)));
    for _ in 0..2 {
        assert_eq!(driven.iommu.release(function, |_| false), Err(ReleaseError::NotQuiet { function }));
        assert!(matches!(driven.standing(function).0, GroupStanding::Quarantined { .. }));
        let heard = [Incident::Released, Incident::Quarantined];
        assert_eq!(*told.lock().unwrap(), heard, "its driver hears of it, once");
        driven.enable(function);
        assert!(matches!(device.interrupt(message), InterruptOutcome::Blocked(_)), "muted");
        driven.pump();
        assert_eq!(driven.standing(function).1, 0, "and not heard");
    }
    interrupts.release().expect("a unit that works");
    assert!(matches!(device.interrupt(message), InterruptOutcome::Blocked(_)), "nobody's");
    driven.pump();
    assert_eq!(driven.standing(function).1, 1, "an entry that is free again says who tries to use it");
    driven.iommu.release(function, |_| true).expect("a quiet device");
    assert!(
        matches!(told.lock().unwrap()[2..], [Incident::Fault(_)]),
        "not of the release of what was in quarantine"
    );
    driven.assert_content("after a release that failed");
}
