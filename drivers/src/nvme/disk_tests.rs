//! The driver against a controller in software, behind a remapping unit in software.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use std::{sync::Weak, time::Duration, vec::Vec};

use iommu::{DmaError, Iova, PageBuffer};

use super::{super::NvmeError, open as open_disk};
use crate::{
    block::{
        AtAddress, BlockDevice, BlockError, Completion, Completions, Extent, NotQuiet, Operation, Reason,
        Request, Transfer, TransferError, engine::REQUEST_DEADLINE_NS, transfer,
    },
    doubles::{
        Bench, await_true,
        nvme::{BLOCK, BLOCKS, Behaviour, CONFIGURATION, Nvme, bench},
    },
    nvme::NamespaceError,
};

type Disk = Arc<dyn BlockDevice>;

fn open() -> (Bench, Arc<Nvme>, Disk) {
    open_on(1)
}

fn open_on(cpus: usize) -> (Bench, Arc<Nvme>, Disk) {
    let (bench, device) = bench();
    bench.host.cpus.store(cpus, Ordering::Relaxed);
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    (bench, device, disk)
}

/// Pages that differ, and differ inside.
fn buffer(pages: usize, seed: u8) -> PageBuffer {
    let mut buffer = PageBuffer::zeroed(pages).unwrap();
    for (index, byte) in buffer.iter_mut().enumerate() {
        *byte = (index / 4096 * 31 + index / BLOCK) as u8 ^ seed;
    }
    buffer
}

fn read(first: u64, blocks: u32) -> Operation {
    let pages = (blocks as usize * BLOCK).div_ceil(4096);
    Operation::Read(Transfer { first, blocks, buffer: buffer(pages, 0xee) })
}

fn write(first: u64, blocks: u32, seed: u8) -> Operation {
    let pages = (blocks as usize * BLOCK).div_ceil(4096);
    Operation::Write(Transfer { first, blocks, buffer: buffer(pages, seed) })
}

fn run(bench: &Bench, disk: &Disk, operation: Operation) -> Result<Option<PageBuffer>, TransferError> {
    transfer(&bench.as_host(), &**disk, operation)
}

fn error_of(result: Result<Option<PageBuffer>, TransferError>) -> (BlockError, bool) {
    match result {
        Err(TransferError::Failed(error, buffer)) => (error, buffer.is_some()),
        other => panic!("{other:?}"),
    }
}

fn submit_reads(bench: &Bench, disk: &Disk, count: u64) -> Arc<Completions> {
    let completions = Completions::new(&bench.as_host(), count as usize).unwrap();
    for tag in 0..count {
        disk.submit(Request { tag, operation: read(tag, 1) }, &completions).unwrap();
    }
    completions
}

fn collect(completions: &Completions, count: usize) -> Vec<Completion> {
    (0..count).map(|_| completions.wait(u64::MAX).unwrap()).collect()
}

/// The same, with time going on.
fn collect_late(bench: &Bench, completions: &Completions, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    await_true(|| {
        bench.host.advance(REQUEST_DEADLINE_NS / 1000);
        done.extend(core::iter::from_fn(|| completions.take()));
        done.len() == count
    });
    done
}

/// The disk does what it should, with nothing left mapped but what was before.
fn assert_works(bench: &Bench, disk: &Disk) {
    let live = bench.iommu.live_mappings();
    await_true(|| {
        matches!(run(bench, disk, write(7, 8, 0x77)), Ok(Some(_)))
            && matches!(run(bench, disk, read(7, 8)), Ok(Some(got)) if got[..] == buffer(1, 0x77)[..])
    });
    bench.await_live_mappings(live);
}

