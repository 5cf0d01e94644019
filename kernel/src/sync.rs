//! The kernel's lock.

use core::{
    fmt, mem,
    ops::{Deref, DerefMut},
};

use iommu::platform::LockClass;
use mm::frames::LockClass as FramesClass;
use spin::mutex::SpinMutex;

use crate::{
    arch::{Cpu, InterruptGuard, are_enabled},
    smp,
};

/// The order in which locks nest: a CPU that holds one may take only later ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Rank {
    /// Configuration of devices and of the machine: taken by threads, held over calls into everything below.
    Device,
    /// What a driver's threads share.
    Driver,
    /// The handler of an interrupt vector.
    Handler,
    /// The first of the `iommu` crate's, which stand in the order of their [`LockClass`]es.
    Iommu,
    /// Keys received and not read.
    Input = Self::Iommu as u8 + LockClass::COUNT,
    /// Which processes there are, and how one ended.
    Processes,
    /// The waiters of one wait queue.
    WaitQueue,
    /// The body of a thread that has not started.
    ThreadBody,
    /// The run queue, the sleepers, and the state of all threads.
    Scheduler,
    /// Which thread stacks are in use.
    Stacks,
    /// The kernel's page table and its window of mapped registers.
    AddressSpace,
    /// Pages of the kernel's table that left it.
    OwnTables,
    /// A register of configuration space that is read and written.
    ConfigSpace,
    /// No lock: waiting for all CPUs to flush. What comes later here is not held meanwhile.
    Shootdown,
    /// Small allocations.
    Heap,
    /// Free frames before there is an allocator, and the first lock of the allocator's, which stand in the order of
    /// their [`FramesClass`]es.
    Frames,
    /// What is said to the host's tool.
    Control = Self::Frames as u8 + 2,
    /// The serial line.
    Console,
}

/// The place of one of `iommu`'s locks.
pub fn iommu_class(class: LockClass) -> u8 {
    Rank::Iommu as u8 + class as u8
}

/// The place of one of the frame allocator's locks.
pub fn frames_class(class: FramesClass) -> u8 {
    Rank::Frames as u8 + class as u8
}

/// A spin lock that is held only with interrupts off, so that a handler never waits for the code it interrupted.
///
/// Debug builds check the order of [`Rank`]s.
pub struct IrqMutex<T> {
    rank: Rank,
    inner: SpinMutex<T>,
}

impl<T> IrqMutex<T> {
    /// A lock around `value`.
    pub const fn new(rank: Rank, value: T) -> Self {
        Self { rank, inner: SpinMutex::new(value) }
    }

    /// Takes the lock.
    #[inline]
    #[track_caller]
    pub fn lock(&self) -> IrqMutexGuard<'_, T> {
        let interrupts = InterruptGuard::new();
        note_taken(self.rank as u8);
        self.acquire();
        IrqMutexGuard { lock: self, _interrupts: interrupts }
    }

    /// The holder may be waiting for this CPU to flush its TLB.
    #[inline]
    fn acquire(&self) {
        loop {
            if let Some(guard) = self.inner.try_lock() {
                return mem::forget(guard);
            }
            while self.inner.is_locked() {
                smp::serve_flush();
                core::hint::spin_loop();
            }
        }
    }

    /// Takes the lock if that succeeds within `tries` attempts: for code that must go on although the holder may be
    /// dead.
    pub fn try_lock_for(&self, tries: usize) -> Option<IrqMutexGuard<'_, T>> {
        let interrupts = InterruptGuard::new();
        for _ in 0..tries {
            if let Some(guard) = self.inner.try_lock() {
                mem::forget(guard);
                note_taken(self.rank as u8);
                return Some(IrqMutexGuard { lock: self, _interrupts: interrupts });
            }
            core::hint::spin_loop();
        }
        None
    }

    /// The guard of a lock that is already held: how the scheduler hands its lock from one thread to the next.
    ///
    /// # Safety
    /// This CPU holds the lock by a guard that was forgotten, and makes only one guard out of it.
    pub unsafe fn assume_locked(&self) -> IrqMutexGuard<'_, T> {
        debug_assert!(self.inner.is_locked());
        let counted_by_the_forgotten_guard = InterruptGuard::assume();
        IrqMutexGuard { lock: self, _interrupts: counted_by_the_forgotten_guard }
    }
}

impl<T> fmt::Debug for IrqMutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqMutex").field("rank", &self.rank).finish_non_exhaustive()
    }
}

/// Access to what an [`IrqMutex`] protects. The lock is released before interrupts come back.
pub struct IrqMutexGuard<'a, T> {
    lock: &'a IrqMutex<T>,
    _interrupts: InterruptGuard,
}

impl<T> Deref for IrqMutexGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held while the guard lives.
        unsafe { &*self.lock.inner.as_mut_ptr() }
    }
}

impl<T> DerefMut for IrqMutexGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held while the guard lives, and the guard is borrowed exclusively.
        unsafe { &mut *self.lock.inner.as_mut_ptr() }
    }
}

impl<T> Drop for IrqMutexGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        note_released(self.lock.rank as u8);
        // SAFETY: this guard holds the lock, and nothing uses it after this.
        unsafe { self.lock.inner.force_unlock() }
    }
}

/// Notes that this CPU holds a lock of `class`, one of [`Rank`] or of what stands between.
///
/// # Panics
/// In debug builds, if it should not be taken now: see [`mm::lock_order`].
#[track_caller]
#[inline]
pub fn note_taken(class: u8) {
    if cfg!(debug_assertions)
        && let Err(error) = Cpu::current().held_locks.take(class, are_enabled())
    {
        panic!("{error}");
    }
}

/// Notes that this CPU gave the lock of `class` back.
#[inline]
pub fn note_released(class: u8) {
    if cfg!(debug_assertions) {
        Cpu::current().held_locks.release(class);
    }
}

/// What waits as if for a lock of `rank` does so in order.
///
/// # Panics
/// As [`note_taken`].
#[track_caller]
pub fn assert_in_order(rank: Rank) {
    let _guard = InterruptGuard::new();
    note_taken(rank as u8);
    note_released(rank as u8);
}

/// Checks, in debug builds, that this CPU holds no lock whose waiters serve no flush ([`smp::serve_flush`]): those of
/// drivers and of `iommu` spin by themselves. The frame allocator's, which do too, come after [`Rank::Shootdown`].
///
/// # Panics
/// In debug builds, if it does: another CPU that waits for it with interrupts off would not flush.
#[track_caller]
pub fn assert_waiters_flush() {
    const IOMMU: core::ops::Range<u8> = Rank::Iommu as u8..Rank::Iommu as u8 + LockClass::COUNT;
    let _guard = InterruptGuard::new();
    let held = &Cpu::current().held_locks;
    let is_served =
        !held.holds_any_of(Rank::Driver as u8..Rank::Driver as u8 + 1) && !held.holds_any_of(IOMMU);
    debug_assert!(is_served, "a flush of all CPUs is wanted under a lock whose waiters do not flush");
}

/// Checks, in debug builds, that no interrupt handler runs here: what allocates, frees or logs is a thread's.
///
/// # Panics
/// In debug builds, if one does.
#[track_caller]
#[inline]
pub fn assert_not_in_interrupt(what: &str) {
    debug_assert!(!Cpu::in_interrupt(), "a handler must not {what}");
}
