//! Switching from one stack to another.

use core::arch::naked_asm;

/// Bytes that [`prepare`] puts on a new stack.
const FRAME_WORDS: usize = 8;

/// Saves the callee-saved registers on the current stack and its pointer to `save`, then goes on where the stack
/// `next` was left. Returns when something switches back.
///
/// # Safety
/// `next` was saved by this function or made by [`prepare`], and has not been resumed since. Interrupts are off.
#[unsafe(naked)]
pub unsafe extern "C" fn switch(save: *mut usize, next: usize) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, rsi",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Writes the frame of a thread that starts at `entry`, and returns the pointer to hand to [`switch`].
///
/// # Safety
/// `top` is the end of a mapped, unused stack, aligned to 16 bytes.
pub unsafe fn prepare(top: u64, entry: extern "C" fn() -> !) -> usize {
    let frame = (top as usize - FRAME_WORDS * size_of::<u64>()) as *mut [u64; FRAME_WORDS];
    // Six registers, all zero (a frame pointer of zero ends backtraces); where to go; and the return address that
    // `entry` never uses, which also aligns its stack as a call would.
    // SAFETY: the caller owns the stack, and the frame lies inside it.
    unsafe { frame.write([0, 0, 0, 0, 0, 0, entry as usize as u64, 0]) };
    frame as usize
}
