//! Long-lived memory that the CPU and a device share: rings, queues, status words.

use core::{fmt, marker::PhantomData, mem::size_of};

use mm::PAGE_BYTES;
use zerocopy::{FromBytes, IntoBytes};

use super::{Bidirectional, DmaError, Mapping, PageBuffer, space::Placement};
use crate::{DmaDevice, Iova};

/// An array of `T` that a device may read and write at any time.
///
/// Elements are copied in and out by volatile access and never borrowed: what was read once may read differently the
/// next time, and anything read is as untrustworthy as the device. The order of accesses to different elements is the
/// program's order for the compiler; a driver puts the fence that its device's protocol asks for between them.
///
/// Dropping it unmaps it (through the reaper) before its memory is used again.
///
/// # Examples
/// ```no_run
/// use iommu::Coherent;
///
/// /// The driver's end of a ring whose entries the device marks as done.
/// fn next_done(ring: &Coherent<u64>, index: usize) -> Option<u64> {
///     const DONE: u64 = 1 << 63;
///     let entry = ring.read(index % ring.len());
///     (entry & DONE != 0).then_some(entry & !DONE)
/// }
/// ```
pub struct Coherent<T> {
    mapping: Mapping<PageBuffer, Bidirectional>,
    count: usize,
    element: PhantomData<fn(T) -> T>,
}

impl<T: FromBytes + IntoBytes + Copy> Coherent<T> {
    #[track_caller]
    pub(super) fn new(device: &DmaDevice, count: usize, placement: Placement) -> Result<Self, DmaError> {
        const { assert!(size_of::<T>() > 0 && align_of::<T>() <= PAGE_BYTES as usize) };
        let bad_length = DmaError::BadLength { count };
        let bytes = count.checked_mul(size_of::<T>()).filter(|&bytes| bytes > 0).ok_or(bad_length)?;
        let buffer = PageBuffer::zeroed(bytes.div_ceil(PAGE_BYTES as usize)).ok_or(DmaError::OutOfMemory)?;
        let mapping = device.map_pages::<Bidirectional>(buffer, placement)?;
        Ok(Self { mapping, count, element: PhantomData })
    }

    /// Where the device finds element 0; aligned to 4 KiB.
    #[must_use]
    pub fn iova(&self) -> Iova {
        self.mapping.iova()
    }

    /// Where the device finds element `index`.
    ///
    /// # Panics
    /// If `index` is out of range.
    #[must_use]
    pub fn iova_of(&self, index: usize) -> Iova {
        self.check(index);
        Iova::new(self.iova().as_u64() + (index * size_of::<T>()) as u64)
    }

    /// Number of elements.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "an empty array cannot be made")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// A copy of element `index` as it is now.
    ///
    /// # Panics
    /// If `index` is out of range.
    #[must_use]
    pub fn read(&self, index: usize) -> T {
        // SAFETY: `element` checked the index; the memory is mapped for the life of `self`, aligned for `T`, and `T`
        // is valid for any bytes. A device may write at the same time, hence the volatile access.
        unsafe { self.element(index).read_volatile() }
    }

    /// Stores `value` as element `index`.
    ///
    /// # Panics
    /// If `index` is out of range.
    pub fn write(&mut self, index: usize, value: T) {
        // SAFETY: as in `read`; `self` is borrowed exclusively, so no other CPU writes.
        unsafe { self.element(index).write_volatile(value) }
    }

    fn element(&self, index: usize) -> *mut T {
        self.check(index);
        // SAFETY: the index is in range, so the element lies inside the buffer.
        unsafe { self.mapping.buffer().first.as_ptr().cast::<T>().add(index) }
    }

    fn check(&self, index: usize) {
        assert!(index < self.count, "element {index} of a coherent array of {}", self.count);
    }
}

impl<T> fmt::Debug for Coherent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coherent").field("mapping", &self.mapping).field("len", &self.count).finish()
    }
}
