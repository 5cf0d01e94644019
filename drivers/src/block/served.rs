//! A block device whose driver is outside the kernel: requests wait here until a server takes them, and says how they ended.
//!
//! ```text
//!   submitters ──> pending ──> take: data to be written are copied out ──> server ──> device
//!                  keeper: deadlines       complete: data that were read are copied in ──> completions
//! ```
//!
//! The server is not trusted. It never has a caller's buffer, and the device has none either: whatever becomes of them, buffers can be
//! given back at once. A request has a number that no other one ever has, so that an answer given twice, late or to nobody is
//! none. One that is not answered in time is the end of the server. As for any other device, what the IOMMU blocked while the
//! server had a request makes it fail, whatever the server says.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use iommu::{DmaDevice, Iova, PageBuffer, dma::FaultCounts};

use super::{
    AtAddress, BlockDevice, BlockError, BlockInfo, Completions, Extent, NotQuiet, Operation, Reason,
    Rejected, Request, completions::Promise, engine::REQUEST_DEADLINE_NS, flight::Kind,
};
use crate::{
    faults::{Doubt, FaultWatch},
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
    /// The keeper waits for no deadline.
    keeper_idles: bool,
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

struct Pending {
    id: u64,
    /// How often everything had failed when it was taken in: it is over when that is more.
    failures: u64,
    work: Work,
    promise: Promise,
    deadline_ns: u64,
    /// When the server took it.
    faults: FaultCounts,
    is_taken: bool,
}

enum Work {
    Operation(Operation),
    At(AtAddress),
}

impl Pending {
    fn order(&self) -> Order {
        let none = Extent { first: 0, blocks: 0 };
        let (kind, extent, at) = match &self.work {
            Work::Operation(Operation::Read(it)) => (Kind::Read, it.extent(), None),
            Work::Operation(Operation::Write(it)) => (Kind::Write, it.extent(), None),
            Work::Operation(Operation::Flush) => (Kind::Flush, none, None),
            Work::Operation(Operation::Deallocate(extent)) => (Kind::Deallocate, *extent, None),
            Work::At(AtAddress { first, blocks, iova, writable, .. }) => {
                let kind = if *writable { Kind::Read } else { Kind::Write };
                (kind, Extent { first: *first, blocks: *blocks }, Some(*iova))
            }
        };
        Order { id: self.id, kind, extent, at }
    }

    /// What is to be written.
    fn to_write(&self, info: &BlockInfo) -> &[u8] {
        match &self.work {
            Work::Operation(Operation::Write(it)) => &it.buffer[..info.bytes(it.blocks) as usize],
            _ => &[],
        }
    }

    /// Where what is read goes.
    fn for_filling(&mut self, info: &BlockInfo) -> &mut [u8] {
        match &mut self.work {
            Work::Operation(Operation::Read(it)) => &mut it.buffer[..info.bytes(it.blocks) as usize],
            _ => &mut [],
        }
    }

    fn finish(self, result: Result<(), BlockError>) {
        self.promise.keep(result, self.work.into_buffer());
    }
}

impl Work {
    fn into_buffer(self) -> Option<PageBuffer> {
        match self {
            Self::Operation(Operation::Read(it) | Operation::Write(it)) => Some(it.buffer),
            Self::Operation(Operation::Flush | Operation::Deallocate(_)) | Self::At(_) => None,
        }
    }
}

/// The server's end of it. Dropping it is the end of the device.
pub struct Service(Arc<Served>);

impl Service {
    /// A device on which `server` offers `offer`, by the function of `dma`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn new(
        host: &Arc<dyn Host>,
        dma: DmaDevice,
        offer: Offer,
        server: Arc<dyn Server>,
    ) -> Result<Self, ServeError> {
        let Offer { info, depth, .. } = offer;
        let is_block = (512..=4096).contains(&info.block_bytes) && info.block_bytes.is_power_of_two();
        let is_medium = info.blocks > 0 && info.blocks.checked_mul(info.block_bytes.into()).is_some();
        let is_request = (1..=REQUEST_BYTES_MAX / u64::from(info.block_bytes.max(1)))
            .contains(&info.blocks_per_request.into());
        if !is_block || !is_medium || !is_request || !(1..=DEPTH_MAX).contains(&depth) {
            return Err(ServeError::Nonsense);
        }
        let mut pending = Vec::new();
        pending.try_reserve_exact(depth).map_err(|_| ServeError::OutOfMemory)?;
        let state = State {
            phase: Phase::Running,
            pending,
            moving: 0,
            last_id: 0,
            failures: 0,
            failed_with: BlockError::Gone,
            keeper_idles: false,
        };
        let served = Arc::new(Served {
            host: host.clone(),
            offer,
            server,
            faults: FaultWatch::default(),
            state: Lock::new(host.clone(), state),
            look: host.event(),
            ended: host.event(),
            resets: AtomicU64::new(0),
            dma,
        });
        served.faults.check(&served.dma);
        let keeper = served.clone();
        host.spawn("served", Box::new(move || keeper.keep())).map_err(ServeError::Spawn)?;
        Ok(Self(served))
    }

    /// The device for its callers.
    #[must_use]
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        self.0.clone()
    }

    /// What is offered.
    #[must_use]
    pub fn offer(&self) -> Offer {
        self.0.offer
    }

    /// Whether there is a request to take.
    #[must_use]
    pub fn has_requests(&self) -> bool {
        let state = self.0.state.lock();
        state.pending.iter().any(|pending| pending.failures == state.failures && !pending.is_taken)
    }

    /// Whether the device is to be reset, and [`restart`](Self::restart)ed then.
    #[must_use]
    pub fn is_to_reset(&self) -> bool {
        matches!(self.0.state.lock().phase, Phase::Resetting { .. })
    }

    /// The server has reset its device, and takes requests again.
    pub fn restart(&self) {
        let mut state = self.0.state.lock();
        if let Phase::Resetting { .. } = state.phase {
            state.phase = Phase::Running;
            drop(state);
            self.0.resets.fetch_add(1, Ordering::Release);
        }
    }

    /// Gives the server a request that it has not, by `give`, with the data if they are to be written. False if there is none.
    ///
    /// # Errors
    /// What `give` says: the request waits as before.
    pub fn take<E>(&mut self, give: impl FnOnce(&Order, &[u8]) -> Result<(), E>) -> Result<bool, E> {
        let served = &self.0;
        let Some(mut pending) = served.pull(|pending| !pending.is_taken) else {
            return Ok(false);
        };
        pending.faults = served.faults.last();
        let given = give(&pending.order(), pending.to_write(&served.offer.info));
        pending.is_taken = given.is_ok();
        served.put_back(pending);
        given.map(|()| true)
    }

    /// The server says how request `id` ended; what it has read comes by `fetch`.
    ///
    /// # Errors
    /// See [`CompleteError`].
    pub fn complete<E>(
        &mut self,
        id: u64,
        result: Result<(), BlockError>,
        fetch: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), CompleteError<E>> {
        let served = &self.0;
        let pulled = served.pull(|pending| pending.is_taken && pending.id == id);
        let mut pending = pulled.ok_or(CompleteError::NoSuchRequest)?;
        if result.is_ok() {
            let fetched = match pending.for_filling(&served.offer.info) {
                [] => Ok(()),
                buffer => fetch(buffer),
            };
            if let Err(error) = fetched {
                served.put_back(pending);
                return Err(CompleteError::Data(error));
            }
        }
        let result = match Doubt::of(pending.faults, served.faults.check(&served.dma)) {
            Doubt::None => result,
            Doubt::Repeat if pending.deadline_ns > served.host.now_ns() => {
                pending.is_taken = false;
                served.put_back(pending);
                served.server.wake();
                return Ok(());
            }
            Doubt::Repeat | Doubt::Blocked => Err(BlockError::Blocked),
        };
        served.state.lock().moving -= 1;
        pending.finish(result);
        Ok(())
    }

    /// Fails what there is, and takes nothing more.
    pub fn stop(&self) {
        self.0.fail(Phase::Gone, BlockError::Gone);
        self.0.look.signal();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop();
        self.0.ended.signal();
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
        state.pending.push(pending);
        let wakes = core::mem::take(&mut state.keeper_idles);
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
        let wakes = core::mem::take(&mut state.keeper_idles);
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

    /// Enters `phase`: all requests that there are have failed with `error`, and nobody gets one of them any more. Returns
    /// whether there was anything that can fail.
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
        state.keeper_idles = next_ns.is_none();
        Some(next_ns.unwrap_or(u64::MAX))
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
            return Err(NotQuiet);
        }
        // For whoever else waits.
        self.ended.signal();
        Ok(())
    }
}

#[cfg(test)]
#[path = "served_tests.rs"]
mod tests;
