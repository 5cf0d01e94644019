//! The CPU and what is wired to it: entry, descriptor tables, traps, interrupts, time.

pub mod apic;
pub mod apic_errors;
pub mod backtrace;
mod boot;
pub mod cache;
pub mod clock;
pub mod context;
mod cpu;
pub mod device_rate;
mod exit;
pub mod gdt;
pub mod idt;
mod interrupt_guard;
pub mod interrupts;
pub mod io_apic;
pub mod keyboard;
pub mod legacy_pic;
pub mod memory_types;
pub mod probe;
pub mod random;
pub mod trampoline;
mod traps;
pub mod user;

pub use cpu::Cpu;
pub use exit::{ExitCode, exit, halt_for_ever};
pub use interrupt_guard::{InterruptGuard, are_enabled, disable, enable, enable_and_halt};
pub use traps::PageFault;
