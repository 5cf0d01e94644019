//! Functions that are pulled out and plugged in while the machine runs.

use std::sync::{Arc, Mutex};

use driven::{Driven, functions_of};
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaError, HotplugError, Incident, PciAddress, ReleaseError,
    dump::GroupStanding,
    interrupts::{Destination, MessageSource},
    policy::Limits,
    topology::{BridgeKind, Function, TopologyError},
};
use vtd_model::{
    Access, Device, FunctionConfig, FunctionKind, InterruptOutcome, MachineConfig, ModelBuffer,
    ReservedMemory,
};

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

/// A function as the host finds it when it is plugged in.
fn found(driven: &Driven, index: usize) -> Function {
    functions_of(driven.machine.config())[index]
}

fn pull(driven: &Driven, index: usize) {
    driven.device(driven.function(index)).set_unplugged(true);
    driven.iommu.functions_gone(&[driven.function(index)], |_| true).expect("a unit that works");
}

fn plug(driven: &Driven, index: usize) {
    driven.device(driven.function(index)).set_unplugged(false);
    driven.iommu.functions_appeared(&[found(driven, index)]).expect("a unit that works");
}

#[test]
fn nothing_of_an_old_function_reaches_a_new_one_at_its_place() {
    let driven = machine();
    let (_other, other_device) = claim(&driven, 1);
    let domains = || driven.units()[0].domains;
    const WAITING_PAGES: usize = 1;
    let (before, pages) = (domains(), driven.machine.live_table_pages());
    for round in 0..3 {
        let (handle, device) = claim(&driven, 0);
        let function = handle.function();
        let kept = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        let dropped = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        let stale = [kept.iova().as_u64(), dropped.iova().as_u64()];
        let memory = stale.map(|iova| device.probe(iova, Access::Write).expect("mapped, and cached now"));
        let interrupts = driven.iommu.message_interrupts(MessageSource::Function(function), 1).expect("one");
        let message = interrupts.route(0, Destination { apic: 0, vector: 0x31 }).expect("a route");
        assert!(matches!(device.interrupt(message), InterruptOutcome::Delivered(_)), "round {round}");
        pull(&driven, 0);
        assert_eq!(driven.iommu.claim(function).map(drop), Err(ClaimError::Unknown { function }));
        let refused = handle.dma_map(buffer(&driven), Bidirectional).map(drop).map_err(|r| r.error);
        assert_eq!(refused, Err(DmaError::Revoked));
        kept.unmap().expect("it is gone");
        drop(dropped);
        driven.pump();
        assert!(memory.iter().all(|&memory| !driven.machine.is_lent(memory)), "memory did not come back");

        // The next one masters the bus from the start, and is at the same address.
        device.set_unplugged(false);
        driven.enable(function);
        let reaches = |when: &str| {
            for iova in stale {
                assert!(device.probe(iova, Access::Read).is_err(), "round {round}, {when}: {iova:#x}");
            }
            assert!(!matches!(device.interrupt(message), InterruptOutcome::Delivered(_)), "{when}");
        };
        reaches("before it is known");
        plug(&driven, 0);
        assert!(!device.is_bus_master(), "it is stopped until it is claimed");
        driven.enable(function);
        reaches("before it is claimed");
        interrupts.release().expect("a unit that works");
        drop(handle);
        let (handle, device) = claim(&driven, 0);
        for iova in stale {
            assert!(device.probe(iova, Access::Read).is_err(), "round {round}, claimed: {iova:#x}");
        }
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
        mapping.unmap().expect("a unit that works");
        driven.iommu.release(function, |_| true).expect("a unit that works");
    }
    driven.pump();
    assert_eq!((driven.iommu.live_mappings(), domains()), (0, before), "everything came back");
    // The context table of the bus was there before; the first mapping made room for dropped ones, which stays.
    assert_eq!(driven.machine.live_table_pages(), pages + WAITING_PAGES);
    assert!(other_device.is_bus_master(), "another function went on");
    driven.machine.audit();
    driven.assert_content("after three of them");
}

