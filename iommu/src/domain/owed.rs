//! What retired mappings owe: the flush that has to come before their memory is anybody's again.
//!
//! Tokens of retired mappings are gathered in the *open flush*, which has a number. Whoever carries it out (the
//! reaper thread, or a thread that waits for a buffer) takes it, opens the next one, and says when it is over. One at a
//! time, so that numbers are over in their order; what is retired meanwhile goes into the open one.

use core::{
    mem,
    sync::atomic::{AtomicU64, Ordering},
};

use mm::table::Stale;

use super::Domain;
use crate::{
    Platform,
    backend::Backend,
    dma::{DmaError, Unflushed, space::Owed},
    options::Flush,
    platform::{LockClass, Work},
    stale_ranges::StaleRanges,
    sync::IrqLock,
};

/// Retired mappings that one flush waits for at most, before it is due.
pub(crate) const MAX_RETIRED: u32 = 256;

/// How long the first of them waits at most, before it is due, in nanoseconds, where flushes are deferred.
pub(crate) const MAX_DELAY_NS: u64 = 5_000_000;

/// Flushes of retired mappings, by number.
pub(super) struct OwedFlushes {
    open: IrqLock<Open>,
    /// Highest number that is over.
    over: AtomicU64,
}

/// The flush that gathers what is retired now.
struct Open {
    number: u64,
    stale: StaleRanges,
    retired: u32,
    /// When it is due, from the first on.
    due_ns: u64,
    /// Somebody carries out the one before.
    in_progress: bool,
    /// A unit or a device did not answer: what is owed now is never paid.
    failed: Option<Unflushed>,
}

impl OwedFlushes {
    pub fn new() -> Self {
        let stale = StaleRanges::new();
        let open = Open { number: 1, stale, retired: 0, due_ns: 0, in_progress: false, failed: None };
        Self { open: IrqLock::new(LockClass::Owed, open), over: AtomicU64::new(0) }
    }

    /// Whether `owed` is paid.
    pub fn is_over(&self, owed: Owed) -> bool {
        self.over.load(Ordering::Acquire) >= owed.0
    }

    fn failure<P: Platform>(&self, platform: &P) -> Option<Unflushed> {
        self.open.lock(platform).failed
    }

    /// Takes the open flush, to carry it out; `None` while somebody is at the one before.
    fn take<P: Platform>(&self, platform: &P) -> Result<Option<(u64, StaleRanges)>, Unflushed> {
        let mut open = self.open.lock(platform);
        if let Some(failed) = open.failed {
            return Err(failed);
        }
        if open.in_progress {
            return Ok(None);
        }
        (open.in_progress, open.retired) = (true, 0);
        open.number += 1;
        Ok(Some((open.number - 1, mem::replace(&mut open.stale, StaleRanges::new()))))
    }

    /// Says how the flush with `number` came out.
    fn end<P: Platform>(&self, platform: &P, number: u64, result: Result<(), Unflushed>) {
        let mut open = self.open.lock(platform);
        open.in_progress = false;
        match result {
            Ok(()) => self.over.store(number, Ordering::Release),
            Err(unflushed) => open.failed = Some(unflushed),
        }
    }
}

impl<B: Backend> Domain<B> {
    /// Leaves `stale`, of one mapping, to the open flush, and sees to it that it will be carried out.
    pub(super) fn owe(&self, stale: Stale) -> Owed {
        let platform = &**self.backend.platform();
        // Tables that left the tree make whoever maps flush, until they are flushed themselves.
        let holds_tables = stale.holds_tables();
        let mut open = self.owed.open.lock(platform);
        open.stale.add(&self.table, stale);
        open.retired += 1;
        if open.retired == 1 {
            open.due_ns = match self.reaper.flush() {
                Flush::Strict => 0,
                Flush::Deferred => platform.now_ns().saturating_add(MAX_DELAY_NS),
            };
        }
        let (owed, retired, due_ns) = (Owed(open.number), open.retired, open.due_ns);
        drop(open);
        if retired >= 2 * MAX_RETIRED {
            // The thread whose work it is does not come to it. Who waits for `owed` is told if it fails.
            let _ = self.pay(owed);
        } else if holds_tables || retired == MAX_RETIRED {
            self.reaper.set_due(0);
            platform.wake(Work::Reap);
        } else if retired == 1 {
            self.reaper.set_due(due_ns);
            platform.wake(Work::Reap);
        }
        owed
    }

    /// Waits until `owed` is paid. A flush has a deadline, so this has one, as long as whoever carries it out runs
    /// ([`Platform::relax`]).
    pub(super) fn pay(&self, owed: Owed) -> Result<(), Unflushed> {
        let platform = &**self.backend.platform();
        while !self.owed.is_over(owed) {
            match self.owed.take(platform)? {
                Some((number, stale)) => {
                    let result = self.flush_ranges(stale);
                    self.owed.end(platform, number, result);
                    if let Err(unflushed) = result {
                        // Once: no flush is taken after it.
                        let error = DmaError::from(unflushed);
                        log::error!("domain {}: retired mappings stay pinned: {error}", self.number);
                    }
                }
                None => platform.relax(),
            }
        }
        Ok(())
    }

    /// Whether `owed` is paid; an error if it never will be.
    pub(super) fn is_paid(&self, owed: Owed) -> Result<bool, Unflushed> {
        if self.owed.is_over(owed) {
            return Ok(true);
        }
        match self.owed.failure(&**self.backend.platform()) {
            // It may have been paid just before another was not.
            Some(failed) if !self.owed.is_over(owed) => Err(failed),
            failed => Ok(failed.is_some()),
        }
    }

    /// Carries out the open flush if it is due at `now_ns`; tells the reaper when it will be, otherwise.
    pub fn pay_what_is_due(&self, now_ns: u64) {
        let open = self.owed.open.lock(&**self.backend.platform());
        if open.stale.is_empty() || open.failed.is_some() {
            return;
        }
        let due_ns = open.due_ns;
        let is_due = due_ns <= now_ns || open.retired >= MAX_RETIRED || open.stale.holds_tables();
        let owed = Owed(open.number);
        drop(open);
        if !is_due {
            self.reaper.set_due(due_ns);
        } else {
            // Who waits for one of them is told if it fails.
            let _ = self.pay(owed);
        }
    }
}
