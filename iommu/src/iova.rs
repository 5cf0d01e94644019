//! IOVA allocator: which addresses of a domain are free.
//!
//! A length is counted in pages of 4 KiB, an address in bytes; `last` is inclusive.

mod error;
mod holes;
mod slab;

use alloc::sync::Arc;
use core::{fmt, ops::RangeInclusive};

use mm::{PAGE_BYTES, PAGE_SHIFT, table::TableMemory};

pub use error::{FreeError, IovaError};
use holes::{Holes, MAX_PAGES, Run, Shape};

use crate::{Iova, Platform, sync::IrqLock};

/// Where a device writes to raise an interrupt: never remapped as memory, so never an IOVA.
pub const INTERRUPT_RANGE: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// A request for addresses with more than a length and a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaRequest {
    /// Length in pages.
    pub pages: u64,
    /// Highest address that the device can use: its DMA mask.
    pub last: u64,
    /// Alignment in bytes, a power of two. Every range is aligned to a page.
    pub alignment: u64,
    /// Boundary in bytes, a power of two, or 0 for none: the range does not cross a multiple of it.
    pub boundary: u64,
}

/// How much of a space is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IovaStatistics {
    /// Pages handed out and not given back.
    pub allocated_pages: u64,
    /// Pages given back and kept in magazines for the next request.
    pub cached_pages: u64,
    /// Pages of the host's memory that hold the bookkeeping.
    pub memory_pages: usize,
}

/// What the lock protects.
struct Shared {
    holes: Holes,
    taken_pages: u64,
}

/// The addresses of one domain.
pub struct IovaSpace<P: Platform> {
    platform: Arc<P>,
    shared: IrqLock<Shared>,
}

impl<P: Platform> IovaSpace<P> {
    /// The addresses `0..=last`, all free but page 0, which is handed out by address only, and the
    /// [`INTERRUPT_RANGE`]. Addresses above 57 bits are left out.
    ///
    /// # Errors
    /// [`IovaError::OutOfMemory`].
    pub fn new(platform: Arc<P>, last: u64) -> Result<Self, IovaError> {
        // SAFETY: the space has one platform, and its `drop` is the last to use the holes.
        let holes = unsafe { Holes::new() };
        let space = Self { platform, shared: IrqLock::new(Shared { holes, taken_pages: 0 }) };
        let all = Run { first: 0, end: limit(last) };
        if !space.shared.lock(&*space.platform).holes.add(space.platform.tables(), all) {
            return Err(IovaError::OutOfMemory);
        }
        if last >= *INTERRUPT_RANGE.end() {
            space.reserve(*INTERRUPT_RANGE.start(), *INTERRUPT_RANGE.end())?;
        }
        Ok(space)
    }

    /// `pages` pages up to address `last`, aligned to their number rounded up to a power of two if that is not above
    /// 256.
    ///
    /// # Errors
    /// [`IovaError::Exhausted`], [`IovaError::OutOfMemory`], [`IovaError::NotWholePages`] for no pages.
    pub fn allocate(&self, pages: u64, last: u64) -> Result<Iova, IovaError> {
        self.allocate_with(&IovaRequest { pages, last, alignment: PAGE_BYTES, boundary: 0 })
    }

    /// Pages that lie as `request` says.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate), and [`IovaError::Impossible`].
    pub fn allocate_with(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        let shape = Shape::new(request)?;
        let mut shared = self.shared.lock(&*self.platform);
        let order = shape.pages.next_power_of_two().max(shape.alignment).ilog2();
        let block = shared.holes.find_blocks(order, 1, shape.limit);
        let run = block
            .map(|block| Run { end: block.first + shape.pages, ..block })
            .or_else(|| shared.holes.find(&shape))
            .ok_or(IovaError::Exhausted { pages: request.pages, last: request.last })?;
        shared.take(self.platform.tables(), run)?;
        Ok(Iova::new(run.first << PAGE_SHIFT))
    }

    /// Exactly the `pages` pages at `iova`, which are given back by [`free`](Self::free).
    ///
    /// # Errors
    /// [`IovaError::Taken`] if one of them is in use, reserved or outside the space, [`IovaError::OutOfMemory`],
    /// [`IovaError::NotWholePages`].
    pub fn allocate_at(&self, iova: Iova, pages: u64) -> Result<(), IovaError> {
        let run = whole_pages(iova.as_u64(), pages.saturating_mul(PAGE_BYTES))?;
        self.take_at(run)
    }

