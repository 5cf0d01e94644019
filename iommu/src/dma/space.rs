//! The one dynamic call between the API, which knows neither platform nor vendor, and a domain, which is compiled for
//! both.

use alloc::sync::Arc;
use core::ptr::NonNull;

use mm::{PAGE_BYTES, PhysRange};

use super::{
    Access, DmaError, Unflushed,
    reaper::Abandoned,
    segment::{Ends, Segment},
};
use crate::{Iova, Platform};

/// What [`Space::map`] is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRequest {
    /// First byte of the buffer.
    pub first: NonNull<u8>,
    /// Its length in bytes.
    pub bytes: usize,
    /// What the device may do.
    pub access: Access,
    /// Where the mapping may lie.
    pub placement: Placement,
}

/// Where a mapping may lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placement {
    /// Anywhere up to this address, inclusive: the device's mask.
    Below(u64),
    /// Exactly here.
    At(Iova),
}

/// Where [`Space::map`] put a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Where the device finds the first byte.
    pub iova: Iova,
    /// What stands in for the buffer's ends.
    pub ends: Ends,
}

/// Why [`Space::map`] failed, and what became of the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotMapped {
    /// No device ever had access.
    Untouched(DmaError),
    /// A part was mapped and taken back, but a unit or a device does not confirm that: the memory must never be used
    /// again.
    Exposed(Unflushed),
}

impl From<DmaError> for NotMapped {
    fn from(error: DmaError) -> Self {
        Self::Untouched(error)
    }
}

/// An address space that a device uses.
pub(crate) trait Space: Send + Sync {
    /// Maps a buffer and reserves what giving it back will need.
    fn map(&self, request: &MapRequest) -> Result<Placed, NotMapped>;

    /// Undoes [`map`](Self::map); when it returns `Ok`, no unit can translate the range any more, and what a device with
    /// this `access` wrote is in the buffer. After [`DmaError::Revoked`] nothing was done, and the mapping is to be
    /// abandoned; after any other error the memory must never be used again.
    fn unmap(&self, segment: &Segment, access: Access) -> Result<(), DmaError>;

    /// Leaves a mapping that was dropped to the reaper. Never waits, never allocates.
    fn abandon(&self, abandoned: Abandoned);
}

/// A live mapping without its types.
pub(crate) struct Live {
    pub space: Arc<dyn Space>,
    pub segment: Segment,
}

impl MapRequest {
    /// Whether the buffer is whole pages.
    #[inline]
    pub fn is_whole_pages(&self) -> bool {
        ((self.first.as_ptr().addr() | self.bytes) as u64).is_multiple_of(PAGE_BYTES)
    }
}

/// The physical memory of a buffer.
#[inline]
pub(crate) fn physical<P: Platform>(platform: &P, request: &MapRequest) -> Result<PhysRange, DmaError> {
    debug_assert!(!platform.in_interrupt(), "nothing is mapped in a hard interrupt");
    let (address, bytes) = (request.first.as_ptr().addr(), request.bytes);
    if bytes == 0 {
        return Err(DmaError::BadLength { count: 0 });
    }
    let start = platform.physical(request.first, bytes).ok_or(DmaError::NotMappable { address, bytes })?;
    Ok(PhysRange::new(start, bytes as u64))
}
