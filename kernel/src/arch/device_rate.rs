//! How often devices may interrupt a CPU.
//!
//! Nothing keeps a device from raising an interrupt that is its own again and again, and a CPU that takes each of them
//! gets to nothing else. So past a rate the last one stays in service until the timer's next interrupt. Until then the
//! local APIC keeps back what has the same or a lower priority, which the timer has not, and remembers of each vector
//! that it came: no interrupt is lost. Lower ones are late for as long as the storm lasts, in which the higher one
//! comes first again.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed, Release},
};

use super::{apic_errors, clock};

/// Interrupts of all devices in a window, which makes 100,000 a second. A handler takes a microsecond or two, so a
/// storm leaves most of the CPU to others; a device that has done more than that is heard of it once a window.
pub const BURST: u32 = 100;
pub const WINDOW_NS: u64 = clock::NS_PER_MS;

/// Pauses of all CPUs so far.
static PAUSES: AtomicU64 = AtomicU64::new(0);
/// The vector of one that is to be reported, until it is.
static UNREPORTED: AtomicU32 = AtomicU32::new(0);

/// What one CPU has taken from devices. It alone changes that, with interrupts off.
pub struct DeviceRate {
    /// Since when it counts.
    window_ns: AtomicU64,
    taken: AtomicU32,
    /// Interrupts that are in service and will be acknowledged by the timer.
    in_service: AtomicU32,
}

impl DeviceRate {
    pub const fn new() -> Self {
        Self { window_ns: AtomicU64::new(0), taken: AtomicU32::new(0), in_service: AtomicU32::new(0) }
    }

    /// Counts an interrupt by `vector`. Returns when it comes if it is to stay in service. What time it is, only one of
    /// [`BURST`] has to ask.
    pub(super) fn enter(&self, vector: u8) -> Option<u64> {
        let taken = self.taken.load(Relaxed) + 1;
        self.taken.store(taken, Relaxed);
        if taken < BURST {
            return None;
        }
        let now_ns = clock::now_ns();
        if now_ns.wrapping_sub(self.window_ns.load(Relaxed)) >= WINDOW_NS {
            self.window_ns.store(now_ns, Relaxed);
            self.taken.store(0, Relaxed);
            return None;
        }
        self.in_service.store(self.in_service.load(Relaxed) + 1, Relaxed);
        // Devices that interrupt too often for ever fill no log, and wake nobody each time.
        if (PAUSES.fetch_add(1, Relaxed) + 1).is_power_of_two() {
            UNREPORTED.store(vector.into(), Release);
            apic_errors::wake();
        }
        Some(now_ns)
    }

    /// How many are in service. Their owner acknowledges them.
    pub(super) fn take_in_service(&self) -> u32 {
        let count = self.in_service.load(Relaxed);
        self.in_service.store(0, Relaxed);
        count
    }
}

/// How often a CPU has paused.
pub fn pauses() -> u64 {
    PAUSES.load(Relaxed)
}

/// The vector of the last pause that is to be reported, for the one who does that.
pub(super) fn take_unreported() -> Option<u32> {
    Some(UNREPORTED.swap(0, AcqRel)).filter(|&vector| vector != 0)
}
