//! Requests in a virtqueue.

use iommu::{Coherent, Iova};

use super::layout::{SECTOR_BYTES, Slot};
use crate::{
    block::{
        BlockError,
        flight::{Done, InFlight, Job, Kind},
        hardware::Queue,
    },
    virtio::{Doorbell, QueueError, Rings, Segment, SplitQueue},
};

/// Most descriptors of a request: header, data, status.
pub const DESCRIPTORS: u16 = 3;

/// A queue of a disk.
pub struct RequestQueue {
    queue: SplitQueue<Rings, InFlight>,
    /// Header and status of each request, by the head of its chain.
    slots: Coherent<Slot>,
    doorbell: Doorbell,
}

impl RequestQueue {
    pub fn new(queue: SplitQueue<Rings, InFlight>, slots: Coherent<Slot>, doorbell: Doorbell) -> Self {
        Self { queue, slots, doorbell }
    }
}

impl Queue for RequestQueue {
    type Error = QueueError;

    fn depth(&self) -> usize {
        usize::from(self.queue.size() / self.queue.descriptors_for(DESCRIPTORS))
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight().into()
    }

    fn start(&mut self, flight: InFlight) -> Result<(), InFlight> {
        let Some(head) = self.queue.next_head(self.queue.descriptors_for(DESCRIPTORS)) else {
            return Err(flight);
        };
        let slot = usize::from(head);
        self.slots.write(slot, Slot::new(flight.job.kind(), flight.job.extent()));
        let (segments, count) = segments(&flight.job, self.slots.iova_of(slot));
        self.queue.add(&segments[..count], flight).map(drop)
    }

    fn ring(&mut self) {
        if self.queue.wants_notification() {
            self.doorbell.ring();
        }
    }

    fn take_finished(&mut self) -> Result<Option<Done>, QueueError> {
        let Some(finished) = self.queue.take_finished()? else {
            return Ok(None);
        };
        let status = self.slots.read(usize::from(finished.head)).status();
        let result = match status {
            Slot::OK => Ok(()),
            Slot::IO_ERROR => Err(BlockError::Medium(status.into())),
            Slot::UNSUPPORTED => Err(BlockError::Unsupported(status.into())),
            _ => Err(BlockError::Device(status.into())),
        };
        Ok(Some(Done { flight: finished.token, result }))
    }

    fn rearm(&mut self) -> bool {
        self.queue.rearm()
    }

    fn overdue(&self, now_ns: u64) -> Option<u16> {
        self.queue.tokens().any(|flight| flight.deadline_ns <= now_ns).then_some(0)
    }

    fn take_back(&mut self) -> Option<InFlight> {
        self.queue.take_back()
    }

    fn restart(&mut self) {
        self.queue.restart();
    }
}

/// The chain of a job whose slot is at `slot`: header, data if there are any, status.
fn segments(job: &Job, slot: Iova) -> ([Segment; DESCRIPTORS as usize], usize) {
    let (header, status) = (Slot::header(slot), Slot::status_at(slot));
    match (job.kind(), job.iova(), job.extent()) {
        (Kind::Deallocate, ..) => ([header, Slot::range(slot), status], 3),
        // At most a request's limit, checked against the device's info.
        (kind, Some(iova), Some(extent)) => {
            let bytes = extent.blocks * SECTOR_BYTES;
            ([header, Segment { iova, bytes, writable: kind == Kind::Read }, status], 3)
        }
        _ => ([header, status, status], 2),
    }
}
