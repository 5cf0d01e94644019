//! From the interrupt that reads a fault to the log and the shell.

use alloc::boxed::Box;
use core::fmt;

use crate::{
    Platform,
    budget::Budget,
    dump::Visitor,
    fault::{BoundedRing, FAULT_RING_ENTRIES, Fault},
    platform::{LockClass, Work},
    sync::IrqLock,
};

/// Faults that `faults` shows: the last ones.
const HISTORY: usize = 64;

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

impl FaultLog {
    /// A log on the heap. With a frame of its own: some 20 KiB are too much for a stack on which the caller goes on.
    #[inline(never)]
    pub fn boxed() -> Box<Self> {
        let state = State { history: [None; HISTORY], next: 0, budget: Budget::ALL };
        Box::new(Self { ring: BoundedRing::new(), state: IrqLock::new(LockClass::FaultLog, state) })
    }

    /// Takes one fault over from `unit`; `is_news` says whether to log it. Callable in an interrupt.
    pub fn record<P: Platform>(&self, platform: &P, unit: usize, fault: Fault, is_news: bool) {
        self.ring.push(platform, Recorded { fault, unit, is_news });
        platform.wake(Work::Faults);
    }

    /// Shows `each` what has been recorded, logs the news as far as the budgets allow, each with what `explain` says of
    /// it and of its unit, and keeps the last ones to show. `admit` is the budget of a fault's source: its answer is
    /// that of [`Budget::take`].
    pub fn process<P: Platform, E: fmt::Display>(
        &self,
        platform: &P,
        each: impl Fn(&Fault),
        admit: impl Fn(&Fault) -> Option<u64>,
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
            if is_news && let Some(before) = admit(&fault) {
                match explain(&fault, unit) {
                    Some(way) => self.log_after(platform, before, format_args!("{fault}; {way}")),
                    None => self.log_after(platform, before, format_args!("{fault}")),
                }
            }
        }
    }

    /// Logs something that a device brought about, as far as the budget of all allows.
    pub fn log<P: Platform>(&self, platform: &P, line: fmt::Arguments<'_>) {
        self.log_after(platform, 0, line);
    }

    /// The same, for a source whose own budget did not allow `before` lines before this one.
    fn log_after<P: Platform>(&self, platform: &P, before: u64, line: fmt::Arguments<'_>) {
        let now_ns = platform.now_ns();
        let allowed = {
            let mut state = self.state.lock(platform);
            let allowed = state.budget.take(now_ns);
            if allowed.is_none() {
                state.budget.put_off(before);
            }
            allowed
        };
        match allowed.map(|others| others.saturating_add(before)) {
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
