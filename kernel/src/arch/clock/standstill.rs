//! Time in which the whole machine stood still is no time.
//!
//! A host that is short of memory or CPUs, or takes a snapshot, may keep a virtual machine from running for many
//! seconds, its devices with it, while the TSC counts on. Deadlines that went by meanwhile say nothing about a device:
//! all of them would condemn healthy ones. So the clock is looked at often, by timer interrupts if by nobody else
//! ([`PULSE_NS`]), and a gap between two looks that is far longer than that counts as one pulse. No CPU ran in it.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How long the clock stays unread at most, while any CPU takes timer interrupts.
pub const PULSE_NS: u64 = 1 << 28;

/// A longer gap is a standstill: several pulses were missed.
const GAP_MAX_NS: u64 = 1 << 30;

/// What is seen of the time is counted in units of 2^24 ns, about 17 ms: 32 bits hold more than two years of them.
const UNIT_SHIFT: u32 = 24;

/// What was seen last, packed: both parts change at once.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// When the clock was last looked at, and how much of what it showed does not count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    pub last_units: u32,
    pub lost_units: u32,
}

impl Seen {
    fn unpack(word: u64) -> Self {
        Self { last_units: (word >> 32) as u32, lost_units: word as u32 }
    }

    fn pack(self) -> u64 {
        u64::from(self.last_units) << 32 | u64::from(self.lost_units)
    }

    /// What there is to remember when the counter shows `counted_ns`.
    #[must_use]
    pub fn look(self, counted_ns: u64) -> Self {
        let last_units = (counted_ns >> UNIT_SHIFT) as u32;
        let gap = last_units.saturating_sub(self.last_units);
        let is_standstill = gap > (GAP_MAX_NS >> UNIT_SHIFT) as u32;
        let lost = if is_standstill { gap - (PULSE_NS >> UNIT_SHIFT) as u32 } else { 0 };
        Self { last_units, lost_units: self.lost_units.saturating_add(lost) }
    }

    fn last_ns(self) -> u64 {
        u64::from(self.last_units) << UNIT_SHIFT
    }

    fn lost_ns(self) -> u64 {
        u64::from(self.lost_units) << UNIT_SHIFT
    }
}

/// The time to show, by a counter of nanoseconds.
#[inline]
pub fn shown(counted_ns: impl Fn() -> u64) -> u64 {
    let mut word = SEEN.load(Relaxed);
    loop {
        let seen = Seen::unpack(word);
        // Another CPU may have seen a later time than the counter of this one shows.
        let counted_ns = counted_ns().max(seen.last_ns());
        let next = seen.look(counted_ns);
        let is_news = next != seen;
        match is_news.then(|| SEEN.compare_exchange(word, next.pack(), Relaxed, Relaxed)) {
            None | Some(Ok(_)) => return counted_ns.saturating_sub(next.lost_ns()),
            Some(Err(now)) => word = now,
        }
    }
}

/// How long the machine has stood still, in all.
pub fn lost_ns() -> u64 {
    Seen::unpack(SEEN.load(Relaxed)).lost_ns()
}
