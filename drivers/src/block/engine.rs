//! What block drivers have in common: queues, threads, deadlines, recovery.
//!
//! ```text
//!   submitters ──> the queue of their CPU ──> device ──> interrupt ──> the queue's worker ──> completions
//!                                                keeper: deadlines, status, reset, restart, shutdown
//! ```
//!
//! Callers map and submit in their own threads. Each queue has a worker, a thread that takes finished requests back,
//! unmaps and completes; nothing happens in the interrupt but waking it. A worker that is faster than who waits for its
//! requests lets others run before it looks again, so that where there are many requests they come back together, for
//! one flush. One thread more, the keeper, owns the device.
//!
//! A request succeeds if the device says so *and* no fault of the device was counted while it had the request. A device
//! that breaks its protocol, asks for a reset or exceeds a deadline is reset, and everything that it had fails; memory
//! goes back to its owner only after the device has become quiet, and stays pinned if it does not.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use iommu::DmaDevice;

use super::{
    AtAddress, BlockDevice, BlockError, BlockInfo, Completions, Extent, NotQuiet, Operation, Reason,
    Rejected, Request,
    attention::Attention,
    completions::Promise,
    flight::{InFlight, Job, NotMapped},
    hardware::{Hardware, Queue},
    keeper::Keeper,
    worker::Worker,
};
use crate::{
    faults::FaultWatch,
    host::{Event, Host, SpawnError},
    lock::Lock,
};

/// How long a device may have a request.
pub const REQUEST_DEADLINE_NS: u64 = 10_000_000_000;

/// How long [`BlockDevice::shut_down`] waits for the driver's threads, which themselves wait for the device: longer
/// than it takes to stop one. A device that is just being reset may take longer, and so may an NVMe controller that
/// says so, up to two minutes: then the caller learns that the driver has not ended, and can ask again.
pub const SHUTDOWN_DEADLINE_NS: u64 = 20_000_000_000;

/// A queue, and the event that its interrupt signals.
pub struct Channel<Q> {
    pub state: Lock<State<Q>>,
    pub wake: Arc<dyn Event>,
}

/// A queue under its lock.
pub struct State<Q> {
    pub phase: Phase,
    pub queue: Q,
    /// The device broke the queue's protocol: nothing is taken back until it has been reset.
    pub is_broken: bool,
}

/// Whether requests are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Running,
    Resetting,
    /// Reset for good, or taken back.
    Gone,
    /// Out of order, and it may still reach what it has been given.
    NotQuiet,
    /// In quarantine: it reaches nothing, what it had is kept for it until its release, and it is left alone.
    Quarantined,
}

/// What submitters, workers and the keeper share.
pub struct Shared<Q> {
    pub host: Arc<dyn Host>,
    pub dma: DmaDevice,
    pub info: BlockInfo,
    /// The device has a volatile cache; without one, what completes is durable.
    pub flushes: bool,
    pub channels: Vec<Channel<Q>>,
    pub faults: FaultWatch,
    pub attention: Arc<Attention>,
    pub stop: AtomicBool,
    pub resets: AtomicU64,
    /// Resets in a row with no request done in between.
    pub fruitless_resets: AtomicU32,
    /// Threads that have not ended.
    threads: AtomicUsize,
    /// The last thread has ended.
    stopped: Arc<dyn Event>,
}

/// One thread of a driver's, for as long as it runs.
pub struct Running<Q>(Arc<Shared<Q>>);

impl<Q> Running<Q> {
    pub fn new(shared: &Arc<Shared<Q>>) -> Self {
        shared.threads.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl<Q> Drop for Running<Q> {
    fn drop(&mut self) {
        if self.0.threads.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.stopped.signal();
        }
    }
}

/// What a driver has found out and set up, with the device not started yet.
pub struct Setup<H, Q> {
    pub dma: DmaDevice,
    pub info: BlockInfo,
    pub flushes: bool,
    pub attention: Arc<Attention>,
    pub hardware: H,
    /// Each with the event of its interrupt.
    pub queues: Vec<(Q, Arc<dyn Event>)>,
}

/// Why the engine could not be started.
pub enum EngineError<E> {
    /// No memory for bookkeeping.
    OutOfMemory,
    /// No thread.
    Spawn(SpawnError),
    /// The device does not work.
    Hardware(E),
}

/// A block device in use. Dropping it shuts it down in the background.
pub struct Engine<Q: Queue> {
    shared: Arc<Shared<Q>>,
}

impl<Q: Queue> Engine<Q> {
    /// Starts the device and the driver's threads.
    ///
    /// # Errors
    /// See [`EngineError`]. The device is left quiet and without bus mastering.
    pub fn start<H: Hardware>(
        host: &Arc<dyn Host>,
        setup: Setup<H, Q>,
    ) -> Result<Self, EngineError<H::Error>> {
        let Setup { dma, info, flushes, attention, hardware, queues } = setup;
        let mut channels = Vec::new();
        channels.try_reserve_exact(queues.len()).map_err(|_| EngineError::OutOfMemory)?;
        for (queue, wake) in queues {
            let state = State { phase: Phase::Resetting, queue, is_broken: false };
            channels.push(Channel { state: Lock::new(host.clone(), state), wake });
        }
        let shared = Arc::new(Shared {
            host: host.clone(),
            info,
            flushes,
            channels,
            faults: FaultWatch::default(),
            attention,
            stop: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            fruitless_resets: AtomicU32::new(0),
            threads: AtomicUsize::new(0),
            stopped: host.event(),
            dma,
        });
        shared.attention.watch(&shared.dma);
        // From here on whatever fails drops the keeper, which leaves the device quiet and ends the workers.
        let mut keeper = Keeper::new(&shared, hardware);
        for index in 0..shared.channels.len() {
            let worker = Worker::new(&shared, index).map_err(|_| EngineError::OutOfMemory)?;
            host.spawn(H::NAME, Box::new(move || worker.run())).map_err(EngineError::Spawn)?;
        }
        shared.faults.check(&shared.dma);
        keeper.start().map_err(EngineError::Hardware)?;
        host.spawn(H::NAME, Box::new(move || keeper.run())).map_err(EngineError::Spawn)?;
        Ok(Self { shared })
    }
}

/// A job that the device cannot take now.
pub struct Refused {
    pub reason: Reason,
    pub job: Job,
    pub promise: Promise,
}

impl<Q: Queue> Shared<Q> {
    /// Hands a job to the device: by the queue of this CPU, or by another one that has room. Until `repeat_until_ns`,
    /// or else until its deadline, it is done again if it is in doubt.
    pub fn start(&self, job: Job, promise: Promise, repeat_until_ns: Option<u64>) -> Result<(), Refused> {
        let deadline_ns = self.host.now_ns().saturating_add(REQUEST_DEADLINE_NS);
        let (repeat_until_ns, faults) = (repeat_until_ns.unwrap_or(deadline_ns), self.faults.last());
        let mut flight = InFlight { job, promise, deadline_ns, repeat_until_ns, faults };
        let mut reason = Reason::Gone;
        let here = self.host.cpu();
        for offset in 0..self.channels.len() {
            let mut state = self.channels[(here + offset) % self.channels.len()].state.lock();
            reason = match state.phase {
                Phase::Running => Reason::QueueFull,
                Phase::Resetting => Reason::Resetting,
                Phase::Gone | Phase::NotQuiet => Reason::Gone,
                Phase::Quarantined => Reason::Quarantined,
            };
            if state.phase != Phase::Running {
                break;
            }
            match state.queue.start(flight) {
                Ok(()) => {
                    state.queue.ring();
                    return Ok(());
                }
                Err(back) => flight = back,
            }
        }
        let InFlight { job, promise, .. } = flight;
        Err(Refused { reason, job, promise })
    }

