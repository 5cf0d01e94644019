//! What to do about a group whose devices fault: log, throttle, quarantine.
//!
//! A device may fault as often as it likes (design invariant 4), so the answer depends on how often it has: [`judge`]
//! is a pure function of a group's [`History`], the [`Limits`] and the time. It has no clock and no state of its own,
//! and can be run over any sequence of faults.
//!
//! Faults count up; each whole quiet period before a fault halves the count first. So a storm, whose faults come closer
//! together than the quiet period, is stopped at exactly [`Limits::quarantine_at`] faults however fast or slow they are
//! drained, and a device that blunders now and then never gets there.

use core::num::NonZeroU64;

/// How many faults of one group are put up with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    throttle_at: u32,
    quarantine_at: u32,
    quiet_ns: NonZeroU64,
}

impl Limits {
    /// From the fault that counts `throttle_at` a group is throttled, from the one that counts `quarantine_at` on it is
    /// quarantined; `quiet_ns` nanoseconds without a fault halve the count. `None` unless
    /// 0 < `throttle_at` <= `quarantine_at` and 0 < `quiet_ns`.
    #[must_use]
    pub const fn new(throttle_at: u32, quarantine_at: u32, quiet_ns: u64) -> Option<Self> {
        match NonZeroU64::new(quiet_ns) {
            Some(quiet_ns) if 0 < throttle_at && throttle_at <= quarantine_at => {
                Some(Self { throttle_at, quarantine_at, quiet_ns })
            }
            _ => None,
        }
    }

    /// Puts up with anything, and logs it: for who attacks on purpose.
    #[must_use]
    pub const fn none() -> Self {
        Self { throttle_at: u32::MAX, quarantine_at: u32::MAX, quiet_ns: NonZeroU64::MIN }
    }

    /// The same, but that no quiet period is long enough: each fault counts for ever.
    #[must_use]
    pub const fn without_decay(self) -> Self {
        Self { quiet_ns: NonZeroU64::MAX, ..self }
    }

    /// The count at which a group is quarantined: no storm gets more faults than this recorded before.
    #[must_use]
    pub const fn quarantine_at(self) -> u32 {
        self.quarantine_at
    }
}

impl Default for Limits {
    /// 16 faults with less than 50 ms between any two are a storm; from the fourth on they are no news.
    fn default() -> Self {
        const QUIET_NS: NonZeroU64 = NonZeroU64::new(50_000_000).unwrap();
        Self { throttle_at: 4, quarantine_at: 16, quiet_ns: QUIET_NS }
    }
}

/// The faults of one group so far. [`History::default`] is that of a group without any: also of one that was released
/// from quarantine.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct History {
    count: u32,
    last_ns: u64,
}

impl History {
    /// That of a group without any.
    pub(crate) const NONE: Self = Self { count: 0, last_ns: 0 };

    /// What the faults so far count, as of the last one.
    #[must_use]
    pub const fn count(self) -> u32 {
        self.count
    }
}

/// What to do about a fault, from the mildest on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Verdict {
    /// Report it.
    Log,
    /// Count it, but report no more of this group.
    Throttle,
    /// Take from the group all that it may reach. It stays so until it is released.
    Quarantine,
}

/// Enters a fault at `now_ns` into `history`, and says what to do about it.
///
/// Times may come in the wrong order, from different CPUs: an earlier one counts as no time at all.
#[must_use]
pub fn judge(history: History, limits: Limits, now_ns: u64) -> (History, Verdict) {
    let quiet_periods = now_ns.saturating_sub(history.last_ns) / limits.quiet_ns;
    let remembered = history.count >> quiet_periods.min(u64::from(u32::BITS - 1));
    // No further than quarantine: how long a released group takes to be forgiven does not depend on how long it raged.
    let count = remembered.saturating_add(1).min(limits.quarantine_at);
    let verdict = if count >= limits.quarantine_at {
        Verdict::Quarantine
    } else if count >= limits.throttle_at {
        Verdict::Throttle
    } else {
        Verdict::Log
    };
    (History { count, last_ns: history.last_ns.max(now_ns) }, verdict)
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
