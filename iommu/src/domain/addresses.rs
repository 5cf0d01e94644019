//! Which addresses of a domain are whose.

use mm::{PAGE_BYTES, PhysRange};

use super::Domain;
use crate::{
    Iova, Platform,
    backend::Backend,
    dma::{DmaError, space::Placement},
    iova::{FreeError, INTERRUPT_RANGE, IovaError, IovaRequest, IovaSpace},
};

/// Withholds `ranges` of a new space, each with its first and last address.
pub(super) fn withhold<P: Platform>(
    iovas: &IovaSpace<P>,
    mut ranges: impl Iterator<Item = (u64, u64)>,
) -> Result<(), DmaError> {
    ranges.try_for_each(|(first, last)| {
        iovas.reserve(first, last).map_err(|error| match error {
            IovaError::OutOfMemory => DmaError::OutOfMemory,
            _ => DmaError::IovaTaken { iova: Iova::new(first) },
        })
    })
}

impl<B: Backend> Domain<B> {
    /// Takes addresses for `bytes` bytes, whole pages.
    #[inline(always)]
    pub(super) fn allocate(&self, placement: Placement, bytes: u64) -> Result<Iova, DmaError> {
        let pages = bytes / PAGE_BYTES;
        match placement {
            Placement::Below(last) => {
                self.iovas.allocate(pages, last).map_err(|error| no_iova(error, pages, last))
            }
            Placement::Within { last, boundary } => self.allocate_within(pages, last, boundary),
            Placement::At { iova, last } => self.allocate_at(iova, bytes, last),
        }
    }

    /// Takes `pages` pages up to address `last`, not across a multiple of `boundary`.
    #[inline(never)]
    fn allocate_within(&self, pages: u64, last: u64, boundary: u64) -> Result<Iova, DmaError> {
        let request = IovaRequest { boundary, ..IovaRequest::new(pages, last) };
        self.iovas.allocate_with(&request).map_err(|error| no_iova(error, pages, last))
    }

    /// Takes exactly the `bytes` bytes, whole pages, at `iova`, for a device that can send addresses up to `last`.
    fn allocate_at(&self, iova: Iova, bytes: u64, last: u64) -> Result<Iova, DmaError> {
        let (first, last) = (iova.as_u64(), last.min(self.last));
        let end = first.checked_add(bytes - 1).filter(|&end| end <= last);
        let end = end.ok_or(DmaError::IovaBeyond { iova, last })?;
        match self.allocate_fixed(iova, bytes) {
            Err(DmaError::IovaTaken { .. }) if self.is_reserved(first, end) => {
                Err(DmaError::IovaReserved { iova })
            }
            result => result.map(|()| iova),
        }
    }

    /// Takes exactly the `bytes` bytes at `iova`.
    pub(super) fn allocate_fixed(&self, iova: Iova, bytes: u64) -> Result<(), DmaError> {
        self.iovas.allocate_at(iova, bytes / PAGE_BYTES).map_err(|error| match error {
            IovaError::OutOfMemory => DmaError::OutOfMemory,
            IovaError::NotWholePages { .. } => DmaError::IovaUnaligned { iova },
            _ => DmaError::IovaTaken { iova },
        })
    }

    /// Whether some of `first..=last` is never handed out.
    fn is_reserved(&self, first: u64, last: u64) -> bool {
        let meets = |start: u64, end: u64| start <= last && first <= end;
        let meets_region = |&PhysRange { start, bytes }: &PhysRange| {
            meets(start.as_u64(), start.as_u64().saturating_add(bytes - 1))
        };
        if self.registers.meet(first, last) {
            return true;
        }
        let members = self.members.lock(&**self.backend.platform());
        meets(*INTERRUPT_RANGE.start(), *INTERRUPT_RANGE.end()) || members.reserved.iter().any(meets_region)
    }

    /// Gives the `pages` pages at `iova` back.
    #[inline]
    pub(super) fn free(&self, iova: Iova, pages: u64) {
        if let Err(error) = self.iovas.free(iova, pages) {
            self.not_freed(error);
        }
    }

    /// Not that a domain frees what it has not taken.
    #[cold]
    fn not_freed(&self, error: FreeError) {
        log::error!("domain {}: {error}", self.number);
    }
}

/// Why there are no `pages` pages up to address `last`.
#[cold]
fn no_iova(error: IovaError, pages: u64, last: u64) -> DmaError {
    match error {
        IovaError::OutOfMemory => DmaError::OutOfMemory,
        _ => DmaError::NoIova { pages, last },
    }
}
