//! A block device whose driver is outside the kernel: requests wait here until a server takes them, and says how they
//! ended.
//!
//! ```text
//!   submitters ──> pending ──> take: data to be written are copied out ──> server ──> device
//!                  keeper: deadlines       complete: data that were read are copied in ──> completions
//! ```
//!
//! The server is not trusted. It never has a caller's buffer, and the device has none either: whatever becomes of them,
//! buffers can be given back at once. A request has a number that no other one ever has, so that an answer given twice,
//! late or to nobody is none. One that is not answered in time is the end of the server. As for any other device, what
//! the IOMMU blocked while the server had a request makes it fail, whatever the server says.

mod pending;
mod service;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use iommu::{DmaDevice, Iova, dma::FaultCounts};

use self::pending::{Pending, Work};
pub use self::service::Service;
use super::{
    AtAddress, BlockDevice, BlockError, BlockInfo, Completions, Extent, NotQuiet, Operation, Reason,
    Rejected, Request, completions::Promise, engine::REQUEST_DEADLINE_NS, flight::Kind,
};
use crate::{
    faults::FaultWatch,
    host::{Event, Host, SpawnError},
    lock::Lock,
};

/// Most requests that a server can be offered at a time.
pub const DEPTH_MAX: usize = 128;

/// Most bytes of a request that a server may offer.
const REQUEST_BYTES_MAX: u64 = 16 << 20;

/// How long [`BlockDevice::shut_down`] waits for the server's end.
const SHUTDOWN_DEADLINE_NS: u64 = 20_000_000_000;

/// Who takes the requests.
pub trait Server: Send + Sync {
    /// There is something for it. Never blocks.
    fn wake(&self);
    /// It has failed, or is wanted no more. It drops its [`Service`] in the course of that.
    fn end(&self);
}

/// What a server offers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Offer {
    /// What its device is like.
    pub info: BlockInfo,
    /// What completes may be lost until it is flushed.
    pub flushes: bool,
    /// Most requests at a time: up to [`DEPTH_MAX`].
    pub depth: usize,
}

/// Why there is no service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServeError {
    /// There can be no device like the one that is offered.
    Nonsense,
    /// No memory for bookkeeping.
    OutOfMemory,
    /// No thread.
    Spawn(SpawnError),
}

/// Why an answer is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompleteError<E> {
    /// The server has no request of this number.
    NoSuchRequest,
    /// The data cannot be copied from where the server says. It still has the request.
    Data(E),
}

/// A request as its server sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// Its number, which no other one has.
    pub id: u64,
    /// What to do.
    pub kind: Kind,
    /// With which blocks; none for a flush.
    pub extent: Extent,
    /// The data are to be at this address of the device's, of the caller's choice, and are not the server's business.
    pub at: Option<Iova>,
}

/// The device, as its callers see it.
pub struct Served {
    host: Arc<dyn Host>,
    dma: DmaDevice,
    offer: Offer,
    server: Arc<dyn Server>,
    faults: FaultWatch,
    state: Lock<State>,
    /// Wakes the keeper.
    look: Arc<dyn Event>,
    /// The server has dropped its service.
    ended: Arc<dyn Event>,
    resets: AtomicU64,
}

struct State {
    phase: Phase,
    /// Has room for all that are taken in.
    pending: Vec<Pending>,
    /// Requests whose data are just being copied, by the server's thread.
    moving: usize,
    last_id: u64,
    /// How often everything failed, and with what last.
    failures: u64,
    failed_with: BlockError,
    /// When the keeper looks again, unless it is woken.
    next_look_ns: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Until the server starts anew.
    Resetting {
        deadline_ns: u64,
    },
    Gone,
}

impl State {
    /// Whether the keeper has to be woken for a request that is due at `deadline_ns`.
    fn brings_forward(&mut self, deadline_ns: u64) -> bool {
        let is_earlier = deadline_ns < self.next_look_ns;
        self.next_look_ns = self.next_look_ns.min(deadline_ns);
        is_earlier
    }
}

impl Served {
    /// Takes a request that is so out of the list, but none that has failed and is still there.
    fn pull(&self, is_so: impl Fn(&Pending) -> bool) -> Option<Pending> {
        let mut state = self.state.lock();
        let failures = state.failures;
        let index =
            state.pending.iter().position(|pending| pending.failures == failures && is_so(pending))?;
        state.moving += 1;
        Some(state.pending.remove(index))
    }

    /// Puts a request back that was [pulled](Self::pull), unless everything has failed since.
    fn put_back(&self, pending: Pending) {
        let mut state = self.state.lock();
        state.moving -= 1;
        if state.failures != pending.failures {
            let error = state.failed_with;
            drop(state);
            return pending.finish(Err(error));
        }
        // The keeper may have looked while the request was not in the list, and wait for the next one's deadline.
        let wakes = state.brings_forward(pending.deadline_ns);
        state.pending.push(pending);
        drop(state);
        if wakes {
            self.look.signal();
        }
    }

    /// Takes a request in.
    fn enqueue(&self, work: Work, promise: Promise) -> Result<(), (Reason, Work, Promise)> {
        let deadline_ns = self.host.now_ns().saturating_add(REQUEST_DEADLINE_NS);
        let mut state = self.state.lock();
        let reason = match state.phase {
            Phase::Running if state.pending.len() + state.moving < self.offer.depth => None,
            Phase::Running => Some(Reason::QueueFull),
            Phase::Resetting { .. } => Some(Reason::Resetting),
            Phase::Gone => Some(Reason::Gone),
        };
        if let Some(reason) = reason {
            return Err((reason, work, promise));
        }
        state.last_id += 1;
        let (id, faults) = (state.last_id, FaultCounts::default());
        let failures = state.failures;
        state.pending.push(Pending { id, failures, work, promise, deadline_ns, faults, is_taken: false });
        let wakes = state.brings_forward(deadline_ns);
        drop(state);
        if wakes {
            self.look.signal();
        }
        self.server.wake();
        Ok(())
    }

