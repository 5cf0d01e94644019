//! What the DMA API asks of a domain.

use core::sync::atomic::Ordering;

use mm::{PAGE_BYTES, table::Stale};

use super::Domain;
use crate::{
    Iova, Platform,
    backend::Backend,
    checks::Origin,
    dma::{
        Access, DmaError,
        reaper::Abandoned,
        segment::{Ends, List, Place, Segment},
        space::{Batch, MapRequest, NotMapped, Owed, Placed, Placement, Space, Way, physical},
    },
    stale_ranges::StaleRanges,
};

impl<B: Backend> Domain<B> {
    /// Whether anything may come back: a device that was taken out of the domain may not be quiet.
    #[inline]
    pub(super) fn admit_return(&self) -> Result<(), DmaError> {
        debug_assert!(!self.backend.platform().in_interrupt(), "nothing is unmapped in a hard interrupt");
        self.standing.check_return()
    }

    /// Clears the leaves of a range.
    #[inline(always)]
    pub(super) fn clear(&self, iova: Iova, bytes: u64) -> Result<Stale, DmaError> {
        // SAFETY: the range belongs to mappings that are being undone, and their buffers wait for the flush.
        let unmapped = unsafe { self.table.unmap(iova.as_u64(), bytes) };
        let stale = unmapped.map_err(|error| self.not_mapped(iova, error))?;
        if stale.changed_bytes() == bytes { Ok(stale) } else { Err(self.half_mapped(iova, stale)) }
    }

