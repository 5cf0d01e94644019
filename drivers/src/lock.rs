//! Mutual exclusion between driver threads.
//!
//! Interrupts, and with them preemption, are off while a lock is held: a holder is never descheduled while another
//! thread spins for it. Nothing waits, maps or unmaps under a lock, and no two driver locks are held at once, so that
//! they stand outside the lock order of the `iommu` crate.

use alloc::sync::Arc;
use core::ops::{Deref, DerefMut};

use crate::host::{Host, InterruptState};

/// A value that one thread at a time may use, for a short while.
pub struct Lock<T> {
    host: Arc<dyn Host>,
    inner: spin::Mutex<T>,
}

impl<T> Lock<T> {
    /// A lock around `value`.
    pub fn new(host: Arc<dyn Host>, value: T) -> Self {
        Self { host, inner: spin::Mutex::new(value) }
    }

    /// Waits for the lock and takes it.
    pub fn lock(&self) -> Guard<'_, T> {
        let restore = Restore { host: &*self.host, state: self.host.interrupts_off() };
        Guard { inner: self.inner.lock(), _restore: restore }
    }
}

/// A lock that is held; given back when dropped.
///
/// Fields are dropped in this order: the lock is free before an interrupt can preempt the thread.
pub struct Guard<'a, T> {
    inner: spin::MutexGuard<'a, T>,
    _restore: Restore<'a>,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

impl<T> DerefMut for Guard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.inner
    }
}

struct Restore<'a> {
    host: &'a dyn Host,
    state: InterruptState,
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        self.host.interrupts_restore(self.state);
    }
}
