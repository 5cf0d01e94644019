//! A host kernel for the allocator's tests and benchmarks: threads are CPUs, and its memory can run out.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    cell::Cell,
    marker::PhantomData,
    ptr::NonNull,
    slice,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    vec::Vec,
};

use mm::{
    PAGE_BYTES, PhysAddr,
    lock_order::HeldLocks,
    table::{Table, TableMemory},
};

use super::iommu::{
    PciAddress, Platform,
    platform::{Event, LockClass, MAX_CPUS, MsiMessage, Registers, Work},
};

const FRAME_BYTES: usize = PAGE_BYTES as usize;

/// Physical address of the first frame: not where it is in memory.
const FIRST_FRAME: u64 = 0x1_2345_0000;

/// A fixed number of frames.
pub struct Frames {
    memory: NonNull<u8>,
    layout: Layout,
    free: Mutex<Vec<PhysAddr>>,
    /// Calls of `allocate` that will still be answered.
    willing: AtomicUsize,
}

// SAFETY: the memory belongs to this instance, and is given out a frame at a time under the lock.
unsafe impl Send for Frames {}
// SAFETY: as above.
unsafe impl Sync for Frames {}

impl Frames {
    fn new(count: usize) -> Self {
        let layout =
            Layout::from_size_align(count * FRAME_BYTES, FRAME_BYTES).expect("a sensible number of frames");
        // SAFETY: the size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(memory) = NonNull::new(memory) else { handle_alloc_error(layout) };
        let frames = (0..count as u64).rev().map(|frame| PhysAddr::new(FIRST_FRAME + frame * PAGE_BYTES));
        Self { memory, layout, free: Mutex::new(frames.collect()), willing: AtomicUsize::new(usize::MAX) }
    }

    fn free_list(&self) -> MutexGuard<'_, Vec<PhysAddr>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pointer(&self, frame: PhysAddr) -> NonNull<u8> {
        let offset = (frame.as_u64() - FIRST_FRAME) as usize;
        assert!(offset < self.layout.size(), "{frame} is not one of our frames");
        // SAFETY: the frame lies within the memory.
        unsafe { self.memory.add(offset) }
    }

    /// Frames that are in use.
    pub fn in_use(&self) -> usize {
        self.layout.size() / FRAME_BYTES - self.free_list().len()
    }

    /// Answers `count` more calls of `allocate`, and refuses those after that.
    pub fn refuse_after(&self, count: usize) {
        self.willing.store(count, Ordering::Relaxed);
    }

    /// Answers all calls as long as there are frames.
    pub fn relent(&self) {
        self.refuse_after(usize::MAX);
    }
}

// SAFETY: a frame is aligned, zeroed (checked when it comes back) and given to one caller at a time.
unsafe impl TableMemory for Frames {
    fn allocate(&self) -> Option<PhysAddr> {
        let willing = |left: usize| if left == usize::MAX { Some(left) } else { left.checked_sub(1) };
        self.willing.fetch_update(Ordering::Relaxed, Ordering::Relaxed, willing).ok()?;
        self.free_list().pop()
    }

    unsafe fn free(&self, frame: PhysAddr) {
        // SAFETY: by the contract the frame is the caller's, and it gives it up.
        let bytes = unsafe { slice::from_raw_parts(self.pointer(frame).as_ptr(), FRAME_BYTES) };
        // One failure is enough: a second one while the first unwinds would hide it.
        let says_nothing = std::thread::panicking();
        assert!(
            says_nothing || bytes.iter().all(|&byte| byte == 0),
            "{frame} comes back with something in it"
        );
        let mut free = self.free_list();
        assert!(says_nothing || !free.contains(&frame), "{frame} is freed twice");
        free.push(frame);
    }

    unsafe fn table(&self, frame: PhysAddr) -> &Table {
        // SAFETY: the frame is aligned and holds a table's worth of initialised memory; atomics may be shared.
        unsafe { self.pointer(frame).cast().as_ref() }
    }

    fn write_back(&self, _first: *const u8, _bytes: usize) {}
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: it was allocated with that layout.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) };
    }
}

