//! What happens to a mapping that is dropped while it is live.
//!
//! A drop may happen anywhere, so it neither waits nor allocates: it moves the mapping into a list whose room was
//! reserved when the mapping was made, and a thread of the host flushes and frees it.
//!
//! One thread does it for all domains. Dropping is the exception (a driver that fails or ends; others unmap), the list
//! is never longer than there are live mappings, and what waits in it keeps nobody from mapping elsewhere. A unit that
//! does not answer costs the thread one deadline, and then fails at once: it holds the others' mappings up no longer
//! than that.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::{
    Access, DmaError, RawBuffer,
    backlog::Backlog,
    grant::Share,
    segment::{List, Segment},
    space::{Live, Owed, Space},
};
use crate::{
    Iova, Platform,
    arc::TryArc,
    options::Flush,
    platform::{LockClass, Work},
    sync::IrqLock,
};

/// A dropped mapping, and how to free its buffer.
pub(crate) struct Abandoned {
    dropped: Dropped,
    release: unsafe fn(RawBuffer),
}

/// What was dropped.
enum Dropped {
    /// A mapping, and the flush that it waits for if it was retired.
    One { live: Live, owed: Option<Owed> },
    /// One that a second domain shares: that comes first.
    Shared { share: Option<Share>, live: Live },
    /// Those of a list.
    List { space: TryArc<dyn Space>, list: List },
}

/// Nobody reads the buffer any more.
pub(super) const UNREAD: Access = Access { read: false, write: false };

impl Abandoned {
    pub(super) fn new(live: Live, owed: Option<Owed>, release: unsafe fn(RawBuffer)) -> Self {
        Self { dropped: Dropped::One { live, owed }, release }
    }

    pub(super) fn shared(share: Share, live: Live, release: unsafe fn(RawBuffer)) -> Self {
        Self { dropped: Dropped::Shared { share: Some(share), live }, release }
    }

    pub(super) fn list(space: TryArc<dyn Space>, list: List, release: unsafe fn(RawBuffer)) -> Self {
        Self { dropped: Dropped::List { space, list }, release }
    }

    /// Unmaps and frees. A buffer whose unit does not answer stays pinned; one whose device may not be quiet yet comes
    /// back, to be tried again.
    fn reap(mut self, pinned: &AtomicU64) -> Option<Self> {
        let result = match &mut self.dropped {
            Dropped::One { live: Live { space, segment }, owed: Some(owed) } => {
                space.redeem(segment, UNREAD, *owed)
            }
            Dropped::One { live: Live { space, segment }, owed: None } => space.unmap(segment, UNREAD),
            Dropped::Shared { share, live } => {
                let revoked = share.as_ref().map_or(Ok(()), |share| share.unmap(&live.segment.buffer));
                revoked.and_then(|()| {
                    *share = None;
                    live.space.unmap(&live.segment, UNREAD)
                })
            }
            Dropped::List { space, list } => space.unmap_list(list, UNREAD),
        };
        match result {
            Ok(()) => self.free(),
            Err(error) if error.passes() => return Some(self),
            Err(error) => {
                // Behind a unit that does not answer it is all that was mapped: a line for each doubling is enough.
                let count = pinned.fetch_add(1, Ordering::Relaxed) + 1;
                if count.is_power_of_two() {
                    log::error!(
                        "{count} dropped mappings stay pinned, the last one at {}: {error}",
                        self.iova()
                    );
                }
            }
        }
        None
    }

    /// Frees what no unit can translate any more.
    fn free(self) {
        let free = |segment: Segment| {
            // SAFETY: as the caller says, and `release` belongs to the buffer's type.
            unsafe { (self.release)(segment.buffer) }
        };
        match self.dropped {
            Dropped::One { live, .. } | Dropped::Shared { live, .. } => free(live.segment),
            Dropped::List { list, .. } => list.segments.into_iter().for_each(free),
        }
    }

    /// Whether a second domain has it still. That may be another subsystem's, which rouses its own reaper alone.
    fn is_shared(&self) -> bool {
        matches!(self.dropped, Dropped::Shared { share: Some(_), .. })
    }

    fn iova(&self) -> Iova {
        match &self.dropped {
            Dropped::One { live, .. } | Dropped::Shared { live, .. } => live.segment.iova,
            Dropped::List { list, .. } => list.place.map_or(Iova::new(0), |place| place.first),
        }
    }
}

