//! Whose turn it is on a thread. The driver calls the model as it would call a kernel, and what the model takes from
//! the heap meanwhile is not the driver's: a test that refuses memory to the driver asks here.

use std::{cell::Cell, marker::PhantomData};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Whether this thread is in the model, called by the driver. Callable in a global allocator.
#[must_use]
pub fn in_model() -> bool {
    DEPTH.get() > 0
}

/// The model works while it lives.
pub(crate) struct Turn {
    not_send: PhantomData<*const ()>,
}

/// The driver has called.
pub(crate) fn take() -> Turn {
    DEPTH.set(DEPTH.get() + 1);
    Turn { not_send: PhantomData }
}

impl Drop for Turn {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}
