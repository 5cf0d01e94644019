//! The driver against a controller in software, behind a remapping unit in software.

use alloc::sync::Arc;

use iommu::Iova;

use super::{
    super::{NvmeError, PairError},
    Controller, has_memory,
};
use crate::doubles::{
    Bench,
    nvme::{Behaviour, CAPABILITIES, Nvme, bench},
};

fn open() -> (Bench, Arc<Nvme>, Controller) {
    let (bench, device) = bench();
    let controller = Controller::open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    (bench, device, controller)
}

fn open_error(bench: &Bench) -> NvmeError {
    Controller::open(&bench.as_host(), bench.dma.clone(), &bench.function())
        .err()
        .expect("it cannot be opened")
}

#[test]
fn a_controller_identifies_itself_over_and_over() {
    let (bench, device, mut controller) = open();
    let live = bench.iommu.live_mappings();
    for _ in 0..200 {
        let identity = controller.identify().unwrap();
        assert_eq!((identity.vendor, identity.model()), (0x1b36, "double"));
    }
    assert_eq!((device.set(|state| state.commands), bench.iommu.live_mappings()), (200, live));
    drop(controller);
    bench.await_live_mappings(0);
    assert!(!bench.host.is_bus_master());
    assert_eq!(bench.host.live_vectors(), 0);
}

#[test]
fn an_error_of_the_controller_is_reported() {
    let (_bench, device, mut controller) = open();
    device.set(|state| state.behaviour = Behaviour::Status(0x4002));
    assert!(matches!(controller.identify(), Err(NvmeError::Status(status)) if status.code() == 2));
    device.set(|state| state.behaviour = Behaviour::Honest);
    controller.identify().unwrap();
}

#[test]
fn a_success_during_which_something_was_blocked_is_none() {
    let (_bench, device, mut controller) = open();
    device.set(|state| state.behaviour = Behaviour::Strays);
    assert_eq!(controller.identify(), Err(NvmeError::Blocked));
    device.set(|state| state.behaviour = Behaviour::Honest);
    controller.identify().unwrap();
    assert!(controller.write_at(Iova::new(0x77_7000)).unwrap().is_success(), "the controller's own opinion");
    controller.identify().unwrap();
}

#[test]
fn a_controller_that_lies_is_reset_and_works_again() {
    let lies = [
        (Behaviour::WrongId(5), PairError::NotInFlight { id: 5 }),
        (Behaviour::WrongId(0xffff), PairError::NotInFlight { id: 0xffff }),
        (Behaviour::OtherQueue(1), PairError::OtherQueue { queue: 1 }),
    ];
    let (bench, device, mut controller) = open();
    let live = bench.iommu.live_mappings();
    for (lie, error) in lies {
        device.set(|state| state.behaviour = lie);
        assert_eq!(controller.identify(), Err(NvmeError::Queue(error)));
        device.set(|state| state.behaviour = Behaviour::Honest);
        controller.identify().unwrap();
    }
    assert_eq!(bench.iommu.live_mappings(), live);
}

#[test]
fn a_command_that_is_never_finished_times_out() {
    let (bench, device, mut controller) = open();
    let live = bench.iommu.live_mappings();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let host = bench.host.clone();
    let waiter = std::thread::spawn(move || (controller.identify(), controller));
    crate::doubles::await_true(|| {
        host.advance(100_000_000);
        waiter.is_finished()
    });
    let (result, mut controller) = waiter.join().unwrap();
    assert_eq!(result, Err(NvmeError::TimedOut));
    device.set(|state| state.behaviour = Behaviour::Honest);
    controller.identify().unwrap();
    assert_eq!(bench.iommu.live_mappings(), live);
}

#[test]
fn interrupts_without_end_gain_a_controller_no_time() {
    let (bench, device, mut controller) = open();
    device.set(|state| state.behaviour = Behaviour::Silent);
    bench.host.begin_storm();
    assert_eq!(controller.identify(), Err(NvmeError::TimedOut));
}

