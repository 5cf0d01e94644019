//! The kernel heap.
//!
//! Whole pages come straight from the frame allocator: a layout of at least a page, or aligned to one, is a run of
//! frames in the direct map, so that buffers for devices are contiguous and share no page. Smaller ones come from a
//! general allocator that grows by runs of frames and keeps them.

use core::{
    alloc::{GlobalAlloc, Layout},
    ptr,
};

use mm::PAGE_BYTES;
use talc::{
    base::{Talc, binning::Binning},
    source::Source,
};

use super::{frames, layout};
use crate::sync::{IrqMutex, Rank, assert_not_in_interrupt};

/// What the general allocator grows by, if there is that much in one piece.
const GROWTH_PAGES: usize = 64;

struct Heap {
    small: IrqMutex<Small>,
}

/// Blocks of less than a page.
struct Small {
    blocks: Talc<Frames, talc::DefaultBinning>,
    used_bytes: usize,
}

#[global_allocator]
static HEAP: Heap =
    Heap { small: IrqMutex::new(Rank::Heap, Small { blocks: Talc::new(Frames), used_bytes: 0 }) };

/// Bytes in small blocks that are in use.
pub fn small_bytes() -> usize {
    HEAP.small.lock().used_bytes
}

/// Frames as the source of the general allocator.
#[derive(Debug)]
struct Frames;

// SAFETY: it does not use the allocator that it feeds.
unsafe impl Source for Frames {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, _layout: Layout) -> Result<(), ()> {
        // Any layout that is served from here fits into a run of this size with room for the allocator's own data;
        // smaller ones are tried when memory is short.
        let (first, pages) = [GROWTH_PAGES, GROWTH_PAGES / 4, 4]
            .into_iter()
            .find_map(|pages| Some((frames::allocate(pages)?, pages)))
            .ok_or(())?;
        let base = layout::direct(first) as *mut u8;
        // SAFETY: the run is new and mapped, and now the allocator's for good.
        unsafe { talc.claim(base, pages * PAGE_BYTES as usize) }.map(|_| ()).ok_or(())
    }
}

/// Pages of a layout that is served by whole frames.
fn pages(layout: Layout) -> Option<usize> {
    let bytes = layout.size().max(layout.align());
    (bytes >= PAGE_BYTES as usize).then(|| bytes.div_ceil(PAGE_BYTES as usize))
}

// SAFETY: both sources give out memory that is not in use, of the size and alignment asked for: a run of frames is
// aligned to its size rounded up to a power of two. Nothing here unwinds or allocates.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        assert_not_in_interrupt("allocate");
        if let Some(pages) = pages(layout) {
            return frames::allocate(pages).map_or(ptr::null_mut(), |first| layout::direct(first) as *mut u8);
        }
        let mut small = self.small.lock();
        // SAFETY: the caller's promise: the size is not zero.
        let Some(first) = (unsafe { small.blocks.allocate(layout) }) else { return ptr::null_mut() };
        small.used_bytes += layout.size();
        first.as_ptr()
    }

    unsafe fn dealloc(&self, first: *mut u8, layout: Layout) {
        assert_not_in_interrupt("free");
        match (pages(layout), layout::direct_to_physical(first as u64)) {
            // SAFETY: the caller's promise: the block came from `alloc` with this layout.
            (Some(pages), Some(run)) => unsafe { frames::free(run, pages) },
            _ => {
                let mut small = self.small.lock();
                small.used_bytes -= layout.size();
                // SAFETY: as above.
                unsafe { small.blocks.deallocate(first, layout) }
            }
        }
    }
}
