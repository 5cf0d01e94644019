//! How much is made of something that a device brings about as often as it likes.

/// A token bucket: some at once, and then one an interval. What there is of is a matter of who has it: lines in the
/// log, interrupts.
#[derive(Debug)]
pub(crate) struct Budget {
    burst: u32,
    interval_ns: u64,
    left: u32,
    refilled_ns: u64,
    suppressed: u64,
}

impl Budget {
    /// Lines that all sources share.
    pub const ALL: Self = Self::new(10, 1_000_000_000);

    /// Lines that one source has: a group, or all that belong to none. So little that the others' lines are not used
    /// up: as many at once as a storm has news, and a tenth of what there is for all.
    pub const ONE_SOURCE: Self = Self::new(4, 10_000_000_000);

    pub const fn new(burst: u32, interval_ns: u64) -> Self {
        Self { burst, interval_ns, left: burst, refilled_ns: 0, suppressed: 0 }
    }

    /// Whether there is one now, and how often there was none since the last one.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let refill = now_ns.saturating_sub(self.refilled_ns) / self.interval_ns;
        if refill > 0 {
            self.refilled_ns = now_ns;
            self.left = self.left.saturating_add(u32::try_from(refill).unwrap_or(u32::MAX)).min(self.burst);
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        Some(core::mem::take(&mut self.suppressed))
    }

    /// Counts `lines` that were allowed here and not written after all, for the next one to tell.
    pub fn put_off(&mut self, lines: u64) {
        self.suppressed = self.suppressed.saturating_add(lines);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_writes_a_burst_and_then_a_line_an_interval() {
        let (faults, gap_ns) = if cfg!(miri) { (1_000, 10_000_000) } else { (1_000_000, 10_000) };
        for (mut budget, later) in [(Budget::ALL, 9), (Budget::ONE_SOURCE, 0)] {
            let burst = budget.burst as usize;
            let written = (0..faults).filter(|fault| budget.take(fault * gap_ns).is_some()).count();
            assert_eq!(written, burst + later, "ten seconds of a fault each {gap_ns} ns");
        }
    }

    #[test]
    fn the_line_after_a_gap_says_how_many_were_left_out() {
        let mut budget = Budget { left: 1, ..Budget::ALL };
        assert_eq!(budget.take(0), Some(0));
        assert_eq!(budget.take(1), None);
        assert_eq!(budget.take(2), None);
        budget.put_off(3);
        assert_eq!(budget.take(budget.interval_ns), Some(5));
    }
}
