//! A server that does what it should, and one that does not.

use std::sync::atomic::AtomicUsize;

use iommu::PageBuffer;

use super::*;
use crate::{
    block::{Completion, Transfer},
    doubles::{Bench, await_true},
    pci::fake::FakeFunction,
};

#[derive(Default)]
struct Calls {
    woken: AtomicUsize,
    ended: AtomicUsize,
}

impl Server for Calls {
    fn wake(&self) {
        self.woken.fetch_add(1, Ordering::Relaxed);
    }

    fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }
}

const INFO: BlockInfo = BlockInfo {
    driver: "double",
    block_bytes: 512,
    blocks: 64,
    blocks_per_request: 8,
    blocks_per_deallocation: 0,
    read_only: false,
};

const DEPTH: usize = 2;

struct Stage {
    bench: Bench,
    calls: Arc<Calls>,
    service: Service,
    device: Arc<dyn BlockDevice>,
    completions: Arc<Completions>,
}

fn offer(bench: &Bench, calls: &Arc<Calls>, offer: Offer) -> Result<Service, ServeError> {
    Service::new(&bench.as_host(), bench.dma.clone(), offer, calls.clone())
}

impl Stage {
    fn new() -> Self {
        let (bench, calls) = (Bench::new(FakeFunction::new(0x11e8_1234, 0x00ff_0000, 0)), Arc::default());
        let service = offer(&bench, &calls, Offer { info: INFO, flushes: true, depth: DEPTH }).unwrap();
        let completions = Completions::new(&bench.as_host(), 8).unwrap();
        Self { device: service.device(), bench, calls, service, completions }
    }

    fn submit(&self, tag: u64, operation: Operation) -> Result<(), Reason> {
        let submitted = self.device.submit(Request { tag, operation }, &self.completions);
        submitted.map_err(|rejected| rejected.reason)
    }

    /// The server takes a request; its number.
    fn take(&mut self) -> Option<u64> {
        let mut id = None;
        let taken = self.service.take(|order, _| {
            id = Some(order.id);
            Ok::<(), ()>(())
        });
        assert_eq!(taken, Ok(id.is_some()));
        id
    }

    fn complete(&mut self, id: u64) -> Result<(), CompleteError<()>> {
        self.service.complete(id, Ok(()), |buffer| {
            buffer.fill(7);
            Ok(())
        })
    }

    /// The next completion: tag, how it ended, and whether there is a buffer.
    fn next(&self) -> Option<(u64, Result<(), BlockError>, bool)> {
        self.completions.take().map(|Completion { tag, result, buffer }| (tag, result, buffer.is_some()))
    }
}

fn transfer(value: u8) -> Transfer {
    let mut buffer = PageBuffer::zeroed(1).unwrap();
    buffer.fill(value);
    Transfer { first: 4, blocks: 2, buffer }
}

#[test]
fn what_is_written_goes_out_and_what_is_read_comes_in() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(3))).unwrap();
    stage.submit(2, Operation::Read(transfer(3))).unwrap();
    assert_eq!(stage.calls.woken.load(Ordering::Relaxed), 2);
    let taken = stage.service.take(|order, data| {
        assert_eq!((order.kind, order.extent), (Kind::Write, Extent { first: 4, blocks: 2 }));
        assert_eq!((data.len(), data.iter().all(|&byte| byte == 3)), (1024, true));
        Ok::<(), ()>(())
    });
    assert_eq!(taken, Ok(true));
    let read = stage.take().unwrap();
    assert_eq!(stage.take(), None);
    assert_eq!(stage.complete(read), Ok(()));
    let done = stage.completions.take().unwrap();
    let buffer = done.buffer.unwrap();
    assert_eq!((done.tag, done.result), (2, Ok(())));
    assert!(buffer[..1024].iter().all(|&byte| byte == 7) && buffer[1024..].iter().all(|&byte| byte == 3));
}

#[test]
fn there_are_no_more_than_were_offered() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Flush).unwrap();
    let first = stage.take().unwrap();
    stage.submit(2, Operation::Flush).unwrap();
    assert_eq!(stage.submit(3, Operation::Flush), Err(Reason::QueueFull));
    assert_eq!(stage.complete(first), Ok(()));
    stage.submit(3, Operation::Flush).unwrap();
}

