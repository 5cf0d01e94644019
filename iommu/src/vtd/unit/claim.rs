//! The command registers carry out one command at a time.

use core::sync::atomic::{AtomicBool, Ordering};

use super::deadline::{COMMAND_TIMEOUT_NS, wait_until};
use crate::Platform;

/// Whose turn it is to use GCMD, PMEN, CCMD and IOTLB.
///
/// Not a lock: interrupts stay on and the thread may be preempted while the hardware works. It is never used in an
/// interrupt.
#[derive(Debug)]
pub(super) struct Claim {
    taken: AtomicBool,
}

/// The right to use the command registers, until it is dropped.
#[must_use]
pub(super) struct Claimed<'a>(&'a Claim);

impl Claim {
    pub const fn new() -> Self {
        Self { taken: AtomicBool::new(false) }
    }

    /// Waits for the one before. `None` if it takes longer than any command may.
    pub fn take<P: Platform>(&self, platform: &P) -> Option<Claimed<'_>> {
        debug_assert!(!platform.in_interrupt(), "no unit is commanded in a hard interrupt");
        let free =
            || self.taken.compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok();
        wait_until(platform, 2 * COMMAND_TIMEOUT_NS, free).then_some(Claimed(self))
    }
}

impl Drop for Claimed<'_> {
    fn drop(&mut self) {
        self.0.taken.store(false, Ordering::Release);
    }
}
