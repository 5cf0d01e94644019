//! What becomes of the table and its memory at the end.

use std::sync::{Arc, atomic::Ordering};

use iommu::DmaError;
use mm::PAGE_BYTES;
use vtd_model::Access;

use super::{DATA, HEAP, machine, process::Process, units};

/// The table and its memory stay until the device is known to be quiet, also if its owner ends first.
#[test]
fn what_keeps_the_table_goes_with_the_last_device() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    device.write(HEAP, b"x").expect("mapped");
    let Process { driven, space, is_gone, domain } = process;
    drop(space);
    assert!(device.probe(HEAP, Access::Write).is_ok());
    assert!(handle.release(|_| false).is_err(), "it may not be quiet");
    assert!(device.probe(HEAP, Access::Write).is_err() && device.write(HEAP, b"x").is_err());
    domain.destroy().expect("nobody is in it");
    assert!(!is_gone.load(Ordering::SeqCst), "what the device had translated may be on its way");
    driven.iommu.release(driven.function(0), |_| true).expect("quiet");
    assert!(is_gone.load(Ordering::SeqCst), "handles keep nothing");
    drop((handle, domain));
    drop(Process::take_back(memory));
    driven.assert_content("the end of a process");
}

/// The domain, and the space, may end while a device is in it: all goes with the device.
#[test]
fn a_domain_may_end_before_its_device_is_given_back() {
    let process = Process::on(units(2));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    let Process { driven, space, is_gone, domain } = process;
    domain.destroy().expect("as often as once");
    drop(space);
    assert!(domain.destroy().is_err() && domain.domain().destroy().is_err(), "it has ended");
    assert!(
        driven.iommu.assign(driven.function(1), domain.domain(), |_| true).is_err(),
        "nobody else comes in"
    );
    device.write(HEAP, b"x").expect("mapped");
    driven.iommu.quarantine(driven.function(0)).expect("a unit that works");
    assert!(device.write(HEAP, b"x").is_err());
    assert!(!is_gone.load(Ordering::SeqCst), "what the device had translated may be on its way");
    driven.iommu.release(driven.function(0), |_| true).expect("quiet");
    assert!(is_gone.load(Ordering::SeqCst), "handles keep nothing");
    drop((handle, domain, Process::take_back(memory)));
    driven.assert_content("the end of a process");
}

/// In the plain order: the device goes, the domain, the space.
#[test]
fn a_space_that_no_device_uses_is_its_owners_alone() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    assert!(device.probe(HEAP, Access::Write).is_ok());
    handle.release(|_| true).expect("quiet");
    assert_eq!(Arc::strong_count(&process.space), 2, "another device may come");
    process.domain.destroy().expect("nobody is in it");
    let Process { driven, space, is_gone, domain } = process;
    assert_eq!(Arc::strong_count(&space), 1);
    drop(space);
    assert!(is_gone.load(Ordering::SeqCst));
    let function = driven.function(0);
    assert!(driven.iommu.assign(function, domain.domain(), |_| true).is_err(), "it has ended");
    drop((handle, Process::take_back(memory)));
    driven.assert_content("the end of a process");
}

/// A unit that does not answer may walk the table for ever: nothing of it comes back.
#[test]
fn nothing_comes_back_from_a_unit_that_is_silent() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    assert!(device.probe(HEAP, Access::Write).is_ok());
    process.driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    // SAFETY: nobody uses it by this address.
    let stale = unsafe { process.space.table().unmap(HEAP, PAGE_BYTES) }.expect("mapped");
    assert!(matches!(process.domain.flush(&stale), Err(DmaError::Stuck(_))));
    drop(stale);
    assert!(handle.release(|_| true).is_err());
    let _still_in_it = process.domain.destroy();
    let Process { driven, space, is_gone, domain } = process;
    drop((handle, space, domain));
    drop(driven.iommu);
    assert!(!is_gone.load(Ordering::SeqCst));
}

/// The same if that shows when a device comes: the unit may have seen its entry.
#[test]
fn nothing_comes_back_from_a_unit_that_falls_silent_over_an_assignment() {
    let process = Process::on(machine(true));
    process.driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    let function = process.driven.function(0);
    let refused = process.driven.iommu.assign(function, process.domain.domain(), |_| true);
    assert!(refused.is_err());
    let _in_it_or_not = process.domain.destroy();
    let Process { driven, space, is_gone, domain } = process;
    drop((space, domain));
    assert!(!is_gone.load(Ordering::SeqCst), "while the subsystem is there");
    drop(driven.iommu);
    assert!(!is_gone.load(Ordering::SeqCst));
}