#[test]
fn an_answer_counts_once_and_for_what_the_server_has() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Read(transfer(0))).unwrap();
    // It has not taken it yet.
    assert_eq!(stage.complete(1), Err(CompleteError::NoSuchRequest));
    let id = stage.take().unwrap();
    for wrong in [0, id + 1, u64::MAX] {
        assert_eq!(stage.complete(wrong), Err(CompleteError::NoSuchRequest));
    }
    assert_eq!(stage.service.complete(id, Ok(()), |_| Err(())), Err(CompleteError::Data(())));
    assert_eq!(stage.next(), None);
    assert_eq!(stage.complete(id), Ok(()));
    assert_eq!(stage.complete(id), Err(CompleteError::NoSuchRequest));
    assert_eq!((stage.next(), stage.next()), (Some((1, Ok(()), true)), None));
}

#[test]
fn a_request_that_cannot_be_given_waits() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(0))).unwrap();
    assert_eq!(stage.service.take(|_, _| Err(())), Err(()));
    let id = stage.take().unwrap();
    assert_eq!(stage.complete(id), Ok(()));
    assert_eq!(stage.next(), Some((1, Ok(()), true)));
}

#[test]
fn a_server_that_does_not_answer_is_ended() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(0))).unwrap();
    let late = stage.take().unwrap();
    stage.bench.host.advance(REQUEST_DEADLINE_NS / 2);
    stage.submit(2, Operation::Read(transfer(0))).unwrap();
    stage.bench.host.advance(REQUEST_DEADLINE_NS / 2);
    let calls = stage.calls.clone();
    await_true(|| calls.ended.load(Ordering::Relaxed) == 1);
    let mut ends = [stage.next().unwrap(), stage.next().unwrap()];
    ends.sort_by_key(|end| end.0);
    assert_eq!(ends, [(1, Err(BlockError::TimedOut), true), (2, Err(BlockError::Gone), true)]);
    assert_eq!(stage.complete(late), Err(CompleteError::NoSuchRequest));
    assert_eq!(stage.submit(3, Operation::Flush), Err(Reason::Gone));
}

/// The oldest request is with the server's thread when the keeper looks which one is due first.
#[test]
fn a_request_whose_data_move_while_the_keeper_looks_is_due_all_the_same() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(0))).unwrap();
    stage.bench.host.advance(REQUEST_DEADLINE_NS / 2);
    stage.submit(2, Operation::Write(transfer(0))).unwrap();
    let (served, host) = (stage.service.0.clone(), stage.bench.host.clone());
    let taken = stage.service.take(|order, _| {
        assert_eq!(order.id, 1);
        served.look.signal();
        await_true(|| served.state.lock().next_look_ns > host.now_ns() + REQUEST_DEADLINE_NS / 2);
        Ok::<(), ()>(())
    });
    assert_eq!(taken, Ok(true));
    stage.bench.host.advance(REQUEST_DEADLINE_NS / 2);
    let calls = stage.calls.clone();
    await_true(|| calls.ended.load(Ordering::Relaxed) == 1);
}

#[test]
fn a_reset_fails_everything_and_ends_with_a_new_start() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(0))).unwrap();
    let old = stage.take().unwrap();
    stage.device.reset();
    assert_eq!(stage.next(), Some((1, Err(BlockError::Reset), true)));
    assert!(stage.service.is_to_reset());
    assert_eq!(stage.submit(2, Operation::Flush), Err(Reason::Resetting));
    assert_eq!(stage.complete(old), Err(CompleteError::NoSuchRequest));
    stage.service.restart();
    assert_eq!((stage.device.resets(), stage.service.is_to_reset()), (1, false));
    stage.submit(2, Operation::Flush).unwrap();
    assert_ne!(stage.take().unwrap(), old);
    // One that it does not come back from.
    stage.device.reset();
    stage.bench.host.advance(REQUEST_DEADLINE_NS);
    let calls = stage.calls.clone();
    await_true(|| calls.ended.load(Ordering::Relaxed) == 1);
}

