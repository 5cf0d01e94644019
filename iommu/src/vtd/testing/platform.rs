//! The host kernel.

use core::ptr::NonNull;
use std::boxed::Box;
use std::cell::Cell;
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use std::vec::Vec;

use mm::{PhysAddr, lock_order::HeldLocks};

use super::{FakeMemory, FakeUnit};
use crate::{
    PciAddress, Platform,
    platform::{Event, LockClass, MsiMessage, Registers, Work},
};

/// What one look at the clock costs.
const TICK_NS: u64 = 100;
/// What one round of waiting costs, so that deadlines of minutes are met soon.
const RELAX_NS: u64 = if cfg!(miri) { 400_000_000 } else { 20_000_000 };
/// The same where other threads of the test have to come to something meanwhile.
const THREADS_RELAX_NS: u64 = 1;

#[cfg(loom)]
use loom::{thread::yield_now, thread_local};
#[cfg(not(loom))]
use std::{thread::yield_now, thread_local};

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's macro takes no constant")]
    static GUARDS: Cell<usize> = Cell::new(0);
    #[allow(clippy::missing_const_for_thread_local, reason = "as above")]
    static HELD: HeldLocks = HeldLocks::new();
}

/// Interrupts are off on the thread that made it, unless the platform is a careless one.
pub struct Guard {
    depth: usize,
}

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDS.with(|guards| guards.set(guards.get() - self.depth));
    }
}

pub struct FakePlatform {
    pub memory: Arc<FakeMemory>,
    pub unit: Arc<FakeUnit>,
    pub clock_ns: Arc<AtomicU64>,
    pub relax_ns: AtomicU64,
    /// Descriptors that a lazy unit carries out each time somebody waits.
    pub pace: AtomicUsize,
    pub wakes: AtomicUsize,
    /// What others do while somebody waits.
    pub on_relax: Mutex<Option<Box<dyn FnMut() + Send>>>,
    pub cpu: AtomicUsize,
    pub mapped: Mutex<Vec<(u64, usize)>>,
    pub has_vectors: bool,
    /// Whether its guards turn interrupts off.
    pub masks_interrupts: bool,
}

/// The message for every event.
pub const MESSAGE: MsiMessage = MsiMessage { address: 0x7700_fee0_3000, data: 0x41 };

impl FakePlatform {
    /// A machine whose one unit reports `cap` and `ecap`.
    pub fn new(cap: u64, ecap: u64) -> Self {
        let memory = Arc::new(FakeMemory::new());
        Self {
            unit: Arc::new(FakeUnit::new(memory.clone(), cap, ecap)),
            memory,
            clock_ns: Arc::new(AtomicU64::new(1_000_000)),
            relax_ns: AtomicU64::new(RELAX_NS),
            pace: AtomicUsize::new(0),
            wakes: AtomicUsize::new(0),
            on_relax: Mutex::new(None),
            cpu: AtomicUsize::new(0),
            mapped: Mutex::new(Vec::new()),
            has_vectors: true,
            masks_interrupts: true,
        }
    }

    /// Deadlines are for hardware that fails, not for threads of a test that are kept from running. Others get their
    /// turn while one of them waits; a thread that is alone would only give time away.
    pub fn slow_clock(&self) {
        self.relax_ns.store(THREADS_RELAX_NS, Ordering::Relaxed);
    }

    pub fn elapsed_since(&self, start_ns: u64) -> u64 {
        self.clock_ns.load(Ordering::SeqCst) - start_ns
    }
}

pub struct FakeRegisters {
    unit: Arc<FakeUnit>,
    memory: Arc<FakeMemory>,
    bytes: usize,
}

impl Registers for FakeRegisters {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn read32(&self, offset: usize) -> u32 {
        assert!(offset + 4 <= self.bytes, "read at {offset:#x} beyond the mapping");
        self.memory.step(Ordering::Acquire);
        self.unit.read32(offset)
    }

    fn write32(&self, offset: usize, value: u32) {
        assert!(offset + 4 <= self.bytes, "write at {offset:#x} beyond the mapping");
        self.memory.step(Ordering::Release);
        self.unit.write32(offset, value);
    }

    fn read64(&self, offset: usize) -> u64 {
        assert!(offset + 8 <= self.bytes, "read at {offset:#x} beyond the mapping");
        self.memory.step(Ordering::Acquire);
        self.unit.read64(offset)
    }

    fn write64(&self, offset: usize, value: u64) {
        assert!(offset + 8 <= self.bytes, "write at {offset:#x} beyond the mapping");
        self.memory.step(Ordering::Release);
        self.unit.write64(offset, value);
    }
}

// SAFETY: the memory and the registers are what they are said to be; no device exists.
unsafe impl Platform for FakePlatform {
    type Tables = FakeMemory;
    type Registers = FakeRegisters;
    type InterruptGuard = Guard;

    fn tables(&self) -> &FakeMemory {
        &self.memory
    }

    fn allocate_contiguous(&self, pages: usize) -> Option<PhysAddr> {
        self.memory.allocate_run(pages)
    }

    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Option<FakeRegisters> {
        self.mapped.lock().unwrap().push((base.as_u64(), bytes));
        Some(FakeRegisters { unit: self.unit.clone(), memory: self.memory.clone(), bytes })
    }

    fn now_ns(&self) -> u64 {
        self.clock_ns.fetch_add(TICK_NS, Ordering::SeqCst)
    }

    fn cpu(&self) -> usize {
        self.cpu.load(Ordering::Relaxed)
    }

    fn interrupt_guard(&self) -> Guard {
        let depth = usize::from(self.masks_interrupts);
        GUARDS.with(|guards| guards.set(guards.get() + depth));
        Guard { depth }
    }

    fn lock_taken(&self, class: LockClass) {
        let interrupts_on = GUARDS.with(Cell::get) == 0;
        let taken = HELD.with(|held| held.take(class as u8, interrupts_on));
        taken.unwrap_or_else(|error| panic!("{class:?}: {error}"));
    }

    fn lock_released(&self, class: LockClass) {
        HELD.with(|held| held.release(class as u8));
    }

    fn in_interrupt(&self) -> bool {
        false
    }

    fn relax(&self) {
        let relax_ns = self.relax_ns.load(Ordering::Relaxed);
        let now = self.clock_ns.fetch_add(relax_ns, Ordering::SeqCst);
        self.unit.time_passes(now);
        self.unit.run(self.pace.load(Ordering::Relaxed));
        if let Some(others) = &mut *self.on_relax.lock().unwrap() {
            others();
        }
        if cfg!(loom) || relax_ns == THREADS_RELAX_NS {
            yield_now();
        }
    }

    fn allocate_vector(&self, _event: Event) -> Option<MsiMessage> {
        self.has_vectors.then_some(MESSAGE)
    }

    fn read_config(&self, _function: PciAddress, _offset: u16) -> u32 {
        u32::MAX
    }

    fn write_config(&self, _function: PciAddress, _offset: u16, _value: u32) {}

    fn change_config(&self, _function: PciAddress, _offset: u16, _clear: u32, _set: u32) {}

    fn wake(&self, _work: Work) {
        self.wakes.fetch_add(1, Ordering::Relaxed);
    }

    fn physical(&self, _first: NonNull<u8>, _bytes: usize) -> Option<PhysAddr> {
        None
    }

    fn is_own_memory(&self, _range: mm::PhysRange) -> bool {
        false
    }
}
