//! `iommu=debug`: what drivers do wrong that the types of the DMA API cannot forbid.
//!
//! A claim gets a `CheckedSpace` around its domain then (`space.rs`), which keeps a record of each live mapping and
//! compares. Without the mode there is none, and nothing of it on the way of a mapping. Found are:
//!
//! - **leaks**: what is still mapped a second after the driver's last handle of the device went;
//! - **overlaps**: memory that is lent twice at the same time, where one of the devices may write it;
//! - **memory that no device may have**: code, constants, variables and stacks of the kernel, which are refused in
//!   every mode; this one says which it was, and who wanted it;
//! - **sync errors**: a device that writes a buffer that the CPU has ([`sync_for_cpu`](crate::Mapping::sync_for_cpu)).
//!   Found by a digest of the buffer, so for mappings that only the device writes, and not in what stands in for ragged
//!   ends.
//!
//! The other sync errors do not compile (`iommu/tests/compile_fail`): reading what is mapped and not synced, giving the
//! device what is synced for the CPU, giving it pieces of a reservation before their sync, using a buffer that is
//! unmapped.
//!
//! Nothing is refused for what is found: it is logged, within a budget, and the last findings are kept for
//! [`Visitor::misuse`]. Records are cut from table pages; there are `MAX_RECORDS` of them at most, and
//! what finds none is counted and not checked.

mod misuse;
mod records;
mod space;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

pub use misuse::{Lent, Misuse, Origin};
use records::Records;
pub(crate) use space::Frame;

use crate::{
    Iova, Platform,
    budget::Budget,
    dump::Visitor,
    platform::{LockClass, Work},
    sync::IrqLock,
};

/// How long what a driver drops together with its last handle may take to be dropped, in nanoseconds.
const GRACE_NS: u64 = 1_000_000_000;

/// Findings that are kept.
const KEPT: usize = 16;

/// Claims whose last handle went and that are not looked at yet, at most; one more is looked at at once.
const DEPARTED: usize = 16;

/// What is known of all live mappings, and what was found.
pub(crate) struct Checks<P: Platform> {
    platform: Arc<P>,
    state: IrqLock<State>,
    /// When departed claims have to be looked at.
    due_ns: AtomicU64,
    next_claim: AtomicU64,
}

struct State {
    records: Records,
    departed: [Option<Departed>; DEPARTED],
    kept: [Option<Misuse>; KEPT],
    found: u64,
    /// Pieces of mappings that found no record.
    unchecked: u64,
    lines: Budget,
}

/// A claim whose last handle went.
#[derive(Clone, Copy)]
struct Departed {
    claim: u64,
    due_ns: u64,
}

impl<P: Platform> Checks<P> {
    pub fn new(platform: Arc<P>) -> Self {
        // SAFETY: records are of this structure alone, with the platform's table memory, and are released when it is
        // dropped.
        let records = unsafe { Records::new() };
        let state = State {
            records,
            departed: [None; DEPARTED],
            kept: [None; KEPT],
            found: 0,
            unchecked: 0,
            lines: Budget::ALL,
        };
        Self {
            platform,
            state: IrqLock::new(LockClass::Checks, state),
            due_ns: AtomicU64::new(u64::MAX),
            next_claim: AtomicU64::new(0),
        }
    }

    /// When [`look`](Self::look) has to run, on the platform's clock.
    pub fn due_ns(&self) -> u64 {
        self.due_ns.load(Ordering::Relaxed)
    }

