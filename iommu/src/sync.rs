//! The one lock of this crate.

use core::ops::{Deref, DerefMut};

#[cfg(loom)]
use self::modelled::{SpinMutex, SpinMutexGuard};
#[cfg(not(loom))]
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::Platform;

/// A spin lock that is only ever held with interrupts off on its CPU, so that a handler never waits for the code it
/// interrupted. The order in which locks nest is in the crate's documentation.
#[derive(Debug)]
pub(crate) struct IrqLock<T> {
    inner: SpinMutex<T>,
}

impl<T> IrqLock<T> {
    pub const fn new(value: T) -> Self {
        Self { inner: SpinMutex::new(value) }
    }

    #[inline]
    pub fn lock<P: Platform>(&self, platform: &P) -> IrqLockGuard<'_, T, P> {
        let interrupts = platform.interrupt_guard();
        IrqLockGuard { value: self.inner.lock(), _interrupts: interrupts }
    }

    /// Locks while interrupts are off already: for what belongs to this CPU, and for a second lock.
    #[inline]
    pub fn lock_under<'a, P: Platform>(&'a self, _: &'a InterruptsOff<'_, P>) -> SpinMutexGuard<'a, T> {
        // Out of line if it is contended.
        self.inner.try_lock().unwrap_or_else(|| self.inner.lock())
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

/// Access to what an [`IrqLock`] protects. The lock is released before interrupts come back: fields drop in order.
pub(crate) struct IrqLockGuard<'a, T, P: Platform> {
    value: SpinMutexGuard<'a, T>,
    _interrupts: P::InterruptGuard,
}

impl<T, P: Platform> Deref for IrqLockGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, P: Platform> DerefMut for IrqLockGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
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
