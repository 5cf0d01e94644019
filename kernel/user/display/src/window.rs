//! Memory that a device has a hand in: its registers, its own memory, or what is shared with it.

use core::ptr::NonNull;

use super::Failure;

/// A run of it, which stays for as long as the program runs.
#[derive(Clone, Copy)]
pub struct Window {
    start: NonNull<u8>,
    bytes: usize,
}

/// What can be read and written at once.
pub trait Word: Copy {}

impl Word for u8 {}
impl Word for u16 {}
impl Word for u32 {}
impl Word for u64 {}

impl Window {
    /// # Safety
    /// The `bytes` bytes at `start` are mapped for as long as the program runs, and nothing that Rust knows of.
    pub const unsafe fn new(start: NonNull<u8>, bytes: usize) -> Self {
        Self { start, bytes }
    }

    /// How long it is.
    pub const fn bytes(self) -> usize {
        self.bytes
    }

    /// The `bytes` bytes from `at` on, if it has them.
    pub fn part(self, at: usize, bytes: usize) -> Option<Self> {
        let end = at.checked_add(bytes)?;
        // SAFETY: inside of the window.
        (end <= self.bytes).then(|| Self { start: unsafe { self.start.add(at) }, bytes })
    }

    pub fn read<T: Word>(self, at: usize) -> T {
        // SAFETY: `place` has checked it, and every value is one of a number.
        unsafe { self.place::<T>(at).read_volatile() }
    }

    pub fn write<T: Word>(self, at: usize, value: T) {
        // SAFETY: `place` has checked it.
        unsafe { self.place::<T>(at).write_volatile(value) }
    }

    fn place<T>(self, at: usize) -> NonNull<T> {
        assert!(at.is_multiple_of(size_of::<T>()) && at + size_of::<T>() <= self.bytes, "{at:#x}");
        // SAFETY: inside of the window.
        unsafe { self.start.add(at).cast() }
    }

    /// Whether all of it, whole words, is 0.
    ///
    /// # Errors
    /// Something is not.
    pub fn must_be_empty(self) -> Result<(), Failure> {
        let is_empty = |&at: &usize| self.read::<u64>(at) == 0;
        match (0..self.bytes).step_by(size_of::<u64>()).find(|at| !is_empty(at)) {
            None => Ok(()),
            Some(at) => Err(Failure::NotEmpty(at)),
        }
    }
}
