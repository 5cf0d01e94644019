//! What happens when an exception or an interrupt comes.

use core::{fmt, sync::atomic::Ordering::Relaxed};

use x86::{controlregs::cr2, irq};

use super::{backtrace, cpu::Cpu, interrupts};
use crate::{panic, smp};

/// The registers of the interrupted code, as the entry stubs and the CPU push them.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct TrapFrame {
    pub(super) r15: u64,
    pub(super) r14: u64,
    pub(super) r13: u64,
    pub(super) r12: u64,
    pub(super) r11: u64,
    pub(super) r10: u64,
    pub(super) r9: u64,
    pub(super) r8: u64,
    pub rbp: u64,
    pub(super) rdi: u64,
    pub(super) rsi: u64,
    pub(super) rdx: u64,
    pub(super) rcx: u64,
    pub(super) rbx: u64,
    pub(super) rax: u64,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub(super) cs: u64,
    pub(super) rflags: u64,
    pub rsp: u64,
    pub(super) ss: u64,
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, .. } = self;
        let Self { r8, r9, r10, r11, r12, r13, r14, r15, .. } = self;
        let Self { rip, rflags, cs, ss, .. } = self;
        writeln!(f, "rax {rax:016x}  rbx {rbx:016x}  rcx {rcx:016x}  rdx {rdx:016x}")?;
        writeln!(f, "rsi {rsi:016x}  rdi {rdi:016x}  rbp {rbp:016x}  rsp {rsp:016x}")?;
        writeln!(f, "r8  {r8:016x}  r9  {r9:016x}  r10 {r10:016x}  r11 {r11:016x}")?;
        writeln!(f, "r12 {r12:016x}  r13 {r13:016x}  r14 {r14:016x}  r15 {r15:016x}")?;
        write!(f, "rip {rip:016x}  rflags {rflags:08x}  cs {cs:04x}  ss {ss:04x}")
    }
}

/// The lowest vector that a local APIC delivers.
pub(super) const FIRST_OF_APIC: u8 = 16;

/// Where the entry stubs lead if the kernel was interrupted, or anything by what has a stack of its own.
pub(super) extern "C" fn handle_trap(frame: &mut TrapFrame) {
    match frame.vector as u8 {
        irq::NONMASKABLE_INTERRUPT_VECTOR if smp::is_stopping() => stop(frame),
        irq::NONMASKABLE_INTERRUPT_VECTOR if interrupts::is_stray_nmi() => {}
        irq::PAGE_FAULT_VECTOR if resume_probe(frame) => {}
        vector @ FIRST_OF_APIC..32 if interrupts::is_stray(vector) => {}
        vector @ 0..32 => fatal_exception(vector, frame),
        vector => interrupts::dispatch(vector),
    }
}

/// Whether the page fault was asked for by [`super::probe`]: then the code goes on there.
fn resume_probe(frame: &mut TrapFrame) -> bool {
    let cpu = Cpu::current();
    let resume = cpu.fault_resume.swap(0, Relaxed);
    if resume == 0 {
        return false;
    }
    cpu.fault_error.store(frame.error, Relaxed);
    cpu.fault_address.store(fault_address(), Relaxed);
    frame.rip = resume as u64;
    true
}

/// Another CPU ends the machine.
fn stop(frame: &TrapFrame) -> ! {
    let [rip, rbp] = &Cpu::current().stopped_at;
    rip.store(frame.rip, Relaxed);
    rbp.store(frame.rbp, Relaxed);
    smp::stop_here()
}

pub(super) fn fault_address() -> u64 {
    // SAFETY: reading CR2 has no effect; this is ring 0.
    unsafe { cr2() as u64 }
}

fn fatal_exception(vector: u8, frame: &TrapFrame) -> ! {
    let report = panic::Report::begin();
    let cpu = Cpu::current().index();
    report.line(format_args!(
        "fatal exception {vector} ({}) on cpu {cpu}, error code {:#x}",
        name(vector),
        frame.error
    ));
    if vector == irq::PAGE_FAULT_VECTOR {
        report.line(format_args!("{}", PageFault { address: fault_address(), error: frame.error }));
    }
    if vector == irq::DOUBLE_FAULT_VECTOR && crate::memory::stacks::is_guard(fault_address()) {
        report.line(format_args!("stack overflow: {:#x} is in a guard page", fault_address()));
    }
    report.line(format_args!("{frame}"));
    report.backtrace(backtrace::from_frame(frame.rip, frame.rbp));
    report.end(format_args!("exception {vector} ({}) at {:#x}", name(vector), frame.rip))
}

/// A page fault in words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// What was accessed.
    pub address: u64,
    /// The error code that the CPU pushed.
    pub error: u64,
}

impl PageFault {
    /// The page was there, but did not allow the access.
    pub fn is_protection(&self) -> bool {
        self.error & 1 != 0
    }

    /// The access was a write.
    pub fn is_write(&self) -> bool {
        self.error & 1 << 1 != 0
    }

    /// The access was an instruction fetch.
    pub fn is_fetch(&self) -> bool {
        self.error & 1 << 4 != 0
    }
}

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match (self.is_fetch(), self.is_write()) {
            (true, _) => "fetch from",
            (_, true) => "write to",
            _ => "read from",
        };
        let why = if self.is_protection() { "protected" } else { "unmapped" };
        write!(f, "{access} {why} address {:#x}", self.address)
    }
}

pub(super) const fn name(vector: u8) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        2 => "non-maskable interrupt",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range exceeded",
        6 => "invalid opcode",
        7 => "device not available",
        8 => "double fault",
        10 => "invalid TSS",
        11 => "segment not present",
        12 => "stack segment",
        13 => "general protection",
        14 => "page fault",
        16 => "x87 floating point",
        17 => "alignment check",
        18 => "machine check",
        19 => "SIMD floating point",
        20 => "virtualization",
        21 => "control protection",
        _ => "reserved",
    }
}
