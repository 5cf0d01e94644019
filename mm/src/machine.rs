//! What the table engine and the records of frames assume of the machine.
//!
//! A module of its own so that `tests/loom` can put another in its place and run them under `loom`
//! with it: other atomics, and tables so small that every interleaving can be tried.

#[cfg(feature = "frames")]
pub use core::sync::atomic::AtomicU32;
pub use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// log2 of the number of entries in a table page: the input bits that one level resolves. Nine in every format.
pub const LEVEL_BITS: u32 = 9;

/// Number of empty tables that a tree keeps for the next use. A power of two.
pub const KEPT_TABLES: usize = 8;

/// Called in each round of a loop that waits for another thread to take its next step.
#[inline]
pub fn relax() {
    core::hint::spin_loop();
}