#[test]
fn transfers_of_every_length_arrive_whole() {
    let (bench, device, disk) = open();
    assert_eq!((disk.info().blocks_per_request, disk.info().blocks), (128, BLOCKS));
    let live = bench.iommu.live_mappings();
    // One page, two, a list, and the ends of each.
    for (seed, blocks) in (1..).zip([1, 7, 8, 9, 15, 16, 17, 24, 100, 127, 128]) {
        let first = u64::from(blocks) * 3;
        run(&bench, &disk, write(first, blocks, seed)).unwrap();
        let bytes = blocks as usize * BLOCK;
        let wanted = buffer(bytes.div_ceil(4096), seed);
        device.set(|state| {
            let start = first as usize * BLOCK;
            assert!(state.medium[start..start + bytes] == wanted[..bytes], "{blocks} blocks written");
        });
        let got = run(&bench, &disk, read(first, blocks)).unwrap().unwrap();
        assert!(got[..bytes] == wanted[..bytes], "{blocks} blocks read");
        assert!(
            got[bytes..] == buffer(bytes.div_ceil(4096), 0xee)[bytes..],
            "what is behind them has changed"
        );
    }
    run(&bench, &disk, Operation::Flush).unwrap();
    assert_eq!((device.set(|state| state.flushes), bench.iommu.live_mappings(), disk.resets()), (1, live, 0));
}

#[test]
fn many_requests_wrap_around_the_queues() {
    let (bench, device, disk) = open();
    let depth = disk.depth();
    assert_eq!(depth, 63, "queues of 64 entries");
    let completions = Completions::new(&bench.as_host(), depth).unwrap();
    let mut in_flight = 0;
    for tag in 0..5_000 {
        if in_flight == depth {
            let done = completions.wait(u64::MAX).unwrap();
            assert_eq!((done.result, done.buffer.is_some()), (Ok(()), true));
            in_flight -= 1;
        }
        disk.submit(Request { tag, operation: write(tag % BLOCKS, 1, tag as u8) }, &completions).unwrap();
        in_flight += 1;
    }
    assert!(collect(&completions, in_flight).iter().all(|done| done.result.is_ok()));
    assert_eq!(device.set(|state| state.by_queue), [5_000, 0, 0]);
}

#[test]
fn each_cpu_has_a_queue_pair_as_far_as_there_are_any() {
    // CPUs, pairs that the controller gives, pairs in use: it has vectors for three.
    for (cpus, given, pairs) in [(1, 8, 1), (2, 8, 2), (8, 8, 3), (8, 2, 2)] {
        let (bench, device) = bench();
        bench.host.cpus.store(cpus, Ordering::Relaxed);
        device.set(|state| state.pairs = given);
        let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
        assert_eq!((disk.queues(), disk.depth()), (pairs, 63 * pairs), "{cpus} CPUs, {given} pairs");
        assert_eq!(bench.host.live_vectors(), 1 + pairs);
        for cpu in 0..cpus {
            bench.host.cpu.store(cpu, Ordering::Relaxed);
            run(&bench, &disk, write(cpu as u64, 1, cpu as u8)).unwrap();
        }
        let wanted: Vec<usize> =
            (0..3).map(|pair| (0..cpus).filter(|cpu| cpu % pairs == pair).count()).collect();
        device.set(|state| assert_eq!(state.by_queue.to_vec(), wanted));
        assert_works(&bench, &disk);
    }
}

#[test]
fn without_a_volatile_cache_a_flush_is_done_at_once() {
    let (bench, device) = bench();
    device.set(|state| state.identity[525] = 0);
    let disk = open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    run(&bench, &disk, Operation::Flush).unwrap();
    assert_eq!(device.set(|state| (state.flushes, state.by_queue)), (0, [0; 3]));
}

#[test]
fn deallocated_blocks_are_named_to_the_controller() {
    let (bench, device, disk) = open();
    device.set(|state| state.medium.fill(0x55));
    run(&bench, &disk, Operation::Deallocate(Extent { first: 3, blocks: 1000 })).unwrap();
    device.set(|state| {
        let (before, rest) = state.medium.split_at(3 * BLOCK);
        let (within, behind) = rest.split_at(1000 * BLOCK);
        assert!(
            before.iter().chain(behind).all(|&byte| byte == 0x55) && within.iter().all(|&byte| byte == 0)
        );
    });
    device.set(|state| state.identity[520] = 0);
    drop(disk);
    let disk = reopen(&bench);
    let error = run(&bench, &disk, Operation::Deallocate(Extent { first: 3, blocks: 1 })).unwrap_err();
    assert!(matches!(error, TransferError::Rejected(rejected) if rejected.reason == Reason::Unsupported));
}

