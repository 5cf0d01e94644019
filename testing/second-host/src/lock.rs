//! The host's locks: a mutex, with interrupts off on its CPU while it is held. A CPU is a thread.

use std::{
    cell::Cell,
    marker::PhantomData,
    sync::{Mutex, PoisonError},
};

thread_local! {
    static OFF: Cell<usize> = const { Cell::new(0) };
}

/// Interrupts are off on this CPU while it lives.
pub struct InterruptsOff {
    not_send: PhantomData<*const ()>,
}

impl InterruptsOff {
    pub fn new() -> Self {
        OFF.set(OFF.get() + 1);
        Self { not_send: PhantomData }
    }
}

impl Drop for InterruptsOff {
    fn drop(&mut self) {
        OFF.set(OFF.get() - 1);
    }
}

/// Whether interrupts may come on this CPU.
pub fn interrupts_are_on() -> bool {
    OFF.get() == 0
}

/// A value that one CPU has at a time.
pub struct Lock<T>(Mutex<T>);

impl<T> Lock<T> {
    pub const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    pub fn with<R>(&self, body: impl FnOnce(&mut T) -> R) -> R {
        let _off = InterruptsOff::new();
        body(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
