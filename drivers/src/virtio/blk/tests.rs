//! The driver against a device in software, behind a remapping unit in software.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use std::{vec, vec::Vec};

use iommu::{DmaDevice, Iova, PageBuffer};

use super::{DiskError, open as open_disk};
use crate::{
    block::{
        AtAddress, BlockDevice, BlockError, Completion, Completions, Extent, NotQuiet, Operation, Reason,
        Request, Transfer, TransferError, engine::REQUEST_DEADLINE_NS, transfer,
    },
    doubles::{
        Bench,
        virtio::STATUS,
        virtio_blk::{self, Behaviour, DISCARD, EVENT_INDEX, INDIRECT, QUEUES, SECTORS, VirtioBlk, bench},
    },
    virtio::{Transport, TransportError},
};

const SECTOR: usize = 512;

fn open() -> (Bench, Arc<VirtioBlk>, Arc<dyn BlockDevice>) {
    let (bench, device) = bench();
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    (bench, device, disk)
}

fn buffer(fill: u8) -> PageBuffer {
    let mut buffer = PageBuffer::zeroed(1).unwrap();
    buffer.fill(fill);
    buffer
}

fn read(first: u64, blocks: u32) -> Operation {
    Operation::Read(Transfer { first, blocks, buffer: buffer(0xee) })
}

fn write(first: u64, blocks: u32, fill: u8) -> Operation {
    Operation::Write(Transfer { first, blocks, buffer: buffer(fill) })
}

fn run(
    bench: &Bench,
    disk: &Arc<dyn BlockDevice>,
    operation: Operation,
) -> Result<Option<PageBuffer>, TransferError> {
    transfer(&bench.as_host(), &**disk, operation)
}

fn error_of(result: Result<Option<PageBuffer>, TransferError>) -> (BlockError, bool) {
    match result {
        Err(TransferError::Failed(error, buffer)) => (error, buffer.is_some()),
        other => panic!("{other:?}"),
    }
}

/// Submits `count` reads and returns where their completions go.
fn submit_reads(bench: &Bench, disk: &Arc<dyn BlockDevice>, count: u64) -> Arc<Completions> {
    let completions = Completions::new(&bench.as_host(), count as usize).unwrap();
    for tag in 0..count {
        disk.submit(Request { tag, operation: read(tag, 1) }, &completions).unwrap();
    }
    completions
}

fn collect(completions: &Completions, count: usize) -> Vec<Completion> {
    (0..count).map(|_| completions.wait(u64::MAX).unwrap()).collect()
}

/// The disk does what it should, with nothing left mapped but what was before.
fn assert_works(bench: &Bench, disk: &Arc<dyn BlockDevice>) {
    let live = bench.iommu.live_mappings();
    crate::doubles::await_true(|| {
        matches!(run(bench, disk, write(7, 8, 0x77)), Ok(Some(_)))
            && matches!(run(bench, disk, read(7, 8)), Ok(Some(buffer)) if buffer.iter().all(|&byte| byte == 0x77))
    });
    bench.await_live_mappings(live);
}

#[test]
fn what_is_written_is_on_the_medium_and_is_read_again() {
    let (bench, device, disk) = open();
    let live = bench.iommu.live_mappings();
    run(&bench, &disk, write(3, 2, 0xa5)).unwrap();
    device.set(|state| {
        assert!(state.medium[3 * SECTOR..5 * SECTOR].iter().all(|&byte| byte == 0xa5));
        assert!(state.medium[..3 * SECTOR].iter().chain(&state.medium[5 * SECTOR..]).all(|&byte| byte == 0));
    });
    let page = run(&bench, &disk, read(4, 2)).unwrap().unwrap();
    assert!(page[..SECTOR].iter().all(|&byte| byte == 0xa5));
    assert!(page[SECTOR..2 * SECTOR].iter().all(|&byte| byte == 0));
    assert!(page[2 * SECTOR..].iter().all(|&byte| byte == 0xee), "bytes behind the request stay as they are");
    run(&bench, &disk, Operation::Flush).unwrap();
    assert_eq!(device.set(|state| state.flushes), 1);
    assert_eq!((bench.iommu.live_mappings(), disk.resets()), (live, 0));
}

