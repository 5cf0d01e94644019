//! Waiting for hardware, never for ever.

use crate::Platform;

/// How long a unit may take to carry out one command. Real ones need microseconds; on an emulated one, the thread that
/// emulates it may not run for a while.
pub(super) const COMMAND_TIMEOUT_NS: u64 = 2_000_000_000;

/// Calls `done` until it says yes, for at most `timeout_ns`. Returns whether it did.
///
/// The time is read before `done` is asked: a caller that is kept from running for longer than its deadline finds out
/// what the hardware did in the meantime.
pub(super) fn wait_until<P: Platform>(platform: &P, timeout_ns: u64, mut done: impl FnMut() -> bool) -> bool {
    let start = platform.now_ns();
    loop {
        let waited = platform.now_ns().saturating_sub(start);
        if done() {
            return true;
        }
        if waited > timeout_ns {
            return false;
        }
        platform.relax();
    }
}
