//! From the interrupt that reads a fault to the log and the shell.

use alloc::boxed::Box;
use core::fmt;

use crate::{
    Platform,
    dump::Visitor,
    fault::{BoundedRing, FAULT_RING_ENTRIES, Fault},
    platform::{LockClass, Work},
    sync::IrqLock,
};

/// Faults that `faults` shows: the last ones.
const HISTORY: usize = 64;

/// Log lines about faults that are written at once, and after how long another may be.
const BURST_LINES: u32 = 10;
const LINE_INTERVAL_NS: u64 = 1_000_000_000;

/// The faults of all units.
pub(crate) struct FaultLog {
    /// What interrupts have read and no thread has seen.
    ring: BoundedRing<Recorded, FAULT_RING_ENTRIES>,
    state: IrqLock<State>,
}

/// A fault on its way from an interrupt to a thread.
#[derive(Clone, Copy)]
struct Recorded {
    fault: Fault,
    /// The unit that blocked it.
    unit: usize,
    /// It is worth a line in the log.
    is_news: bool,
}

struct State {
    history: [Option<Fault>; HISTORY],
    /// Where the next one goes.
    next: usize,
    budget: Budget,
}

/// A token bucket: what may be written to the log.
struct Budget {
    lines: u32,
    refilled_ns: u64,
    suppressed: u64,
}

impl FaultLog {
    /// A log on the heap. With a frame of its own: some 20 KiB are too much for a stack on which the caller goes on.
    #[inline(never)]
    pub fn boxed() -> Box<Self> {
        let budget = Budget { lines: BURST_LINES, refilled_ns: 0, suppressed: 0 };
        let state = State { history: [None; HISTORY], next: 0, budget };
        Box::new(Self { ring: BoundedRing::new(), state: IrqLock::new(LockClass::FaultLog, state) })
    }

    /// Takes one fault over from `unit`; `is_news` says whether to log it. Callable in an interrupt.
    pub fn record<P: Platform>(&self, platform: &P, unit: usize, fault: Fault, is_news: bool) {
        self.ring.push(platform, Recorded { fault, unit, is_news });
        platform.wake(Work::Faults);
    }

    /// Shows `each` what has been recorded, logs the news as far as the log's budget allows, each with what `explain` says
    /// of it and of its unit, and keeps the last ones to show.
    pub fn process<P: Platform, E: fmt::Display>(
        &self,
        platform: &P,
        each: impl Fn(&Fault),
        explain: impl Fn(&Fault, usize) -> Option<E>,
    ) {
        // One lap: a device that goes on faulting wakes the thread again.
        for _ in 0..FAULT_RING_ENTRIES {
            let Some(Recorded { fault, unit, is_news }) = self.ring.pop(platform) else { return };
            {
                let mut state = self.state.lock(platform);
                let next = state.next;
                state.history[next] = Some(fault);
                state.next = (next + 1) % HISTORY;
            }
            each(&fault);
            if is_news {
                match explain(&fault, unit) {
                    Some(way) => self.log(platform, format_args!("{fault}; {way}")),
                    None => self.log(platform, format_args!("{fault}")),
                }
            }
        }
    }

    /// Logs something that a device brought about, as far as the budget allows.
    pub fn log<P: Platform>(&self, platform: &P, line: fmt::Arguments<'_>) {
        let now_ns = platform.now_ns();
        let allowed = self.state.lock(platform).budget.take(now_ns);
        match allowed {
            Some(0) => log::warn!("{line}"),
            Some(suppressed) => log::warn!("{line} ({suppressed} before it not logged)"),
            None => {}
        }
    }

    /// Shows the last faults, oldest first.
    pub fn visit<P: Platform>(&self, platform: &P, visitor: &mut dyn Visitor) {
        for age in 0..HISTORY {
            let fault = {
                let state = self.state.lock(platform);
                state.history[(state.next + age) % HISTORY]
            };
            if let Some(fault) = fault {
                visitor.fault(&fault);
            }
        }
        visitor.lost_faults(self.ring.lost(platform));
    }
}

impl Budget {
    /// Whether a line may be written now, and how many were not since the last one.
    fn take(&mut self, now_ns: u64) -> Option<u64> {
        let refill = now_ns.saturating_sub(self.refilled_ns) / LINE_INTERVAL_NS;
        if refill > 0 {
            self.refilled_ns = now_ns;
            self.lines =
                self.lines.saturating_add(u32::try_from(refill).unwrap_or(u32::MAX)).min(BURST_LINES);
        }
        if self.lines == 0 {
            self.suppressed += 1;
            return None;
        }
        self.lines -= 1;
        Some(core::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_writes_a_burst_and_then_a_line_a_second() {
        let mut budget = Budget { lines: BURST_LINES, refilled_ns: 0, suppressed: 0 };
        let (faults, gap_ns) = if cfg!(miri) { (1_000, 10_000_000) } else { (1_000_000, 10_000) };
        let written = (0..faults).filter(|fault| budget.take(fault * gap_ns).is_some()).count();
        assert_eq!(written, BURST_LINES as usize + 9, "ten seconds of a fault each {gap_ns} ns");
    }

    #[test]
    fn the_line_after_a_gap_says_how_many_were_left_out() {
        let mut budget = Budget { lines: 1, refilled_ns: 0, suppressed: 0 };
        assert_eq!(budget.take(0), Some(0));
        assert_eq!(budget.take(1), None);
        assert_eq!(budget.take(2), None);
        assert_eq!(budget.take(LINE_INTERVAL_NS), Some(2));
    }
}