    /// Sets the phase of every queue.
    pub fn enter(&self, phase: Phase) {
        for channel in &self.channels {
            channel.state.lock().phase = phase;
        }
    }

    /// The phase, which is the same for all queues unless it is just being set.
    pub fn phase(&self) -> Phase {
        self.channels.first().map_or(Phase::Gone, |channel| channel.state.lock().phase)
    }
}

impl<Q: Queue> Drop for Engine<Q> {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.attention.wake();
    }
}

impl<Q: Queue> BlockDevice for Engine<Q> {
    fn info(&self) -> BlockInfo {
        self.shared.info
    }

    fn submit(&self, request: Request, completions: &Arc<Completions>) -> Result<(), Rejected> {
        let Request { tag, operation } = request;
        let reject = |reason, operation| Err(Rejected { reason, request: Request { tag, operation } });
        if let Err(reason) = self.shared.info.check(&operation) {
            return reject(reason, operation);
        }
        let Some(promise) = completions.promise(tag) else {
            return reject(Reason::CompletionsFull, operation);
        };
        if matches!(operation, Operation::Flush) && !self.shared.flushes {
            promise.keep(Ok(()), None);
            return Ok(());
        }
        let job = match Job::map(&self.shared.dma, operation) {
            Ok(job) => job,
            Err(NotMapped { error, operation: Some(operation) }) => {
                promise.withdraw();
                return reject(Reason::Dma(error), operation);
            }
            // There is no buffer to reject the request with, here and below.
            Err(NotMapped { error, operation: None }) => {
                promise.keep(Err(BlockError::Pinned(error)), None);
                return Ok(());
            }
        };
        let started = self.shared.start(job, promise, None);
        let Err(Refused { reason, job, promise }) = started else {
            return Ok(());
        };
        match job.unmap() {
            Ok(operation) => {
                promise.withdraw();
                reject(reason, operation)
            }
            Err(error) => {
                promise.keep(Err(error), None);
                Ok(())
            }
        }
    }

    fn submit_at(&self, request: AtAddress, completions: &Arc<Completions>) -> Result<(), Reason> {
        let AtAddress { tag, first, blocks, iova, writable } = request;
        self.shared.info.check_range(first, blocks)?;
        let promise = completions.promise(tag).ok_or(Reason::CompletionsFull)?;
        let job = Job::At { extent: Extent { first, blocks }, iova, writable };
        self.shared.start(job, promise, None).map_err(|refused| {
            refused.promise.withdraw();
            refused.reason
        })
    }

    fn dma(&self) -> &DmaDevice {
        &self.shared.dma
    }

    fn queues(&self) -> usize {
        self.shared.channels.len()
    }

    fn depth(&self) -> usize {
        self.shared.channels.iter().map(|channel| channel.state.lock().queue.depth()).sum()
    }

    fn resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Acquire)
    }

    fn reset(&self) {
        self.shared.attention.raise(&self.shared.attention.reset);
    }

    fn shut_down(&self) -> Result<(), NotQuiet> {
        let shared = &self.shared;
        shared.stop.store(true, Ordering::Release);
        shared.attention.wake();
        let deadline_ns = shared.host.now_ns().saturating_add(SHUTDOWN_DEADLINE_NS);
        if !shared.stopped.wait(deadline_ns) {
            return Err(NotQuiet::Driver);
        }
        // For whoever else waits.
        shared.stopped.signal();
        match shared.phase() {
            Phase::Gone | Phase::Quarantined => Ok(()),
            Phase::Running | Phase::Resetting | Phase::NotQuiet => Err(NotQuiet::Device),
        }
    }
}