fn reopen(bench: &Bench) -> Disk {
    await_true(|| bench.host.live_vectors() == 0);
    open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap()
}

#[test]
fn a_controller_that_reports_errors_is_believed() {
    let (bench, device, disk) = open();
    let errors = [
        (0x0281, BlockError::Medium(0x281)),
        (0x4280, BlockError::Medium(0x280)),
        (0x0001, BlockError::Unsupported(1)),
        (0x000b, BlockError::Unsupported(0xb)),
        (0x0006, BlockError::Device(6)),
        (0x0080, BlockError::Device(0x80)),
        (0x0007, BlockError::TimedOut),
    ];
    for (status, error) in errors {
        device.set(|state| state.io = Behaviour::Status(status));
        assert_eq!(error_of(run(&bench, &disk, read(0, 1))), (error, true));
    }
    device.set(|state| state.io = Behaviour::Honest);
    assert_works(&bench, &disk);
    assert_eq!(disk.resets(), 0);
}

#[test]
fn a_controller_that_lies_in_its_queue_is_reset_and_works_again() {
    let lies = [
        Behaviour::WrongId(60),
        Behaviour::WrongId(63),
        Behaviour::WrongId(0xffff),
        Behaviour::OtherQueue(0),
        Behaviour::OtherQueue(2),
        Behaviour::Dies,
    ];
    for lie in lies {
        let (bench, device, disk) = open_on(2);
        let live = bench.iommu.live_mappings();
        device.set(|state| state.io = Behaviour::Silent);
        let completions = submit_reads(&bench, &disk, 5);
        bench.host.cpu.store(usize::from(lie == Behaviour::Dies), Ordering::Relaxed);
        device.set(|state| state.io = lie);
        let last = Completions::new(&bench.as_host(), 1).unwrap();
        disk.submit(Request { tag: 9, operation: read(9, 1) }, &last).unwrap();
        for done in collect_late(&bench, &last, 1).into_iter().chain(collect_late(&bench, &completions, 5)) {
            assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Reset), true), "{lie:?}");
        }
        device.set(|state| state.io = Behaviour::Honest);
        assert_works(&bench, &disk);
        assert_eq!((disk.resets(), bench.iommu.live_mappings()), (1, live), "{lie:?}");
    }
}

#[test]
fn an_overdue_request_is_aborted_and_the_others_go_on() {
    let (bench, device, disk) = open();
    device.set(|state| (state.io, state.aborts) = (Behaviour::Silent, true));
    let late = submit_reads(&bench, &disk, 1);
    bench.host.advance(REQUEST_DEADLINE_NS / 2);
    device.set(|state| state.io = Behaviour::Honest);
    let done = &collect_late(&bench, &late, 1)[0];
    assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::TimedOut), true));
    assert_eq!(disk.resets(), 0);
    assert_works(&bench, &disk);
}

#[test]
fn a_controller_that_only_says_it_has_aborted_is_reset() {
    let (bench, device, disk) = open();
    device.set(|state| (state.io, state.claims_to_abort) = (Behaviour::Silent, true));
    let late = submit_reads(&bench, &disk, 1);
    device.set(|state| state.io = Behaviour::Honest);
    let done = &collect_late(&bench, &late, 1)[0];
    assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::TimedOut), true));
    assert_works(&bench, &disk);
    assert_eq!(disk.resets(), 1);
}