/// Whatever is asked of it.
#[test]
fn a_controller_that_is_anothers_by_now_is_not_started() {
    let (bench, device, mut controller) = open();
    let _dma = bench.pass_on(|| device.set(|state| state.reset()));
    let before = bench.writes();
    assert_eq!(controller.write_at(Iova::new(0x77_7000)), Err(NvmeError::Gone));
    assert_eq!(controller.restart(), Err(NvmeError::Gone));
    assert_eq!((controller.is_running(), controller.cut_off()), (false, Ok(())));
    drop(controller);
    assert_eq!((bench.writes(), bench.host.live_vectors()), (before, 0));
    bench.await_live_mappings(0);
}

/// What is left of a flood in the queues does not meet the commands after it.
#[test]
fn a_flood_that_ends_early_leaves_nothing_in_the_queues() {
    let (bench, device, mut controller) = open();
    let live = bench.iommu.live_mappings();
    let target = Iova::new(0x77_7000);
    device.set(|state| state.behaviour = Behaviour::WrongId(5));
    assert_eq!(controller.flood(target, 100), Err(NvmeError::Queue(PairError::NotInFlight { id: 5 })));
    device.set(|state| state.behaviour = Behaviour::Silent);
    let host = bench.host.clone();
    let waiter = std::thread::spawn(move || (controller.flood(target, 100), controller));
    crate::doubles::await_true(|| {
        host.advance(100_000_000);
        waiter.is_finished()
    });
    let (result, mut controller) = waiter.join().unwrap();
    assert_eq!(result, Ok(0));
    device.set(|state| state.behaviour = Behaviour::Honest);
    // More than the queue has room for.
    for _ in 0..50 {
        controller.identify().unwrap();
    }
    assert_eq!(bench.iommu.live_mappings(), live);
}

#[test]
fn a_controller_that_does_not_become_quiet_keeps_its_memory() {
    let (bench, device, mut controller) = open();
    device.set(|state| (state.behaviour, state.restless) = (Behaviour::OtherQueue(9), true));
    let live = bench.iommu.live_mappings();
    assert_eq!(controller.identify(), Err(NvmeError::NotReady { wanted: false, status: 1 }));
    assert!(!bench.host.is_bus_master());
    assert_eq!(controller.identify(), Err(NvmeError::Gone));
    drop(controller);
    bench.await_live_mappings(live + 1);
    assert_eq!(bench.iommu.live_mappings(), live + 1, "its queues and the page it was to write to");
}

#[test]
fn a_controller_that_does_not_become_ready_is_refused() {
    let (bench, device) = bench();
    device.set(|state| state.lame = true);
    assert_eq!(open_error(&bench), NvmeError::NotReady { wanted: true, status: 0 });
    bench.await_live_mappings(0);
    assert!(!bench.host.is_bus_master());
}

#[test]
fn capabilities_that_cannot_be_used_are_refused() {
    let (bench, device) = bench();
    // Nothing answers; no NVM commands; pages of 8 KiB at least; queues of one entry.
    for capabilities in [u64::MAX, CAPABILITIES & !(1 << 37), CAPABILITIES | 1 << 48, CAPABILITIES & !0xffff]
    {
        device.set(|state| state.capabilities = capabilities);
        assert_eq!(open_error(&bench), NvmeError::Unsupported { capabilities });
    }
    // Doorbells 128 KiB apart.
    device.set(|state| state.capabilities = CAPABILITIES | 15 << 32);
    assert!(matches!(open_error(&bench), NvmeError::Outside(_)));
    assert!(!bench.host.is_bus_master());
}

#[test]
fn a_controller_with_the_smallest_queues_works() {
    let (bench, device) = bench();
    device.set(|state| state.capabilities = CAPABILITIES & !0xffff | 1);
    let mut controller = Controller::open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    for _ in 0..5 {
        controller.identify().unwrap();
    }
}

/// What is in it outlives a reset.
#[test]
fn a_controller_with_memory_of_its_own_is_known() {
    let (bench, device) = bench();
    let opened = bench.device();
    assert_eq!(has_memory(&opened), Ok(false));
    for (capabilities, memory_size) in [
        (CAPABILITIES | 1 << 57, 0),
        (CAPABILITIES | 1 << 56, 0),
        (CAPABILITIES, 0x1010),
        (u64::MAX, u32::MAX),
    ] {
        device.set(|state| (state.capabilities, state.memory_size) = (capabilities, memory_size));
        assert_eq!(has_memory(&opened), Ok(true), "{capabilities:#x}");
    }
}
