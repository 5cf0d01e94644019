//! How often a unit may interrupt for faults.

use super::Drained;
use crate::budget::Budget;

/// Events of one unit: as many as a unit with the most records that there can be raises when each holds a fault of
/// another device's, and one a millisecond from then on. A handler takes some microseconds, so this is little of a CPU.
const BURST: u32 = 256;
const INTERVAL_NS: u64 = 1_000_000;

/// How long the records wait for a look while events are masked: a driver that needs to know about a fault looks
/// itself.
const LOOK_NS: u64 = 10_000_000;

/// Whether a unit's fault event is masked, because it came too often.
pub(in crate::vtd) struct EventRate {
    budget: Budget,
    /// When the records are looked at, if it is masked.
    look_ns: Option<u64>,
    storms: u64,
}

impl EventRate {
    pub const fn new() -> Self {
        Self { budget: Budget::new(BURST, INTERVAL_NS), look_ns: None, storms: 0 }
    }

    /// Counts an event. Returns whether it is one too many, so that events have to be masked now.
    pub fn enter(&mut self, now_ns: u64) -> bool {
        let too_many = self.look_ns.is_none() && self.budget.take(now_ns).is_none();
        if too_many {
            self.look_ns = Some(now_ns.saturating_add(LOOK_NS));
            self.storms += 1;
        }
        too_many
    }

    pub fn is_look_due(&self, now_ns: u64) -> bool {
        self.look_ns.is_some_and(|look_ns| look_ns <= now_ns)
    }

    /// Enters what a look found. Returns whether it is calm, so that events have to be let through now.
    pub fn looked(&mut self, now_ns: u64, found_any: bool) -> bool {
        self.look_ns = found_any.then(|| now_ns.saturating_add(LOOK_NS));
        !found_any
    }

    pub fn next_look_ns(&self) -> u64 {
        self.look_ns.unwrap_or(u64::MAX)
    }

    pub fn storms(&self) -> u64 {
        self.storms
    }

    /// What is to be done about faults that were left in the records.
    pub fn judge(&self, more: bool) -> Drained {
        if more && self.look_ns.is_none() { Drained::More } else { Drained::All }
    }
}