    /// Enters `phase`, and fails what there is: with `error`, unless it is overdue.
    fn fail(&self, phase: Phase, error: BlockError) {
        if self.enter(phase, error) {
            self.finish_failed();
        }
    }

    /// Enters `phase`: all requests that there are have failed with `error`, and nobody gets one of them any more.
    /// Returns whether there was anything that can fail.
    fn enter(&self, phase: Phase, error: BlockError) -> bool {
        let mut state = self.state.lock();
        let can_fail = state.phase != Phase::Gone;
        if can_fail {
            state.phase = phase;
            state.failures += 1;
            state.failed_with = error;
        }
        can_fail
    }

    /// Tells the callers of requests that have failed, one at a time. Requests may be taken in meanwhile.
    fn finish_failed(&self) {
        let now_ns = self.host.now_ns();
        let next = || {
            let mut state = self.state.lock();
            let failures = state.failures;
            let index = state.pending.iter().position(|pending| pending.failures != failures)?;
            Some((state.pending.remove(index), state.failed_with))
        };
        while let Some((pending, error)) = next() {
            let error = if pending.deadline_ns <= now_ns { BlockError::TimedOut } else { error };
            pending.finish(Err(error));
        }
    }

    /// The keeper's thread: until the device is gone.
    fn keep(&self) {
        while let Some(deadline_ns) = self.next_deadline_ns() {
            self.look.wait(deadline_ns);
            self.judge(self.host.now_ns());
        }
    }

    /// When the keeper has to look again; `None` if never.
    fn next_deadline_ns(&self) -> Option<u64> {
        let mut state = self.state.lock();
        let next_ns = match state.phase {
            Phase::Running => state.pending.iter().map(|pending| pending.deadline_ns).min(),
            Phase::Resetting { deadline_ns } => Some(deadline_ns),
            Phase::Gone => return None,
        };
        state.next_look_ns = next_ns.unwrap_or(u64::MAX);
        Some(state.next_look_ns)
    }

    /// A server that is late is none any more.
    fn judge(&self, now_ns: u64) {
        let state = self.state.lock();
        let is_late = match state.phase {
            Phase::Running => state.pending.iter().any(|pending| pending.deadline_ns <= now_ns),
            Phase::Resetting { deadline_ns } => deadline_ns <= now_ns,
            Phase::Gone => false,
        };
        drop(state);
        if is_late {
            let (driver, function) = (self.offer.info.driver, self.dma.function());
            log::warn!("{driver} {function}: a request was not finished in time; ending it");
            self.fail(Phase::Gone, BlockError::Gone);
            self.server.end();
        }
    }
}

impl BlockDevice for Served {
    fn info(&self) -> BlockInfo {
        self.offer.info
    }

    fn submit(&self, request: Request, completions: &Arc<Completions>) -> Result<(), Rejected> {
        let Request { tag, operation } = request;
        let reject = |reason, operation| Err(Rejected { reason, request: Request { tag, operation } });
        if let Err(reason) = self.offer.info.check(&operation) {
            return reject(reason, operation);
        }
        let Some(promise) = completions.promise(tag) else {
            return reject(Reason::CompletionsFull, operation);
        };
        if matches!(operation, Operation::Flush) && !self.offer.flushes {
            promise.keep(Ok(()), None);
            return Ok(());
        }
        match self.enqueue(Work::Operation(operation), promise) {
            Err((reason, Work::Operation(operation), promise)) => {
                promise.withdraw();
                reject(reason, operation)
            }
            _ => Ok(()),
        }
    }

    fn submit_at(&self, request: AtAddress, completions: &Arc<Completions>) -> Result<(), Reason> {
        self.offer.info.check_range(request.first, request.blocks)?;
        let promise = completions.promise(request.tag).ok_or(Reason::CompletionsFull)?;
        self.enqueue(Work::At(request), promise).map_err(|(reason, _, promise)| {
            promise.withdraw();
            reason
        })
    }

    fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    fn queues(&self) -> usize {
        1
    }

    fn depth(&self) -> usize {
        self.offer.depth
    }

    fn resets(&self) -> u64 {
        self.resets.load(Ordering::Acquire)
    }

    fn reset(&self) {
        if self.state.lock().phase == Phase::Running {
            let deadline_ns = self.host.now_ns().saturating_add(REQUEST_DEADLINE_NS);
            self.fail(Phase::Resetting { deadline_ns }, BlockError::Reset);
            self.look.signal();
            self.server.wake();
        }
    }

    /// Ends the server. What it had is back before that, as it never had a buffer.
    fn shut_down(&self) -> Result<(), NotQuiet> {
        self.fail(Phase::Gone, BlockError::Gone);
        self.look.signal();
        self.server.end();
        let deadline_ns = self.host.now_ns().saturating_add(SHUTDOWN_DEADLINE_NS);
        if !self.ended.wait(deadline_ns) {
            return Err(NotQuiet::Driver);
        }
        // For whoever else waits.
        self.ended.signal();
        Ok(())
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