#[test]
fn many_requests_wrap_around_the_rings() {
    let (bench, device, disk) = open();
    let depth = disk.depth();
    assert_eq!(depth, 21, "a queue of 64 descriptors");
    let completions = Completions::new(&bench.as_host(), depth).unwrap();
    let mut in_flight = 0;
    for tag in 0..5_000 {
        if in_flight == depth {
            let done = completions.wait(u64::MAX).unwrap();
            assert_eq!((done.result, done.buffer.is_some()), (Ok(()), true));
            in_flight -= 1;
        }
        disk.submit(Request { tag, operation: write(tag % SECTORS, 1, tag as u8) }, &completions).unwrap();
        in_flight += 1;
    }
    assert!(collect(&completions, in_flight).iter().all(|done| done.result.is_ok()));
    assert_eq!(device.set(|state| state.requests), 5_000);
}

/// With everything that it can do at once.
fn open_capable(cpus: usize) -> (Bench, Arc<VirtioBlk>, Arc<dyn BlockDevice>) {
    let (bench, device) = bench();
    bench.host.cpus.store(cpus, Ordering::Relaxed);
    device.set(|state| state.offered |= QUEUES | DISCARD | INDIRECT | EVENT_INDEX);
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    (bench, device, disk)
}

#[test]
fn each_cpu_has_a_queue_as_far_as_there_are_any() {
    for (cpus, queues) in [(1, 1), (2, 2), (8, 3)] {
        let (bench, device, disk) = open_capable(cpus);
        assert_eq!((disk.queues(), disk.depth()), (queues, 64 * queues), "{cpus} CPUs");
        for cpu in 0..cpus {
            bench.host.cpu.store(cpu, Ordering::Relaxed);
            run(&bench, &disk, write(cpu as u64, 1, cpu as u8)).unwrap();
        }
        let wanted: Vec<usize> =
            (0..3).map(|queue| (0..cpus).filter(|cpu| cpu % queues == queue).count()).collect();
        device.set(|state| assert_eq!(state.by_queue.to_vec(), wanted));
        assert_works(&bench, &disk);
        assert_eq!((disk.resets(), disk.shut_down()), (0, Ok(())));
    }
}

#[test]
fn a_full_queue_leaves_requests_to_the_others() {
    let (bench, device, disk) = open_capable(3);
    device.set(|state| state.behaviour = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 3 * 64);
    device.set(|state| assert_eq!(state.by_queue[0], 64));
    let more = Completions::new(&bench.as_host(), 1).unwrap();
    let rejected = disk.submit(Request { tag: 0, operation: read(0, 1) }, &more).unwrap_err();
    assert_eq!(rejected.reason, Reason::QueueFull);
    disk.reset();
    for done in collect(&completions, 3 * 64) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Reset), true));
    }
    device.set(|state| state.behaviour = Behaviour::Honest);
    assert_works(&bench, &disk);
}

#[test]
fn many_requests_go_through_indirect_tables_by_event_index() {
    let (bench, device, disk) = open_capable(1);
    let completions = Completions::new(&bench.as_host(), 64).unwrap();
    // Beyond 16 bits of index.
    let (mut in_flight, count) = (0, 70_000_u64);
    for tag in 0..count {
        if in_flight == 64 {
            assert_eq!(completions.wait(u64::MAX).unwrap().result, Ok(()));
            in_flight -= 1;
        }
        disk.submit(Request { tag, operation: write(tag % SECTORS, 1, tag as u8) }, &completions).unwrap();
        in_flight += 1;
    }
    assert!(collect(&completions, in_flight).iter().all(|done| done.result.is_ok()));
    device.set(|state| {
        assert_eq!(state.requests as u64, count);
        assert!(state.interrupts as u64 <= count && state.interrupts > 0);
    });
}

#[test]
fn deallocated_blocks_are_named_to_the_device() {
    let (bench, device, disk) = open_capable(1);
    device.set(|state| state.medium.fill(0x55));
    run(&bench, &disk, Operation::Deallocate(Extent { first: 3, blocks: 64 })).unwrap();
    device.set(|state| {
        let (before, rest) = state.medium.split_at(3 * SECTOR);
        let (within, behind) = rest.split_at(64 * SECTOR);
        assert!(
            before.iter().chain(behind).all(|&byte| byte == 0x55) && within.iter().all(|&byte| byte == 0)
        );
    });
    let completions = Completions::new(&bench.as_host(), 1).unwrap();
    let refused = |disk: &Arc<dyn BlockDevice>, first, blocks| {
        let operation = Operation::Deallocate(Extent { first, blocks });
        disk.submit(Request { tag: 0, operation }, &completions).unwrap_err().reason
    };
    for (first, blocks) in [(0, 65), (SECTORS, 1), (0, 0), (u64::MAX, 2)] {
        assert_eq!(refused(&disk, first, blocks), Reason::OutOfRange { first, blocks });
    }
    let (_bench, _device, plain) = open();
    assert_eq!(refused(&plain, 0, 1), Reason::Unsupported);
}