#[test]
fn everything_fails_with_its_server() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(0))).unwrap();
    stage.submit(2, Operation::Read(transfer(0))).unwrap();
    stage.take().unwrap();
    let Stage { service, device, completions, .. } = stage;
    drop(service);
    for _ in 0..2 {
        let Completion { result, buffer, .. } = completions.take().unwrap();
        assert_eq!((result, buffer.is_some()), (Err(BlockError::Gone), true));
    }
    assert_eq!(device.shut_down(), Ok(()));
}

#[test]
fn what_fails_while_its_data_move_fails_once_they_have() {
    let mut stage = Stage::new();
    stage.submit(1, Operation::Write(transfer(0))).unwrap();
    let device = stage.device.clone();
    let taken = stage.service.take(|_, _| {
        device.reset();
        Ok::<(), ()>(())
    });
    assert_eq!(taken, Ok(true));
    assert_eq!(stage.next(), Some((1, Err(BlockError::Reset), true)));
}

#[test]
fn what_has_failed_is_nobodys_before_its_caller_knows() {
    for (phase, error) in
        [(Phase::Gone, BlockError::Gone), (Phase::Resetting { deadline_ns: u64::MAX }, BlockError::Reset)]
    {
        let mut stage = Stage::new();
        stage.submit(1, Operation::Read(transfer(0))).unwrap();
        stage.submit(2, Operation::Read(transfer(0))).unwrap();
        let taken = stage.take().unwrap();
        assert!(stage.service.0.enter(phase, error));
        // The server is quicker than whoever tells the callers, and starts anew.
        assert_eq!(stage.take(), None);
        assert!(matches!(stage.complete(taken), Err(CompleteError::NoSuchRequest)));
        stage.service.restart();
        assert_eq!(stage.take(), None);
        stage.service.0.finish_failed();
        let mut ended = [stage.next(), stage.next()];
        ended.sort_by_key(|ended| ended.map(|(tag, ..)| tag));
        assert_eq!(ended, [1, 2].map(|tag| Some((tag, Err(error), true))));
    }
}

#[test]
fn a_blocked_access_spoils_a_request_whatever_the_server_says() {
    let mut stage = Stage::new();
    stage.bench.device().enable_bus_master();
    stage.submit(1, Operation::Read(transfer(0))).unwrap();
    let id = stage.take().unwrap();
    assert!(stage.bench.requester.write(0x1234_5000, &[1]).is_err());
    assert_eq!(stage.complete(id), Ok(()));
    assert_eq!(stage.next(), Some((1, Err(BlockError::Blocked), true)));
    // It is held against no other one.
    stage.submit(2, Operation::Read(transfer(0))).unwrap();
    let id = stage.take().unwrap();
    assert_eq!(stage.complete(id), Ok(()));
    assert_eq!(stage.next(), Some((2, Ok(()), true)));
}

#[test]
fn devices_that_cannot_be_are_not_offered() {
    let stage = Stage::new();
    let plain = Offer { info: INFO, flushes: false, depth: 1 };
    let with = |info: BlockInfo| Offer { info, ..plain };
    for nonsense in [
        Offer { depth: 0, ..plain },
        Offer { depth: DEPTH_MAX + 1, ..plain },
        with(BlockInfo { block_bytes: 0, ..INFO }),
        with(BlockInfo { block_bytes: 768, ..INFO }),
        with(BlockInfo { block_bytes: 8192, ..INFO }),
        with(BlockInfo { blocks: 0, ..INFO }),
        with(BlockInfo { blocks: 1 << 55, ..INFO }),
        with(BlockInfo { blocks_per_request: 0, ..INFO }),
        with(BlockInfo { blocks_per_request: (16 << 20) / 512 + 1, ..INFO }),
    ] {
        assert_eq!(offer(&stage.bench, &stage.calls, nonsense).err(), Some(ServeError::Nonsense));
    }
    stage.bench.host.refuse_threads.store(true, Ordering::Relaxed);
    assert!(matches!(offer(&stage.bench, &stage.calls, plain), Err(ServeError::Spawn(_))));
}