#[test]
fn drivers_are_told_and_others_are_not() {
    let driven = machine();
    let ((gone, _), (stays, device)) = (claim(&driven, 0), claim(&driven, 1));
    let told = Arc::new(Mutex::new(Vec::new()));
    for (name, handle) in [("gone", &gone), ("stays", &stays)] {
        let told = told.clone();
        handle.on_incident(Arc::new(move |incident| told.lock().unwrap().push((name, incident))));
    }
    let mapping = stays.dma_map(buffer(&driven), Bidirectional).expect("room");
    pull(&driven, 0);
    assert_eq!(*told.lock().unwrap(), [("gone", Incident::Removed)]);
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    mapping.unmap().expect("a unit that works");
}

#[test]
fn what_is_not_quiet_stays_pinned_and_its_place_taken() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    let function = handle.function();
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let memory = device.probe(mapping.iova().as_u64(), Access::Read).expect("mapped");
    let not_quiet = HotplugError::Release(ReleaseError::NotQuiet { function });
    assert_eq!(driven.iommu.functions_gone(&[function], |_| false), Err(not_quiet));
    drop(mapping);
    driven.pump();
    assert!(driven.machine.is_lent(memory), "it came back too early");
    let taken = HotplugError::Topology(TopologyError::Duplicate { function });
    assert_eq!(driven.iommu.functions_appeared(&[found(&driven, 0)]), Err(taken));
    assert_eq!(driven.iommu.claim(function).map(drop), Err(ClaimError::Quarantined { function }));
    // Without power it is quiet.
    pull(&driven, 0);
    driven.pump();
    assert!(!driven.machine.is_lent(memory));
    assert_eq!(driven.iommu.functions_gone(&[function], |_| false), Ok(()), "gone is gone");
    plug(&driven, 0);
    drop(claim(&driven, 0));
    driven.assert_content("plugged in again");
}

/// One card of several does not become quiet: the others are taken back all the same.
#[test]
fn one_that_is_not_quiet_keeps_nobody_elses_place() {
    let driven = machine();
    let hands = [0, 1].map(|index| claim(&driven, index));
    let functions = [0, 1].map(|index| driven.function(index));
    let mappings =
        hands.each_ref().map(|(handle, _)| handle.dma_map(buffer(&driven), Bidirectional).expect("room"));
    let [first, second] = mappings.each_ref().map(|mapping| mapping.iova().as_u64());
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    hands[1].0.on_incident(Arc::new(move |incident| teller.lock().unwrap().push(incident)));
    let not_quiet = HotplugError::Release(ReleaseError::NotQuiet { function: functions[0] });
    let gone = driven.iommu.functions_gone(&functions, |function| function != functions[0]);
    assert_eq!(gone, Err(not_quiet));
    assert_eq!(*told.lock().unwrap(), [Incident::Removed]);
    functions.into_iter().for_each(|function| driven.enable(function));
    for ((_, device), iova) in hands.iter().zip([first, second]) {
        assert!(device.probe(iova, Access::Write).is_err(), "it still has what was its driver's");
    }
    let [pinned, back] = mappings;
    assert_eq!(pinned.unmap().map(drop), Err(DmaError::Revoked));
    back.unmap().expect("it is quiet");
    driven.iommu.functions_gone(&functions, |_| true).expect("all are quiet");
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
}

/// Its drivers have not heard of it, as those of the others have: it is to be tried again at once.
#[test]
fn of_several_that_stay_the_one_that_changes_hands_is_told() {
    let driven = machine();
    let _hands = [0, 1].map(|index| claim(&driven, index));
    let functions = [0, 1].map(|index| driven.function(index));
    let mut gone = Ok(());
    let released = driven.iommu.release(functions[1], |_| {
        gone = driven.iommu.functions_gone(&functions, |_| false);
        true
    });
    let busy = ReleaseError::Busy { function: functions[1] };
    assert_eq!((gone, released), (Err(HotplugError::Release(busy)), Ok(())));
}

