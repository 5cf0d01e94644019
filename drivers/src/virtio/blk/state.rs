//! The queue of a disk and what is known about each request in it.

use alloc::vec::Vec;

use iommu::{Coherent, Iova};

use super::{
    Refused,
    flight::{InFlight, Job},
    layout::{SECTOR_BYTES, Slot},
};
use crate::{
    block::{BlockError, Promise, Reason},
    virtio::{Doorbell, QueueError, Rings, Segment, SplitQueue},
};

/// Descriptors of a request: header, data, status.
pub const DESCRIPTORS: u16 = 3;

/// The queue of a disk, under its lock.
pub struct State {
    pub phase: Phase,
    pub queue: SplitQueue<Rings, InFlight>,
    /// Header and status of each request, by the head of its chain.
    pub slots: Coherent<Slot>,
    pub doorbell: Doorbell,
    pub faults: FaultEpoch,
}

/// Whether requests are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Running,
    Resetting,
    /// Reset for good.
    Gone,
    /// Out of order, and it may still reach what it has been given.
    NotQuiet,
}

/// Tells requests that met a fault from those that did not, without a mark on each of them.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct FaultEpoch {
    /// Checks that found new faults. What was submitted in an earlier epoch was in flight when they happened.
    pub epoch: u64,
    /// Count at the last check.
    count: u64,
}

impl FaultEpoch {
    /// The first epoch of a device with `count` faults so far.
    pub fn new(count: u64) -> Self {
        Self { epoch: 0, count }
    }

    /// Takes note of the device's fault count, and returns the epoch after it.
    pub fn check(&mut self, count: u64) -> u64 {
        if count != self.count {
            self.count = count;
            self.epoch += 1;
        }
        self.epoch
    }
}

/// A request that the device has finished, and what it says about it.
pub struct Done {
    pub flight: InFlight,
    pub result: Result<(), BlockError>,
}

impl State {
    /// Hands a job to the device.
    pub fn start(&mut self, job: Job, promise: Promise, deadline_ns: u64) -> Result<(), Refused> {
        let reason = match self.phase {
            Phase::Running => Reason::QueueFull,
            Phase::Resetting => Reason::Resetting,
            Phase::Gone | Phase::NotQuiet => Reason::Gone,
        };
        let head = self.queue.next_head(DESCRIPTORS).filter(|_| self.phase == Phase::Running);
        let Some(head) = head else {
            return Err(Refused { reason, job, promise });
        };
        let slot = usize::from(head);
        let (kind, sector) = job.command();
        self.slots.write(slot, Slot::new(kind, sector));
        let (segments, count) = segments(&job, self.slots.iova_of(slot));
        let flight = InFlight { job, promise, deadline_ns, epoch: self.faults.epoch };
        match self.queue.add(&segments[..count], flight) {
            Ok(_) if self.queue.wants_notification() => self.doorbell.ring(),
            Ok(_) => {}
            Err(InFlight { job, promise, .. }) => return Err(Refused { reason, job, promise }),
        }
        Ok(())
    }

    /// Moves what the device has finished to `done`, as far as there is room.
    pub fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), QueueError> {
        while done.len() < done.capacity()
            && let Some(finished) = self.queue.take_finished()?
        {
            let slot = self.slots.read(usize::from(finished.head));
            let result = slot.result().map_err(|status| BlockError::Device(status.into()));
            done.push(Done { flight: finished.token, result });
        }
        Ok(())
    }

    /// Whether the device has a request whose deadline has passed.
    pub fn is_overdue(&self, now_ns: u64) -> bool {
        self.queue.tokens().any(|flight| flight.deadline_ns <= now_ns)
    }

    /// Whether the device has been made quiet for good.
    pub fn is_quiet(&self) -> bool {
        self.phase == Phase::Gone && self.queue.in_flight() == 0
    }
}

/// The chain of a job whose slot is at `slot`: header, data if there are any, status.
fn segments(job: &Job, slot: Iova) -> ([Segment; DESCRIPTORS as usize], usize) {
    let (header, status) = (Slot::header(slot), Slot::status(slot));
    match job.data() {
        // At most a request's limit, checked against the device's info.
        Some((iova, blocks, writable)) => {
            ([header, Segment { iova, bytes: blocks * SECTOR_BYTES, writable }, status], 3)
        }
        None => ([header, status, status], 2),
    }
}
