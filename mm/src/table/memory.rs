//! Where page-table pages live.

use crate::PhysAddr;
use crate::machine::AtomicU64;
pub use crate::machine::LEVEL_BITS;

/// Entries in a table page.
pub const TABLE_ENTRIES: usize = 1 << LEVEL_BITS;

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
    ///
    /// The walker in hardware must see the zeros: where it does not snoop the CPU's caches, the engine writes the
    /// whole page back before it links it.
    fn allocate(&self) -> Option<PhysAddr>;

    /// Takes `page` back. Every entry of it is zero again, so a cache of zeroed pages need not clear it.
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
    /// CPU's caches, and orders that before every later store. `bytes` is not 0.
    fn write_back(&self, first: *const u8, bytes: usize);

    /// The same for one `entry` of a table, which lies in one line: a host may have a shorter way for it.
    #[inline]
    fn write_back_entry(&self, entry: &AtomicU64) {
        self.write_back(core::ptr::from_ref(entry).cast(), size_of::<AtomicU64>());
    }
}

// SAFETY: every call is passed on unchanged.
unsafe impl<M: TableMemory + ?Sized> TableMemory for &M {
    fn allocate(&self) -> Option<PhysAddr> {
        (**self).allocate()
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller keeps the same promise.
        unsafe { (**self).free(page) }
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the caller keeps the same promise.
        unsafe { (**self).table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        (**self).write_back(first, bytes);
    }

    fn write_back_entry(&self, entry: &AtomicU64) {
        (**self).write_back_entry(entry);
    }
}
