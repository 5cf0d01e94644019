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
    bytes: usize,
    /// First byte, aligned to a page.
    start: NonNull<u8>,
    allocation: (NonNull<u8>, Layout),
}

// SAFETY: the memory is reached through atomics, and by raw copies that stand for a device's accesses.
unsafe impl Send for Region {}
// SAFETY: as for `Send`.
unsafe impl Sync for Region {}

impl Region {
    /// `bytes` zeroed bytes. The host commits a page of them when it is first touched.
    pub fn new(base: u64, bytes: usize) -> Self {
        const PAGE_BYTES: usize = 4096;
        // Larger than what allocators take from memory that was used before, and would have to be zeroed.
        const SMALLEST: usize = 64 << 20;
        // Aligned by hand: the allocator would write to all of a zeroed block with a large alignment.
        let layout = Layout::from_size_align(bytes.max(SMALLEST) + PAGE_BYTES, 8).expect("a sensible size");
        // SAFETY: the size is not zero.
        let block = NonNull::new(unsafe { alloc_zeroed(layout) });
        let block = block.unwrap_or_else(|| handle_alloc_error(layout));
        let skip = block.as_ptr().align_offset(PAGE_BYTES);
        // SAFETY: less than a page further, and the block is a page larger.
        let start = unsafe { block.add(skip) };
        Self { base, bytes, start, allocation: (block, layout) }
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn bytes(&self) -> usize {
        self.bytes
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
        let (block, layout) = self.allocation;
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(block.as_ptr(), layout) }
    }
}
