//! Mappings that the CPU has for a while.

use core::fmt;

use super::{
    DeviceReads, DeviceWrites, Direction, DmaBuffer, Mapping,
    retired::part,
    shared_bytes::{copy_in, copy_out},
};
use crate::checks::Origin;

/// A buffer that stays mapped while the CPU works on it: [`Mapping::sync_for_cpu`] makes one.
///
/// The device is to leave it alone until it is given back. One that does not may still write, so bytes are copied in
/// and out and never borrowed. Dropping it unmaps it, by the reaper.
///
/// # Examples
/// ```no_run
/// use iommu::dma::{Bidirectional, Mapping, PageBuffer};
///
/// /// Answers a request in the buffer that it came in.
/// fn answer(mapping: Mapping<PageBuffer, Bidirectional>) -> Mapping<PageBuffer, Bidirectional> {
///     let mut buffer = mapping.sync_for_cpu();
///     let mut request = [0; 16];
///     buffer.copy_to(0, &mut request);
///     request.reverse();
///     buffer.copy_from(0, &request);
///     buffer.sync_for_device()
/// }
/// ```
pub struct Synced<B: DmaBuffer, D: Direction> {
    mapping: Mapping<B, D>,
}

impl<B: DmaBuffer, D: Direction> Synced<B, D> {
    pub(super) fn new(mapping: Mapping<B, D>, origin: Origin) -> Self {
        let live = mapping.live();
        live.space.to_cpu(&live.segment, D::ACCESS, origin);
        Self { mapping }
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty buffer cannot be mapped")]
    pub fn len(&self) -> usize {
        self.mapping.len()
    }

    /// Gives the buffer back to the device.
    #[must_use]
    pub fn sync_for_device(self) -> Mapping<B, D> {
        let live = self.mapping.live();
        live.space.to_device(&live.segment);
        self.mapping
    }
}

impl<B: DmaBuffer, D: DeviceReads> Synced<B, D> {
    /// Stores `data` from byte `offset` on.
    ///
    /// # Panics
    /// If the bytes do not lie inside the buffer.
    pub fn copy_from(&mut self, offset: usize, data: &[u8]) {
        // SAFETY: the mapping owns the buffer, which nothing borrows, and is the only one to write on this side.
        unsafe { copy_in(data, part(self.mapping.live(), offset, data.len())) }
    }
}

impl<B: DmaBuffer, D: DeviceWrites> Synced<B, D> {
    /// Copies the bytes from `offset` on into `data`.
    ///
    /// # Panics
    /// If the bytes do not lie inside the buffer.
    pub fn copy_to(&self, offset: usize, data: &mut [u8]) {
        // SAFETY: as in `copy_from`; a device may write at the same time.
        unsafe { copy_out(part(self.mapping.live(), offset, data.len()), data) }
    }
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for Synced<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Synced").field("len", &self.len()).finish_non_exhaustive()
    }
}
