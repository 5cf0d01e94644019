//! Addresses first, buffers later: for drivers that come to the pieces of a request one by one.

use core::{fmt, marker::PhantomData, panic::Location};

use mm::PAGE_BYTES;

use super::{
    Direction, DmaBuffer, DmaError, Rejected, ScatterList, ScatterMapping, SegmentLimits,
    segment::{Ends, List, Segment},
    space::{NotMapped, Placement, Space},
};
use crate::{Iova, arc::TryArc};

/// A range of addresses that buffers are [linked](Self::link) into, one behind the other, and that the device may use
/// once it is [synced](Self::sync).
///
/// Nobody learns an address before: what `sync` returns has them. Each buffer begins on a page of its own, as in a
/// [`ScatterMapping`]. Linking asks nothing of a unit, and allocates nothing while there is room for the pieces that
/// were announced; what units have to be told waits for `sync`, and is said once. A malicious device may find a piece
/// earlier: like every buffer that is mapped, it is out of the CPU's hands from `link` on, and comes back after a
/// flush.
///
/// Dropping it gives the range back, and leaves the flush and the freeing of what was linked to the reaper.
///
/// # Examples
/// ```no_run
/// use iommu::dma::{DmaDevice, DmaError, PageBuffer, ScatterList, ToDevice};
///
/// /// Sends pages as the file system finds them, at most 16 in a request.
/// fn send(
///     device: &DmaDevice,
///     mut next_page: impl FnMut() -> Option<PageBuffer>,
///     mut describe: impl FnMut(iommu::Iova, u64),
///     transfer: impl Fn(),
/// ) -> Result<ScatterList<PageBuffer>, DmaError> {
///     let mut request = device.dma_reserve(16, 16 * 4096, ToDevice)?;
///     while let Some(page) = next_page() {
///         request.link(page)?;
///     }
///     let mapping = request.sync();
///     mapping.segments().for_each(|segment| describe(segment.iova, segment.bytes));
///     transfer();
///     mapping.unmap()
/// }
/// ```
#[must_use = "a reservation that is dropped is given back"]
pub struct Reservation<B: DmaBuffer, D: Direction> {
    /// What it will be. Nobody gets it before it is synced.
    mapping: ScatterMapping<B, D>,
    placement: Placement,
}

impl<B: DmaBuffer, D: Direction> Reservation<B, D> {
    pub(super) fn new(
        space: &TryArc<dyn Space>,
        pieces: usize,
        bytes: usize,
        placement: Placement,
        limits: SegmentLimits,
    ) -> Result<Self, DmaError> {
        let pages_bytes = (bytes as u64).checked_next_multiple_of(PAGE_BYTES).filter(|&bytes| bytes > 0);
        let pages_bytes = pages_bytes.ok_or(DmaError::BadLength { count: bytes })?;
        let mut list = List::default();
        list.reserve(pieces)?;
        space.reserve(&mut list, pages_bytes, placement)?;
        let mapping = ScatterMapping { space: space.clone(), list, limits, types: PhantomData };
        Ok(Self { mapping, placement })
    }

    /// Puts `buffer` behind the others.
    ///
    /// # Errors
    /// [`DmaError::BeyondReservation`] if its pages do not fit any more, and the errors of
    /// [`dma_map`](super::DmaDevice::dma_map). The buffer comes back, and what was linked before stays.
    #[track_caller]
    pub fn link(&mut self, buffer: B) -> Result<(), Rejected<B>> {
        let ScatterMapping { space, list, .. } = &mut self.mapping;
        if let Err(error) = list.reserve(1) {
            return Err(Rejected { error, buffer: Some(buffer) });
        }
        let segment = Segment { iova: Iova::new(0), buffer: buffer.into_raw(), ends: Ends::NONE };
        list.segments.push(segment);
        let linked = space.link(list, D::ACCESS, self.placement, Location::caller());
        let Err(failure) = linked else { return Ok(()) };
        let refused = list.segments.pop();
        match failure {
            NotMapped::Untouched(error) => {
                // SAFETY: the buffer just taken apart, which the list has no more; no device ever had access.
                let buffer = refused.map(|segment| unsafe { B::from_raw(segment.buffer) });
                Err(Rejected { error, buffer })
            }
            NotMapped::Exposed(unflushed) => Err(Rejected { error: unflushed.into(), buffer: None }),
        }
    }

    /// Number of buffers linked so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.mapping.list.segments.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mapping.list.segments.is_empty()
    }

    /// Makes what was linked visible to the device, with the one flush that caching mode or a write buffer asks for.
    /// The device may use it from now on; [`ScatterMapping::unmap`] takes all of it back, with one flush.
    ///
    /// A unit that does not answer is given up, as it is by a map: nothing new is mapped, and `unmap` says so.
    #[must_use = "a mapping that is dropped is left to the reaper"]
    pub fn sync(self) -> ScatterMapping<B, D> {
        self.mapping.space.sync(&self.mapping.list);
        self.mapping
    }

    /// Takes the buffers back without ever having used them, with one flush if there is any.
    ///
    /// # Errors
    /// Those of [`Mapping::unmap`](super::Mapping::unmap), with the same consequences for all buffers.
    pub fn unlink(self) -> Result<ScatterList<B>, DmaError> {
        self.mapping.unmap()
    }
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for Reservation<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reservation").field("buffers", &self.len()).finish_non_exhaustive()
    }
}
