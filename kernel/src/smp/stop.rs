//! Stopping all other CPUs, for good: the machine is about to end.

use core::sync::atomic::{
    AtomicBool,
    Ordering::{AcqRel, Acquire, Release},
};

use super::others;
use crate::arch::{
    self, Cpu,
    apic::{self, Ipi},
    clock,
};

/// A CPU that does not stop by then is left running.
const DEADLINE_NS: u64 = clock::NS_PER_S;

static STOPPING: AtomicBool = AtomicBool::new(false);

/// Whether a non-maskable interrupt means: stop.
pub fn is_stopping() -> bool {
    STOPPING.load(Acquire)
}

/// Stops all other CPUs, also those that have interrupts off, and waits until they did.
pub fn stop_others() {
    arch::disable();
    if STOPPING.swap(true, AcqRel) {
        return;
    }
    for cpu in others() {
        apic::send(cpu.apic_id(), Ipi::Nmi);
    }
    let deadline_ns = clock::now_ns() + DEADLINE_NS;
    while others().any(|cpu| !cpu.is_stopped()) && clock::now_ns() < deadline_ns {
        core::hint::spin_loop();
    }
}

/// Ends this CPU.
pub fn stop_here() -> ! {
    arch::disable();
    Cpu::current().stopped.store(true, Release);
    arch::halt_for_ever()
}
