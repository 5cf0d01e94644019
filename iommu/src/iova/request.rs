//! What is asked for, and its translation into pages.

use mm::{PAGE_BYTES, PAGE_SHIFT};

use super::{
    IovaError,
    holes::{MAX_PAGES, Run, Shape, limit},
};

/// A request for addresses with more than a length and a mask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IovaRequest {
    /// Length in pages.
    pub pages: u64,
    /// Highest address that the device can use: its DMA mask.
    pub last: u64,
    /// Alignment in bytes, a power of two of at least one page.
    pub alignment: u64,
    /// Boundary in bytes, a power of two of at least one page, or 0 for none: the range does not cross a multiple of
    /// it.
    pub boundary: u64,
}

impl IovaRequest {
    /// A request for `pages` pages up to address `last`, and nothing else.
    #[must_use]
    pub const fn new(pages: u64, last: u64) -> Self {
        Self { pages, last, alignment: PAGE_BYTES, boundary: 0 }
    }

    /// Whether a block that is aligned to its size will do. If the range itself fits between two boundaries, so does
    /// the block.
    pub(super) fn is_block(&self) -> bool {
        self.alignment >> PAGE_SHIFT <= self.pages.next_power_of_two()
    }

    pub(super) fn shape(&self) -> Result<Shape, IovaError> {
        let &Self { pages, last, alignment, boundary } = self;
        let is_whole = |bytes: u64| bytes.is_power_of_two() && bytes >= PAGE_BYTES;
        if pages == 0 {
            return Err(IovaError::NotWholePages { first: 0, bytes: 0 });
        }
        if !is_whole(alignment) || (boundary != 0 && (!is_whole(boundary) || pages > boundary >> PAGE_SHIFT))
        {
            return Err(IovaError::Impossible { pages, alignment, boundary });
        }
        if pages > MAX_PAGES || alignment >> PAGE_SHIFT > MAX_PAGES {
            return Err(IovaError::Exhausted { pages, last });
        }
        let boundary = if boundary == 0 { 2 * MAX_PAGES } else { boundary >> PAGE_SHIFT };
        Ok(Shape { pages, alignment: alignment >> PAGE_SHIFT, boundary, limit: limit(last) })
    }
}

/// The pages of the `bytes` bytes at `first`.
pub(super) const fn whole_pages(first: u64, bytes: u64) -> Result<Run, IovaError> {
    let whole = bytes > 0 && (first | bytes).is_multiple_of(PAGE_BYTES);
    match first.checked_add(bytes) {
        Some(end) if whole => Ok(Run { first: first >> PAGE_SHIFT, end: end >> PAGE_SHIFT }),
        _ => Err(IovaError::NotWholePages { first, bytes }),
    }
}