    /// Clears the leaves of a whole batch. Addresses are used again and again, so that those of a batch are close to
    /// each other, in any order: neighbours are cleared together. An error speaks of all of them.
    fn clear_all(&self, batch: &dyn Batch) -> (StaleRanges, Result<(), DmaError>) {
        let (mut all, mut result) = (StaleRanges::new(), Ok(()));
        let mut spans = [Span { first: 0, bytes: 0 }; SORTED];
        for start in (0..batch.len()).step_by(SORTED) {
            let spans = &mut spans[..SORTED.min(batch.len() - start)];
            for (index, span) in (start..).zip(spans.iter_mut()) {
                *span = Span::of(batch.segment(index));
            }
            spans.sort_unstable_by_key(|span| span.first);
            for neighbours in spans.chunk_by(|low, high| low.first + low.bytes == high.first) {
                let bytes = neighbours.iter().map(|span| span.bytes).sum();
                match self.clear(Iova::new(neighbours[0].first), bytes) {
                    Ok(stale) => all.add(&self.table, stale),
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        (all, result)
    }

    /// Less was mapped than the mapping, or those beside it, say. What was is gone, and its memory stays pinned.
    #[cold]
    fn half_mapped(&self, iova: Iova, stale: Stale) -> DmaError {
        match self.flush(stale) {
            Ok(()) => DmaError::NotMapped { iova },
            Err(unflushed) => unflushed.into(),
        }
    }

    /// Gives back what a segment that no unit can translate any more has taken, but for its buffer and its reaper's
    /// slot.
    #[inline(always)]
    fn give_back(&self, segment: &Segment, access: Access) {
        if segment.ends != Ends::NONE {
            self.settle(segment, access);
        }
        let (iova, bytes) = segment.pages();
        let pages = bytes / PAGE_BYTES;
        self.free(iova, pages);
        self.mapped_pages.fetch_sub(pages, Ordering::Relaxed);
    }
}

/// How many mappings of a batch are put in order together.
const SORTED: usize = 32;

/// The pages of a mapping: where they start, and their length.
#[derive(Clone, Copy)]
struct Span {
    first: u64,
    bytes: u64,
}

impl Span {
    #[inline]
    fn of(segment: &Segment) -> Self {
        let (first, bytes) = segment.pages();
        Self { first: first.as_u64(), bytes }
    }
}

impl<B: Backend> Space for Domain<B> {
    fn map(&self, request: &MapRequest) -> Result<Placed, NotMapped> {
        if !request.is_whole_pages() {
            return self.map_ragged(request);
        }
        let memory = physical(&**self.backend.platform(), request.first, request.bytes)?;
        self.admit()?;
        self.reaper.reserve()?;
        self.allocate(request.placement, memory.bytes)
            .map_err(NotMapped::from)
            .and_then(|iova| self.map_at(iova, &[memory], memory.bytes, request.access))
            .map(|iova| Placed { iova, ends: Ends::NONE })
            .inspect_err(|_| self.reaper.release())
    }

    fn unmap(&self, segment: &Segment, access: Access) -> Result<(), DmaError> {
        self.admit_return()?;
        let (iova, bytes) = segment.pages();
        let stale = self.clear(iova, bytes)?;
        self.flush(stale)?;
        self.give_back(segment, access);
        self.reaper.release();
        Ok(())
    }

    fn unmap_all(&self, batch: &dyn Batch, access: Access) -> Result<(), DmaError> {
        self.admit_return()?;
        let (stale, cleared) = self.clear_all(batch);
        self.flush_ranges(stale)?;
        cleared?;
        for index in 0..batch.len() {
            self.give_back(batch.segment(index), access);
            self.reaper.release();
        }
        Ok(())
    }

    fn retire(&self, segment: &Segment) -> Result<Owed, DmaError> {
        self.standing.check_retire()?;
        let (iova, bytes) = segment.pages();
        Ok(self.owe(self.clear(iova, bytes)?))
    }

    fn is_pending(&self, owed: Owed) -> bool {
        // Of a domain that was revoked, and of a flush that failed, `redeem` says so at once. Once the devices are
        // quiet nothing translates through the domain, and the flush is nothing to wait for.
        let is_restless = self.standing.check_return() == Err(DmaError::Restless);
        !self.standing.is_closed() && (is_restless || self.is_paid(owed) == Ok(false))
    }

    fn redeem(&self, segment: &Segment, access: Access, owed: Owed) -> Result<(), DmaError> {
        self.admit_return()?;
        self.pay(owed)?;
        self.give_back(segment, access);
        self.reaper.release();
        Ok(())
    }

    fn map_list(
        &self,
        list: &mut List,
        access: Access,
        placement: Placement,
        _origin: Origin,
    ) -> Result<(), NotMapped> {
        self.admit()?;
        self.reaper.reserve()?;
        self.place_list(list, access, placement).inspect_err(|_| self.reaper.release())
    }

    fn reserve(&self, list: &mut List, bytes: u64, placement: Placement) -> Result<(), DmaError> {
        self.admit()?;
        self.reaper.reserve()?;
        let first = self.allocate(placement, bytes).inspect_err(|_| self.reaper.release())?;
        list.place = Some(Place::reserved(first, bytes));
        Ok(())
    }

    fn link(
        &self,
        list: &mut List,
        access: Access,
        _placement: Placement,
        _origin: Origin,
    ) -> Result<(), NotMapped> {
        self.admit()?;
        self.link_last(list, access)
    }

    fn sync(&self, list: &List) {
        if let Some(Place { first, mapped_bytes, .. }) = list.place
            && mapped_bytes > 0
        {
            self.publish(first, mapped_bytes);
        }
    }

    fn unmap_list(&self, list: &List, access: Access) -> Result<(), DmaError> {
        self.admit_return()?;
        let Some(Place { first, reserved_bytes, mapped_bytes }) = list.place else { return Ok(()) };
        if mapped_bytes > 0 {
            let stale = self.clear(first, mapped_bytes)?;
            self.flush(stale)?;
        }
        for segment in list.segments.iter().filter(|segment| segment.ends != Ends::NONE) {
            self.settle(segment, access);
        }
        self.free(first, reserved_bytes / PAGE_BYTES);
        self.mapped_pages.fetch_sub(mapped_bytes / PAGE_BYTES, Ordering::Relaxed);
        self.reaper.release();
        Ok(())
    }

    fn copy_ends(&self, segment: &Segment, way: Way) {
        if segment.ends != Ends::NONE {
            // SAFETY: the caller holds the mapping, and its ends are never what the device reaches.
            unsafe { self.bounce.copy(segment, way) };
        }
    }

    fn abandon(&self, abandoned: Abandoned) {
        self.reaper.abandon(abandoned);
    }
}
