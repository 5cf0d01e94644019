//! The invalidation queue: how software makes a unit forget.
//!
//! A batch of [`Invalidation`]s becomes descriptors in a ring, one doorbell, and a wait descriptor whose completion the
//! unit writes to memory. What makes it safe:
//!
//! - The lock is held while entries are written and the doorbell is rung, never while anything is waited for: any
//!   number of CPUs wait at once, each for a status slot of its own.
//! - A slot's value is used once, and a slot is used again only after its completion was seen, so that a late
//!   completion is never taken for another's ([`slots`]).
//! - Device TLBs complete under a wait of their own: a device may take a minute to be declared dead by the unit, and
//!   what does not concern it must not be given up for that ([`ticket`]).
//! - A descriptor that the unit refuses, and a device that does not answer, stop the queue. Whoever notices first,
//!   a waiter or the fault handler, sets it going again and tells those concerned ([`recovery`]).
//! - No completion raises an interrupt (IF is never set): who unmaps cannot go on without the result, and has nothing
//!   else to do on that CPU for the few descriptors that a batch is. A waiter looks at its own slot, for at most a
//!   deadline; who has something else to do holds a [`Ticket`] meanwhile.
//! - A unit that misses a deadline is stuck for good: slots in flight are never used again, and every later request
//!   fails at once.

mod deadline;
mod error;
mod invalidation;
mod job;
mod plan;
mod recovery;
mod ring;
mod slots;
#[cfg(test)]
mod tests;
mod ticket;

use mm::PAGE_BYTES;

pub(super) use self::invalidation::Stage;
use self::{
    deadline::{Deadline, Limits},
    job::{Job, Step},
    ring::Ring,
    slots::{OwnedSlot, Slots},
};
pub use self::{
    error::{InvalidationError, QueueReport},
    invalidation::{CachingDevice, ContextScope, InterruptScope, Invalidation, IotlbScope, PasidScope},
    plan::{MAX_DEVICE_DESCRIPTORS, MAX_PAGE_DESCRIPTORS, Plan},
    ticket::Ticket,
};
use super::{
    spec::{Descriptor, QueueAddress, QueueHead, QueueTail},
    unit::Hardware,
};
use crate::{
    Platform,
    dma::Stuck,
    fault::BoundedRing,
    platform::LockClass,
    reach::TableError,
    sync::{
        IrqLock, IrqLockGuard,
        atomic::{Ordering, fence},
    },
};

/// log2 of the most pages that a queue can have (IQA.QS).
pub const MAX_QUEUE_ORDER: u8 = 7;

/// Reports of errors that are kept until somebody takes them.
const REPORTS: usize = 16;

/// How long a unit may take over invalidations in its own caches.
const WAIT_TIMEOUT_NS: u64 = 2_000_000_000;

/// How long a device may take to invalidate its TLB: beyond the minute or more after which the unit itself gives up
/// on the device (ITE), so that this deadline is met only by a unit that does not.
const DEVICE_TIMEOUT_NS: u64 = 120_000_000_000;

/// The queue of one unit.
pub(super) struct Queue {
    ring: Ring,
    slots: Slots,
    progress: IrqLock<Progress>,
    reports: BoundedRing<QueueReport, REPORTS>,
}

/// What the queue has done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct QueueStatistics {
    /// Batches submitted: one doorbell each.
    pub batches: u64,
    /// Descriptors written, wait descriptors included.
    pub descriptors: u64,
    /// Descriptors that the unit refused (IQE).
    pub refused: u64,
    /// Times that a device did not answer (ITE).
    pub device_timeouts: u64,
}

/// How far the queue has come. Positions count descriptors from when the queue was turned on, and never wrap.
struct Progress {
    /// Where the next descriptor goes.
    tail: u64,
    /// Everything below was fetched when this was last looked at.
    head: u64,
    /// The position of the last descriptor that was refused.
    refused_at: Option<u64>,
    statistics: QueueStatistics,
}

/// A batch under way: the slots of its two waits.
#[derive(Debug)]
struct Pending {
    main: Option<OwnedSlot>,
    devices: Option<OwnedSlot>,
}

