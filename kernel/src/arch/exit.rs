//! The end of the machine.

use x86::io::outb;

use super::interrupt_guard;
use crate::smp;

/// I/O port of QEMU's `isa-debug-exit` device, as `xtask` configures it: value `v` ends QEMU with code `v << 1 | 1`.
const DEBUG_EXIT_PORT: u16 = 0xf4;

/// What the run came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ExitCode {
    /// All tests passed; or there was nothing to test.
    Success = 0x10,
    /// Some test failed.
    TestsFailed = 0x11,
    /// A panic or a fatal exception.
    Panic = 0x12,
    /// A test exceeded its deadline.
    DeadlineMissed = 0x13,
}

/// Ends QEMU with `code`; on a machine without the exit device, stops all CPUs for good.
pub fn exit(code: ExitCode) -> ! {
    interrupt_guard::disable();
    // SAFETY: the port belongs to the exit device or to nothing.
    unsafe { outb(DEBUG_EXIT_PORT, code as u8) };
    smp::stop_others();
    halt_for_ever()
}

/// Stops this CPU; what it runs last.
pub fn halt_for_ever() -> ! {
    interrupt_guard::disable();
    loop {
        // SAFETY: halting with interrupts off touches no memory.
        unsafe { x86::halt() };
    }
}
