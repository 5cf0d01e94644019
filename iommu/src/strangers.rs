//! Faults of sources that belong to no group: functions that nobody has enumerated, or ids that a device has made up.
//!
//! They reach nothing, and there is nobody to stop. So all that is left to do is to keep them from being heard more
//! than one group would be: together they have what a single group has, and beyond that they are counted, and neither
//! logged nor kept. A flood of them so takes no room in the ring and in the log from faults that somebody waits for.

use crate::{
    Platform,
    budget::Budget,
    platform::LockClass,
    policy::{History, Limits, Verdict, judge},
    sync::IrqLock,
};

/// The faults of all sources without a group.
pub(crate) struct Strangers {
    record: IrqLock<Record>,
}

struct Record {
    faults: u64,
    history: History,
    lines: Budget,
}

impl Strangers {
    pub const fn new() -> Self {
        let record = Record { faults: 0, history: History::NONE, lines: Budget::ONE_SOURCE };
        Self { record: IrqLock::new(LockClass::GroupRecord, record) }
    }

    /// Enters one fault, and says what to do about it; `None` if it is to be counted and no more. As there is nobody to
    /// condemn, that ends when they have been quiet. Callable in an interrupt.
    pub fn enter_fault<P: Platform>(&self, platform: &P, limits: Limits) -> Option<Verdict> {
        let now_ns = platform.now_ns();
        let mut record = self.record.lock(platform);
        record.faults = record.faults.saturating_add(1);
        let (history, verdict) = judge(record.history, limits, now_ns);
        record.history = history;
        (verdict != Verdict::Quarantine).then_some(verdict)
    }

    /// Whether one of them may be logged: see [`Budget::take`].
    pub fn take_line<P: Platform>(&self, platform: &P) -> Option<u64> {
        let now_ns = platform.now_ns();
        self.record.lock(platform).lines.take(now_ns)
    }

    /// Their faults so far.
    pub fn faults<P: Platform>(&self, platform: &P) -> u64 {
        self.record.lock(platform).faults
    }
}
