//! Memory that may be lent to a device.

use alloc::{boxed::Box, vec::Vec};
use core::{mem::ManuallyDrop, ptr::NonNull};

/// A buffer taken apart: what a live mapping holds instead of a `Box` or a reference to memory that a device writes.
#[derive(Debug)]
pub struct RawBuffer {
    /// First byte.
    pub first: NonNull<u8>,
    /// Length in bytes: what the device gets to see.
    pub bytes: usize,
    /// A number that the implementation of [`DmaBuffer`] needs to put the buffer together again.
    pub cookie: usize,
}

// SAFETY: a raw buffer is the sole owner of memory that came from a `DmaBuffer`, which is `Send`.
unsafe impl Send for RawBuffer {}
// SAFETY: a shared raw buffer gives nothing but numbers; reaching the memory takes `unsafe` of its own.
unsafe impl Sync for RawBuffer {}

/// A buffer that can be handed to a device.
///
/// # Safety
/// The memory that [`into_raw`](Self::into_raw) describes must be owned by the buffer, stay valid and in place until
/// [`from_raw`](Self::from_raw), be initialised, and hold plain data, for which any bytes that a device writes are a
/// valid value. It must not be a stack or a part of the kernel image.
///
/// # Examples
/// ```no_run
/// use std::ptr::NonNull;
///
/// use iommu::{DmaBuffer, PageBuffer, dma::RawBuffer};
///
/// /// Pages with a name that the driver wants back with them.
/// struct Named(PageBuffer, usize);
///
/// // SAFETY: the memory is the page buffer's, which keeps the contract; the name travels as a number.
/// unsafe impl DmaBuffer for Named {
///     fn into_raw(self) -> RawBuffer {
///         RawBuffer { cookie: self.1, ..self.0.into_raw() }
///     }
///
///     unsafe fn from_raw(raw: RawBuffer) -> Self {
///         let name = raw.cookie;
///         // SAFETY: passed on to the caller; page buffers do not use the number.
///         Self(unsafe { PageBuffer::from_raw(raw) }, name)
///     }
/// }
/// ```
pub unsafe trait DmaBuffer: Send + 'static {
    /// Gives up ownership and tells where the memory is.
    fn into_raw(self) -> RawBuffer;

    /// Puts the buffer together again.
    ///
    /// # Safety
    /// `raw` came from [`into_raw`](Self::into_raw) of the same type, is used once, and no device can reach the memory.
    unsafe fn from_raw(raw: RawBuffer) -> Self;
}

// SAFETY: a boxed slice owns its memory, which does not move with the box; bytes have no invalid values.
unsafe impl DmaBuffer for Box<[u8]> {
    fn into_raw(self) -> RawBuffer {
        let bytes = self.len();
        RawBuffer { first: non_null(Box::into_raw(self).cast()), bytes, cookie: 0 }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        let slice = core::ptr::slice_from_raw_parts_mut(raw.first.as_ptr(), raw.bytes);
        // SAFETY: pointer and length are those of the box that `into_raw` consumed.
        unsafe { Box::from_raw(slice) }
    }
}

// SAFETY: a vector owns its memory and does not move it while it is not used; the device sees the initialised part.
unsafe impl DmaBuffer for Vec<u8> {
    fn into_raw(self) -> RawBuffer {
        let mut vec = ManuallyDrop::new(self);
        RawBuffer { first: non_null(vec.as_mut_ptr()), bytes: vec.len(), cookie: vec.capacity() }
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        // SAFETY: the three parts are those of the vector that `into_raw` took apart.
        unsafe { Vec::from_raw_parts(raw.first.as_ptr(), raw.bytes, raw.cookie) }
    }
}

/// The pointer of a box or vector, which is never null.
fn non_null(pointer: *mut u8) -> NonNull<u8> {
    // SAFETY: both allocate with a non-null pointer and use a dangling, non-null one when they are empty.
    unsafe { NonNull::new_unchecked(pointer) }
}
