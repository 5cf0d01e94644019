//! Memory that the controller shares with the program.

use core::ptr::NonNull;

use abi::DeviceAccess;

use crate::{DEVICE, Problem};

/// A run of memory, and where the controller has it.
#[derive(Clone, Copy)]
pub struct Memory {
    at: NonNull<u8>,
    pub iova: u64,
    bytes: usize,
}

impl Memory {
    /// New memory of `bytes` bytes, at `iova` for the controller, or where the program has it.
    pub fn share(bytes: usize, iova: u64) -> Result<Self, Problem> {
        let at = runtime::map_memory(bytes)?;
        // SAFETY: it is accessed by volatile accesses here, and by the kernel.
        let iova = unsafe { DEVICE.share(at, iova, DeviceAccess::ReadWrite) }?;
        Ok(Self { at, iova, bytes })
    }

    /// The `bytes` bytes at `offset`.
    ///
    /// # Panics
    /// They are not there.
    pub fn part(self, offset: usize, bytes: usize) -> Self {
        assert!(offset.checked_add(bytes).is_some_and(|end| end <= self.bytes));
        // SAFETY: inside.
        Self { at: unsafe { self.at.add(offset) }, iova: self.iova + offset as u64, bytes }
    }

    /// Where it is for the kernel.
    pub fn at(self) -> NonNull<u8> {
        self.at
    }

    /// Number `index` of the values that it is made of.
    ///
    /// # Panics
    /// It is not there.
    pub fn read<T: Plain>(self, index: usize) -> T {
        // SAFETY: `place` is inside and aligned, and any bytes are a `T`.
        unsafe { self.place::<T>(index).read_volatile() }
    }

    /// Writes it.
    ///
    /// # Panics
    /// As for [`read`](Self::read).
    pub fn write<T: Plain>(self, index: usize, value: T) {
        // SAFETY: `place` is inside and aligned. Nothing has a reference to it.
        unsafe { self.place::<T>(index).write_volatile(value) }
    }

    fn place<T>(self, index: usize) -> *mut T {
        let end = index.checked_add(1).and_then(|end| end.checked_mul(size_of::<T>()));
        assert!(end.is_some_and(|end| end <= self.bytes) && self.at.cast::<T>().is_aligned());
        self.at.cast::<T>().as_ptr().wrapping_add(index)
    }

    /// Makes it zeros.
    pub fn clear(self) {
        (0..self.bytes).for_each(|index| self.write(index, 0_u8));
    }
}

/// Types of which any bytes are a value.
///
/// # Safety
/// That is so.
pub unsafe trait Plain: Copy {}

// SAFETY: a number.
unsafe impl Plain for u8 {}
// SAFETY: a number.
unsafe impl Plain for u32 {}
// SAFETY: a number.
unsafe impl Plain for u64 {}
// SAFETY: numbers, without padding.
unsafe impl Plain for nvme_spec::Command {}
