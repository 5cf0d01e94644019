//! Memory that two domains share.

use core::{fmt, marker::PhantomData, mem::ManuallyDrop, panic::Location};

use super::{
    Direction, DmaBuffer, DmaDomain, DmaError, Mapping, RawBuffer, Rejected, Within,
    mapping::release,
    reaper::{Abandoned, UNREAD},
    segment::{Ends, Segment},
    space::{MapRequest, NotMapped, Placed, Placement, Space},
};
use crate::{Iova, arc::TryArc};

/// Where a second domain has the buffer of a mapping.
pub(super) struct Share {
    space: TryArc<dyn Space>,
    iova: Iova,
}

impl Share {
    /// Takes `buffer` from the devices of the second domain.
    pub fn unmap(&self, buffer: &RawBuffer) -> Result<(), DmaError> {
        let &RawBuffer { first, bytes, .. } = buffer;
        let segment =
            Segment { iova: self.iova, buffer: RawBuffer { first, bytes, cookie: 0 }, ends: Ends::NONE };
        self.space.unmap(&segment, UNREAD)
    }
}

/// A mapping, in the domain of its owner, whose memory the devices of a second domain reach too.
///
/// It holds the mapping, so there is one order in which the memory comes back: first the grant is
/// [revoked](Self::revoke), which unmaps and flushes it in the second domain whether its owner agrees or not, and only
/// then can the mapping be unmapped. The end of either domain changes nothing about that. While a device that was taken
/// out of the second domain is not known to be quiet the memory is not given back to anybody.
///
/// Dropping it leaves both to the reaper, in the same order.
///
/// # Examples
/// ```no_run
/// use iommu::{Bidirectional, DmaDevice, DmaDomain, DmaError, Iova, PageBuffer, ToDevice};
///
/// /// The devices of `reader` see the frames that `camera` writes, and cannot change them.
/// fn watch(camera: &DmaDevice, reader: &DmaDomain, at: Iova, stop: impl Fn()) -> Result<PageBuffer, DmaError> {
///     let frames = PageBuffer::zeroed(16).ok_or(DmaError::OutOfMemory)?;
///     let grant = camera.dma_map(frames, Bidirectional)?.grant_at(reader, ToDevice, at)?;
///     stop();
///     grant.revoke()?.unmap()
/// }
/// ```
#[must_use = "a grant that is dropped is revoked, and its memory freed"]
pub struct Grant<B: DmaBuffer, D: Direction> {
    share: ManuallyDrop<Share>,
    mapping: ManuallyDrop<Mapping<B, D>>,
    types: PhantomData<fn(B, D) -> B>,
}

impl<B: DmaBuffer, D: Direction> Mapping<B, D> {
    /// Lets the devices of `domain` reach the buffer too, in direction `E`, which goes no further than the mapping's
    /// own.
    ///
    /// # Errors
    /// The mapping comes back in [`Rejected`]. [`DmaError::NotWholePages`], and those of [`DmaDomain::dma_map`].
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{Bidirectional, DmaDomain, DmaError, Grant, Mapping, PageBuffer, ToDevice};
    ///
    /// /// Lets the devices of another domain read what the first device fills, for as long as `work` takes.
    /// fn show(
    ///     mapping: Mapping<PageBuffer, Bidirectional>,
    ///     domain: &DmaDomain,
    ///     work: impl FnOnce(u64),
    /// ) -> Result<Mapping<PageBuffer, Bidirectional>, DmaError> {
    ///     let grant: Grant<_, _> = mapping.grant(domain, ToDevice).map_err(|rejected| rejected.error)?;
    ///     work(grant.iova().as_u64());
    ///     grant.revoke()
    /// }
    /// ```
    #[track_caller]
    pub fn grant<E: Within<D>>(
        self,
        domain: &DmaDomain,
        _direction: E,
    ) -> Result<Grant<B, D>, Rejected<Self>> {
        self.grant_where::<E>(domain, Placement::Below(u64::MAX))
    }

    /// The same at an address of the caller's choice.
    ///
    /// # Errors
    /// As [`grant`](Self::grant), and those of [`DmaDomain::dma_map_at`].
    #[track_caller]
    pub fn grant_at<E: Within<D>>(
        self,
        domain: &DmaDomain,
        _direction: E,
        iova: Iova,
    ) -> Result<Grant<B, D>, Rejected<Self>> {
        self.grant_where::<E>(domain, Placement::At { iova, last: u64::MAX })
    }

    #[track_caller]
    fn grant_where<E: Within<D>>(
        self,
        domain: &DmaDomain,
        placement: Placement,
    ) -> Result<Grant<B, D>, Rejected<Self>> {
        let &RawBuffer { first, bytes, .. } = self.buffer();
        let origin = Location::caller();
        let request = MapRequest { first, bytes, access: E::ACCESS, placement, origin };
        if !request.is_whole_pages() {
            return Err(Rejected { error: DmaError::NotWholePages { bytes }, buffer: Some(self) });
        }
        match domain.space().map(&request) {
            Ok(Placed { iova, .. }) => {
                let share = ManuallyDrop::new(Share { space: domain.space().clone(), iova });
                Ok(Grant { share, mapping: ManuallyDrop::new(self), types: PhantomData })
            }
            Err(NotMapped::Untouched(error)) => Err(Rejected { error, buffer: Some(self) }),
            Err(NotMapped::Exposed(unflushed)) => {
                // Devices of the second domain may reach it for ever.
                core::mem::forget(self);
                Err(Rejected { error: unflushed.into(), buffer: None })
            }
        }
    }
}

impl<B: DmaBuffer, D: Direction> Grant<B, D> {
    /// Where the devices of the second domain find the first byte.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.share.iova
    }

    /// The mapping of the owner.
    #[must_use]
    pub fn mapping(&self) -> &Mapping<B, D> {
        &self.mapping
    }

    /// Takes the memory from the devices of the second domain. When this returns, no unit can translate its address
    /// there any more, and the owner has the mapping as it was.
    ///
    /// # Errors
    /// Those of [`Mapping::unmap`], for the second domain, with the same consequences for the memory and its mapping:
    /// after [`DmaError::Revoked`] and [`DmaError::Restless`] both are left to the reaper.
    pub fn revoke(self) -> Result<Mapping<B, D>, DmaError> {
        let (share, mapping) = self.into_parts();
        match share.unmap(mapping.buffer()) {
            Ok(()) => Ok(mapping),
            Err(error) if error.passes() => {
                abandon(share, mapping);
                Err(error)
            }
            Err(error) => {
                core::mem::forget(mapping);
                Err(error)
            }
        }
    }

    fn into_parts(self) -> (Share, Mapping<B, D>) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `self` is not dropped, so this is the only time that the two are taken.
        unsafe { (ManuallyDrop::take(&mut this.share), ManuallyDrop::take(&mut this.mapping)) }
    }
}

/// Leaves a grant and its mapping to the reaper.
fn abandon<B: DmaBuffer, D: Direction>(share: Share, mapping: Mapping<B, D>) {
    let live = mapping.into_live();
    let space = live.space.clone();
    space.abandon(Abandoned::shared(share, live, release::<B>));
}

impl<B: DmaBuffer, D: Direction> Drop for Grant<B, D> {
    fn drop(&mut self) {
        // SAFETY: neither is used after `drop`, and `into_parts` prevents a drop.
        let parts = unsafe { (ManuallyDrop::take(&mut self.share), ManuallyDrop::take(&mut self.mapping)) };
        abandon(parts.0, parts.1);
    }
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for Grant<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("iova", &self.iova())
            .field("mapping", self.mapping())
            .finish_non_exhaustive()
    }
}
