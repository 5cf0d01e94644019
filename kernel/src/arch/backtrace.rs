//! Return addresses, by the chain of frame pointers.

use core::arch::asm;

use crate::memory::stacks;

/// No backtrace is longer: a damaged chain may be a loop.
const FRAMES_MAX: usize = 32;

/// An iterator over return addresses, innermost first. It reads only inside known stacks, and so never faults.
pub struct Backtrace {
    first: Option<u64>,
    frame: u64,
    left: usize,
}

/// The backtrace of interrupted code.
pub fn from_frame(rip: u64, rbp: u64) -> Backtrace {
    Backtrace { first: Some(rip), frame: rbp, left: FRAMES_MAX }
}

/// The backtrace of the caller.
#[inline(always)]
pub fn here() -> Backtrace {
    let frame: u64;
    // SAFETY: copies a register.
    unsafe { asm!("mov {}, rbp", out(reg) frame, options(nomem, nostack, preserves_flags)) };
    Backtrace { first: None, frame, left: FRAMES_MAX }
}

impl Iterator for Backtrace {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        self.left = self.left.checked_sub(1)?;
        let stack = stacks::containing(self.frame)?;
        if !self.frame.is_multiple_of(8) || stack.end - self.frame < 16 {
            return None;
        }
        let words = self.frame as *const [u64; 2];
        // SAFETY: both words lie inside a mapped stack and are aligned. The contents are not trusted.
        let [caller_frame, return_address] = unsafe { words.read_volatile() };
        self.frame = caller_frame;
        (return_address != 0).then_some(return_address)
    }
}