#[cfg(loom)]
use loom::thread_local;
#[cfg(not(loom))]
use std::thread_local;

thread_local! {
    #[allow(clippy::missing_const_for_thread_local, reason = "loom's macro takes no constant")]
    static CPU: Cell<usize> = Cell::new(0);
    #[allow(clippy::missing_const_for_thread_local, reason = "as above")]
    static GUARDS: Cell<usize> = Cell::new(0);
    #[allow(clippy::missing_const_for_thread_local, reason = "as above")]
    static HELD: HeldLocks = HeldLocks::new();
}

/// The calling thread is CPU `cpu` from now on.
pub fn become_cpu(cpu: usize) {
    CPU.with(|current| current.set(cpu));
}

/// Interrupts are off on the thread that made it.
pub struct Guard(PhantomData<*const ()>);

impl Guard {
    #[inline]
    fn new() -> Self {
        GUARDS.with(|guards| guards.set(guards.get() + 1));
        Self(PhantomData)
    }
}

impl Drop for Guard {
    #[inline]
    fn drop(&mut self) {
        GUARDS.with(|guards| guards.set(guards.get() - 1));
    }
}

/// The host.
pub struct Host {
    pub frames: Frames,
    /// How often the lock of a whole space was taken, where locks are checked.
    pub global_locks: AtomicUsize,
}

impl Host {
    /// A host with `frames` frames.
    pub fn new(frames: usize) -> Arc<Self> {
        Arc::new(Self { frames: Frames::new(frames), global_locks: AtomicUsize::new(0) })
    }
}

/// The host has no units.
pub enum NoRegisters {}

impl Registers for NoRegisters {
    fn bytes(&self) -> usize {
        match *self {}
    }
    fn read32(&self, _: usize) -> u32 {
        match *self {}
    }
    fn write32(&self, _: usize, _: u32) {}
    fn read64(&self, _: usize) -> u64 {
        match *self {}
    }
    fn write64(&self, _: usize, _: u64) {}
}

// SAFETY: there are no devices.
unsafe impl Platform for Host {
    type Tables = Frames;
    type Registers = NoRegisters;
    type InterruptGuard = Guard;

    fn tables(&self) -> &Frames {
        &self.frames
    }

    #[inline]
    fn cpu(&self) -> usize {
        debug_assert!(GUARDS.with(Cell::get) > 0, "the CPU may change without a guard");
        CPU.with(Cell::get) % MAX_CPUS
    }

    #[inline]
    fn interrupt_guard(&self) -> Guard {
        Guard::new()
    }

    fn in_interrupt(&self) -> bool {
        false
    }

    fn lock_taken(&self, class: LockClass) {
        self.global_locks.fetch_add(usize::from(class == LockClass::IovaSpace), Ordering::Relaxed);
        let interrupts_on = GUARDS.with(Cell::get) == 0;
        HELD.with(|held| held.take(class as u8, interrupts_on)).expect("locks nest in their order");
    }

    fn lock_released(&self, class: LockClass) {
        HELD.with(|held| held.release(class as u8));
    }

    fn relax(&self) {
        std::hint::spin_loop();
    }

    fn now_ns(&self) -> u64 {
        0
    }

    fn allocate_contiguous(&self, _pages: usize) -> Option<PhysAddr> {
        None
    }

    fn map_registers(&self, _base: PhysAddr, _bytes: usize) -> Option<NoRegisters> {
        None
    }

    fn allocate_vector(&self, _event: Event) -> Option<MsiMessage> {
        None
    }

    fn read_config(&self, _function: PciAddress, _offset: u16) -> u32 {
        u32::MAX
    }

    fn write_config(&self, _function: PciAddress, _offset: u16, _value: u32) {}

    fn change_config(&self, _function: PciAddress, _offset: u16, _clear: u32, _set: u32) {}

    fn wake(&self, _work: Work) {}

    fn physical(&self, _first: NonNull<u8>, _bytes: usize) -> Option<PhysAddr> {
        None
    }

    fn is_own_memory(&self, _range: mm::PhysRange) -> bool {
        false
    }
}