/// The dropped mappings of all domains.
///
/// Every live mapping has a slot reserved: `live <= capacity` always, so that [`abandon`](Self::abandon) cannot fail.
pub(crate) struct Reaper<P: Platform> {
    platform: Arc<P>,
    /// Live mappings, abandoned ones that are not yet reaped included.
    live: AtomicUsize,
    /// Slots that `queue` has room for.
    capacity: AtomicUsize,
    queue: IrqLock<Backlog>,
    flush: Flush,
    /// Dropped mappings that stay pinned for ever.
    pinned: AtomicU64,
    /// When a domain has to be looked at for what it owes.
    due_ns: AtomicU64,
}

impl<P: Platform> Reaper<P> {
    pub fn new(platform: Arc<P>, flush: Flush) -> Self {
        Self {
            platform,
            live: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            // SAFETY: the list is this reaper's alone, with the platform's table memory, and is released when it is
            // dropped.
            queue: IrqLock::new(LockClass::Reaper, unsafe { Backlog::new() }),
            flush,
            pinned: AtomicU64::new(0),
            due_ns: AtomicU64::new(u64::MAX),
        }
    }

    /// When the flushes come that retired mappings wait for.
    pub fn flush(&self) -> Flush {
        self.flush
    }

    /// Has the domains looked at at `time_ns` at the latest.
    pub fn set_due(&self, time_ns: u64) {
        self.due_ns.fetch_min(time_ns, Ordering::Relaxed);
    }

    /// When the domains have to be looked at.
    pub fn due_ns(&self) -> u64 {
        self.due_ns.load(Ordering::Relaxed)
    }

    /// Whether the domains have to be looked at now; then each of them says anew when it wants to be.
    pub fn take_due(&self, now_ns: u64) -> bool {
        self.due_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |due| (due <= now_ns).then_some(u64::MAX))
            .is_ok()
    }

    /// Reserves a slot for one more live mapping.
    #[inline]
    pub fn reserve(&self) -> Result<(), DmaError> {
        let live = self.live.fetch_add(1, Ordering::Relaxed) + 1;
        if live <= self.capacity.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.grow(live).inspect_err(|_| self.release())
    }

    /// Gives a slot back: the mapping is gone.
    #[inline]
    pub fn release(&self) {
        self.live.fetch_sub(1, Ordering::Relaxed);
    }

    /// Live mappings, dropped ones that wait for the reaper included.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// Queues a dropped mapping. It keeps its slot until it is reaped.
    pub fn abandon(&self, abandoned: Abandoned) {
        let pushed = self.queue.lock(&*self.platform).push(abandoned);
        debug_assert!(pushed.is_ok(), "a live mapping had no slot reserved");
        self.platform.wake(Work::Reap);
    }

    /// A device is quiet: what waited for one is tried again. Whoever calls this wakes the reaper.
    pub fn rouse(&self) {
        self.queue.lock(&*self.platform).rouse();
    }

    /// Flushes and frees what was dropped before the call. Runs in a thread of the host.
    ///
    /// What waits until a device is quiet is not looked at before one is: others keep the thread busy meanwhile.
    pub fn reap(&self) {
        let mut left = self.queue.lock(&*self.platform).len();
        while left > 0 {
            let (taken, roused) = {
                let mut queue = self.queue.lock(&*self.platform);
                (queue.pop(self.platform.tables()), queue.roused())
            };
            let Some(abandoned) = taken else { return };
            // Counted until its buffer is free: who waits for the count to fall finds the memory back.
            self.live.fetch_add(1, Ordering::Relaxed);
            if let Some(waiting) = abandoned.reap(&self.pinned) {
                self.put_back(waiting, roused);
            }
            self.release();
            left -= 1;
        }
    }

    /// Keeps what could not be reaped yet, in the slot that it had. It was tried after so many devices had become
    /// quiet.
    fn put_back(&self, waiting: Abandoned, roused: u64) {
        let is_shared = waiting.is_shared();
        let mut queue = self.queue.lock(&*self.platform);
        let kept =
            if is_shared { queue.push(waiting).map(|()| true) } else { queue.set_aside(waiting, roused) };
        drop(queue);
        debug_assert!(kept.is_ok(), "the slot that it had is free");
        if let Ok(false) = kept {
            self.platform.wake(Work::Reap);
        }
    }

    /// Makes room for `live` mappings and some more, so that growing is rare.
    #[cold]
    fn grow(&self, live: usize) -> Result<(), DmaError> {
        let mut queue = self.queue.lock(&*self.platform);
        while self.capacity.load(Ordering::Relaxed) < live {
            if !queue.grow(self.platform.tables()) {
                return Err(DmaError::OutOfMemory);
            }
            self.capacity.fetch_add(Backlog::GROWTH, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[cfg(all(test, not(loom)))]
mod tests;

impl<P: Platform> Drop for Reaper<P> {
    fn drop(&mut self) {
        self.queue.lock(&*self.platform).release(self.platform.tables());
    }
}
