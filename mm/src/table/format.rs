//! What a page-table entry means: pure values, no walking.

use crate::PhysAddr;

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
        /// 1 GiB, at level 3.
        const SIZE_1G = 1 << 2;
    }
}

/// The layout of the entries of one kind of page table.
///
/// Levels count from the leaves: level 1 holds 4 KiB leaves, and [`levels`](Self::levels) is the level of the root.
/// All of it is known at run time only, because it is what a piece of hardware reports.
///
/// Bits 61:52 of an entry that points to a table belong to the engine; a format must be one whose walker ignores them.
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
}
