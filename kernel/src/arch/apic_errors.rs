//! Errors of the local APICs: counted in the interrupt, reported by a thread, as are pauses of CPUs that devices
//! interrupt too often: the first, the second, the fourth.
//!
//! A device can bring them about, and where interrupts are not remapped it can raise their vector, as often as it
//! likes. So one that has no error behind it is just a vector that nobody asked for, and what is reported has its
//! budget.

use alloc::boxed::Box;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{AcqRel, Relaxed},
};

use super::{clock, device_rate};
use crate::threads::{self, Event, SpawnError};

/// Between two lines in the log.
const INTERVAL_NS: u64 = 10 * clock::NS_PER_S;

static COUNT: AtomicU64 = AtomicU64::new(0);
/// The bits of the error status registers since the last report.
static BITS: AtomicU32 = AtomicU32::new(0);
static HAPPENED: Event = Event::new();

/// Enters `errors`, as the error status register has them: none is not entered. Callable in an interrupt.
pub fn record(errors: u32) {
    if errors != 0 {
        COUNT.fetch_add(1, Relaxed);
        BITS.fetch_or(errors, AcqRel);
        HAPPENED.signal();
    }
}

/// There may be something to report. Callable in an interrupt.
pub fn wake() {
    HAPPENED.signal();
}

/// How many error interrupts had an error behind them.
pub fn count() -> u64 {
    COUNT.load(Relaxed)
}

/// Starts the thread that reports errors: in one line what has accumulated, and then none for [`INTERVAL_NS`].
///
/// # Errors
/// No memory for it.
pub fn start_reports() -> Result<(), SpawnError> {
    threads::spawn("apic-errors", Box::new(report_for_ever)).map(|_detached| ())
}

fn report_for_ever() {
    loop {
        HAPPENED.wait(u64::MAX);
        if let Some(vector) = device_rate::take_unreported() {
            log::warn!(
                "devices interrupt too often, last by vector {vector:#x}: pause {} of a CPU",
                device_rate::pauses()
            );
        }
        let bits = BITS.swap(0, AcqRel);
        if bits != 0 {
            log::warn!("local APIC error {bits:#x}, {} so far", count());
            threads::sleep_until(clock::now_ns() + INTERVAL_NS);
        }
    }
}
