//! Reading what a unit recorded of the requests that it blocked.
//!
//! While a record, the overflow bit or a queue error is pending, a unit sends no further fault event. So draining
//! leaves none of them behind, or says that it did.
//!
//! How often a unit may interrupt for faults is limited ([`EventRate`]): not every source of faults can be stopped, and
//! a device must not keep a CPU in the handler. Past the limit the event is masked, and the records are looked at now
//! and then by a thread.

mod rate;

use core::sync::atomic::Ordering;

use super::{
    spec::{FaultRecord, FaultRecordHigh, FaultStatus},
    unit::Unit,
};
use crate::{Platform, fault::Fault};
pub(super) use rate::EventRate;

/// What draining left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a unit that still has something pending sends no further event"]
pub enum Drained {
    /// Nothing that asks for anybody: the next fault raises an event, or while events are masked the next
    /// [look](Unit::look_at_faults) finds it.
    All,
    /// Faults came in faster than they were read. Drain again, in a thread: there will be no event.
    More,
}

/// What a lap of the records came to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Lap {
    /// Something had been recorded, or lost.
    any: bool,
    /// Faults came in meanwhile.
    more: bool,
}

impl Lap {
    const NOTHING: Self = Self { any: false, more: false };
}

impl<P: Platform> Unit<P> {
    /// As [`drain_faults`](Self::drain_faults), for whoever was called because there are faults: by the unit's event,
    /// or because draining has left some. Too many such calls mask the event.
    pub fn answer_faults(&self, platform: &P, mut sink: impl FnMut(Fault)) -> Drained {
        let now_ns = platform.now_ns();
        let mut rate = self.draining.lock(platform);
        if rate.enter(now_ns) {
            self.set_fault_events(false);
        }
        let lap = self.drain_lap(platform, &mut sink);
        rate.judge(lap.more)
    }

    /// While events are masked and it is time for it: drains the records, and lets events through again if there was
    /// nothing. Not in an interrupt.
    pub fn look_at_faults(&self, platform: &P, mut sink: impl FnMut(Fault)) {
        let now_ns = platform.now_ns();
        let mut rate = self.draining.lock(platform);
        if !rate.is_look_due(now_ns) {
            return;
        }
        let lap = self.drain_lap(platform, &mut sink);
        if rate.looked(now_ns, lap.any || lap.more) && !self.is_stuck() {
            self.set_fault_events(true);
        }
    }

    /// When [`look_at_faults`](Self::look_at_faults) has something to do next; `u64::MAX` for never.
    pub fn next_look_ns(&self, platform: &P) -> u64 {
        self.draining.lock(platform).next_look_ns()
    }

    /// How often events had to be masked so far.
    pub fn event_storms(&self, platform: &P) -> u64 {
        self.draining.lock(platform).storms()
    }

    /// Passes each recorded fault to `sink` and clears it; errors of the queue are dealt with too. Callable in an
    /// interrupt: at most one lap of the records is read, and `sink` must neither wait nor allocate.
    #[inline]
    pub fn drain_faults(&self, platform: &P, mut sink: impl FnMut(Fault)) -> Drained {
        let rate = self.draining.lock(platform);
        let lap = self.drain_lap(platform, &mut sink);
        rate.judge(lap.more)
    }

    /// The caller has the lock: what others have read is in their sinks.
    #[inline]
    fn drain_lap(&self, platform: &P, sink: &mut impl FnMut(Fault)) -> Lap {
        match self.read_live_fault_status() {
            Some(status) if !status.is_quiet() => self.drain_noisy(platform, status, sink),
            _ => Lap::NOTHING,
        }
    }

    /// The rest of [`drain_lap`](Self::drain_lap), which drivers seldom come to.
    #[inline(never)]
    fn drain_noisy(&self, platform: &P, status: FaultStatus, sink: &mut impl FnMut(Fault)) -> Lap {
        let (was_pending, mut found) = (status.pending(), 0);
        if was_pending {
            found = self.read_lap(usize::from(status.first_record()), sink);
        }
        let any = found > 0 || status.overflow();
        if status.overflow() {
            self.overflows.fetch_add(1, Ordering::Relaxed);
            // After the records: until it is cleared, nothing takes their place.
            self.hardware.registers.write(FaultStatus::new().with_overflow(true));
        }
        if let Some(queue) = &self.queue {
            queue.recover(platform, &self.hardware);
        }
        let Some(status) = self.read_live_fault_status() else { return Lap { any, more: false } };
        // What was recorded beside an error of the queue has raised no event. A unit that says a second time that a
        // record is pending, and has none, would have us try for ever.
        Lap { any, more: (status.pending() && (found > 0 || !was_pending)) || status.overflow() }
    }

    /// How often the records were full, so that faults of unknown sources went unrecorded.
    pub fn overflows(&self) -> u64 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// FSTS, unless nothing answers any more.
    #[inline]
    fn read_live_fault_status(&self) -> Option<FaultStatus> {
        let status = self.read_fault_status();
        if status.into_bits() != u32::MAX {
            return Some(status);
        }
        self.hardware.mark_stuck();
        None
    }

    /// Reads each record once, from `first` on and around the end, until one is empty. Returns how many held a fault.
    fn read_lap(&self, first: usize, sink: &mut impl FnMut(Fault)) -> usize {
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
        // All ones is no fault, but a unit that is gone.
        if !high.fault() || high.into_bits() == u32::MAX {
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
