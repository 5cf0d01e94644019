//! Writing cache lines back, for hardware that does not snoop.

use core::{
    arch::asm,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

use x86::cpuid::CpuId;

const LINE_BYTES: usize = 64;

/// The instruction to use: not known yet, `clflush`, `clflushopt`, `clwb`.
static KIND: AtomicU8 = AtomicU8::new(UNKNOWN);
const UNKNOWN: u8 = 0;
const CLFLUSH: u8 = 1;
const CLFLUSHOPT: u8 = 2;
const CLWB: u8 = 3;

/// Writes the lines that hold `bytes` bytes (at least 1) from `first` back to memory, and orders that before every later
/// store.
#[inline]
pub fn write_back(first: *const u8, bytes: usize) {
    let kind = match KIND.load(Relaxed) {
        UNKNOWN => detect(),
        kind => kind,
    };
    let (line, end) = (first as usize & !(LINE_BYTES - 1), first as usize + bytes);
    if end - line <= LINE_BYTES {
        write_line(kind, line);
    } else {
        (line..end).step_by(LINE_BYTES).for_each(|line| write_line(kind, line));
    }
    // SAFETY: a fence touches nothing. Only it orders the two newer instructions before later stores.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
}

/// Writes the line at `line` back by the instruction `kind`, which the CPU has.
#[inline(always)]
fn write_line(kind: u8, line: usize) {
    // SAFETY: the instructions write a line back and change nothing. Assembly is a barrier for the compiler, so the
    // stores come first.
    unsafe {
        match kind {
            CLWB => asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)),
            CLFLUSHOPT => asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags)),
            _ => asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags)),
        }
    }
}

#[cold]
fn detect() -> u8 {
    let features = CpuId::new().get_extended_feature_info();
    let kind = match features {
        Some(features) if features.has_clwb() => CLWB,
        Some(features) if features.has_clflushopt() => CLFLUSHOPT,
        _ => CLFLUSH,
    };
    KIND.store(kind, Relaxed);
    kind
}