#[test]
fn without_a_flush_request_a_flush_is_done_at_once() {
    let (bench, device) = bench();
    device.set(|state| state.offered &= !(1 << 9));
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    run(&bench, &disk, Operation::Flush).unwrap();
    assert_eq!(device.set(|state| state.requests), 0);
}

#[test]
fn a_full_queue_and_full_completions_give_the_request_back() {
    let (bench, device, disk) = open();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let live = bench.iommu.live_mappings();
    let completions = submit_reads(&bench, &disk, disk.depth() as u64);
    let more = Completions::new(&bench.as_host(), 1).unwrap();
    let rejected = disk.submit(Request { tag: 0, operation: write(0, 1, 0x31) }, &more).unwrap_err();
    assert_eq!(rejected.reason, Reason::QueueFull);
    let Operation::Write(Transfer { buffer, .. }) = rejected.request.operation else { panic!() };
    assert!(buffer.iter().all(|&byte| byte == 0x31));
    assert_eq!(bench.iommu.live_mappings(), live + disk.depth());
    let rejected = disk.submit(Request { tag: 0, operation: read(0, 1) }, &completions).unwrap_err();
    assert_eq!(rejected.reason, Reason::CompletionsFull);
    disk.reset();
    collect(&completions, disk.depth());
}

#[test]
fn a_device_that_reports_errors_is_believed() {
    let (bench, device, disk) = open();
    let errors =
        [(1, BlockError::Medium(1)), (2, BlockError::Unsupported(2)), (0x80, BlockError::Device(0x80))];
    for (status, error) in errors {
        device.set(|state| state.behaviour = Behaviour::Status(status));
        assert_eq!(error_of(run(&bench, &disk, read(0, 1))), (error, true));
    }
    device.set(|state| state.behaviour = Behaviour::NoStatus);
    assert_eq!(error_of(run(&bench, &disk, read(0, 1))), (BlockError::Device(0xff), true));
    device.set(|state| state.behaviour = Behaviour::Honest);
    assert_works(&bench, &disk);
    assert_eq!(disk.resets(), 0);
}

#[test]
fn a_device_that_lies_in_its_rings_is_reset_and_works_again() {
    let lies = [
        Behaviour::WrongHead(60),
        Behaviour::WrongHead(64),
        Behaviour::WrongHead(0xffff_0000),
        // As far as it has requests is as far as it may go.
        Behaviour::Jump(6),
        Behaviour::Jump(0x8000),
        Behaviour::TooLong(1),
        Behaviour::TooLong(0x8000_0000),
    ];
    for (lie, resets) in lies.into_iter().zip(1..) {
        let (bench, device, disk) = open();
        let live = bench.iommu.live_mappings();
        device.set(|state| state.behaviour = Behaviour::Silent);
        let completions = submit_reads(&bench, &disk, 5);
        device.set(|state| state.behaviour = lie);
        assert_eq!(error_of(run(&bench, &disk, read(9, 1))), (BlockError::Reset, true), "{lie:?}");
        for done in collect(&completions, 5) {
            assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Reset), true), "{lie:?}");
        }
        device.set(|state| state.behaviour = Behaviour::Honest);
        assert_works(&bench, &disk);
        assert_eq!((disk.resets(), bench.iommu.live_mappings()), (1, live), "{lie:?}, number {resets}");
    }
}

#[test]
fn a_device_that_asks_for_a_reset_gets_it() {
    let (bench, device, disk) = open();
    device.set(|state| state.behaviour = Behaviour::AsksForReset);
    assert_eq!(error_of(run(&bench, &disk, read(0, 1))), (BlockError::Reset, true));
    device.set(|state| state.behaviour = Behaviour::Honest);
    assert_works(&bench, &disk);
}

