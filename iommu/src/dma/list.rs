//! Scatter-gather: buffers here and there that a device finds in one range of addresses.

use core::{fmt, marker::PhantomData, mem, panic::Location};

use super::{
    Direction, DmaBuffer, DmaError, Rejected, SegmentLimits,
    mapping::release,
    reaper::Abandoned,
    segment::{Ends, List, Segment},
    space::{NotMapped, Placement, Space},
};
use crate::{Iova, arc::TryArc};

/// Buffers that are to be mapped together. A list can be used again and again: what it needs is reserved when buffers
/// are added, and mapping it takes nothing from the heap.
///
/// # Examples
/// ```no_run
/// use iommu::dma::{DmaError, PageBuffer, ScatterList};
///
/// /// Room for a request of `count` pages, each of them anywhere in memory.
/// fn pages(count: usize) -> Result<ScatterList<PageBuffer>, DmaError> {
///     let mut list = ScatterList::with_capacity(count)?;
///     for _ in 0..count {
///         list.push(PageBuffer::zeroed(1).ok_or(DmaError::OutOfMemory)?)?;
///     }
///     Ok(list)
/// }
/// ```
pub struct ScatterList<B: DmaBuffer> {
    list: List,
    types: PhantomData<fn(B) -> B>,
}

impl<B: DmaBuffer> ScatterList<B> {
    /// An empty list with room for `count` buffers.
    ///
    /// # Errors
    /// [`DmaError::OutOfMemory`].
    pub fn with_capacity(count: usize) -> Result<Self, DmaError> {
        let mut list = List::default();
        list.reserve(count)?;
        Ok(Self { list, types: PhantomData })
    }

    /// Adds `buffer` at the end.
    ///
    /// # Errors
    /// The buffer comes back if there is no memory for a longer list.
    pub fn push(&mut self, buffer: B) -> Result<(), Rejected<B>> {
        if let Err(error) = self.list.reserve(1) {
            return Err(Rejected { error, buffer: Some(buffer) });
        }
        self.list.segments.push(Segment { iova: Iova::new(0), buffer: buffer.into_raw(), ends: Ends::NONE });
        Ok(())
    }

    /// Takes the last buffer out.
    pub fn pop(&mut self) -> Option<B> {
        // SAFETY: a list that is not mapped owns its buffers, which it took apart itself.
        self.list.segments.pop().map(|segment| unsafe { B::from_raw(segment.buffer) })
    }

    /// Number of buffers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.list.segments.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.segments.is_empty()
    }
}

impl<B: DmaBuffer> Drop for ScatterList<B> {
    fn drop(&mut self) {
        while self.pop().is_some() {}
    }
}

impl<B: DmaBuffer> fmt::Debug for ScatterList<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScatterList").field("len", &self.len()).finish_non_exhaustive()
    }
}

/// A [`ScatterList`] that a device can reach, as one range of addresses in which each buffer begins on a page of its
/// own. Buffers of whole pages, and a first one that ends and a last one that begins with a page, are contiguous.
///
/// Dropping it leaves the flush and the freeing of all buffers to the reaper.
pub struct ScatterMapping<B: DmaBuffer, D: Direction> {
    pub(super) space: TryArc<dyn Space>,
    pub(super) list: List,
    pub(super) limits: SegmentLimits,
    pub(super) types: PhantomData<fn(B, D) -> B>,
}

/// A run of addresses, for one entry of a device's own list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceSegment {
    /// Where the device finds the first byte.
    pub iova: Iova,
    /// Length in bytes.
    pub bytes: u64,
}

impl<B: DmaBuffer, D: Direction> ScatterMapping<B, D> {
    #[track_caller]
    pub(super) fn new(
        space: &TryArc<dyn Space>,
        mut buffers: ScatterList<B>,
        placement: Placement,
        limits: SegmentLimits,
    ) -> Result<Self, Rejected<ScatterList<B>>> {
        if buffers.is_empty() {
            return Err(Rejected { error: DmaError::BadLength { count: 0 }, buffer: Some(buffers) });
        }
        match space.map_list(&mut buffers.list, D::ACCESS, placement, Location::caller()) {
            Ok(()) => {
                let list = mem::take(&mut buffers.list);
                Ok(Self { space: space.clone(), list, limits, types: PhantomData })
            }
            Err(NotMapped::Untouched(error)) => Err(Rejected { error, buffer: Some(buffers) }),
            Err(NotMapped::Exposed(unflushed)) => {
                // A part was mapped, and nobody confirms that it is not any more.
                mem::forget(buffers);
                Err(Rejected { error: unflushed.into(), buffer: None })
            }
        }
    }

    /// The buffers as the device finds them, in their order: runs are as long as addresses are contiguous and the
    /// device's [limits](super::DmaDevice::set_segment_limits) allow.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{PageBuffer, ToDevice, dma::ScatterMapping};
    ///
    /// /// Address and length of each entry of the device's list.
    /// fn entries(mapping: &ScatterMapping<PageBuffer, ToDevice>) -> Vec<(u64, u64)> {
    ///     mapping.segments().map(|segment| (segment.iova.as_u64(), segment.bytes)).collect()
    /// }
    /// ```
    pub fn segments(&self) -> impl Iterator<Item = DeviceSegment> {
        let mut buffers = self.list.segments.iter().peekable();
        let mut left = DeviceSegment { iova: Iova::new(0), bytes: 0 };
        let limits = self.limits;
        core::iter::from_fn(move || {
            while let Some(next) = buffers
                .next_if(|next| left.bytes == 0 || left.iova.as_u64() + left.bytes == next.iova.as_u64())
            {
                let first = if left.bytes == 0 { next.iova } else { left.iova };
                left = DeviceSegment { iova: first, bytes: left.bytes + next.buffer.bytes as u64 };
            }
            let bytes = limits.longest_from(left.iova).min(left.bytes);
            let segment = DeviceSegment { bytes, ..left };
            left = DeviceSegment { iova: Iova::new(left.iova.as_u64() + bytes), bytes: left.bytes - bytes };
            (bytes > 0).then_some(segment)
        })
    }

    /// Takes the buffers back, with one flush. When this returns, no unit can translate their addresses any more.
    ///
    /// # Errors
    /// Those of [`Mapping::unmap`](super::Mapping::unmap), with the same consequences for all buffers.
    pub fn unmap(mut self) -> Result<ScatterList<B>, DmaError> {
        let result = self.space.unmap_list(&self.list, D::ACCESS);
        if let Err(error) = result
            && error.passes()
        {
            return Err(error);
        }
        let mut list = mem::take(&mut self.list);
        match result {
            Ok(()) => {
                list.segments.iter_mut().for_each(|segment| segment.ends = Ends::NONE);
                list.place = None;
                Ok(ScatterList { list, types: PhantomData })
            }
            // What is in the list stays pinned; the list itself owns nothing that a drop would free.
            Err(error) => Err(error),
        }
    }
}

impl<B: DmaBuffer, D: Direction> Drop for ScatterMapping<B, D> {
    fn drop(&mut self) {
        let list = mem::take(&mut self.list);
        if list.place.is_some() {
            self.space.abandon(Abandoned::list(self.space.clone(), list, release::<B>));
        }
    }
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for ScatterMapping<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScatterMapping").field("buffers", &self.list.segments.len()).finish_non_exhaustive()
    }
}