    /// Withholds the addresses `first..=last` for as long as the space lives.
    ///
    /// # Errors
    /// As [`allocate_at`](Self::allocate_at).
    pub fn reserve(&self, first: u64, last: u64) -> Result<(), IovaError> {
        let bytes = last.wrapping_sub(first).wrapping_add(1);
        let run = whole_pages(first, bytes)?;
        self.take_at(run)?;
        let mut shared = self.shared.lock(&*self.platform);
        shared.holes.keep(run);
        shared.taken_pages -= run.pages();
        Ok(())
    }

    /// Takes `pages` pages at `iova` back.
    ///
    /// # Errors
    /// If they are not allocated. Nothing has changed then.
    pub fn free(&self, iova: Iova, pages: u64) -> Result<(), FreeError> {
        let error = FreeError::NotAllocated { iova, pages };
        let run = whole_pages(iova.as_u64(), pages.saturating_mul(PAGE_BYTES)).map_err(|_| error)?;
        let mut shared = self.shared.lock(&*self.platform);
        if shared.holes.touches(run) {
            return Err(error);
        }
        shared.holes.give(self.platform.tables(), run);
        shared.taken_pages -= run.pages();
        Ok(())
    }

    /// How much of the space is used.
    pub fn statistics(&self) -> IovaStatistics {
        let shared = self.shared.lock(&*self.platform);
        IovaStatistics {
            allocated_pages: shared.taken_pages,
            cached_pages: 0,
            memory_pages: shared.holes.node_pages(),
        }
    }

    fn take_at(&self, run: Run) -> Result<(), IovaError> {
        let mut shared = self.shared.lock(&*self.platform);
        if !shared.holes.is_free(run) {
            return Err(IovaError::Taken {
                first: run.first << PAGE_SHIFT,
                last: (run.end << PAGE_SHIFT) - 1,
            });
        }
        shared.take(self.platform.tables(), run)
    }
}

impl<P: Platform> Drop for IovaSpace<P> {
    fn drop(&mut self) {
        self.shared.lock(&*self.platform).holes.release(self.platform.tables());
    }
}

impl<P: Platform> fmt::Debug for IovaSpace<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.statistics().fmt(f)
    }
}

impl Shared {
    fn take<M: TableMemory>(&mut self, tables: &M, run: Run) -> Result<(), IovaError> {
        if !self.holes.prepare(tables, run.pieces().count()) {
            return Err(IovaError::OutOfMemory);
        }
        self.holes.take(tables, run);
        self.taken_pages += run.pages();
        Ok(())
    }
}

/// The first page that is not wholly at or below address `last`.
const fn limit(last: u64) -> u64 {
    let pages = last / PAGE_BYTES + (last % PAGE_BYTES == PAGE_BYTES - 1) as u64;
    if pages < MAX_PAGES { pages } else { MAX_PAGES }
}

/// The pages of the `bytes` bytes at `first`.
const fn whole_pages(first: u64, bytes: u64) -> Result<Run, IovaError> {
    let whole = bytes > 0 && (first | bytes).is_multiple_of(PAGE_BYTES);
    match first.checked_add(bytes) {
        Some(end) if whole => Ok(Run { first: first >> PAGE_SHIFT, end: end >> PAGE_SHIFT }),
        _ => Err(IovaError::NotWholePages { first, bytes }),
    }
}

impl Shape {
    fn new(request: &IovaRequest) -> Result<Self, IovaError> {
        let &IovaRequest { pages, last, alignment, boundary } = request;
        let is_whole = |bytes: u64| bytes.is_power_of_two() && bytes >= PAGE_BYTES;
        if pages == 0 {
            return Err(IovaError::NotWholePages { first: 0, bytes: 0 });
        }
        if pages > MAX_PAGES || alignment >> PAGE_SHIFT > MAX_PAGES {
            return Err(IovaError::Exhausted { pages, last });
        }
        let boundary_pages = if boundary == 0 { 2 * MAX_PAGES } else { boundary >> PAGE_SHIFT };
        if !is_whole(alignment) || (boundary != 0 && !is_whole(boundary)) || pages > boundary_pages {
            return Err(IovaError::Impossible { pages, alignment, boundary });
        }
        Ok(Self { pages, alignment: alignment >> PAGE_SHIFT, boundary: boundary_pages, limit: limit(last) })
    }
}