/// Two functions that a unit cannot tell apart go together.
#[test]
fn a_group_is_taken_back_once_however_many_of_it_are_gone() {
    let mut config = MachineConfig::plain(1);
    let at = |bus, devfn| FunctionConfig::endpoint(PciAddress::from_devfn(0, bus, devfn), 0);
    let kind = FunctionKind::PciBridge { secondary: 1, subordinate: 1 };
    config.functions.push(FunctionConfig { kind, ..at(0, 5 << 3) });
    let kind = FunctionKind::Conventional;
    config.functions.extend([0, 8].map(|devfn| FunctionConfig { kind, requester: 0x100, ..at(1, devfn) }));
    let driven = Driven::start(config).expect("units that work");
    let (handle, _) = claim(&driven, 2);
    let told = Arc::new(Mutex::new(Vec::new()));
    let teller = told.clone();
    handle.on_incident(Arc::new(move |incident| teller.lock().unwrap().push(incident)));
    let functions = [2, 3].map(|index| driven.function(index));
    let mut asked = 0;
    let gone = driven.iommu.functions_gone(&functions, |_| {
        asked += 1;
        false
    });
    assert!(matches!(gone, Err(HotplugError::Release(ReleaseError::NotQuiet { .. }))), "{gone:?}");
    assert_eq!((asked, &**told.lock().unwrap()), (1, &[Incident::Removed, Incident::Quarantined][..]));
}

#[test]
fn a_group_changes_only_when_nobody_has_it() {
    let driven = machine();
    let (handle, device) = claim(&driven, 0);
    let PciAddress { segment, bus, .. } = handle.function();
    // Another function of the same device, and neither has ACS: they belong together.
    let sibling = Function::endpoint(PciAddress::from_devfn(segment, bus, handle.function().devfn() | 1));
    let in_use = HotplugError::InUse { function: handle.function() };
    assert_eq!(driven.iommu.functions_appeared(&[sibling]), Err(in_use));
    assert_eq!(
        driven.iommu.claim(sibling.address).map(drop),
        Err(ClaimError::Unknown { function: sibling.address })
    );
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("the group is as it was");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    mapping.unmap().expect("a unit that works");
    driven.iommu.release(handle.function(), |_| true).expect("a unit that works");
    assert_eq!(driven.iommu.functions_appeared(&[sibling]), Ok(()));
    let together = vec![handle.function(), sibling.address];
    assert!(driven.groups().contains(&together), "{:?}", driven.groups());
    assert_eq!(driven.iommu.group(sibling.address), Ok(together));
    // The one that stays belongs to itself again.
    assert_eq!(driven.iommu.functions_gone(&[sibling.address], |_| true), Ok(()));
    assert!(driven.groups().contains(&vec![handle.function()]), "{:?}", driven.groups());
    drop(claim(&driven, 0));
    driven.assert_content("apart again");
}

#[test]
fn reserved_memory_comes_with_its_function_and_goes_with_it() {
    let (base, limit) = (0x5000_0000, 0x5000_3fff);
    let mut config = MachineConfig::plain(2);
    config.relax_ns = 1_000_000;
    let function = config.functions[0].address;
    config.reserved.push(ReservedMemory { function, base, limit });
    let driven = Driven::start(config).expect("units that work");
    let device = driven.device(function);
    for _ in 0..2 {
        let reach = device.reach_of_tables().expect("translated");
        assert_eq!(
            reach.iter().map(|run| (run.address, run.bytes)).collect::<Vec<_>>(),
            [(base, limit - base + 1)]
        );
        pull(&driven, 0);
        assert_eq!(device.reach_of_tables(), Some(Vec::new()), "nothing is reserved for who is not there");
        driven.iommu.functions_appeared(&[found(&driven, 0)]).expect("a unit that works");
        device.set_unplugged(false);
    }
    driven.machine.audit();
    driven.assert_content("with reserved memory");
}

