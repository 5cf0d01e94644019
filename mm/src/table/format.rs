//! What a page-table entry means: pure values, no walking.

use super::memory::LEVEL_BITS;
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysAddr};

/// What an entry says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry<A> {
    /// Nothing is mapped here.
    Empty,
    /// The entry points to a table one level further down.
    Table(PhysAddr),
    /// The entry maps memory.
    Leaf(PhysAddr, A),
}

bitflags::bitflags! {
    /// The leaf sizes that a walker understands.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct LeafSizes: u8 {
        /// 4 KiB, at level 1. Every walker has it.
        const SIZE_4K = 1 << 0;
        /// 2 MiB, at level 2.
        const SIZE_2M = 1 << 1;
        /// 1 GiB, at level 3. Used only together with 2 MiB, the next smaller, into which it may have to be split.
        const SIZE_1G = 1 << 2;
    }
}

/// log2 of the bytes that one entry at `level` spans: 12, 21, 30, ...
#[must_use]
#[inline]
pub const fn level_shift(level: u8) -> u32 {
    PAGE_SHIFT + LEVEL_BITS * (level as u32 - 1)
}

/// Bytes that one entry at `level` spans, and so the size of a leaf there.
#[must_use]
#[inline]
pub const fn level_bytes(level: u8) -> u64 {
    1 << level_shift(level)
}

/// The layout of the entries of one kind of page table.
///
/// Levels count from the leaves: level 1 holds 4 KiB leaves, and [`levels`](Self::levels) is the level of the root.
/// All of it is known at run time only, because it is what a piece of hardware reports.
///
/// What the engine relies on:
///
/// - An entry of zero is empty. An entry whose bits 11:0 are zero is empty to the walker in hardware.
/// - Bits 61:52 and 10 of an entry that points to a table belong to the engine: the walker in hardware ignores them,
///   and so does [`decode`](Self::decode).
/// - A leaf that [`encode_leaf`](Self::encode_leaf) made is never empty, whatever the access.
/// - The output address of a leaf stands in its own bits, so that the leaf for the next piece of memory is the entry
///   plus the size of the leaf.
pub trait Format: Copy + Send + Sync + 'static {
    /// Permissions and memory type of a leaf.
    type Access: Copy + PartialEq + core::fmt::Debug;

    /// Level of the root table: 3, 4 or 5.
    fn levels(&self) -> u8;

    /// Leaf sizes that the hardware walks.
    fn leaf_sizes(&self) -> LeafSizes;

    /// Number of bits in an output address.
    fn output_bits(&self) -> u8;

    /// Whether the walker in hardware snoops the CPU's caches.
    fn is_coherent(&self) -> bool;

    /// The entry that points to `table`, with every permission: leaves decide.
    fn encode_table(&self, table: PhysAddr) -> u64;

    /// The leaf for `output` at `level`.
    fn encode_leaf(&self, level: u8, output: PhysAddr, access: Self::Access) -> u64;

    /// What the entry `raw` at `level` says.
    fn decode(&self, level: u8, raw: u64) -> Entry<Self::Access>;

    /// The table that the entry `raw` at `level` points to: [`decode`](Self::decode) without the rest. Asked once for
    /// each level of each walk, so a format may have a shorter way to tell.
    #[inline]
    fn decode_table(&self, level: u8, raw: u64) -> Option<PhysAddr> {
        match self.decode(level, raw) {
            Entry::Table(table) => Some(table),
            Entry::Empty | Entry::Leaf(..) => None,
        }
    }

    /// Bits of a leaf that the walker in hardware sets by itself (accessed, dirty). They survive a change of
    /// permissions and the split of a superpage.
    #[inline]
    fn hardware_bits(&self) -> u64 {
        0
    }

    /// Whether `input` is the address of a page that the table translates. Asked once for each short change: a format
    /// may have a shorter way to tell.
    #[inline]
    fn has_page(&self, input: u64) -> bool {
        input & (PAGE_BYTES - 1) == 0 && self.covers(input, input)
    }

    /// Whether the inputs `first..=last` lie within what the table translates.
    #[inline]
    fn covers(&self, first: u64, last: u64) -> bool {
        first <= last && last >> level_shift(self.levels() + 1) == 0
    }
}
