//! Making all CPUs forget translations.
//!
//! Every CPU counts the flushes that others want of it and those that it did. Who wants one raises the first count,
//! sends an interrupt, and waits until the second has caught up. No lock is involved, and whoever waits with interrupts
//! off (here, or for an [`IrqMutex`](crate::sync::IrqMutex)) does the flushes that are wanted of itself meanwhile: any
//! number of CPUs may shoot at each other.
//!
//! Locks other than `IrqMutex` are not held by one that shoots, as whoever waits for them serves nothing: debug builds
//! check it ([`sync::assert_waiters_flush`]). Only a mapping besides the direct map is ever unmapped
//! ([`Alias`](crate::memory::Alias)), and its owners hold no lock at all.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
    fence,
};

use x86::tlb;

use super::others;
use crate::{
    arch::{
        Cpu, InterruptGuard,
        apic::{self, Ipi},
        clock, interrupts,
    },
    sync::{self, Rank},
};

/// A CPU that has interrupts off for longer is lost. A host with other things to do has been seen to keep an emulated
/// CPU waiting for five seconds.
const DEADLINE_NS: u64 = 20 * clock::NS_PER_S;

/// How often all CPUs were flushed.
static FLUSHES: AtomicU64 = AtomicU64::new(0);

/// How often all CPUs were flushed.
pub fn flushes() -> u64 {
    FLUSHES.load(Relaxed)
}

/// When this returns, no CPU uses a translation that it read before the call. Callable with interrupts off.
///
/// # Panics
/// If a CPU does not answer: it may go on using memory that is about to be somebody else's.
pub fn flush_all_cpus() {
    sync::assert_in_order(Rank::Shootdown);
    sync::assert_waiters_flush();
    let _guard = InterruptGuard::new();
    // A CPU that comes online from here on flushes after that, and sees what was changed before this.
    fence(SeqCst);
    for cpu in others() {
        cpu.flushes_wanted.fetch_add(1, SeqCst);
        apic::send(cpu.apic_id(), Ipi::Vector(interrupts::FLUSH));
    }
    flush_this_cpu();
    let deadline_ns = clock::now_ns() + DEADLINE_NS;
    for cpu in others() {
        wait_for(cpu, deadline_ns);
    }
    FLUSHES.fetch_add(1, Relaxed);
}

/// Waits until `cpu` has done all flushes that are wanted of it now: the caller's is among them.
fn wait_for(cpu: &Cpu, deadline_ns: u64) {
    let wanted = cpu.flushes_wanted.load(Relaxed);
    while cpu.flushes_done.load(Acquire) < wanted {
        serve_flush();
        assert!(clock::now_ns() < deadline_ns, "cpu {} does not flush its TLB", cpu.index());
        core::hint::spin_loop();
    }
}

/// Does the flush that another CPU wants of this one, if one does. Called with interrupts off.
#[inline]
pub fn serve_flush() {
    let cpu = Cpu::current();
    let wanted = cpu.flushes_wanted.load(Acquire);
    if cpu.flushes_done.load(Relaxed) != wanted {
        flush_this_cpu();
        cpu.flushes_done.store(wanted, Release);
    }
}

/// Makes this CPU forget all translations.
pub fn flush_this_cpu() {
    // SAFETY: reloading CR3 drops all translations of this CPU and changes nothing else; no global pages are in use.
    unsafe { tlb::flush_all() };
}
