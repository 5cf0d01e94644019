//! Reading what a unit recorded of the requests that it blocked.
//!
//! While a record, the overflow bit or a queue error is pending, a unit sends no further fault event. So draining leaves
//! none of them behind, or says that it did.

use core::sync::atomic::Ordering;

use super::{
    spec::{FaultRecord, FaultRecordHigh, FaultStatus},
    unit::Unit,
};
use crate::{Platform, fault::Fault};

/// What draining left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a unit that still has something pending sends no further event"]
pub enum Drained {
    /// Nothing: the next fault raises an event.
    All,
    /// Faults came in faster than they were read. Drain again, in a thread: there will be no event.
    More,
}

impl<P: Platform> Unit<P> {
    /// Passes each recorded fault to `sink` and clears it; errors of the queue are dealt with too. Callable in an
    /// interrupt: at most one lap of the records is read, and `sink` must neither wait nor allocate.
    pub fn drain_faults(&self, platform: &P, mut sink: impl FnMut(Fault)) -> Drained {
        let _draining = self.draining.lock(platform);
        let Some(status) = self.read_live_fault_status() else { return Drained::All };
        let mut found = 0;
        if status.pending() {
            found = self.drain_lap(usize::from(status.first_record()), &mut sink);
        }
        if status.overflow() {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            // After the records: until it is cleared, nothing takes their place.
            self.hardware.registers.write(FaultStatus::new().with_overflow(true));
        }
        if let Some(queue) = &self.queue {
            queue.recover(platform, &self.hardware);
        }
        let Some(status) = self.read_live_fault_status() else { return Drained::All };
        // A unit that says that a record is pending, and has none, would have us try for ever.
        let more = (status.pending() && found > 0) || status.overflow();
        if more { Drained::More } else { Drained::All }
    }

    /// How often the records were full, so that faults of unknown sources went unrecorded.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// FSTS, unless nothing answers any more.
    fn read_live_fault_status(&self) -> Option<FaultStatus> {
        let status = self.read_fault_status();
        if status.into_bits() != u32::MAX {
            return Some(status);
        }
        self.hardware.mark_stuck();
        None
    }

    /// Reads each record once, from `first` on and around the end, until one is empty. Returns how many held a fault.
    fn drain_lap(&self, first: usize, sink: &mut impl FnMut(Fault)) -> usize {
        let count = self.capability().fault_records();
        let mut found = 0;
        for index in (0..count).map(|offset| (first + offset) % count) {
            match self.take_record(self.capability().fault_record(index)) {
                Some(record) => {
                    found += 1;
                    sink(record.decode(self.segment()));
                }
                // Records fill up in order. Only where the unit is wrong about the first one, the others are looked at.
                None if found > 0 => break,
                None => {}
            }
        }
        found
    }

    /// The fault in the recording register at `record`, cleared.
    fn take_record(&self, record: usize) -> Option<FaultRecord> {
        let registers = &self.hardware.registers;
        let high: FaultRecordHigh = registers.read_record(record);
        if !high.fault() {
            return None;
        }
        let fault =
            FaultRecord { low: registers.read_record(record), source: registers.read_record(record), high };
        registers.write_record(record, FaultRecordHigh::new().with_fault(true));
        Some(fault)
    }
}

#[cfg(test)]
mod tests;
