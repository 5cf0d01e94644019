//! What belongs to one CPU.

use core::{
    arch::asm,
    cell::UnsafeCell,
    mem, ptr,
    sync::atomic::{
        AtomicBool, AtomicPtr, AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed},
    },
};

use iommu::platform::MAX_CPUS;
use mm::lock_order::HeldLocks;
use x86::{
    msr::{IA32_GS_BASE, wrmsr},
    time::rdtsc,
};

use super::{device_rate::DeviceRate, gdt::Descriptors};
use crate::threads::Thread;

fn time_stamp() -> u64 {
    // SAFETY: every x86-64 CPU has the counter, and nobody forbids reading it.
    unsafe { rdtsc() }
}

/// The interrupt flag where RFLAGS has it: far above what any number of guards adds up to.
const WERE_ON: u32 = 1 << 9;

/// What a guard adds to the count: bit 1 of RFLAGS, which is always set.
const GUARD: u32 = 1 << 1;

/// The count without a guard. A first guard that finds interrupts on also adds [`WERE_ON`], so that the count is 0 when
/// it is the last one to go: a flag that the CPU sets by itself.
const NO_GUARD: u32 = 0_u32.wrapping_sub(WERE_ON);

/// The data of one CPU. The GS base points to it.
///
/// Only its own CPU writes it, with interrupts off, where nothing else is said; atomics say so to the compiler at no
/// cost.
#[repr(C)]
pub struct Cpu {
    /// Address of this structure: what `gs:0` reads.
    this: AtomicPtr<Cpu>,
    index: AtomicUsize,
    apic_id: AtomicU32,
    /// [`NO_GUARD`], [`GUARD`] for each interrupt guard, and [`WERE_ON`] if the first of them found interrupts on.
    guards: AtomicU32,
    interrupt_depth: AtomicU32,
    /// A scheduling decision is due when the current interrupt ends.
    reschedule: AtomicBool,
    /// Where the page-fault handler resumes if the fault was asked for (see [`super::probe`]), or 0.
    pub(super) fault_resume: AtomicUsize,
    pub(super) fault_error: AtomicU64,
    pub(super) fault_address: AtomicU64,
    /// The thread that runs here; null before [`crate::threads::init`].
    pub current_thread: AtomicPtr<Thread>,
    /// When the timer of this CPU fires next.
    pub timer_armed_ns: AtomicU64,
    /// What debug builds know of the locks held (see [`crate::sync`]).
    pub held_locks: HeldLocks,
    /// Flushes of the TLB that other CPUs asked this one for, and those of them that it did (see [`crate::smp`]). Any
    /// CPU raises the first.
    pub flushes_wanted: AtomicU64,
    pub flushes_done: AtomicU64,
    /// Interrupts that came, and times that another thread was given the CPU.
    pub interrupts: AtomicU64,
    pub switches: AtomicU64,
    /// Ticks of the time-stamp counter that it had nothing to do in, and since when it has had nothing to do, or 0.
    idle_ticks: AtomicU64,
    idle_since: AtomicU64,
    pub(super) device_rate: DeviceRate,
    /// It was told to stop, and did.
    pub stopped: AtomicBool,
    /// Where it was then.
    pub(super) stopped_at: [AtomicU64; 2],
    pub(super) descriptors: UnsafeCell<Descriptors>,
}

// SAFETY: `descriptors` is written once, by its own CPU, before it is loaded (see `gdt::load`).
unsafe impl Sync for Cpu {}

static CPUS: [Cpu; MAX_CPUS] = [const { Cpu::new() }; MAX_CPUS];

