//! Time: the TSC, measured once against the programmable interval timer.

mod standstill;

pub use standstill::{PULSE_NS, Seen, lost_ns as stood_still_ns};

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
/// The TSC when the clock started. Before that it shows 0.
static START: AtomicU64 = AtomicU64::new(u64::MAX);
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
    let stated = stated_hz().map(|hz| (hz, Source::Cpuid));
    let measured = || measured_hz().map(|hz| (hz, Source::IntervalTimer));
    let (hz, source) = stated.or_else(measured).unwrap_or((ASSUMED_HZ, Source::Assumed));
    TSC_HZ.store(hz, Relaxed);
    NS_PER_TICK_2_32.store(((u128::from(NS_PER_S) << 32) / u128::from(hz)) as u64, Relaxed);
    START.store(read_tsc(), Relaxed);
    (hz, source)
}

/// Monotonic time since [`init`], without that in which the machine stood still.
#[inline]
pub fn now_ns() -> u64 {
    standstill::shown(counted_ns)
}

/// What the TSC has counted since [`init`].
fn counted_ns() -> u64 {
    let ticks = read_tsc().saturating_sub(START.load(Relaxed));
    ((u128::from(ticks) * u128::from(NS_PER_TICK_2_32.load(Relaxed))) >> 32) as u64
}

/// The first TSC value at which [`now_ns`] is at least `ns` if the machine does not stand still until then, or the last
/// one there is.
pub fn ns_to_tsc(ns: u64) -> u64 {
    let ns = ns.saturating_add(standstill::lost_ns());
    let ticks = (u128::from(ns) << 32).div_ceil(u128::from(NS_PER_TICK_2_32.load(Relaxed)));
    u64::try_from(ticks).unwrap_or(u64::MAX).saturating_add(START.load(Relaxed))
}

/// Ticks of the TSC in a second, as the clock takes them to be.
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

/// TSC ticks per second, by the interval timer: the first result that two measurements in a row agree on. `None` if the
/// timer does not count, or they never agree.
///
/// A hypervisor that takes the CPU away for longer than the timer counts makes one measurement wrong by any amount.
pub fn measured_hz() -> Option<u64> {
    const ATTEMPTS_MAX: usize = 20;
    let mut previous = measure_once()?;
    for _ in 1..ATTEMPTS_MAX {
        let hz = measure_once()?;
        if hz.abs_diff(previous) <= previous / 500 {
            return Some(hz).filter(|&hz| hz >= 1_000_000);
        }
        previous = hz;
    }
    None
}

/// Counts TSC ticks against channel 2 of the interval timer, for about 10 ms. `None` if that does not count.
fn measure_once() -> Option<u64> {
    const WINDOW_TICKS: u32 = 12_000;
    // A reading takes microseconds on hardware and some 30 ns where instructions are counted: more than enough in both.
    const SAMPLES_MAX: usize = 2_000_000;
    start_interval_timer();
    let first = sample(interval_timer_count);
    // It has 16 bits.
    let since_first = |count: u32| first.count.wrapping_sub(count) & 0xffff;
    for _ in 0..SAMPLES_MAX {
        if since_first(interval_timer_count()) >= WINDOW_TICKS {
            let last = sample(interval_timer_count);
            let elapsed = since_first(last.count).max(1);
            return Some(last.tsc.wrapping_sub(first.tsc) * PIT_HZ / u64::from(elapsed));
        }
    }
    None
}

const PIT_CHANNEL_2: u16 = 0x42;
const PIT_COMMAND: u16 = 0x43;

/// Makes channel 2 count down from its highest value, 55 ms away from zero.
fn start_interval_timer() {
    /// Channel 2, low byte then high byte, mode 0.
    const ONE_SHOT: u8 = 0b1011_0000;
    const GATE: u16 = 0x61;
    const GATE_ON_SPEAKER_OFF: u8 = 0b01;
    // SAFETY: the ports belong to the timer and its gate; nothing else uses channel 2.
    unsafe {
        outb(GATE, inb(GATE) & !0b11 | GATE_ON_SPEAKER_OFF);
        outb(PIT_COMMAND, ONE_SHOT);
        outb(PIT_CHANNEL_2, 0xff);
        outb(PIT_CHANNEL_2, 0xff);
    }
}

/// What the timer shows.
fn interval_timer_count() -> u32 {
    const LATCH: u8 = 0b1000_0000;
    // SAFETY: as in `start_interval_timer`; latching does not disturb the count.
    unsafe {
        outb(PIT_COMMAND, LATCH);
        u16::from_le_bytes([inb(PIT_CHANNEL_2), inb(PIT_CHANNEL_2)]).into()
    }
}

/// What a counter and the TSC showed at the same time.
#[derive(Clone, Copy)]
pub struct Sample {
    /// The counter.
    pub count: u32,
    /// The TSC, half-way between before and after reading the counter.
    pub tsc: u64,
}

/// The sharpest of a few samples: a hypervisor may take the CPU away in the middle of one.
pub fn sample(mut counter: impl FnMut() -> u32) -> Sample {
    const TRIES: usize = 8;
    let mut best = Sample { count: 0, tsc: 0 };
    let mut best_width = u64::MAX;
    for _ in 0..TRIES {
        let before = read_tsc();
        let count = counter();
        let width = read_tsc() - before;
        if width < best_width {
            (best, best_width) = (Sample { count, tsc: before + width / 2 }, width);
        }
    }
    best
}
