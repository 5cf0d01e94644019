//! What happens to a mapping that is dropped while it is live.
//!
//! A drop may happen anywhere, so it neither waits nor allocates: it moves the mapping into a list whose room was
//! reserved when the mapping was made, and a thread of the host flushes and frees it.

use alloc::{collections::VecDeque, sync::Arc};
use core::sync::atomic::{AtomicUsize, Ordering};

use super::{Access, DmaError, RawBuffer, space::Live};
use crate::{
    Platform,
    platform::{LockClass, Work},
    sync::IrqLock,
};

/// A dropped mapping, and how to free its buffer.
pub(crate) struct Abandoned {
    live: Live,
    release: unsafe fn(RawBuffer),
}

impl Abandoned {
    pub(super) fn new(live: Live, release: unsafe fn(RawBuffer)) -> Self {
        Self { live, release }
    }

    /// Unmaps and frees. A buffer whose unit does not answer stays pinned; one whose device may not be quiet yet comes
    /// back, to be tried again.
    fn reap(self) -> Option<Self> {
        let Live { space, segment } = &self.live;
        // Nobody reads the buffer any more.
        match space.unmap(segment, Access { read: false, write: false }) {
            // SAFETY: no unit can translate the range any more, and `release` belongs to the buffer's type.
            Ok(()) => unsafe { (self.release)(self.live.segment.buffer) },
            Err(DmaError::Revoked) => return Some(self),
            Err(error) => log::error!("dropped mapping at {} stays pinned: {error}", segment.iova),
        }
        None
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
    queue: IrqLock<VecDeque<Abandoned>>,
}

impl<P: Platform> Reaper<P> {
    pub fn new(platform: Arc<P>) -> Self {
        Self {
            platform,
            live: AtomicUsize::new(0),
            capacity: AtomicUsize::new(0),
            queue: IrqLock::new(LockClass::Reaper, VecDeque::new()),
        }
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
        let mut queue = self.queue.lock(&*self.platform);
        debug_assert!(queue.len() < queue.capacity(), "a live mapping had no slot reserved");
        queue.push_back(abandoned);
        drop(queue);
        self.platform.wake(Work::Reap);
    }

    /// Flushes and frees what was dropped before the call. Runs in a thread of the host.
    pub fn reap(&self) {
        let mut left = self.queue.lock(&*self.platform).len();
        while left > 0 {
            let Some(abandoned) = self.queue.lock(&*self.platform).pop_front() else { return };
            // Counted until its buffer is free: who waits for the count to fall finds the memory back.
            self.live.fetch_add(1, Ordering::Relaxed);
            if let Some(waiting) = abandoned.reap() {
                // Its slot is still its own. Whoever makes its device quiet wakes the reaper.
                self.queue.lock(&*self.platform).push_back(waiting);
            }
            self.release();
            left -= 1;
        }
    }

    /// Makes room for `live` mappings and some more, so that growing is rare.
    #[cold]
    fn grow(&self, live: usize) -> Result<(), DmaError> {
        const FIRST_SLOTS: usize = 64;
        let target = live.max(FIRST_SLOTS).checked_next_power_of_two().ok_or(DmaError::OutOfMemory)?;
        let mut larger = VecDeque::new();
        larger.try_reserve_exact(target).map_err(|_| DmaError::OutOfMemory)?;
        let mut queue = self.queue.lock(&*self.platform);
        if queue.capacity() < larger.capacity() {
            larger.append(&mut queue);
            core::mem::swap(&mut *queue, &mut larger);
            self.capacity.store(queue.capacity(), Ordering::Relaxed);
        }
        drop(queue);
        Ok(())
    }
}
