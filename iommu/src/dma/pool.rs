//! Buffers that stay mapped: nothing is mapped or unmapped per packet.

mod free_list;

use alloc::vec::Vec;
use core::{fmt, ptr::NonNull};

use mm::PAGE_BYTES;

use self::free_list::FreeList;
use super::{
    DeviceReads, DeviceWrites, Direction, DmaError, Mapping, PageBuffer,
    shared_bytes::{copy_in, copy_out},
    space::Placement,
};
use crate::{
    DmaDevice, Iova,
    arc::{Room, TryArc},
};

const PAGE: usize = PAGE_BYTES as usize;

/// Every buffer starts at a multiple of this: no two of them share a cache line.
const ALIGNMENT: usize = 64;

/// Pages that are mapped at once, unless a single buffer takes more: a run that can be had when memory is in pieces.
const PAGES_AT_ONCE: usize = 16;

/// A fixed number of buffers of one size that a device can reach for as long as the pool lives.
///
/// This is the one exception to the rule that a device reaches only what it was handed: it can read or write, as `D`
/// says, **any** buffer of its pools at any time, taken or not. Therefore whole pages are mapped and the pool's memory
/// holds nothing else, what lies in a buffer is copied in and out and never borrowed, and what was copied out is as
/// untrustworthy as the device. Two devices never share a pool.
///
/// Clones are the same pool. Taking a buffer and dropping it needs no lock and no memory, so both may happen in an
/// interrupt handler, as long as another handle keeps the pool alive. The pool is unmapped, by the reaper, when the
/// last handle and the last buffer are gone. If the device is taken away from its driver, its pools are unreachable at
/// once, and their memory comes back when the device is quiet.
///
/// # Examples
/// ```no_run
/// use iommu::dma::{DmaDevice, DmaError, FromDevice, Pool, PoolBuffer};
///
/// fn fill(device: &DmaDevice, mut post: impl FnMut(PoolBuffer<FromDevice>)) -> Result<Pool<FromDevice>, DmaError> {
///     let pool = device.dma_pool(2048, 512, FromDevice)?;
///     while let Some(buffer) = pool.take() {
///         post(buffer);
///     }
///     Ok(pool)
/// }
///
/// fn received(buffer: PoolBuffer<FromDevice>, bytes: usize, packet: &mut [u8; 2048]) {
///     buffer.copy_to(0, &mut packet[..bytes]);
/// }
/// ```
pub struct Pool<D: Direction> {
    shared: TryArc<Shared<D>>,
}

/// A buffer of a [`Pool`], taken from it. Dropping it gives it back: when the device is done with it.
pub struct PoolBuffer<D: Direction> {
    shared: TryArc<Shared<D>>,
    number: usize,
}

struct Shared<D: Direction> {
    free: FreeList,
    buffers: Vec<Place>,
    runs: Vec<Mapping<PageBuffer, D>>,
    buffer_bytes: usize,
}

/// Where a buffer lies.
#[derive(Clone, Copy)]
struct Place {
    iova: Iova,
    run: usize,
    offset: usize,
}

impl<D: Direction> Pool<D> {
    #[track_caller]
    pub(super) fn new(
        device: &DmaDevice,
        bytes: usize,
        count: usize,
        placement: Placement,
    ) -> Result<Self, DmaError> {
        let limit = device.longest_segment();
        if bytes as u64 > limit {
            return Err(DmaError::TooLong { bytes, limit });
        }
        let layout = Layout::of(bytes, limit).ok_or(DmaError::BadLength { count: bytes })?;
        if count == 0 {
            return Err(DmaError::BadLength { count });
        }
        let room = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        let free = FreeList::new(count)?;
        let (mut buffers, mut runs) = (Vec::new(), Vec::new());
        buffers.try_reserve_exact(count).map_err(|_| DmaError::OutOfMemory)?;
        runs.try_reserve_exact(layout.runs(count)).map_err(|_| DmaError::OutOfMemory)?;
        while buffers.len() < count {
            let missing = (count - buffers.len()).min(layout.buffers_at_once);
            let pages = PageBuffer::zeroed(layout.pages(missing)).ok_or(DmaError::OutOfMemory)?;
            let mapping = device.map_pages::<D>(pages, placement)?;
            let (first, run) = (mapping.iova().as_u64(), runs.len());
            buffers.extend((0..missing).map(|index| {
                let offset = layout.offset(index);
                Place { iova: Iova::new(first + offset as u64), run, offset }
            }));
            runs.push(mapping);
        }
        Ok(Self { shared: room.fill(Shared { free, buffers, runs, buffer_bytes: bytes }) })
    }

