//! The allocator's locks.

use core::ops::{Deref, DerefMut};

use spin::mutex::{SpinMutex, SpinMutexGuard};

use super::Processor;

/// What an allocator's lock protects, in the order in which they nest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LockClass {
    /// A CPU's store of frames.
    Cache,
    /// The free blocks of a zone.
    Zone,
}

/// A spin lock that is taken under the processor's guard. Debug builds tell the processor.
#[derive(Debug)]
pub(super) struct Lock<T> {
    class: LockClass,
    value: SpinMutex<T>,
}

impl<T> Lock<T> {
    pub const fn new(class: LockClass, value: T) -> Self {
        Self { class, value: SpinMutex::new(value) }
    }

    #[inline]
    pub fn lock<'a, P: Processor>(&'a self, processor: &'a P) -> LockGuard<'a, T, P> {
        let held = Held::new(processor, self.class);
        LockGuard { value: self.value.lock(), _held: held }
    }
}

/// Access to what a [`Lock`] protects.
pub(super) struct LockGuard<'a, T, P: Processor> {
    value: SpinMutexGuard<'a, T>,
    _held: Held<'a, P>,
}

impl<T, P: Processor> Deref for LockGuard<'_, T, P> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T, P: Processor> DerefMut for LockGuard<'_, T, P> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

/// The processor knows of a lock while this lives.
#[cfg(debug_assertions)]
struct Held<'a, P: Processor> {
    processor: &'a P,
    class: LockClass,
}

#[cfg(debug_assertions)]
impl<'a, P: Processor> Held<'a, P> {
    fn new(processor: &'a P, class: LockClass) -> Self {
        processor.lock_taken(class);
        Self { processor, class }
    }
}

#[cfg(debug_assertions)]
impl<P: Processor> Drop for Held<'_, P> {
    fn drop(&mut self) {
        self.processor.lock_released(self.class);
    }
}

/// Nothing.
#[cfg(not(debug_assertions))]
struct Held<'a, P>(core::marker::PhantomData<&'a P>);

#[cfg(not(debug_assertions))]
impl<'a, P> Held<'a, P> {
    #[inline]
    fn new(_processor: &'a P, _class: LockClass) -> Self {
        Self(core::marker::PhantomData)
    }
}
