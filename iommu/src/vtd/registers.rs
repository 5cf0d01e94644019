//! The registers of one unit, accessed by type.

use super::spec::register::{Fixed, Invalidate, Readable, Recording, Register, Width, Writable};
use crate::platform::Registers;

/// A unit's registers. What may be read and written, where and how wide is in the types of [`spec`](super::spec).
#[derive(Debug)]
pub struct Bank<R> {
    registers: R,
}

impl<R: Registers> Bank<R> {
    /// The registers of one unit. Every area that is used must lie within the mapped size:
    /// [`Capability`](super::Capability) checks that before it hands out offsets.
    pub const fn new(registers: R) -> Self {
        Self { registers }
    }

    /// Number of bytes mapped.
    pub fn bytes(&self) -> usize {
        self.registers.bytes()
    }

    /// Reads the register.
    pub fn read<T: Readable + Register<Area = Fixed>>(&self) -> T {
        self.read_at(T::OFFSET)
    }

    /// Writes the register.
    pub fn write<T: Writable + Register<Area = Fixed>>(&self, value: T) {
        self.write_at(T::OFFSET, value);
    }

    /// Reads a register of the invalidation area at `area`.
    pub fn read_invalidate<T: Readable + Register<Area = Invalidate>>(&self, area: usize) -> T {
        self.read_at(area + T::OFFSET)
    }

    /// Writes a register of the invalidation area at `area`.
    pub fn write_invalidate<T: Writable + Register<Area = Invalidate>>(&self, area: usize, value: T) {
        self.write_at(area + T::OFFSET, value);
    }

    /// Reads a part of the fault record at `record`.
    pub fn read_record<T: Readable + Register<Area = Recording>>(&self, record: usize) -> T {
        self.read_at(record + T::OFFSET)
    }

    /// Writes a part of the fault record at `record`.
    pub fn write_record<T: Writable + Register<Area = Recording>>(&self, record: usize, value: T) {
        self.write_at(record + T::OFFSET, value);
    }

    fn read_at<T: Register>(&self, offset: usize) -> T {
        debug_assert!(offset + T::Raw::BYTES <= self.registers.bytes(), "{} is not mapped", T::NAME);
        T::from_raw(T::Raw::read(&self.registers, offset))
    }

    fn write_at<T: Register>(&self, offset: usize, value: T) {
        debug_assert!(offset + T::Raw::BYTES <= self.registers.bytes(), "{} is not mapped", T::NAME);
        value.into_raw().write(&self.registers, offset);
    }
}
