//! Tests of the page-table engine on the host: its public face against memory that checks what it does, a walker of
//! its own making that sees what hardware would see, and plain oracles.

mod arena;
mod basic;
mod enumeration;
mod format;
mod kept;
mod links;
mod oracle;
#[path = "../support/random.rs"]
mod random;
mod shortage;
mod steps;
mod threads;
mod tokens;
mod walker;

use arena::Arena;
use format::Remap;
use mm::table::{Flushed, LeafSizes, PageTable, Stale};
use mm::{PhysAddr, PhysRange};

pub const K4: u64 = 1 << 12;
pub const M2: u64 = 1 << 21;
pub const G1: u64 = 1 << 30;

/// A tree over test memory.
pub type Tree<'a, F = Remap> = PageTable<F, &'a Arena>;

pub fn range(start: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), bytes)
}

/// Four levels, all leaf sizes, a walker that does not snoop.
pub fn remap() -> Remap {
    Remap { levels: 4, sizes: LeafSizes::all(), output_bits: 46, coherent: false }
}

pub fn tree<'a>(format: Remap, memory: &'a Arena) -> Tree<'a> {
    PageTable::new(format, memory).unwrap()
}

/// Flushes for a walker in hardware that has no cache.
pub fn flush(stale: Stale) -> Flushed {
    // SAFETY: the walkers of these tests start from the root each time.
    unsafe { stale.assume_flushed() }
}

/// Ends `tree` and sees that every page came back.
pub fn finish<F: mm::table::Format>(tree: Tree<'_, F>) {
    let memory = *tree.memory();
    assert_eq!(tree.pages(), memory.used(), "pages went without a token");
    // SAFETY: the walkers of these tests are done with it.
    unsafe { tree.destroy() };
    assert_eq!(memory.used(), 0);
}