impl Cpu {
    const fn new() -> Self {
        Self {
            this: AtomicPtr::new(ptr::null_mut()),
            index: AtomicUsize::new(0),
            apic_id: AtomicU32::new(0),
            guards: AtomicU32::new(NO_GUARD),
            interrupt_depth: AtomicU32::new(0),
            reschedule: AtomicBool::new(false),
            fault_resume: AtomicUsize::new(0),
            fault_error: AtomicU64::new(0),
            fault_address: AtomicU64::new(0),
            current_thread: AtomicPtr::new(ptr::null_mut()),
            timer_armed_ns: AtomicU64::new(u64::MAX),
            held_locks: HeldLocks::new(),
            flushes_wanted: AtomicU64::new(0),
            flushes_done: AtomicU64::new(0),
            interrupts: AtomicU64::new(0),
            switches: AtomicU64::new(0),
            idle_ticks: AtomicU64::new(0),
            idle_since: AtomicU64::new(0),
            device_rate: DeviceRate::new(),
            stopped: AtomicBool::new(false),
            stopped_at: [const { AtomicU64::new(0) }; 2],
            descriptors: UnsafeCell::new(Descriptors::new()),
        }
    }

    /// From now on this CPU, whose interrupts are off, has nothing to do until the next interrupt.
    pub fn begin_idle(&self) {
        self.idle_since.store(time_stamp(), Relaxed);
    }

    /// An interrupt has come.
    #[inline]
    pub fn end_idle(&self) {
        let since = self.idle_since.load(Relaxed);
        if since != 0 {
            self.idle_since.store(0, Relaxed);
            let idle = time_stamp().saturating_sub(since);
            self.idle_ticks.store(self.idle_ticks.load(Relaxed) + idle, Relaxed);
        }
    }

    /// Ticks of the time-stamp counter in which this CPU has had something to do.
    pub fn busy_ticks(&self) -> u64 {
        time_stamp().saturating_sub(self.idle_ticks.load(Relaxed))
    }

