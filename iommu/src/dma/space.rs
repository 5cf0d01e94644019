//! The one dynamic call between the API, which knows neither platform nor vendor, and a domain, which is compiled for
//! both.

use alloc::sync::Arc;
use core::ptr::NonNull;

use super::{Access, DmaError, Stuck, reaper::Abandoned};
use crate::Iova;

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

/// An address space that a device uses.
pub(crate) trait Space: Send + Sync {
    /// Maps a buffer and reserves what giving it back will need.
    fn map(&self, request: &MapRequest) -> Result<Iova, DmaError>;

    /// Undoes [`map`](Self::map); when it returns `Ok`, no unit can translate the range any more. After an error the
    /// memory must never be used again.
    fn unmap(&self, iova: Iova, bytes: usize) -> Result<(), Stuck>;

    /// Leaves a mapping that was dropped to the reaper. Never waits, never allocates.
    fn abandon(&self, abandoned: Abandoned);
}

/// A live mapping without its types.
pub(crate) struct Live {
    pub space: Arc<dyn Space>,
    pub iova: Iova,
    pub buffer: super::RawBuffer,
}