    /// Looks at the claims whose last handle went a while ago. Runs in a thread of the host.
    pub fn look(&self) {
        let now_ns = self.platform.now_ns();
        if now_ns < self.due_ns() {
            return;
        }
        loop {
            let mut state = self.state.lock(&*self.platform);
            let is_due = |departed: &Departed| departed.due_ns <= now_ns;
            let Some(place) = state.departed.iter_mut().find(|place| place.as_ref().is_some_and(is_due))
            else {
                let next_ns = state.departed.iter().flatten().map(|departed| departed.due_ns).min();
                self.due_ns.store(next_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
                return;
            };
            let departed = place.take();
            drop(state);
            if let Some(Departed { claim, .. }) = departed {
                self.report_leaks(claim);
            }
        }
    }

    /// Shows what was found.
    pub fn visit(&self, visitor: &mut dyn Visitor) {
        let (kept, found, unchecked) = {
            let state = self.state.lock(&*self.platform);
            (state.kept, state.found, state.unchecked)
        };
        let oldest = found as usize % KEPT;
        let in_order = kept[oldest..].iter().chain(&kept[..oldest]).flatten();
        in_order.for_each(|misuse| visitor.misuse(misuse));
        visitor.checks(found, unchecked);
    }

    /// The last handle of `claim` went: what is mapped by it is looked at in a while.
    fn depart(&self, claim: u64) {
        let due_ns = self.platform.now_ns().saturating_add(GRACE_NS);
        let mut state = self.state.lock(&*self.platform);
        if state.records.next(claim, Iova::new(0)).is_none() {
            return;
        }
        let Some(place) = state.departed.iter_mut().find(|place| place.is_none()) else {
            drop(state);
            return self.report_leaks(claim);
        };
        *place = Some(Departed { claim, due_ns });
        self.due_ns.fetch_min(due_ns, Ordering::Relaxed);
        drop(state);
        self.platform.wake(Work::Reap);
    }

    fn report_leaks(&self, claim: u64) {
        let mut from = Iova::new(0);
        loop {
            let next = self.state.lock(&*self.platform).records.next(claim, from);
            let Some((iova, lent)) = next else { return };
            if iova == lent.iova {
                self.report(Misuse::Leaked(lent));
            }
            from = Iova::new(iova.as_u64().saturating_add(1));
        }
    }

    /// Takes a lent buffer into the records, and reports it if it overlaps with another one.
    fn enter(&self, claim: u64, lent: Lent) {
        let mut overlaps = None;
        for piece in lent.pieces() {
            let mut state = self.state.lock(&*self.platform);
            let State { records, unchecked, .. } = &mut *state;
            overlaps = overlaps.or_else(|| records.overlapping(&lent, piece));
            if !records.add(self.platform.tables(), claim, lent, piece) {
                *unchecked += 1;
                let count = *unchecked;
                drop(state);
                if count.is_power_of_two() {
                    log::warn!(
                        "iommu=debug: {count} pieces of mappings are not checked: too many, or no memory"
                    );
                }
            }
        }
        if let Some(old) = overlaps {
            self.report(Misuse::Overlap { new: lent, old });
        }
    }

    /// Forgets the buffer of `bytes` bytes at `iova`.
    fn leave(&self, claim: u64, iova: Iova, bytes: u64) {
        let tables = self.platform.tables();
        let remove =
            |from| self.state.lock(&*self.platform).records.remove(tables, claim, (iova, bytes), from);
        // No two of its pieces are at one place: whoever has lent the same memory once more keeps a record of each.
        let mut from = Some(iova);
        while let Some(at) = from.and_then(remove) {
            from = at.as_u64().checked_add(1).map(Iova::new);
        }
    }

    fn report(&self, misuse: Misuse) {
        let now_ns = self.platform.now_ns();
        let mut state = self.state.lock(&*self.platform);
        let place = state.found as usize % KEPT;
        state.kept[place] = Some(misuse);
        state.found += 1;
        let line = state.lines.take(now_ns);
        drop(state);
        match line {
            Some(0) => log::error!("iommu=debug: {misuse}"),
            Some(suppressed) => log::error!("iommu=debug: {misuse} ({suppressed} before it are not shown)"),
            None => {}
        }
    }
}

impl<P: Platform> Drop for Checks<P> {
    fn drop(&mut self) {
        self.state.lock(&*self.platform).records.release(self.platform.tables());
    }
}
