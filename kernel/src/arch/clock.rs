//! Time: the TSC, measured once against the programmable interval timer.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use x86::{
    cpuid::CpuId,
    io::{inb, outb},
    time::rdtsc,
};

/// Nanoseconds in a second.
pub const NS_PER_S: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const NS_PER_MS: u64 = 1_000_000;

/// Taken for granted if nothing tells the frequency: waits then end at the wrong time, but end.
const ASSUMED_HZ: u64 = 1_000_000_000;
const PIT_HZ: u64 = 1_193_182;

static TSC_HZ: AtomicU64 = AtomicU64::new(ASSUMED_HZ);
/// The TSC when the clock started.
static START: AtomicU64 = AtomicU64::new(0);
/// Nanoseconds per tick, times 2^32.
static NS_PER_TICK_2_32: AtomicU64 = AtomicU64::new((NS_PER_S << 32) / ASSUMED_HZ);

/// Where the frequency of the clock comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The CPU or the hypervisor states it.
    Cpuid,
    /// Measured against the interval timer.
    IntervalTimer,
    /// Nothing told it.
    Assumed,
}

/// Measures the TSC and starts the clock at 0. Returns the frequency in Hz and how it was found.
pub fn init() -> (u64, Source) {
    let (hz, source) = match (stated_hz(), measured_hz()) {
        (Some(hz), _) => (hz, Source::Cpuid),
        (None, Some(hz)) => (hz, Source::IntervalTimer),
        (None, None) => (ASSUMED_HZ, Source::Assumed),
    };
    TSC_HZ.store(hz, Relaxed);
    NS_PER_TICK_2_32.store(((u128::from(NS_PER_S) << 32) / u128::from(hz)) as u64, Relaxed);
    START.store(read_tsc(), Relaxed);
    (hz, source)
}

/// Monotonic time since [`init`].
#[inline]
pub fn now_ns() -> u64 {
    let ticks = read_tsc().saturating_sub(START.load(Relaxed));
    (u128::from(ticks) * u128::from(NS_PER_TICK_2_32.load(Relaxed)) >> 32) as u64
}

/// The first TSC value at which [`now_ns`] is at least `ns`, or the last one there is.
pub fn ns_to_tsc(ns: u64) -> u64 {
    let ticks = (u128::from(ns) << 32).div_ceil(u128::from(NS_PER_TICK_2_32.load(Relaxed)));
    u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(START.load(Relaxed))
}

/// Frequency of the TSC.
pub fn tsc_hz() -> u64 {
    TSC_HZ.load(Relaxed)
}

/// The time-stamp counter.
#[inline]
pub fn read_tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it, and the kernel does not forbid it to itself.
    unsafe { rdtsc() }
}

/// What CPUID says, in the leaf made for it or in the hypervisor's.
fn stated_hz() -> Option<u64> {
    let cpuid = CpuId::new();
    let by_cpu = || cpuid.get_tsc_info()?.tsc_frequency();
    let by_hypervisor = || Some(u64::from(cpuid.get_hypervisor_info()?.tsc_frequency()?) * 1000);
    by_cpu().or_else(by_hypervisor).filter(|&hz| hz >= 1_000_000)
}

/// The best of several short measurements: whatever disturbs one, makes it too long.
fn measured_hz() -> Option<u64> {
    const ATTEMPTS: usize = 5;
    (0..ATTEMPTS).filter_map(|_| measure_once()).min().filter(|&hz| hz >= 1_000_000)
}

/// Ticks per second, as seen while channel 2 of the interval timer counted 10 ms. `None` if it does not count.
fn measure_once() -> Option<u64> {
    const WINDOW_TICKS: u64 = PIT_HZ / 100;
    const CHANNEL_2: u16 = 0x42;
    const COMMAND: u16 = 0x43;
    /// Channel 2, low byte then high byte, mode 0: the output goes high at zero.
    const ONE_SHOT: u8 = 0b1011_0000;
    const GATE: u16 = 0x61;
    const GATE_ON_SPEAKER_OFF: u8 = 0b01;
    const OUTPUT: u8 = 1 << 5;
    // Each round reads a port, which takes about a microsecond on hardware and not much less anywhere else.
    const ROUNDS_MAX: u32 = 10_000_000;

    // SAFETY: the ports belong to the timer and its gate; nothing else uses channel 2.
    unsafe {
        outb(GATE, inb(GATE) & !0b11 | GATE_ON_SPEAKER_OFF);
        outb(COMMAND, ONE_SHOT);
        outb(CHANNEL_2, WINDOW_TICKS as u8);
        outb(CHANNEL_2, (WINDOW_TICKS >> 8) as u8);
    }
    let start = read_tsc();
    for _ in 0..ROUNDS_MAX {
        // SAFETY: as above.
        if unsafe { inb(GATE) } & OUTPUT != 0 {
            return Some((read_tsc() - start) * PIT_HZ / WINDOW_TICKS);
        }
    }
    None
}
