//! Memory that is refused to the driver: table pages, or pieces of the heap, however small. The model has what it
//! needs, and so has the test.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    thread,
};

use vtd_model::in_model;

use driven::Driven;

/// Where memory runs short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Short {
    /// No table pages are left.
    Tables,
    /// Nothing is left of the heap.
    Heap,
    /// A single piece of the heap was not to be had.
    HeapOnce,
}

impl Short {
    pub const ALL: [Self; 3] = [Self::Tables, Self::Heap, Self::HeapOnce];

    /// Calls the driver with `granted` allocations allowed. Returns also how many were refused.
    pub fn after<R>(self, granted: u64, driven: &Driven, call: impl FnOnce() -> R) -> (R, u64) {
        match self {
            Self::Heap => supplied(Supply::Ends(granted), call),
            Self::HeapOnce => supplied(Supply::Misses(granted), call),
            Self::Tables => {
                let before = driven.machine.refused_allocations();
                driven.machine.set_shortage(Some(granted));
                let result = call();
                driven.machine.set_shortage(None);
                (result, driven.machine.refused_allocations() - before)
            }
        }
    }
}

/// Calls the driver as if nothing were short, inside a call for which something is.
pub fn with_enough<R>(call: impl FnOnce() -> R) -> R {
    let _before = Replaced::by(Supply::Endless);
    call()
}

struct Refusing;

#[global_allocator]
static HEAP: Refusing = Refusing;

/// What a thread gets that calls the driver.
#[derive(Clone, Copy)]
enum Supply {
    /// Whatever it asks for.
    Endless,
    /// So many pieces, and then none.
    Ends(u64),
    /// All pieces but the one after so many.
    Misses(u64),
}

thread_local! {
    static SUPPLY: Cell<Supply> = const { Cell::new(Supply::Endless) };
    static REFUSED: Cell<u64> = const { Cell::new(0) };
}

/// Returns also how many pieces were refused.
fn supplied<R>(supply: Supply, call: impl FnOnce() -> R) -> (R, u64) {
    let _before = Replaced::by(supply);
    REFUSED.set(0);
    let result = call();
    (result, REFUSED.get())
}

/// The supply of before, which comes back when this goes: whatever the driver panics about, the test has to say it.
struct Replaced(Supply);

impl Replaced {
    fn by(supply: Supply) -> Self {
        Self(SUPPLY.replace(supply))
    }
}

impl Drop for Replaced {
    fn drop(&mut self) {
        SUPPLY.set(self.0);
    }
}

fn is_refused() -> bool {
    // Who panics says why, which takes memory.
    if in_model() || thread::panicking() {
        return false;
    }
    let (is_refused, next) = match SUPPLY.get() {
        Supply::Endless => (false, Supply::Endless),
        Supply::Ends(0) => (true, Supply::Ends(0)),
        Supply::Ends(left) => (false, Supply::Ends(left - 1)),
        Supply::Misses(0) => (true, Supply::Endless),
        Supply::Misses(left) => (false, Supply::Misses(left - 1)),
    };
    SUPPLY.set(next);
    REFUSED.set(REFUSED.get() + u64::from(is_refused));
    is_refused
}

// SAFETY: every call is passed on unchanged, or refused. To grow is `alloc`, as the trait has it.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_refused() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_refused() {
            return std::ptr::null_mut();
        }
        // A machine's memory is zeroed, and most of it never touched: the host need not commit it.
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}