#[test]
fn a_request_that_takes_too_long_fails_and_the_device_is_reset() {
    let (bench, device, disk) = open();
    let live = bench.iommu.live_mappings();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let first = submit_reads(&bench, &disk, 2);
    bench.host.advance(REQUEST_DEADLINE_NS / 2);
    let second = submit_reads(&bench, &disk, 1);
    device.set(|state| state.behaviour = Behaviour::Honest);
    bench.host.advance(REQUEST_DEADLINE_NS / 2 + 1);
    for _ in 0..2 {
        // The driver looks once a second, and not at a time of the test's choice.
        let done = loop {
            if let Some(done) = first.take() {
                break done;
            }
            bench.host.advance(REQUEST_DEADLINE_NS / 1000);
            std::thread::sleep(std::time::Duration::from_millis(1));
        };
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::TimedOut), true));
    }
    let done = &collect(&second, 1)[0];
    assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Reset), true));
    assert_works(&bench, &disk);
    assert_eq!((disk.resets(), bench.iommu.live_mappings()), (1, live));
}

#[test]
fn a_blocked_transfer_fails_although_the_device_calls_it_a_success() {
    let (bench, device, disk) = open();
    device.set(|state| state.medium.fill(0x44));
    for writable in [true, false] {
        let completions = Completions::new(&bench.as_host(), 1).unwrap();
        let iova = Iova::new(0x1234_5000);
        disk.submit_at(AtAddress { tag: 5, first: 0, blocks: 8, iova, writable }, &completions).unwrap();
        let done = &collect(&completions, 1)[0];
        assert_eq!((done.tag, done.result), (5, Err(BlockError::Blocked)), "writable {writable}");
    }
    assert_works(&bench, &disk);
}

#[test]
fn what_was_in_flight_during_a_fault_fails_with_it() {
    let (bench, device, disk) = open();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 3);
    let bad = Completions::new(&bench.as_host(), 1).unwrap();
    device.set(|state| state.behaviour = Behaviour::Honest);
    let request = AtAddress { tag: 0, first: 0, blocks: 1, iova: Iova::new(0x7000), writable: true };
    disk.submit_at(request, &bad).unwrap();
    assert_eq!(collect(&bad, 1)[0].result, Err(BlockError::Blocked));
    // Done by the device later on, as it says; but what it did during the fault nobody knows.
    disk.reset();
    assert!(collect(&completions, 3).iter().all(|done| done.result == Err(BlockError::Blocked)));
    assert_works(&bench, &disk);
}

#[test]
fn a_device_that_does_not_become_quiet_keeps_its_memory() {
    let (bench, device, disk) = open();
    device.set(|state| (state.behaviour, state.restless) = (Behaviour::Silent, true));
    let completions = submit_reads(&bench, &disk, 3);
    let live = bench.iommu.live_mappings();
    disk.reset();
    for done in collect(&completions, 3) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), false));
    }
    bench.await_live_mappings(live);
    assert_eq!(bench.iommu.live_mappings(), live, "what it had stays mapped");
    assert!(!bench.host.is_bus_master());
    let rejected = disk.submit(Request { tag: 0, operation: read(0, 1) }, &completions).unwrap_err();
    assert_eq!(rejected.reason, Reason::Gone);
    assert_eq!(disk.shut_down(), Err(NotQuiet::Device));
    bench.iommu.reap();
    assert_eq!(bench.iommu.live_mappings(), live, "nor does it go with the driver");
}

#[test]
fn a_device_that_never_works_is_given_up() {
    let (bench, device, disk) = open();
    device.set(|state| state.behaviour = Behaviour::AsksForReset);
    let mut attempts = 0;
    crate::doubles::await_true(|| {
        attempts += 1;
        matches!(
            run(&bench, &disk, read(0, 1)),
            Err(TransferError::Rejected(rejected)) if rejected.reason == Reason::Gone
        )
    });
    assert!((5..50).contains(&disk.resets()), "{} resets, {attempts} attempts", disk.resets());
    assert!(!bench.host.is_bus_master());
    let (before, requests) = (disk.resets(), device.set(|state| state.requests));
    bench.host.advance(10 * REQUEST_DEADLINE_NS);
    assert!(run(&bench, &disk, read(0, 1)).is_err());
    assert_eq!((disk.resets(), device.set(|state| state.requests)), (before, requests));
    assert_eq!(disk.shut_down(), Ok(()));
}

