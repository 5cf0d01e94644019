//! Writing cache lines back, for hardware that does not snoop.

use core::{
    arch::asm,
    sync::atomic::{AtomicU8, Ordering::Relaxed},
};

use x86::cpuid::CpuId;

const LINE_BYTES: usize = 64;

/// The instruction to use. Every CPU has `clflush`.
static KIND: AtomicU8 = AtomicU8::new(CLFLUSH);
const CLFLUSH: u8 = 0;
const CLFLUSHOPT: u8 = 1;
const CLWB: u8 = 2;

/// Finds the best instruction that the CPUs have.
pub fn init() {
    let kind = match CpuId::new().get_extended_feature_info() {
        Some(features) if features.has_clwb() => CLWB,
        Some(features) if features.has_clflushopt() => CLFLUSHOPT,
        _ => CLFLUSH,
    };
    KIND.store(kind, Relaxed);
}

/// Writes the line of the address `place`, made of `part`s, back by the instruction `kind`, which the CPU has.
macro_rules! write_line {
    ($kind:expr, $place:literal $(, $part:expr)+) => {
        // SAFETY: the instructions write a line back and change nothing. Assembly is a barrier for the compiler, so the
        // stores come first.
        unsafe {
            match $kind {
                CLFLUSH => {
                    asm!(concat!("clflush ", $place) $(, in(reg) $part)+, options(nostack, preserves_flags));
                }
                CLFLUSHOPT => {
                    asm!(concat!("clflushopt ", $place) $(, in(reg) $part)+, options(nostack, preserves_flags));
                }
                _ => asm!(concat!("clwb ", $place) $(, in(reg) $part)+, options(nostack, preserves_flags)),
            }
        }
    };
}

/// Writes the lines that hold `bytes` bytes (at least 1) from `first` back to memory, and orders that before every
/// later store.
#[inline]
pub fn write_back(first: *const u8, bytes: usize) {
    let kind = KIND.load(Relaxed);
    let (line, end) = (first as usize & !(LINE_BYTES - 1), first as usize + bytes);
    // Counted from the end, so that the sign tells when it is reached.
    let mut offset = line.wrapping_sub(end);
    loop {
        write_line!(kind, "[{}+{}]", end, offset);
        offset = offset.wrapping_add(LINE_BYTES);
        if offset as isize >= 0 {
            break;
        }
    }
    order(kind);
}

/// Does so for the line that holds `byte`.
#[inline]
pub fn write_back_line(byte: *const u8) {
    let kind = KIND.load(Relaxed);
    write_line!(kind, "[{}]", byte);
    order(kind);
}

/// Orders lines written back by the instruction `kind` before later stores. `clflush` needs nothing for that.
#[inline(always)]
fn order(kind: u8) {
    if kind != CLFLUSH {
        // SAFETY: a fence touches nothing.
        unsafe { asm!("sfence", options(nostack, preserves_flags)) };
    }
}