#[test]
fn functions_come_and_go_while_others_map_and_fault() {
    let driven = machine();
    let rounds = if cfg!(miri) { 5 } else { 200 };
    let (handle, device) = claim(&driven, 1);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            for _ in 0..rounds {
                let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
                assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
                mapping.unmap().expect("a unit that works");
                assert_eq!(handle.fault_count(), 0);
            }
        });
        for _ in 0..rounds {
            let (handle, device) = claim(&driven, 0);
            let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
            let _ = device.write(0x7000_0000, b"x");
            pull(&driven, 0);
            mapping.unmap().expect("it is gone");
            plug(&driven, 0);
            driven.pump();
        }
        busy.join().expect("no panic");
    });
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
    driven.machine.audit();
    driven.assert_content("after a busy time");
}

#[test]
fn a_port_goes_on_to_interrupt_when_something_appears_behind_it() {
    let mut config = MachineConfig::plain(0);
    let (port, below) = (PciAddress::from_devfn(0, 0, 0x1c << 3), PciAddress::from_devfn(0, 1, 0));
    let kind = FunctionKind::RootPort { secondary: 1, subordinate: 1 };
    config.functions = vec![
        FunctionConfig { kind, bus_master: true, ..FunctionConfig::endpoint(port, 0) },
        FunctionConfig::endpoint(below, 0),
    ];
    // Without ACS the port and what is behind it belong together: its group changes.
    let port_alone = Function::bridge(port, BridgeKind::RootPort, 1, 1);
    let driven = Driven::start_knowing(config, &[port_alone]).expect("units that work");
    let interrupts = driven.iommu.message_interrupts(MessageSource::Function(port), 1).expect("one");
    let message = interrupts.route(0, Destination { apic: 0, vector: 0x31 }).expect("a route");
    let arrives = || matches!(driven.device(port).interrupt(message), InterruptOutcome::Delivered(_));
    assert!(arrives());
    driven.iommu.functions_appeared(&[Function::endpoint(below)]).expect("a unit that works");
    assert_eq!(driven.iommu.group(below), Ok(vec![port, below]));
    assert!(arrives(), "the port's driver would not hear of the next one");
    driven.assert_content("with a port that goes on");
}

/// A unit with caching mode remembers who was refused, and that nobody wants to know, under an id of its own.
#[test]
fn what_a_unit_noted_of_an_empty_place_does_not_hinder_who_comes_next() {
    let mut config = MachineConfig::plain(2);
    config.relax_ns = 1_000_000;
    config.units[0].caching_mode = true;
    let driven = Driven::start(config).expect("units that work");
    let (handle, device) = claim(&driven, 0);
    let function = handle.function();
    // Quarantine, in which nothing that it does is recorded.
    for page in 0..2 * u64::from(Limits::default().quarantine_at()) {
        let _ = device.write(0x7000_0000 + page * 0x1000, b"x");
        driven.pump();
    }
    assert!(matches!(driven.standing(function).0, GroupStanding::Quarantined { .. }));
    driven.enable(function);
    let tries = |device: &Device| {
        assert!(device.write(0x7000_0000, b"x").is_err());
        let is_recorded = driven.machine.has_pending_faults(0);
        driven.pump();
        is_recorded
    };
    assert!(!tries(&device), "it is noted now that it is blocked, and muted");
    pull(&driven, 0);
    device.set_unplugged(false);
    driven.enable(function);
    assert!(tries(&device), "whoever is there is a stranger, and heard");
    plug(&driven, 0);
    driven.enable(function);
    assert!(tries(&device), "it is noted now that it is blocked, and heard");
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok(), "refused for what was noted");
    mapping.unmap().expect("a unit that works");
    driven.machine.audit();
    driven.assert_content("with caching mode");
}