/// Whatever the first driver is asked for.
#[test]
fn a_device_that_is_anothers_by_now_is_left_alone() {
    let (bench, device, old) = open();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let completions = submit_reads(&bench, &old, 3);
    let dma = bench.pass_on(|| device.set(|state| state.reset()));
    device.set(|state| state.behaviour = Behaviour::Honest);
    let new = open_disk(&bench.as_host(), dma, &bench.function()).unwrap();
    let before = bench.writes();
    old.reset();
    let ending = std::thread::spawn(move || old.end());
    crate::doubles::await_true(|| {
        bench.host.advance(REQUEST_DEADLINE_NS / 1000);
        ending.is_finished()
    });
    assert_eq!(ending.join().unwrap(), Ok(()));
    assert!(collect(&completions, 3).iter().all(|done| done.result.is_err() && done.buffer.is_some()));
    assert_eq!((bench.writes(), bench.host.live_vectors()), (before, 2));
    assert_works(&bench, &new);
    assert_eq!((new.resets(), new.shut_down()), (0, Ok(())));
}

#[test]
fn a_transport_of_a_device_that_is_anothers_by_now_changes_nothing() {
    let (bench, device) = bench();
    let transport = Transport::open(&bench.as_host(), &bench.dma, &bench.function()).unwrap();
    let _dma = bench.pass_on(|| device.set(|state| state.reset()));
    let before = bench.writes();
    assert_eq!(transport.negotiate(0), Err(TransportError::Gone));
    transport.start();
    assert!(!transport.is_running());
    drop(transport);
    assert_eq!(bench.writes(), before);
}

#[test]
fn shutting_down_gives_everything_back() {
    let (bench, device) = bench();
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 4);
    assert_eq!(disk.shut_down(), Ok(()));
    for done in collect(&completions, 4) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), true));
    }
    drop(disk);
    bench.await_live_mappings(0);
    crate::doubles::await_true(|| bench.host.live_vectors() == 0);
    assert!(!bench.host.is_bus_master());
    // The function can be used again.
    device.set(|state| state.behaviour = Behaviour::Honest);
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    assert_works(&bench, &disk);
}

fn open_error(dma: DmaDevice, bench: &Bench) -> DiskError {
    open_disk(&bench.as_host(), dma, &bench.function()).err().expect("it cannot be opened")
}

#[test]
fn a_device_that_goes_around_the_iommu_is_refused() {
    let (bench, device) = bench();
    for (missing, error) in [(33, TransportError::BypassesIommu), (32, TransportError::NotModern)] {
        device.set(|state| state.offered = 1 << 32 | 1 << 33 | 1 << 9);
        device.set(|state| state.offered &= !(1 << missing));
        assert_eq!(open_error(bench.dma.clone(), &bench), DiskError::Transport(error));
        assert!(!bench.host.is_bus_master());
    }
    bench.await_live_mappings(0);
}

#[test]
fn without_a_thread_the_device_is_left_alone() {
    let (bench, _device) = bench();
    bench.host.refuse_threads.store(true, Ordering::Relaxed);
    assert!(matches!(open_error(bench.dma.clone(), &bench), DiskError::Spawn(_)));
    assert!(!bench.host.is_bus_master());
    bench.await_live_mappings(0);
    assert_eq!(bench.host.live_vectors(), 0);
}

#[test]
fn structures_outside_of_their_bar_are_refused() {
    // Each dword of the capabilities, and what makes no sense in it.
    let nonsense: Vec<(u16, u32)> = vec![
        (0x48, 0x7f00),
        (0x48, 0xffff_ffff),
        (0x4c, 0x10),
        (0x4c, 0xffff_ffff),
        (0x44, 5),
        (0x44, 0xff),
        (0x68, 0x7ff0),
        (0x70, 0xffff_ffff),
        (0x88, 0x7ffc),
        (0x8c, 4),
        (0x40, 0x0005),
        (0xa0, 0x07ff_0011),
        (0xa4, 0x7ff8),
        (0xa4, 3),
    ];
    for (offset, value) in nonsense {
        let (bench, device) = virtio_blk::bench_with(virtio_blk::function().with(offset, value));
        let error = open_error(bench.dma.clone(), &bench);
        assert!(!bench.host.is_bus_master(), "{offset:#x} {value:#x}: {error}");
        bench.await_live_mappings(0);
        drop(device);
    }
}

/// Its removal ends while the driver waits for the end of a reset that it will not see.
#[test]
fn a_disk_that_is_pulled_out_in_its_reset_gives_everything_back() {
    let (bench, device, disk) = open();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 3);
    bench.pull_out_at_write(STATUS);
    assert_eq!((disk.shut_down(), bench.dma.was_taken_back()), (Ok(()), true));
    for done in collect(&completions, 3) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), true));
    }
    drop(disk);
    bench.await_live_mappings(0);
}
