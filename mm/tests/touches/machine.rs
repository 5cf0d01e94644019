//! A machine that writes down every access to an entry, in the place of `src/machine.rs`.

use core::cell::RefCell;
use core::sync::atomic;

pub use core::sync::atomic::{AtomicUsize, Ordering};

pub const LEVEL_BITS: u32 = 9;

pub const KEPT_TABLES: usize = 8;

pub fn relax() {
    core::hint::spin_loop();
}

/// What was done to a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    /// Both at once.
    Update,
}

thread_local! {
    static ACCESSES: RefCell<Vec<(usize, Access)>> = const { RefCell::new(Vec::new()) };
}

/// The accesses of this thread since the last call, in order, with the addresses of the words.
pub fn take_accesses() -> Vec<(usize, Access)> {
    ACCESSES.take()
}

#[repr(transparent)]
pub struct AtomicU64(atomic::AtomicU64);

impl AtomicU64 {
    pub const fn new(value: u64) -> Self {
        Self(atomic::AtomicU64::new(value))
    }

    fn note(&self, access: Access) -> &atomic::AtomicU64 {
        let address = core::ptr::from_ref(self).addr();
        ACCESSES.with_borrow_mut(|accesses| accesses.push((address, access)));
        &self.0
    }

    pub fn load(&self, order: Ordering) -> u64 {
        self.note(Access::Read).load(order)
    }

    pub fn store(&self, value: u64, order: Ordering) {
        self.note(Access::Write).store(value, order);
    }

    pub fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.note(Access::Update).swap(value, order)
    }

    pub fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.note(Access::Update).fetch_add(value, order)
    }

    pub fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.note(Access::Update).fetch_sub(value, order)
    }

    pub fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.note(Access::Update).fetch_and(value, order)
    }

    pub fn compare_exchange(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.note(Access::Update).compare_exchange(current, new, success, failure)
    }

    /// One thread only, so that it need not fail without a reason.
    pub fn compare_exchange_weak(
        &self,
        current: u64,
        new: u64,
        success: Ordering,
        failure: Ordering,
    ) -> Result<u64, u64> {
        self.compare_exchange(current, new, success, failure)
    }
}