#[test]
fn the_worker_lets_others_run_when_they_are_behind() {
    let (bench, _, disk) = open();
    let yields = || bench.host.yields.load(Ordering::Relaxed);
    // One at a time: by the end of the next one the worker is through with the one before.
    (0..3).for_each(|_| drop(run(&bench, &disk, read(0, 1)).unwrap()));
    assert_eq!(yields(), 0);
    let completions = submit_reads(&bench, &disk, 3);
    await_true(|| yields() > 0);
    assert_eq!(collect(&completions, 3).len(), 3);
}

#[test]
fn a_request_that_cannot_be_aborted_costs_a_reset() {
    let (bench, device, disk) = open();
    let live = bench.iommu.live_mappings();
    device.set(|state| state.io = Behaviour::Silent);
    let first = submit_reads(&bench, &disk, 2);
    bench.host.advance(REQUEST_DEADLINE_NS - 2_000_000_000);
    let second = submit_reads(&bench, &disk, 1);
    device.set(|state| state.io = Behaviour::Honest);
    for done in collect_late(&bench, &first, 2) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::TimedOut), true));
    }
    let done = &collect(&second, 1)[0];
    assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Reset), true));
    assert_works(&bench, &disk);
    assert_eq!((disk.resets(), bench.iommu.live_mappings()), (1, live));
}

#[test]
fn a_blocked_transfer_fails_although_the_controller_calls_it_a_success() {
    let (bench, device, disk) = open_on(2);
    for writable in [true, false] {
        let completions = Completions::new(&bench.as_host(), 1).unwrap();
        let iova = Iova::new(0x1234_5000);
        disk.submit_at(AtAddress { tag: 5, first: 0, blocks: 16, iova, writable }, &completions).unwrap();
        let done = &collect(&completions, 1)[0];
        assert_eq!((done.tag, done.result), (5, Err(BlockError::Blocked)), "writable {writable}");
    }
    // What another queue had in flight meanwhile fails too; what comes later does not.
    device.set(|state| state.io = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 3);
    device.set(|state| state.io = Behaviour::Strays);
    bench.host.cpu.store(1, Ordering::Relaxed);
    assert_eq!(error_of(run(&bench, &disk, read(0, 1))), (BlockError::Blocked, true));
    disk.reset();
    assert!(collect(&completions, 3).iter().all(|done| done.result == Err(BlockError::Blocked)));
    device.set(|state| state.io = Behaviour::Honest);
    assert_works(&bench, &disk);
    for cpu in [0, 1] {
        bench.host.cpu.store(cpu, Ordering::Relaxed);
        run(&bench, &disk, read(0, 1)).unwrap();
    }
}

#[test]
fn a_controller_that_does_not_become_quiet_keeps_its_memory() {
    let (bench, device, disk) = open();
    device.set(|state| (state.io, state.restless) = (Behaviour::Silent, true));
    let completions = submit_reads(&bench, &disk, 3);
    let live = bench.iommu.live_mappings();
    disk.reset();
    for done in collect(&completions, 3) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), false));
    }
    bench.iommu.reap();
    assert_eq!(bench.iommu.live_mappings(), live, "what it had stays mapped");
    assert!(!bench.host.is_bus_master());
    assert_eq!(disk.shut_down(), Err(NotQuiet::Device));
    drop(disk);
    std::thread::sleep(Duration::from_millis(50));
    bench.iommu.reap();
    assert_eq!(bench.iommu.live_mappings(), live, "nor does it go with the driver");
}

/// Its removal ends while the driver waits for the end of a reset that it will not see.
#[test]
fn a_controller_that_is_pulled_out_in_its_reset_gives_everything_back() {
    let (bench, device, disk) = open();
    device.set(|state| state.io = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 3);
    bench.pull_out_at_write(CONFIGURATION);
    disk.reset();
    assert!(collect(&completions, 3).iter().all(|done| done.result.is_err() && done.buffer.is_some()));
    assert_eq!((bench.dma.was_taken_back(), disk.shut_down()), (true, Ok(())));
    drop(disk);
    bench.await_live_mappings(0);
}

