//! The machine as `loom` simulates it, in the place of `src/machine.rs`.

pub use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Two entries a table: three levels have eight pages of input, and few enough interleavings to try them.
pub const LEVEL_BITS: u32 = 1;

pub const KEPT_TABLES: usize = 1;

pub fn relax() {
    loom::thread::yield_now();
}