    /// A buffer that nobody has, in O(1). It holds what was last in it. `None` if all are taken.
    #[must_use]
    #[inline]
    pub fn take(&self) -> Option<PoolBuffer<D>> {
        let number = self.shared.free.take()?;
        Some(PoolBuffer { shared: self.shared.clone(), number })
    }

    /// Number of buffers, taken ones included.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.shared.buffers.len()
    }

    /// Length of each buffer, in bytes.
    #[must_use]
    pub fn buffer_len(&self) -> usize {
        self.shared.buffer_bytes
    }
}

impl<D: Direction> Clone for Pool<D> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<D: Direction> PoolBuffer<D> {
    /// Where the device finds the first byte: a multiple of 64. A buffer of up to 4 KiB lies within one page, a larger
    /// one starts with a page and is contiguous.
    #[must_use]
    #[inline]
    pub fn iova(&self) -> Iova {
        self.place().iova
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.shared.buffer_bytes
    }

    #[inline]
    fn place(&self) -> Place {
        self.shared.buffers[self.number]
    }

    /// The `bytes` bytes from `offset` on.
    fn at(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        let end = offset.checked_add(bytes);
        assert!(
            end.is_some_and(|end| end <= self.len()),
            "{bytes} bytes at {offset} of a pool's buffer of {}",
            self.len()
        );
        let place = self.place();
        // SAFETY: the buffer lies inside its run, and the bytes, as just checked, inside the buffer.
        unsafe { self.shared.runs[place.run].buffer().first.add(place.offset + offset) }
    }
}

impl<D: DeviceReads> PoolBuffer<D> {
    /// Stores `data` from byte `offset` on, for the device to read.
    ///
    /// # Panics
    /// If the bytes do not lie inside the buffer.
    pub fn copy_from(&mut self, offset: usize, data: &[u8]) {
        // SAFETY: `at` gives bytes of the pool's own memory, which nothing borrows, and this is their one holder.
        unsafe { copy_in(data, self.at(offset, data.len())) }
    }
}

impl<D: DeviceWrites> PoolBuffer<D> {
    /// Copies the bytes from `offset` on, as they are now, into `data`.
    ///
    /// # Panics
    /// If the bytes do not lie inside the buffer.
    pub fn copy_to(&self, offset: usize, data: &mut [u8]) {
        let from = self.at(offset, data.len());
        // SAFETY: as in `copy_from`. The device may write at the same time, hence the volatile copy.
        unsafe { copy_out(from, data) }
    }
}

impl<D: Direction> Drop for PoolBuffer<D> {
    #[inline]
    fn drop(&mut self) {
        self.shared.free.give(self.number);
    }
}

/// How buffers of one size lie in runs of pages.
#[derive(Clone, Copy)]
struct Layout {
    /// From one buffer of a page, or of a run, to the next.
    stride: usize,
    /// Buffers in a page; `None` if one takes whole pages.
    in_page: Option<usize>,
    buffers_at_once: usize,
}

impl Layout {
    /// `None` for no bytes, or more than the address space has. A run is at most `longest` bytes, or a page or a
    /// buffer.
    fn of(bytes: usize, longest: u64) -> Option<Self> {
        if bytes == 0 {
            return None;
        }
        let run = usize::try_from(longest).unwrap_or(usize::MAX).min(PAGES_AT_ONCE * PAGE);
        if bytes > PAGE {
            let stride = bytes.checked_next_multiple_of(PAGE)?;
            return Some(Self { stride, in_page: None, buffers_at_once: (run / stride).max(1) });
        }
        let stride = bytes.next_multiple_of(ALIGNMENT);
        let in_page = PAGE / stride;
        Some(Self { stride, in_page: Some(in_page), buffers_at_once: in_page * (run / PAGE).max(1) })
    }

    fn runs(self, count: usize) -> usize {
        count.div_ceil(self.buffers_at_once)
    }

    /// Pages that `count` buffers take, as many as go into one run.
    fn pages(self, count: usize) -> usize {
        self.in_page.map_or(count * (self.stride / PAGE), |in_page| count.div_ceil(in_page))
    }

    /// Where buffer `index` of a run lies in it.
    fn offset(self, index: usize) -> usize {
        match self.in_page {
            Some(in_page) => index / in_page * PAGE + index % in_page * self.stride,
            None => index * self.stride,
        }
    }
}

impl<D: Direction> fmt::Debug for Pool<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("capacity", &self.capacity())
            .field("buffer_len", &self.buffer_len())
            .finish()
    }
}

impl<D: Direction> fmt::Debug for PoolBuffer<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolBuffer").field("iova", &self.iova()).field("len", &self.len()).finish()
    }
}