/// Before any time passes: neither its deadline nor the next look at the controller is waited for.
#[test]
fn requests_of_a_controller_in_quarantine_fail_at_once() {
    for restless in [false, true] {
        let (bench, device, disk) = open();
        device.set(|state| (state.io, state.restless) = (Behaviour::Silent, restless));
        let completions = submit_reads(&bench, &disk, 3);
        bench.iommu.quarantine(bench.dma.function()).unwrap();
        for done in collect(&completions, 3) {
            assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Quarantined), false));
        }
        await_true(|| !bench.host.is_bus_master());
        let refused = |operation| {
            disk.submit(Request { tag: 0, operation }, &completions).map_err(|rejected| rejected.reason)
        };
        assert_eq!(refused(read(0, 1)), Err(Reason::Dma(DmaError::Revoked)));
        assert_eq!(refused(Operation::Flush), Err(Reason::Quarantined));
        // Nobody starts it again, whatever else happens.
        disk.reset();
        bench.host.advance(10 * REQUEST_DEADLINE_NS);
        assert_eq!(disk.shut_down(), Ok(()));
        assert_eq!((disk.resets(), bench.host.is_bus_master()), (0, false));
        drop(disk);
        device.set(|state| (state.io, state.restless) = (Behaviour::Honest, false));
        bench.iommu.release(bench.dma.function(), |_| true).unwrap();
        // The queues too, of one that did not become quiet by itself as well.
        bench.await_live_mappings(0);
        let dma = bench.iommu.claim(bench.dma.function()).unwrap();
        assert_works(&bench, &open_disk(&bench.as_host(), dma, &bench.function()).unwrap());
    }
}

#[test]
fn a_controller_that_comes_back_with_fewer_queues_is_given_up() {
    let (bench, device, disk) = open_on(3);
    device.set(|state| state.pairs = 2);
    disk.reset();
    await_true(|| {
        matches!(
            run(&bench, &disk, read(0, 1)),
            Err(TransferError::Rejected(rejected)) if rejected.reason == Reason::Gone
        )
    });
    assert!(!bench.host.is_bus_master());
    assert_eq!(disk.shut_down(), Ok(()));
    drop(disk);
    bench.await_live_mappings(0);
}

#[test]
fn shutting_down_gives_everything_back() {
    let (bench, device, disk) = open_on(3);
    device.set(|state| state.io = Behaviour::Silent);
    let completions = submit_reads(&bench, &disk, 4);
    assert_eq!(disk.shut_down(), Ok(()));
    for done in collect(&completions, 4) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), true));
    }
    let (shutdowns, deleted) = device.set(|state| (state.shutdowns, state.deleted));
    assert_eq!((shutdowns, deleted), (1, 6), "the controller could end and save what it had");
    let gone: Weak<_> = Arc::downgrade(&disk);
    drop(disk);
    assert!(gone.upgrade().is_none());
    bench.await_live_mappings(0);
    assert!(!bench.host.is_bus_master());
    device.set(|state| state.io = Behaviour::Honest);
    assert_works(&bench, &reopen(&bench));
}

/// The first driver waits for the controller, which does not answer it, until another one has it.
#[test]
fn a_controller_that_is_anothers_by_now_is_left_alone() {
    let (bench, device, old) = open();
    device.set(|state| state.behaviour = Behaviour::Silent);
    let had = device.set(|state| state.commands);
    old.reset();
    await_true(|| device.set(|state| state.commands) > had);
    let dma = bench.pass_on(|| device.set(|state| state.reset()));
    device.set(|state| state.behaviour = Behaviour::Honest);
    let new = open_disk(&bench.as_host(), dma, &bench.function()).unwrap();
    let before = bench.writes();
    let ending = std::thread::spawn(move || old.end());
    await_true(|| {
        bench.host.advance(REQUEST_DEADLINE_NS / 1000);
        ending.is_finished()
    });
    assert_eq!(ending.join().unwrap(), Ok(()));
    assert_eq!((bench.writes(), bench.host.live_vectors()), (before, 2));
    assert_works(&bench, &new);
    assert_eq!((new.resets(), new.shut_down()), (0, Ok(())));
    drop(new);
    bench.await_live_mappings(0);
}