    /// The CPU with number `index`, whether or not there is one.
    pub fn get(index: usize) -> Option<&'static Self> {
        CPUS.get(index)
    }

    /// The CPU that booted.
    pub fn first() -> &'static Self {
        &CPUS[0]
    }

    /// Makes this CPU the one with number `index`. The first thing that a CPU does: locks and guards need it.
    ///
    /// # Panics
    /// If `index` is not below [`MAX_CPUS`]: a bug of the caller, who numbers the CPUs.
    pub fn install(index: usize) {
        let cpu = &CPUS[index];
        cpu.index.store(index, Relaxed);
        cpu.this.store(ptr::from_ref(cpu).cast_mut(), Relaxed);
        // SAFETY: GS is used for nothing but this, and `cpu` lives for ever.
        unsafe { wrmsr(IA32_GS_BASE, ptr::from_ref(cpu) as u64) };
    }

    /// The CPU that this runs on. Without an interrupt guard the answer may be outdated at once.
    #[inline]
    pub fn current() -> &'static Self {
        let this: *const Self;
        // SAFETY: `install` ran before anything else did on this CPU, so the GS base points to a `Cpu`, whose first
        // word is its own address.
        unsafe {
            asm!("mov {}, gs:[0]", out(reg) this, options(nostack, preserves_flags, readonly));
            &*this
        }
    }

    /// Number of this CPU, below [`MAX_CPUS`].
    #[inline]
    pub fn index(&self) -> usize {
        self.index.load(Relaxed)
    }

    /// [`index`](Self::index) of the CPU that this runs on; as of [`current`](Self::current), the answer may be
    /// outdated.
    #[inline]
    pub fn current_index() -> usize {
        let index: usize;
        // SAFETY: as in `current`; the offset is that of an initialised word of the same structure.
        unsafe {
            asm!(
                "mov {}, gs:[{}]",
                out(reg) index,
                const mem::offset_of!(Self, index),
                options(nostack, preserves_flags, readonly),
            );
        }
        index
    }

    /// The id that interrupts are addressed to.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.load(Relaxed)
    }

    pub(super) fn set_apic_id(&self, id: u32) {
        self.apic_id.store(id, Relaxed);
    }

    /// Whether it stopped for good.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Acquire)
    }

    /// Instruction and frame pointer where it stopped.
    pub fn stopped_at(&self) -> [u64; 2] {
        self.stopped_at.each_ref().map(|word| word.load(Relaxed))
    }

    /// Whether a hard interrupt handler runs here. One instruction, so that a thread may ask although it may go on on
    /// another CPU at any time.
    #[inline]
    pub fn in_interrupt() -> bool {
        let depth: u32;
        // SAFETY: as in `current`; the offset is that of an initialised word of the same structure.
        unsafe {
            asm!(
                "mov {:e}, gs:[{}]",
                out(reg) depth,
                const mem::offset_of!(Self, interrupt_depth),
                options(nostack, preserves_flags, readonly),
            );
        }
        depth > 0
    }

    pub(super) fn enter_interrupt(&self) {
        self.interrupts.store(self.interrupts.load(Relaxed) + 1, Relaxed);
        self.interrupt_depth.store(self.interrupt_depth.load(Relaxed) + 1, Relaxed);
    }

    pub(super) fn leave_interrupt(&self) {
        self.interrupt_depth.store(self.interrupt_depth.load(Relaxed) - 1, Relaxed);
    }

    /// Asks for a scheduling decision at the end of the current interrupt.
    pub fn request_reschedule(&self) {
        self.reschedule.store(true, Relaxed);
    }

    /// Whether one was asked for; clears the request.
    pub fn take_reschedule(&self) -> bool {
        let due = self.reschedule.load(Relaxed);
        self.reschedule.store(false, Relaxed);
        due
    }

    /// Counts an interrupt guard of this CPU, whose interrupts are off now; `flags` are those from before.
    ///
    /// Interrupts that were on mean that there was no guard, so that the flag and the count come with one addition.
    #[inline]
    pub(super) fn enter_guard(flags: u64) {
        let added = flags as u32 & (WERE_ON | GUARD);
        // SAFETY: as in `current`; one instruction changes a word of the same structure that no other CPU writes.
        unsafe {
            asm!("add gs:[{}], {:e}", const mem::offset_of!(Self, guards), in(reg) added, options(nostack));
        }
    }

    /// Uncounts one. The last one turns interrupts on again if the first one found them so.
    ///
    /// # Safety
    /// The guard was counted on this CPU, and no lock that a handler takes is held on behalf of it.
    #[inline]
    pub(super) unsafe fn leave_guard() {
        debug_assert!(
            !matches!(Self::current().guards.load(Relaxed), NO_GUARD | 0),
            "more interrupt guards dropped than made"
        );
        // SAFETY: as in `enter_guard`; the caller vouches for the locks. The compiler barrier (no `nomem`) keeps
        // protected accesses before it.
        unsafe {
            asm!(
                "sub dword ptr gs:[{guards}], {guard}",
                "jnz 2f",
                "mov dword ptr gs:[{guards}], {no_guard}",
                "sti",
                "2:",
                guards = const mem::offset_of!(Self, guards),
                guard = const GUARD,
                no_guard = const NO_GUARD.cast_signed(),
                options(nostack),
            );
        }
    }

    /// Whether interrupts come back when the last guard goes: a property of the running thread, which the scheduler
    /// carries over a switch.
    pub fn interrupts_were_on(&self) -> bool {
        self.guards.load(Relaxed).cast_signed() > 0
    }

    /// See [`interrupts_were_on`](Self::interrupts_were_on). There is a guard.
    pub fn set_interrupts_were_on(&self, were_on: bool) {
        let guards = self.guards.load(Relaxed);
        let guards = if guards.cast_signed() > 0 { guards.wrapping_sub(WERE_ON) } else { guards };
        debug_assert!(guards != NO_GUARD, "no interrupt guard remembers what interrupts were");
        self.guards.store(if were_on { guards.wrapping_add(WERE_ON) } else { guards }, Relaxed);
    }
}
