//! Accesses that are allowed to fault: how the kernel's own tests see that protection holds.

use core::{arch::asm, sync::atomic::Ordering::Relaxed};

use super::{InterruptGuard, cpu::Cpu, traps::PageFault};

/// Reads the byte at `address`.
///
/// # Errors
/// The page fault, if that is what it caused.
///
/// # Safety
/// If the address is mapped, reading it has no side effect.
pub unsafe fn read(address: u64) -> Result<u8, PageFault> {
    let value: u8;
    let _guard = InterruptGuard::new();
    let cpu = Cpu::current();
    // SAFETY: the access either succeeds, as the caller allows, or resumes at `2`. The resume address is cleared by
    // the handler or by the store after the access.
    unsafe {
        asm!(
            "lea {resume}, [rip + 2f]",
            "mov [{slot}], {resume}",
            "mov {value}, [{address}]",
            "2:",
            slot = in(reg) cpu.fault_resume.as_ptr(),
            resume = out(reg) _,
            address = in(reg) address,
            value = out(reg_byte) value,
            options(nostack),
        );
    }
    outcome(cpu).map(|()| value)
}

/// Writes `value` to the byte at `address`.
///
/// # Errors
/// The page fault, if that is what it caused.
///
/// # Safety
/// If the address is mapped writable, the write must be harmless.
pub unsafe fn write(address: u64, value: u8) -> Result<(), PageFault> {
    let _guard = InterruptGuard::new();
    let cpu = Cpu::current();
    // SAFETY: as in `read`.
    unsafe {
        asm!(
            "lea {resume}, [rip + 2f]",
            "mov [{slot}], {resume}",
            "mov [{address}], {value}",
            "2:",
            slot = in(reg) cpu.fault_resume.as_ptr(),
            resume = out(reg) _,
            address = in(reg) address,
            value = in(reg_byte) value,
            options(nostack),
        );
    }
    outcome(cpu)
}

/// Calls the code at `address`, which must return at once.
///
/// # Errors
/// The page fault, if that is what it caused.
///
/// # Safety
/// If the address is mapped executable, a `ret` instruction is there.
pub unsafe fn execute(address: u64) -> Result<(), PageFault> {
    let _guard = InterruptGuard::new();
    let cpu = Cpu::current();
    // SAFETY: as in `read`. The stack pointer is put back where it was, whether the call returned or faulted.
    unsafe {
        asm!(
            "mov {stack}, rsp",
            "lea {resume}, [rip + 2f]",
            "mov [{slot}], {resume}",
            "call {address}",
            "2:",
            "mov rsp, {stack}",
            slot = in(reg) cpu.fault_resume.as_ptr(),
            resume = out(reg) _,
            address = in(reg) address,
            stack = out(reg) _,
        );
    }
    outcome(cpu)
}

fn outcome(cpu: &Cpu) -> Result<(), PageFault> {
    // The handler cleared it if there was a fault.
    if cpu.fault_resume.swap(0, Relaxed) != 0 {
        return Ok(());
    }
    Err(PageFault { address: cpu.fault_address.load(Relaxed), error: cpu.fault_error.load(Relaxed) })
}
