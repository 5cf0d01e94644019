//! The registers of one remapping unit.

use core::ptr::NonNull;

use iommu::platform::Registers;

/// A mapped run of registers.
pub struct MappedRegisters {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is valid on every CPU and for ever, and is accessed by volatile operations only.
unsafe impl Send for MappedRegisters {}
// SAFETY: as for `Send`.
unsafe impl Sync for MappedRegisters {}

impl MappedRegisters {
    /// The `bytes` bytes of registers at `base`.
    ///
    /// # Safety
    /// They are mapped uncached for as long as the kernel runs, and hold nothing that Rust knows of.
    pub(super) unsafe fn new(base: NonNull<u8>, bytes: usize) -> Self {
        Self { base, bytes }
    }

    /// Where the `T` at `offset` is.
    ///
    /// # Panics
    /// If it does not lie inside the mapping, aligned: the subsystem checks offsets that hardware reports.
    #[inline(always)]
    fn at<T>(&self, offset: usize) -> NonNull<T> {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= self.bytes), "register {offset:#x} of {:#x} bytes", self.bytes);
        assert!(offset.is_multiple_of(size_of::<T>()), "register {offset:#x} is misaligned");
        // SAFETY: inside the mapping.
        unsafe { self.base.add(offset) }.cast()
    }
}

impl Registers for MappedRegisters {
    #[inline]
    fn bytes(&self) -> usize {
        self.bytes
    }

    #[inline]
    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: `at` returns mapped, aligned addresses.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    #[inline]
    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    #[inline]
    fn read64(&self, offset: usize) -> u64 {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    #[inline(always)]
    fn write64(&self, offset: usize, value: u64) {
        // SAFETY: as in `read32`.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }
}
