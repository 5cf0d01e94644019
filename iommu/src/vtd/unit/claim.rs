//! The command registers carry out one command at a time.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::deadline::COMMAND_TIMEOUT_NS;
use crate::Platform;

/// Whose turn it is to use GCMD, PMEN, CCMD and IOTLB.
///
/// Not a lock: interrupts stay on and the thread may be preempted while the hardware works. It is never used in an
/// interrupt.
#[derive(Debug)]
pub(super) struct Claim {
    taken: AtomicBool,
    /// How many have had their turn: shows that commands come to an end, whoever gets the next one.
    ended: AtomicU64,
}

/// The right to use the command registers, until it is dropped.
#[must_use]
pub(super) struct Claimed<'a>(&'a Claim);

impl Claim {
    pub const fn new() -> Self {
        Self { taken: AtomicBool::new(false), ended: AtomicU64::new(0) }
    }

    /// Waits for its turn. `None` if one and the same turn takes longer than any command may. It does not matter how
    /// many others come first, which says nothing about the unit.
    pub fn take<P: Platform>(&self, platform: &P) -> Option<Claimed<'_>> {
        debug_assert!(!platform.in_interrupt(), "no unit is commanded in a hard interrupt");
        let mut ended = self.ended.load(Ordering::Relaxed);
        let mut since = platform.now_ns();
        loop {
            // The time is read before anything is asked, as in `wait_until`.
            let now = platform.now_ns();
            if self.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(Claimed(self));
            }
            let latest = self.ended.load(Ordering::Relaxed);
            if latest != ended {
                (ended, since) = (latest, now);
            } else if now.saturating_sub(since) > 2 * COMMAND_TIMEOUT_NS {
                return None;
            }
            platform.relax();
        }
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.0.ended.fetch_add(1, Ordering::Relaxed);
        self.0.taken.store(false, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use core::sync::atomic::AtomicU32;
    use std::{boxed::Box, sync::Arc};

    use super::*;
    use crate::vtd::testing::FakePlatform;

    /// A platform on which each round of waiting takes a second and does `others`.
    fn platform(others: impl FnMut() + Send + 'static) -> FakePlatform {
        let platform = FakePlatform::new(0, 0);
        platform.relax_ns.store(1_000_000_000, Ordering::Relaxed);
        *platform.on_relax.lock().unwrap() = Some(Box::new(others));
        platform
    }

    #[test]
    fn who_always_comes_too_late_waits_as_long_as_commands_come_to_an_end() {
        const ROUNDS: u32 = 60;
        let claim = Arc::new(Claim::new());
        claim.taken.store(true, Ordering::Relaxed);
        let (others, rounds) = (claim.clone(), AtomicU32::new(0));
        let platform = platform(move || {
            // One is done, the next was faster.
            others.ended.fetch_add(1, Ordering::Relaxed);
            let last = rounds.fetch_add(1, Ordering::Relaxed) == ROUNDS;
            others.taken.store(!last, Ordering::Relaxed);
        });
        assert!(claim.take(&platform).is_some());
    }

    #[test]
    fn a_command_that_never_ends_is_noticed() {
        let claim = Claim::new();
        let platform = platform(|| {});
        let first = claim.take(&platform).unwrap();
        let start = platform.now_ns();
        assert!(claim.take(&platform).is_none());
        assert!((4_000_000_000..10_000_000_000).contains(&platform.elapsed_since(start)));
        drop(first);
        assert!(claim.take(&platform).is_some());
    }
}
