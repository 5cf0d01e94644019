//! Interrupts off for a while.

use core::{arch::asm, marker::PhantomData};

use super::cpu::Cpu;

/// Interrupts, and with them preemption, stay off on this CPU while one of these lives.
///
/// Guards nest and may be dropped in any order: the CPU counts them, and the last one brings back what the first one
/// found.
#[must_use]
pub struct InterruptGuard {
    /// Bound to the CPU that it was made on.
    _not_send: PhantomData<*mut ()>,
}

impl InterruptGuard {
    /// Turns interrupts off.
    #[inline]
    pub fn new() -> Self {
        let flags = flags();
        disable();
        Cpu::enter_guard(flags);
        Self { _not_send: PhantomData }
    }

    /// The guard that this CPU already counts because another one was forgotten.
    pub(crate) fn assume() -> Self {
        debug_assert!(!are_enabled());
        Self { _not_send: PhantomData }
    }
}

impl Drop for InterruptGuard {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: counted when it was made, on this CPU, which it cannot leave; what it protected is over.
        unsafe { Cpu::leave_guard() }
    }
}

/// Whether this CPU takes interrupts.
#[inline]
pub fn are_enabled() -> bool {
    flags() & (1 << 9) != 0
}

/// RFLAGS.
#[inline]
fn flags() -> u64 {
    let flags: u64;
    // SAFETY: reads the flags through the stack; no other memory is touched.
    unsafe { asm!("pushfq", "pop {}", out(reg) flags, options(preserves_flags)) };
    flags
}

/// Turns interrupts off on this CPU, with nothing to turn them on again.
#[inline]
pub fn disable() {
    // SAFETY: needs ring 0, where all of this code runs. The compiler barrier (no `nomem`) keeps protected accesses
    // behind it.
    unsafe { asm!("cli", options(nostack)) };
}

/// Turns interrupts on.
///
/// # Safety
/// No lock that a handler takes may be held on this CPU.
#[inline]
pub unsafe fn enable() {
    // SAFETY: needs ring 0; the caller vouches for the locks.
    unsafe { asm!("sti", options(nostack)) };
}

/// Turns interrupts on and sleeps until one came, without a window in between.
///
/// # Safety
/// As for [`enable`].
pub unsafe fn enable_and_halt() {
    // SAFETY: `sti` takes effect after the next instruction, so no interrupt is lost before the halt.
    unsafe { asm!("sti", "hlt", options(nostack)) };
}
