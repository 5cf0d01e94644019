//! Several CPUs: which there are, how they start ([`start`]), forget translations together ([`shootdown`]) and stop
//! ([`stop`]).
//!
//! CPUs are numbered from 0, the one that booted, without gaps; there are at most [`MAX_CPUS`]. One that runs stays.

mod shootdown;
mod start;
mod stop;

use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use iommu::platform::MAX_CPUS;

use crate::arch::{
    Cpu, InterruptGuard,
    apic::{self, Ipi},
    interrupts,
};

pub use shootdown::{flush_all_cpus, flushes, serve_flush};
pub use start::{MAX_LEFT_OUT, StartError, listed, start_all, start_one, start_others, started};
pub use stop::{is_stopping, stop_here, stop_others};

const _: () = assert!(MAX_CPUS <= u64::BITS as usize, "a set of CPUs is a word");

/// The CPUs that run threads, one bit each.
static ONLINE: AtomicU64 = AtomicU64::new(1);

/// How many CPUs run threads.
pub fn count() -> usize {
    ONLINE.load(SeqCst).count_ones() as usize
}

/// The CPUs that run threads.
pub fn online() -> impl Iterator<Item = &'static Cpu> {
    let online = ONLINE.load(SeqCst);
    (0..MAX_CPUS).filter(move |index| online & 1 << index != 0).filter_map(Cpu::get)
}

/// The CPUs that run threads besides this one. Called with interrupts off.
fn others() -> impl Iterator<Item = &'static Cpu> {
    let this = Cpu::current().index();
    online().filter(move |cpu| cpu.index() != this)
}

/// The CPU that the next interrupt of a device goes to: each in turn, of those whose APIC id `is_reachable` accepts.
/// The first one if there is none.
pub fn next_cpu(is_reachable: impl Fn(u32) -> bool) -> &'static Cpu {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let reachable = || online().filter(|cpu| is_reachable(cpu.apic_id()));
    let turn = NEXT.fetch_add(1, Relaxed).checked_rem(reachable().count());
    turn.and_then(|turn| reachable().nth(turn)).unwrap_or(Cpu::first())
}

/// Makes every other CPU come out of ring 3.
pub fn interrupt_others() {
    let _guard = InterruptGuard::new();
    others().for_each(reschedule);
}

/// Makes `cpu` look for something better to do.
pub fn reschedule(cpu: &Cpu) {
    apic::send(cpu.apic_id(), Ipi::Vector(interrupts::RESCHEDULE));
}
