//! Mappings that are given up without waiting.

use core::{fmt, marker::PhantomData, mem::ManuallyDrop, ptr::NonNull};

use super::{
    DeviceWrites, Direction, DmaBuffer, DmaError,
    mapping::abandon,
    shared_bytes::copy_out,
    space::{Live, Owed, Way},
};

/// A buffer whose mapping was [given up](super::Mapping::retire), and that some unit may still translate to.
///
/// What the device had to say is in it already, and may be copied; the buffer itself comes when the flush is over.
/// Dropping the handle leaves the buffer to the reaper.
///
/// # Examples
/// ```no_run
/// use iommu::dma::{DmaError, FromDevice, Late, Mapping, PageBuffer, Retired};
///
/// fn received(
///     mapping: Mapping<PageBuffer, FromDevice>,
///     packet: &mut [u8],
///     waiting: &mut Vec<Retired<PageBuffer, FromDevice>>,
/// ) {
///     let mut retired = mapping.retire();
///     retired.copy_to(0, packet);
///     waiting.push(retired);
/// }
///
/// fn reuse(retired: Retired<PageBuffer, FromDevice>) -> Result<Option<PageBuffer>, DmaError> {
///     match retired.poll()? {
///         Late::Ready(buffer) => Ok(Some(buffer)),
///         // Dropped here: the reaper frees it.
///         Late::Pending(_) => Ok(None),
///     }
/// }
/// ```
#[must_use = "a buffer that nobody waits for is freed by the reaper"]
pub struct Retired<B: DmaBuffer, D: Direction> {
    live: ManuallyDrop<Live>,
    /// The flush that it waits for; `None` if the mapping stands, as its device was taken away from the driver.
    owed: Option<Owed>,
    types: PhantomData<fn(B, D) -> B>,
}

/// What became of a buffer that is waited for.
#[derive(Debug)]
pub enum Late<B: DmaBuffer, D: Direction> {
    /// No unit can translate its address any more.
    Ready(B),
    /// Some unit may.
    Pending(Retired<B, D>),
}

impl<B: DmaBuffer, D: Direction> Retired<B, D> {
    pub(crate) fn new(live: Live) -> Self {
        let owed = live.space.retire(&live.segment).ok();
        Self { live: ManuallyDrop::new(live), owed, types: PhantomData }
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty buffer cannot be mapped")]
    pub fn len(&self) -> usize {
        self.live.segment.buffer.bytes
    }

    /// The buffer, if the flush is over. Waits at most for one that somebody carries out as the device's domain ends.
    ///
    /// # Errors
    /// Those of [`Mapping::unmap`](super::Mapping::unmap), with the same consequences.
    pub fn poll(self) -> Result<Late<B, D>, DmaError> {
        if self.owed.is_some_and(|owed| self.live.space.is_pending(owed)) {
            return Ok(Late::Pending(self));
        }
        match self.undo() {
            // A device was taken out of the domain just now.
            Err(DmaError::Restless) if self.owed.is_some() => Ok(Late::Pending(self)),
            result => self.end(result).map(Late::Ready),
        }
    }

    /// Waits for the buffer. The flush is carried out now if nobody has begun it. It is not waited until another device
    /// of the domain is quiet: [`DmaError::Restless`].
    ///
    /// # Errors
    /// Those of [`Mapping::unmap`](super::Mapping::unmap), with the same consequences.
    pub fn wait(self) -> Result<B, DmaError> {
        let result = self.undo();
        self.end(result)
    }

    /// Ends what [`new`](Self::new) began. After an error that [passes](DmaError::passes) nothing was done.
    fn undo(&self) -> Result<(), DmaError> {
        let Live { space, segment } = &*self.live;
        match self.owed {
            Some(owed) => space.redeem(segment, D::ACCESS, owed),
            None => space.unmap(segment, D::ACCESS),
        }
    }

    /// What the driver gets after [`undo`](Self::undo).
    fn end(self, result: Result<(), DmaError>) -> Result<B, DmaError> {
        let owed = self.owed;
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `self` is not dropped, so this is the only time that the value is taken.
        let live = unsafe { ManuallyDrop::take(&mut this.live) };
        match result {
            // SAFETY: the buffer was taken apart by the mapping, and the space flushed every translation to it.
            Ok(()) => Ok(unsafe { B::from_raw(live.segment.buffer) }),
            Err(error) => {
                if error.passes() {
                    abandon::<B>(live, owed);
                }
                Err(error)
            }
        }
    }
}

impl<B: DmaBuffer, D: DeviceWrites> Retired<B, D> {
    /// Copies the bytes from `offset` on, as they are now, into `data`: no device is to write them any more, and one
    /// that does all the same may change them until the flush, but not the copy.
    ///
    /// # Panics
    /// If the bytes do not lie inside the buffer.
    pub fn copy_to(&mut self, offset: usize, data: &mut [u8]) {
        // Ends that are bounced go through the buffer, which is why it takes the handle for itself.
        self.live.space.copy_ends(&self.live.segment, Way::Out);
        // SAFETY: the mapping owns the buffer, which nothing borrows; a device may write at the same time.
        unsafe { copy_out(part(&self.live, offset, data.len()), data) }
    }
}

/// The `bytes` bytes at `offset` of a mapped buffer.
///
/// # Panics
/// If they do not lie inside it.
pub(super) fn part(live: &Live, offset: usize, bytes: usize) -> NonNull<u8> {
    let all = live.segment.buffer.bytes;
    let end = offset.checked_add(bytes);
    assert!(end.is_some_and(|end| end <= all), "{bytes} bytes at {offset} of a mapped buffer of {all}");
    // SAFETY: as just checked.
    unsafe { live.segment.buffer.first.add(offset) }
}

impl<B: DmaBuffer, D: Direction> Drop for Retired<B, D> {
    fn drop(&mut self) {
        // SAFETY: the value is not used after `drop`, and `wait` prevents a drop.
        let live = unsafe { ManuallyDrop::take(&mut self.live) };
        abandon::<B>(live, self.owed);
    }
}

impl<B: DmaBuffer, D: Direction> fmt::Debug for Retired<B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired")
            .field("iova", &self.live.segment.iova)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