/// Without being asked for anything, and without a look at the controller, which works for another one.
#[test]
fn who_loses_a_controller_gives_back_what_it_had() {
    let (bench, device, old) = open();
    device.set(|state| state.io = Behaviour::Silent);
    let completions = submit_reads(&bench, &old, 3);
    let dma = bench.pass_on(|| device.set(|state| state.reset()));
    device.set(|state| state.io = Behaviour::Honest);
    let new = open_disk(&bench.as_host(), dma, &bench.function()).unwrap();
    let before = bench.writes();
    for done in collect_late(&bench, &completions, 3) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), true));
    }
    let flush = Request { tag: 0, operation: Operation::Flush };
    assert_eq!(old.submit(flush, &completions).unwrap_err().reason, Reason::Gone);
    assert_eq!((old.shut_down(), bench.writes()), (Ok(()), before));
    assert_works(&bench, &new);
}

#[test]
fn the_end_of_a_driver_is_waited_for_however_long_it_takes() {
    let (bench, device, disk) = open();
    device.stalls.store(true, Ordering::Relaxed);
    let until = |disk: Disk, end: fn(&dyn BlockDevice) -> Result<(), NotQuiet>| {
        std::thread::spawn(move || end(&*disk))
    };
    let asked = until(disk.clone(), |disk| disk.shut_down());
    await_true(|| {
        bench.host.advance(REQUEST_DEADLINE_NS);
        asked.is_finished()
    });
    assert_eq!(asked.join().unwrap(), Err(NotQuiet::Driver));
    let ending = until(disk, |disk| disk.end());
    for _ in 0..10 {
        bench.host.advance(10 * REQUEST_DEADLINE_NS);
        std::thread::sleep(Duration::from_millis(5));
        assert!(!ending.is_finished());
    }
    device.stalls.store(false, Ordering::Relaxed);
    assert_eq!(ending.join().unwrap(), Ok(()));
    assert_eq!(bench.host.live_vectors(), 0);
}

/// Each command within its own deadline, and all of them far beyond any for the end.
#[test]
fn a_controller_that_is_slow_with_each_queue_is_turned_off_in_time() {
    let (bench, device, disk) = open_on(3);
    device.set(|state| (state.io, state.admin_ns) = (Behaviour::Silent, 4_900_000_000));
    let completions = submit_reads(&bench, &disk, 4);
    assert_eq!(disk.shut_down(), Ok(()));
    for done in collect(&completions, 4) {
        assert_eq!((done.result, done.buffer.is_some()), (Err(BlockError::Gone), true));
    }
    assert_eq!(device.set(|state| (state.deleted, state.shutdowns)), (3, 0));
    assert!(!bench.host.is_bus_master());
}

#[test]
fn what_is_no_disk_is_refused() {
    type Change = fn(&mut crate::doubles::nvme::State);
    let namespace = NvmeError::Namespace;
    let cases: Vec<(Change, NvmeError)> = std::vec![
        (|state| state.namespaces.clear(), NvmeError::NoNamespace),
        (|state| state.namespaces[0] = 9, namespace(NamespaceError::Id { id: 9, highest: 8 })),
        (|state| state.namespace[..8].fill(0), namespace(NamespaceError::Empty)),
        (|state| state.namespace[130] = 30, namespace(NamespaceError::BlockSize { lg2: 30 })),
        (|state| state.identity[512] = 0x77, NvmeError::Entries),
    ];
    for (change, error) in cases {
        let (bench, device) = bench();
        device.set(change);
        assert_eq!(open_disk(&bench.as_host(), bench.dma.clone(), &bench.function()).err(), Some(error));
        assert!(!bench.host.is_bus_master());
        bench.await_live_mappings(0);
        assert_eq!(bench.host.live_vectors(), 0);
    }
}
