//! Whole pages, the buffer that maps without a bounce.

use alloc::alloc::{alloc_zeroed, dealloc};
use core::{
    alloc::Layout,
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    slice,
};

use mm::PAGE_BYTES;

use super::{DmaBuffer, RawBuffer};

/// A page-aligned, zeroed run of whole pages, contiguous in the kernel's direct map.
///
/// # Examples
/// ```no_run
/// use iommu::PageBuffer;
///
/// /// Two pages with a text at their start.
/// fn text(text: &str) -> Option<PageBuffer> {
///     let mut pages = PageBuffer::zeroed(2)?;
///     pages.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
///     Some(pages)
/// }
/// ```
pub struct PageBuffer {
    first: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the buffer owns its memory, like a boxed slice.
unsafe impl Send for PageBuffer {}
// SAFETY: shared access only reads.
unsafe impl Sync for PageBuffer {}

impl PageBuffer {
    /// `pages` zeroed pages, or `None` if `pages` is 0 or there is no such run.
    #[must_use]
    pub fn zeroed(pages: usize) -> Option<Self> {
        let bytes = pages.checked_mul(PAGE_BYTES as usize)?;
        if bytes == 0 {
            return None;
        }
        // SAFETY: the layout's size was checked not to be zero.
        let first = NonNull::new(unsafe { alloc_zeroed(Self::layout(bytes)?) })?;
        Some(Self { first, bytes })
    }

    /// Length in pages.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.bytes / PAGE_BYTES as usize
    }

    fn layout(bytes: usize) -> Option<Layout> {
        Layout::from_size_align(bytes, PAGE_BYTES as usize).ok()
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is owned, initialised, and no device reaches it while this type exists.
        unsafe { slice::from_raw_parts(self.first.as_ptr(), self.bytes) }
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { slice::from_raw_parts_mut(self.first.as_ptr(), self.bytes) }
    }
}

impl Drop for PageBuffer {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.bytes) {
            // SAFETY: allocated in `zeroed` with this layout; the sole owner is going away.
            unsafe { dealloc(self.first.as_ptr(), layout) }
        }
    }
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuffer").field("pages", &self.pages()).finish_non_exhaustive()
    }
}

// SAFETY: the memory is owned, stays in place, and holds bytes.
unsafe impl DmaBuffer for PageBuffer {
    fn into_raw(self) -> RawBuffer {
        let raw = RawBuffer { first: self.first, bytes: self.bytes, cookie: 0 };
        core::mem::forget(self);
        raw
    }

    unsafe fn from_raw(raw: RawBuffer) -> Self {
        Self { first: raw.first, bytes: raw.bytes }
    }
}
