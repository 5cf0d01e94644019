//! How much memory a process has: the pages that its program sees, and those of its table.

use alloc::sync::Arc;
use core::{
    mem::ManuallyDrop,
    ptr::{self, NonNull},
    sync::atomic::{
        AtomicUsize,
        Ordering::{AcqRel, Relaxed},
    },
};

use iommu::dma::{DmaBuffer, RawBuffer};
use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{Table, TableMemory},
};

use super::copy;
use crate::memory::{KernelTables, frames, layout};

/// Pages of all processes.
static TOTAL: AtomicUsize = AtomicUsize::new(0);

/// How many pages all processes have.
pub fn total_pages() -> usize {
    TOTAL.load(Relaxed)
}

/// How many pages a process has, and may have.
pub struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    /// None yet, and `limit` at most.
    pub const fn new(limit: usize) -> Self {
        Self { used: AtomicUsize::new(0), limit }
    }

    /// How many pages there are.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// A zeroed run of `pages` pages, counted.
    fn allocate(&self, pages: usize) -> Option<PhysAddr> {
        let within = |used: usize| used.checked_add(pages).filter(|&used| used <= self.limit);
        self.used.fetch_update(AcqRel, Relaxed, within).ok()?;
        TOTAL.fetch_add(pages, Relaxed);
        let first = frames::allocate_zeroed(pages);
        if first.is_none() {
            self.uncount(pages);
        }
        first
    }

    /// # Safety
    /// As [`frames::free`], for a run from [`allocate`](Self::allocate).
    unsafe fn free(&self, first: PhysAddr, pages: usize) {
        // SAFETY: the caller's promise.
        unsafe { frames::free(first, pages) };
        self.uncount(pages);
    }

    fn uncount(&self, pages: usize) {
        self.used.fetch_sub(pages, AcqRel);
        TOTAL.fetch_sub(pages, Relaxed);
    }
}

/// Table pages within a budget.
pub struct BudgetedTables(pub Arc<Budget>);

// SAFETY: as `KernelTables`, from which these differ in being counted.
unsafe impl TableMemory for BudgetedTables {
    fn allocate(&self) -> Option<PhysAddr> {
        self.0.allocate(1)
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller's promise; `allocate` got it as a run of one page.
        unsafe { self.0.free(page, 1) }
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the caller's promise; the page is a frame, as those that `KernelTables` gives.
        unsafe { KernelTables.table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        KernelTables.write_back(first, bytes);
    }
}

/// A run of pages that a program sees. The kernel reaches it by copying only: the program may write it at any time.
pub struct Pages {
    first: PhysAddr,
    count: usize,
    budget: Arc<Budget>,
}

impl Pages {
    /// `count` zeroed pages. `None` if the budget or memory does not have them in one piece.
    pub fn zeroed(budget: &Arc<Budget>, count: usize) -> Option<Self> {
        let first = budget.allocate(count)?;
        Some(Self { first, count, budget: budget.clone() })
    }

    /// Where they are.
    pub fn range(&self) -> PhysRange {
        PhysRange::new(self.first, self.count as u64 * PAGE_BYTES)
    }

    /// Makes them zeros, whoever may be writing them.
    pub fn clear(&mut self) {
        const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];
        for page in 0..self.count as u64 {
            let to = layout::direct(self.first) + page * PAGE_BYTES;
            // SAFETY: a page of the run, which the direct map shows. No Rust value lies there.
            unsafe { copy::to_shared(&ZEROS, to as *mut u8) };
        }
    }

    /// Puts `bytes` at `offset`, both checked: nothing is written unless all fits.
    pub fn fill(&mut self, offset: usize, bytes: &[u8]) -> Option<()> {
        let end = offset.checked_add(bytes.len())?;
        if end > self.count * PAGE_BYTES as usize {
            return None;
        }
        let to = (layout::direct(self.first) as *mut u8).wrapping_add(offset);
        // SAFETY: inside the run, which the direct map shows, and which is this value's alone.
        unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(())
    }
}

// SAFETY: the run is owned, stays where it is, and holds bytes, which the kernel never borrows. It is no stack and no
// part of the image.
unsafe impl DmaBuffer for Pages {
    fn into_raw(self) -> RawBuffer {
        let pages = ManuallyDrop::new(self);
        // SAFETY: it is not dropped, so that the reference is moved.
        let budget = unsafe { ptr::read(&raw const pages.budget) };
        let first = layout::direct(pages.first) as *mut u8;
        let bytes = pages.count * PAGE_BYTES as usize;
        // SAFETY: the direct map does not begin at 0.
        let first = unsafe { NonNull::new_unchecked(first) };
        RawBuffer { first, bytes, cookie: Arc::into_raw(budget) as usize }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        let offset = raw.first.as_ptr() as u64 - layout::DIRECT_MAP;
        // SAFETY: the number is that of the pointer that `into_raw` made.
        let budget = unsafe { Arc::from_raw(raw.cookie as *const Budget) };
        Self { first: PhysAddr::new(offset), count: raw.bytes / PAGE_BYTES as usize, budget }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: allocated by `zeroed`; who has mapped the pages gives them up only when no CPU uses the mapping any
        // more.
        unsafe { self.budget.free(self.first, self.count) }
    }
}
