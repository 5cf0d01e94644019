//! A buffer in the hands of a device.

use core::{fmt, marker::PhantomData, mem::ManuallyDrop, panic::Location};

use super::{
    Direction, DmaBuffer, DmaError, RawBuffer, Rejected, Retired, Synced,
    reaper::Abandoned,
    segment::Segment,
    space::{Live, MapRequest, NotMapped, Owed, Placed, Placement, Space},
};
use crate::{Iova, arc::TryArc};

/// A buffer that a device can reach: it owns the buffer until [`unmap`](Self::unmap) gives it back.
///
/// While it lives the CPU has no way to the memory. Dropping it without `unmap` leaves the flush, and then the freeing
/// of the buffer, to the reaper thread; forgetting it leaks the buffer, still mapped.
///
/// # Examples
/// ```no_run
/// use iommu::{DmaError, FromDevice, Mapping, PageBuffer};
///
/// /// The first byte that the device wrote: there is no way to it before the unmap.
/// fn first(mapping: Mapping<PageBuffer, FromDevice>) -> Result<u8, DmaError> {
///     Ok(mapping.unmap()?[0])
/// }
/// ```
pub struct Mapping<B: DmaBuffer, D: Direction> {
    live: ManuallyDrop<Live>,
    types: PhantomData<fn(B, D) -> B>,
}

impl<B: DmaBuffer, D: Direction> Mapping<B, D> {
    #[track_caller]
    pub(super) fn new(
        space: &TryArc<dyn Space>,
        buffer: B,
        placement: Placement,
        longest: u64,
    ) -> Result<Self, Rejected<B>> {
        let raw = buffer.into_raw();
        if raw.bytes as u64 > longest {
            let error = DmaError::TooLong { bytes: raw.bytes, limit: longest };
            // SAFETY: `raw` is the buffer just taken apart, and no device ever had access.
            let buffer = unsafe { B::from_raw(raw) };
            return Err(Rejected { error, buffer: Some(buffer) });
        }
        let (access, origin) = (D::ACCESS, Location::caller());
        let request = MapRequest { first: raw.first, bytes: raw.bytes, access, placement, origin };
        match space.map(&request) {
            Ok(Placed { iova, ends }) => {
                let segment = Segment { iova, buffer: raw, ends };
                let live = Live { space: space.clone(), segment };
                Ok(Self { live: ManuallyDrop::new(live), types: PhantomData })
            }
            Err(NotMapped::Untouched(error)) => {
                // SAFETY: `raw` is the buffer just taken apart, and no device ever had access.
                let buffer = unsafe { B::from_raw(raw) };
                Err(Rejected { error, buffer: Some(buffer) })
            }
            Err(NotMapped::Exposed(unflushed)) => Err(Rejected { error: unflushed.into(), buffer: None }),
        }
    }

    /// Where the device finds the first byte.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.live.segment.iova
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty buffer cannot be mapped")]
    pub fn len(&self) -> usize {
        self.live.segment.buffer.bytes
    }

    /// Gives the device's access up without waiting: the buffer comes by [`Retired::poll`] or [`Retired::wait`], once
    /// no unit can translate its address any more. See [`options::Flush`](crate::options::Flush) for when that is.
    pub fn retire(self) -> Retired<B, D> {
        Retired::new(self.into_live())
    }

    /// Takes what the device has to leave alone for a while: the CPU has access until
    /// [`sync_for_device`](Synced::sync_for_device), and there is no address meanwhile that could be given to the
    /// device.
    #[must_use]
    #[track_caller]
    pub fn sync_for_cpu(self) -> Synced<B, D> {
        Synced::new(self, Location::caller())
    }

    /// Takes the buffer back. When this returns, no unit can translate its address any more.
    ///
    /// # Errors
    /// If the unit, or the device's own TLB, does not answer: the device may still reach the buffer, so it stays pinned
    /// for ever. If the device was taken away from the driver ([`DmaError::Revoked`]): the reaper frees the buffer when
    /// the device is known to be quiet.
    pub fn unmap(self) -> Result<B, DmaError> {
        let live = self.into_live();
        match live.space.unmap(&live.segment, D::ACCESS) {
            // SAFETY: the buffer was taken apart in `new`, and the space flushed every translation to it.
            Ok(()) => Ok(unsafe { B::from_raw(live.segment.buffer) }),
            Err(error) => {
                if error.passes() {
                    abandon::<B>(live, None);
                }
                Err(error)
            }
        }
    }

    pub(super) fn into_live(self) -> Live {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `self` is not dropped, so this is the only time that the value is taken.
        unsafe { ManuallyDrop::take(&mut this.live) }
    }

    pub(super) fn live(&self) -> &Live {
        &self.live
    }

    pub(super) fn buffer(&self) -> &RawBuffer {
        &self.live.segment.buffer
    }
}

impl<B: DmaBuffer, D: Direction> Drop for Mapping<B, D> {
    fn drop(&mut self) {
        // SAFETY: the value is not used after `drop`, and `into_live` prevents a drop.
        let live = unsafe { ManuallyDrop::take(&mut self.live) };
        abandon::<B>(live, None);
    }
}

/// Leaves a mapping, which may be `owed` a flush, to the reaper.
pub(super) fn abandon<B: DmaBuffer>(live: Live, owed: Option<Owed>) {
    let space = live.space.clone();
    space.abandon(Abandoned::new(live, owed, release::<B>));
}

/// Frees a buffer that the reaper has unmapped.
///
/// # Safety
/// As for [`DmaBuffer::from_raw`].
pub(super) unsafe fn release<B: DmaBuffer>(raw: RawBuffer) {
    // SAFETY: passed on to the caller.
    drop(unsafe { B::from_raw(raw) });
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for Mapping<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping")
            .field("iova", &self.iova())
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
