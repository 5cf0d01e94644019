//! Where page-table pages live.

use core::sync::atomic::AtomicU64;

use crate::PhysAddr;

/// Entries in a table page.
pub const TABLE_ENTRIES: usize = 512;

/// One table page, as software sees it. A walker in hardware may read it, and set accessed and dirty bits in it, at
/// any time: hence atomics.
pub type Table = [AtomicU64; TABLE_ENTRIES];

/// The memory that table pages come from, implemented by the host kernel.
///
/// # Safety
/// A page that [`allocate`](Self::allocate) returned must be 4 KiB of zeroed memory, aligned to 4 KiB, that nobody
/// else uses until it is freed, and [`table`](Self::table) must return that memory for it.
pub unsafe trait TableMemory: Send + Sync {
    /// A zeroed page, or `None` if there is none. Must not block.
    fn allocate(&self) -> Option<PhysAddr>;

    /// Takes `page` back.
    ///
    /// # Safety
    /// `page` came from [`allocate`](Self::allocate) of this instance, is not used by software, and no walker in
    /// hardware can reach it any more.
    unsafe fn free(&self, page: PhysAddr);

    /// The page as a table.
    ///
    /// # Safety
    /// `page` came from [`allocate`](Self::allocate) of this instance and is not freed while the reference lives.
    unsafe fn table(&self, page: PhysAddr) -> &Table;

    /// Writes the cache lines that hold `bytes` bytes from `first` back to memory, for walkers that do not snoop the
    /// CPU's caches, and orders that before every later store.
    fn write_back(&self, first: *const u8, bytes: usize);
}
