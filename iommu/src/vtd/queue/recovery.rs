//! Setting the queue going again after an error.
//!
//! Any of the three errors stops the queue, and an error that is left alone keeps the unit from raising further fault
//! events. So waiters look for errors while they wait, and the fault handler does when it is called. All that happens
//! here is bounded and done under the queue's lock, with no waiting.

use super::{Progress, Queue, QueueReport};
use crate::{
    Platform, SourceId,
    platform::Work,
    vtd::{
        spec::{Descriptor, FaultStatus, QueueError, QueueErrorRecord},
        unit::Hardware,
    },
};

impl Queue {
    /// Deals with whatever error the unit reports. Callable in an interrupt. Returns whether there was one, which
    /// somebody else may have dealt with: until then the queue stood still.
    pub fn recover<P: Platform>(&self, platform: &P, hardware: &Hardware<P::Registers>) -> bool {
        let status: FaultStatus = hardware.registers.read();
        if !status.has_queue_error() {
            return false;
        }
        let mut progress = self.progress.lock(platform);
        // Another CPU may have dealt with it in the meantime.
        let status: FaultStatus = hardware.registers.read();
        if status.into_bits() == u32::MAX {
            // The unit is gone.
            hardware.mark_stuck();
            return true;
        }
        if !status.has_queue_error() {
            return true;
        }
        let record: QueueErrorRecord = hardware.registers.read();
        if status.timeout_error() {
            self.device_timed_out(platform, hardware, &mut progress, record);
        }
        if status.completion_error() {
            hardware.registers.write(FaultStatus::new().with_completion_error(true));
            let source = source(hardware.segment, record.completion_source());
            self.reports.push(platform, QueueReport::UnexpectedCompletion { source });
        }
        if status.queue_error() {
            self.descriptor_refused(platform, hardware, &mut progress, record);
        }
        drop(progress);
        platform.wake(Work::Faults);
        true
    }

    /// ITE: a device did not answer, and the unit dropped the waits that it had begun.
    fn device_timed_out<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        progress: &mut Progress,
        record: QueueErrorRecord,
    ) {
        progress.statistics.device_timeouts += 1;
        let source = record.timeout_source();
        match self.read_head(hardware, progress) {
            Some(head) => self.slots.drop_below(platform, head, source),
            None => {
                hardware.mark_stuck();
            }
        }
        hardware.registers.write(FaultStatus::new().with_timeout_error(true));
        let source = super::recovery::source(hardware.segment, source);
        self.reports.push(platform, QueueReport::DeviceTimeout { source });
    }

    /// IQE: the descriptor at the head was refused. A harmless wait takes its place, and the unit goes on behind it.
    fn descriptor_refused<P: Platform>(
        &self,
        platform: &P,
        hardware: &Hardware<P::Registers>,
        progress: &mut Progress,
        record: QueueErrorRecord,
    ) {
        progress.statistics.refused += 1;
        let head = self.read_head(hardware, progress).filter(|&head| head < progress.tail);
        let Some(head) = head.filter(|&head| progress.refused_at != Some(head)) else {
            // Nothing that was refused can be found, or its harmless replacement was refused too. The error stays: the
            // devices behind a stuck unit are stopped, and nothing that it could still report matters.
            hardware.mark_stuck();
            return;
        };
        progress.refused_at = Some(head);
        let descriptor = self.ring.read(platform, head).decode();
        self.reports.push(platform, QueueReport::Refused { descriptor, error: QueueError(record.error()) });
        let harmless = Descriptor::Wait(self.slots.refuse(platform, head));
        self.ring.write(platform, head, harmless.encode());
        hardware.registers.write(FaultStatus::new().with_queue_error(true));
        // Some units go on only when the tail is written again.
        self.ring_doorbell(hardware, progress);
    }
}

fn source(segment: u16, requester: u16) -> SourceId {
    SourceId { segment, requester }
}
