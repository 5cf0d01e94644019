//! The one lock of this crate, and the atomics by which its CPUs agree. `testing/interleavings` compiles both for
//! `loom`.

use core::ops::{Deref, DerefMut};

#[cfg(loom)]
use self::modelled::{SpinMutex, SpinMutexGuard};
#[cfg(not(loom))]
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::{Platform, platform::LockClass};

/// The atomics of what CPUs do together without a lock.
pub(crate) mod atomic {
    #[cfg(not(loom))]
    pub use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
    #[cfg(loom)]
    pub use loom::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
}

/// A spin lock that is only ever held with interrupts off on its CPU, so that a handler never waits for the code it
/// interrupted. [`LockClass`] has the order in which locks nest; debug builds tell the platform of each.
#[derive(Debug)]
pub(crate) struct IrqLock<T> {
    class: LockClass,
    inner: SpinMutex<T>,
}

impl<T> IrqLock<T> {
    pub const fn new(class: LockClass, value: T) -> Self {
        Self { class, inner: SpinMutex::new(value) }
    }

    #[inline]
    pub fn lock<'a, P: Platform>(&'a self, platform: &'a P) -> IrqLockGuard<'a, T, P> {
        let interrupts = platform.interrupt_guard();
        let held = Held::new(platform, self.class);
        IrqLockGuard { locked: LockGuard { value: self.inner.lock(), _held: held }, _interrupts: interrupts }
    }

    /// Locks while interrupts are off already: for what belongs to this CPU, and for a second lock.
    #[inline]
    pub fn lock_under<'a, P: Platform>(&'a self, off: &'a InterruptsOff<'_, P>) -> LockGuard<'a, T, P> {
        let held = Held::new(off.platform, self.class);
        // Out of line if it is contended.
        let value = self.inner.try_lock().unwrap_or_else(|| self.inner.lock());
        LockGuard { value, _held: held }
    }
}

/// Interrupts are off on this CPU while this lives, so its number stays the same.
pub(crate) struct InterruptsOff<'a, P: Platform> {
    platform: &'a P,
    _interrupts: P::InterruptGuard,
}

impl<'a, P: Platform> InterruptsOff<'a, P> {
    #[inline]
    pub fn new(platform: &'a P) -> Self {
        Self { _interrupts: platform.interrupt_guard(), platform }
    }

    /// Number of this CPU.
    #[inline]
    pub fn cpu(&self) -> usize {
        self.platform.cpu()
    }
}

/// Access to what an [`IrqLock`] protects, while interrupts are off for another reason.
pub(crate) struct LockGuard<'a, T, P: Platform> {
    value: SpinMutexGuard<'a, T>,
    _held: Held<'a, P>,
}

impl<T, P: Platform> Deref for LockGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, P: Platform> DerefMut for LockGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// Access to what an [`IrqLock`] protects. The lock is released before interrupts come back: fields drop in order.
pub(crate) struct IrqLockGuard<'a, T, P: Platform> {
    locked: LockGuard<'a, T, P>,
    _interrupts: P::InterruptGuard,
}

impl<T, P: Platform> Deref for IrqLockGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.locked
    }
}

impl<T, P: Platform> DerefMut for IrqLockGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.locked
    }
}

/// The platform knows of a lock while this lives.
#[cfg(debug_assertions)]
struct Held<'a, P: Platform> {
    platform: &'a P,
    class: LockClass,
}

#[cfg(debug_assertions)]
impl<'a, P: Platform> Held<'a, P> {
    fn new(platform: &'a P, class: LockClass) -> Self {
        platform.lock_taken(class);
        Self { platform, class }
    }
}

#[cfg(debug_assertions)]
impl<P: Platform> Drop for Held<'_, P> {
    fn drop(&mut self) {
        self.platform.lock_released(self.class);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
struct Held<'a, P>(core::marker::PhantomData<&'a P>);

#[cfg(not(debug_assertions))]
impl<'a, P> Held<'a, P> {
    #[inline]
    fn new(_platform: &'a P, _class: LockClass) -> Self {
        Self(core::marker::PhantomData)
    }
}

/// The same lock, as `loom` explores it: each time it is taken another thread may come first.
#[cfg(loom)]
mod modelled {
    use std::sync::{Mutex, OnceLock, PoisonError};

    pub(crate) use loom::sync::MutexGuard as SpinMutexGuard;

    #[derive(Debug)]
    pub(crate) struct SpinMutex<T> {
        /// The value until the lock is first taken: only then is there a model to make the other one in.
        initial: Mutex<Option<T>>,
        inner: OnceLock<loom::sync::Mutex<T>>,
    }

    impl<T> SpinMutex<T> {
        pub const fn new(value: T) -> Self {
            Self { initial: Mutex::new(Some(value)), inner: OnceLock::new() }
        }

        fn inner(&self) -> &loom::sync::Mutex<T> {
            self.inner.get_or_init(|| {
                let initial = self.initial.lock().unwrap_or_else(PoisonError::into_inner).take();
                loom::sync::Mutex::new(initial.expect("the value is moved once"))
            })
        }

        pub fn lock(&self) -> SpinMutexGuard<'_, T> {
            self.inner().lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub fn try_lock(&self) -> Option<SpinMutexGuard<'_, T>> {
            self.inner().try_lock().ok()
        }
    }
}

/// Tries every order in which the threads of `run` can meet, with up to `preemptions` of them stopped in mid-course:
/// all orders are too many for an ordinary run.
#[cfg(all(test, loom))]
pub(crate) fn explore(preemptions: usize, run: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 100_000;
    builder.check(run);
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::vtd::testing::FakePlatform;

    #[test]
    fn locks_nest_in_the_order_of_their_classes() {
        let platform = FakePlatform::new(0, 0);
        let group = IrqLock::new(LockClass::Group, 1);
        let space = IrqLock::new(LockClass::IovaSpace, 2);
        for _ in 0..2 {
            let (first, second) = (group.lock(&platform), space.lock(&platform));
            assert_eq!((*first, *second), (1, 2));
            drop(first);
        }
        let off = InterruptsOff::new(&platform);
        let first = group.lock_under(&off);
        assert_eq!(*first + *space.lock_under(&off), 3);
    }

    #[test]
    #[should_panic(expected = "wanted while one of class 6 is held")]
    fn a_wrong_order_is_noticed() {
        let platform = FakePlatform::new(0, 0);
        let group = IrqLock::new(LockClass::Group, ());
        let space = IrqLock::new(LockClass::IovaSpace, ());
        let _held = space.lock(&platform);
        let _deadlocks_with_who_takes_them_in_order = group.lock(&platform);
    }

    #[test]
    #[should_panic(expected = "lock of class 3 wanted while one of class 3 is held")]
    fn two_locks_of_a_class_are_noticed() {
        let platform = FakePlatform::new(0, 0);
        let (one, other) = (IrqLock::new(LockClass::Tags, ()), IrqLock::new(LockClass::Tags, ()));
        let off = InterruptsOff::new(&platform);
        let _held = one.lock_under(&off);
        let _deadlocks_with_who_takes_them_the_other_way_round = other.lock(&platform);
    }

    #[test]
    #[should_panic(expected = "wanted with interrupts on")]
    fn a_lock_that_an_interrupt_could_want_while_it_is_held_is_noticed() {
        let mut platform = FakePlatform::new(0, 0);
        platform.masks_interrupts = false;
        let queue = IrqLock::new(LockClass::Queue, ());
        let _held = queue.lock(&platform);
    }
}
