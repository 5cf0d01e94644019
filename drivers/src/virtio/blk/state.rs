//! The queue of a disk and what is known about each request in it.

use alloc::vec::Vec;

use iommu::{Coherent, Iova, dma::FaultCounts};

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
    pub faults: FaultWatch,
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

/// Tells requests that met a fault from those that did not, without a mark on each of them: a request in flight at the
/// time of a fault was submitted when the counts were lower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultWatch {
    /// The counts at the last check.
    pub counts: FaultCounts,
}

/// What faults say of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doubt {
    /// There were none.
    None,
    /// A unit lost records while it was in flight; they may have been another device's.
    Repeat,
    /// The device was blocked while it was in flight.
    Blocked,
}

impl FaultWatch {
    /// What happened to a request that was submitted when the counts were `submitted`.
    pub fn doubt(self, submitted: FaultCounts) -> Doubt {
        if submitted.own != self.counts.own {
            Doubt::Blocked
        } else if submitted.unattributed != self.counts.unattributed {
            Doubt::Repeat
        } else {
            Doubt::None
        }
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
        let flight = InFlight { job, promise, deadline_ns, faults: self.faults.counts };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_devices_own_faults_condemn_a_request() {
        let at = |own, unattributed| FaultCounts { own, unattributed };
        let now = FaultWatch { counts: at(3, 5) };
        assert_eq!(now.doubt(at(3, 5)), Doubt::None);
        assert_eq!(now.doubt(at(3, 4)), Doubt::Repeat);
        assert_eq!(now.doubt(at(2, 5)), Doubt::Blocked);
        assert_eq!(now.doubt(at(2, 4)), Doubt::Blocked);
    }
}
