//! Where a register lies, how wide it is, and what may be done to it.
//!
//! ```compile_fail
//! // The command register is write-only: the status register tells what is on.
//! fn commands(bank: iommu::vtd::Bank<impl iommu::platform::Registers>) {
//!     let _ = bank.read::<iommu::vtd::spec::GlobalCommand>();
//! }
//! ```
//!
//! ```
//! fn status(bank: iommu::vtd::Bank<impl iommu::platform::Registers>) {
//!     let _ = bank.read::<iommu::vtd::spec::GlobalStatus>();
//! }
//! ```

use crate::platform::Registers;

/// A register's width: one access of exactly this many bytes.
pub trait Width: Copy {
    /// Width in bytes.
    const BYTES: usize;
    /// One read.
    fn read(registers: &impl Registers, offset: usize) -> Self;
    /// One write.
    fn write(self, registers: &impl Registers, offset: usize);
}

impl Width for u32 {
    const BYTES: usize = 4;

    fn read(registers: &impl Registers, offset: usize) -> Self {
        registers.read32(offset)
    }

    fn write(self, registers: &impl Registers, offset: usize) {
        registers.write32(offset, self);
    }
}

impl Width for u64 {
    const BYTES: usize = 8;

    fn read(registers: &impl Registers, offset: usize) -> Self {
        registers.read64(offset)
    }

    fn write(self, registers: &impl Registers, offset: usize) {
        registers.write64(offset, self);
    }
}

/// A register, or a field of one that is accessed by itself.
pub trait Register: Copy {
    /// Its width.
    type Raw: Width;
    /// What its offset is relative to.
    type Area: Area;
    /// Offset in bytes from the start of the area.
    const OFFSET: usize;
    /// Its name in messages.
    const NAME: &'static str;
    /// The value that was read.
    fn from_raw(raw: Self::Raw) -> Self;
    /// The value to be written.
    fn into_raw(self) -> Self::Raw;
}

/// A register that may be read.
pub trait Readable: Register {}

/// A register that may be written.
pub trait Writable: Register {}

/// A run of registers that the hardware may place where it likes.
pub trait Area {}

/// The registers at the same offset in every unit.
#[derive(Clone, Copy, Debug)]
pub enum Fixed {}

/// The two registers that ECAP.IRO points to: invalidate address and IOTLB invalidate.
#[derive(Clone, Copy, Debug)]
pub enum Invalidate {}

/// One fault recording register, of those that CAP.FRO points to.
#[derive(Clone, Copy, Debug)]
pub enum Recording {}

impl Area for Fixed {}
impl Area for Invalidate {}
impl Area for Recording {}

/// One past the last byte of the registers in [`Fixed`] that every unit decodes (the page-request event registers end
/// here). No other area may start below.
pub const FIXED_END: usize = 0xf0;

/// Declares a bit field as a register: `register!(GlobalStatus: u32 @ 0x1c, ReadOnly)`.
macro_rules! register {
    ($name:ident: $raw:ident @ $offset:literal, $access:ident) => {
        register!($name: $raw @ $offset in Fixed, $access);
    };
    ($name:ident: $raw:ident @ $offset:literal in $area:ident, $access:ident) => {
        impl $crate::vtd::spec::register::Register for $name {
            type Raw = $raw;
            type Area = $crate::vtd::spec::register::$area;
            const OFFSET: usize = $offset;
            const NAME: &'static str = stringify!($name);

            fn from_raw(raw: $raw) -> Self {
                Self::from_bits(raw)
            }

            fn into_raw(self) -> $raw {
                self.into_bits()
            }
        }
        const _: () = assert!($offset % core::mem::size_of::<$raw>() == 0);
        register!(@access $name, $access);
    };
    (@access $name:ident, ReadOnly) => {
        impl $crate::vtd::spec::register::Readable for $name {}
    };
    (@access $name:ident, WriteOnly) => {
        impl $crate::vtd::spec::register::Writable for $name {}
    };
    (@access $name:ident, ReadWrite) => {
        impl $crate::vtd::spec::register::Readable for $name {}
        impl $crate::vtd::spec::register::Writable for $name {}
    };
}

pub(super) use register;
