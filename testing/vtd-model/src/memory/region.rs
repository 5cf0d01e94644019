//! A run of simulated physical memory.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
    sync::atomic::{AtomicU32, AtomicU64},
};

/// Physical memory from `base`, whose bytes lie somewhere else in the host's memory.
#[derive(Debug)]
pub(crate) struct Region {
    base: u64,
    start: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is reached through atomics, and by raw copies that stand for a device's accesses.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl Region {
    /// `bytes` zeroed bytes. The host commits a page of them when it is first touched.
    pub fn new(base: u64, bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes, 4096).expect("a sensible size");
        // SAFETY: the size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) });
        Self { base, start: start.unwrap_or_else(|| handle_alloc_error(layout)), layout }
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn bytes(&self) -> usize {
        self.layout.size()
    }

    /// Offset of the physical address, if `bytes` bytes from there lie in the region.
    pub fn offset(&self, physical: u64, bytes: usize) -> Option<usize> {
        let offset = usize::try_from(physical.checked_sub(self.base)?).ok()?;
        (offset.checked_add(bytes)? <= self.bytes()).then_some(offset)
    }

    /// Offset of the byte that `pointer` points to.
    pub fn offset_of(&self, pointer: *const u8) -> Option<usize> {
        let offset = pointer.addr().checked_sub(self.start.as_ptr().addr())?;
        (offset < self.bytes()).then_some(offset)
    }

    /// The byte at `offset`, below the size.
    pub fn pointer(&self, offset: usize) -> NonNull<u8> {
        assert!(offset < self.bytes());
        // SAFETY: inside the allocation.
        unsafe { self.start.add(offset) }
    }

    /// The word at `offset`, a multiple of 8.
    pub fn word(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.bytes());
        // SAFETY: inside the allocation and aligned; all access is atomic or stands for a device's.
        unsafe { AtomicU64::from_ptr(self.start.add(offset).as_ptr().cast()) }
    }

    /// The dword at `offset`, a multiple of 4.
    pub fn dword(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.bytes());
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.start.add(offset).as_ptr().cast()) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}