impl Queue {
    /// A queue of 2^`order` pages that is not yet turned on; `wide` for descriptors of 256 bits.
    pub fn new<P: Platform>(
        platform: &P,
        hardware: &Hardware<P::Registers>,
        order: u8,
        wide: bool,
    ) -> Result<Self, TableError> {
        let (width, coherent) = (hardware.width, hardware.capability.walks_coherently());
        Ok(Self {
            ring: Ring::new(platform, width, order.min(MAX_QUEUE_ORDER), wide, coherent)?,
            slots: Slots::new(platform, width, coherent)?,
            progress: IrqLock::new(
                LockClass::Queue,
                Progress { tail: 0, head: 0, refused_at: None, statistics: QueueStatistics::default() },
            ),
            reports: BoundedRing::new(),
        })
    }

    /// What the unit must be told of where the queue lies.
    pub fn address(&self) -> QueueAddress {
        self.ring.address()
    }

    pub fn statistics<P: Platform>(&self, platform: &P) -> QueueStatistics {
        self.progress.lock(platform).statistics
    }

    pub fn take_report<P: Platform>(&self, platform: &P) -> Option<QueueReport> {
        self.reports.pop(platform)
    }

    /// Puts `job` into the queue, waiting for room if there is none.
    fn submit<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        job: &Job<'_>,
    ) -> Result<Pending, Stuck> {
        hardware.check()?;
        self.try_submit(platform, hardware, job)
            .or_else(|Full { .. }| self.submit_late(platform, hardware, job))
    }

    /// Waits for room, and puts `job` there.
    #[cold]
    fn submit_late<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        job: &Job<'_>,
    ) -> Result<Pending, Stuck> {
        let mut deadline = Deadline::new(Limits::ROOM, platform.now_ns());
        let mut moved_to = 0;
        loop {
            let now = platform.now_ns();
            hardware.check()?;
            let Full { head, is_idle } = match self.try_submit(platform, hardware, job) {
                Ok(pending) => return Ok(pending),
                Err(full) => full,
            };
            let recovered = self.recover(platform, hardware);
            let behind_device = self.slots.devices_outstanding(platform, u64::MAX);
            let moved = head > moved_to;
            moved_to = head.max(moved_to);
            if deadline.is_over(now, moved || is_idle || recovered || behind_device) {
                return Err(hardware.mark_stuck());
            }
            platform.relax();
        }
    }

    fn try_submit<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        job: &Job<'_>,
    ) -> Result<Pending, Full> {
        let mut progress = self.lock_with_room(platform, hardware, job.descriptors())?;
        let pending = self.slots_for(platform, job).ok_or_else(|| self.full(hardware, &mut progress))?;
        let tail = self.write(platform, progress.tail, job, &pending);
        debug_assert_eq!(tail - progress.tail, job.descriptors() as u64, "there was room for as many");
        self.publish(hardware, &mut progress, tail);
        Ok(pending)
    }

    /// Puts invalidations of translations into the queue, and their wait: what most batches come to. `None` if there is
    /// no room, or nothing to do.
    #[inline(always)]
    fn try_submit_translations<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        scopes: &[IotlbScope],
    ) -> Option<OwnedSlot> {
        let encode = |scope: &IotlbScope| scope.descriptor(&hardware.capability, hardware.stage).encode();
        let (last, others) = scopes.split_last()?;
        let last = encode(last);
        let mut progress = self.lock_with_room(platform, hardware, scopes.len() + 1).ok()?;
        let slot = self.slots.take(platform)?;
        let mut tail = progress.tail;
        for scope in others {
            self.ring.write(platform, tail, encode(scope));
            tail += 1;
        }
        let wait = Descriptor::Wait(self.slots.arm(&slot, tail + 1, false, false));
        self.ring.write_pair(platform, tail, [last, wait.encode()]);
        self.publish(hardware, &mut progress, tail + 2);
        Some(slot)
    }

    /// The lock, with room for `needed` descriptors.
    #[inline(always)]
    fn lock_with_room<'a, P: Platform>(
        &'a self,
        platform: &'a P,
        hardware: &Hardware<P::Registers>,
        needed: usize,
    ) -> Result<IrqLockGuard<'a, Progress, P>, Full> {
        let mut progress = self.progress.lock(platform);
        // What waiters saw completed was fetched; the register is slow, and read only when that is not enough.
        progress.head = progress.head.max(self.slots.over_below());
        if self.room(&progress) < needed {
            let full = self.full(hardware, &mut progress);
            if self.room(&progress) < needed {
                return Err(full);
            }
        }
        Ok(progress)
    }

    /// Looks how far the unit has come, for whoever finds no room.
    #[cold]
    #[inline(never)]
    fn full<R: crate::platform::Registers>(&self, hardware: &Hardware<R>, progress: &mut Progress) -> Full {
        progress.head = self.read_head(hardware, progress).unwrap_or(progress.head);
        Full { head: progress.head, is_idle: progress.head == progress.tail }
    }

    /// Descriptors that still fit. One entry stays free: a full ring would look empty.
    #[inline]
    fn room(&self, progress: &Progress) -> usize {
        self.ring.entries() - 1 - (progress.tail - progress.head) as usize
    }

    fn slots_for<P: Platform>(&self, platform: &P, job: &Job<'_>) -> Option<Pending> {
        let main = match job.has_main() {
            true => Some(self.slots.take(platform)?),
            false => None,
        };
        let devices = match job.has_devices() {
            true => match self.slots.take(platform) {
                Some(slot) => Some(slot),
                None => {
                    main.into_iter().for_each(|slot| self.slots.put_back(slot));
                    return None;
                }
            },
            false => None,
        };
        Some(Pending { main, devices })
    }

    /// Writes the descriptors of `job` from position `tail` on. Returns the position behind them.
    fn write<P: Platform>(&self, platform: &P, mut tail: u64, job: &Job<'_>, pending: &Pending) -> u64 {
        job.for_each(|step| {
            let wait = |slot: Option<&OwnedSlot>, devices: bool, fence: bool| {
                slot.map(|slot| self.slots.arm(slot, tail, devices, fence))
            };
            let descriptor = match step {
                Step::Invalidate(descriptor) => Some(descriptor),
                Step::Fence => Some(Descriptor::Wait(self.slots.scrap_wait(true))),
                Step::MainDone { fence } => wait(pending.main.as_ref(), false, fence).map(Descriptor::Wait),
                Step::DevicesDone => wait(pending.devices.as_ref(), true, false).map(Descriptor::Wait),
            };
            if let Some(descriptor) = descriptor {
                self.ring.write(platform, tail, descriptor.encode());
                tail += 1;
            }
        });
        tail
    }

    /// Moves the tail to `tail`, behind a batch that was written there, and tells the unit.
    #[inline]
    fn publish<R: crate::platform::Registers>(
        &self,
        hardware: &Hardware<R>,
        progress: &mut Progress,
        tail: u64,
    ) {
        progress.statistics.batches += 1;
        progress.statistics.descriptors += tail - progress.tail;
        progress.tail = tail;
        self.ring_doorbell(hardware, progress);
    }

    /// Tells the unit of everything below the tail.
    #[inline]
    fn ring_doorbell<R: crate::platform::Registers>(&self, hardware: &Hardware<R>, progress: &Progress) {
        // The unit must not fetch an entry before it is written.
        fence(Ordering::SeqCst);
        hardware.registers.write(QueueTail::at(self.ring.units(progress.tail)));
    }

    /// The position that the unit fetches next. `None` if what the register says cannot be.
    fn read_head<R: crate::platform::Registers>(
        &self,
        hardware: &Hardware<R>,
        progress: &Progress,
    ) -> Option<u64> {
        let register: QueueHead = hardware.registers.read();
        if register.into_bits() == u64::MAX {
            return None;
        }
        let head = self.ring.position_below(register.units(), progress.tail)?;
        (head >= progress.head.max(self.slots.over_below())).then_some(head)
    }
}

/// No room in the ring, or no slot.
#[derive(Clone, Copy)]
struct Full {
    /// How far the unit has come.
    head: u64,
    /// That is all the way: what is missing is a slot, and the owners of those that are taken have not looked yet.
    is_idle: bool,
}

/// The ring's entries lie in whole pages.
const _: () = assert!(PAGE_BYTES.is_multiple_of(ring::ENTRY_BYTES as u64));
