//! Access to the configuration space of one function.

use iommu::PciAddress;

use crate::host::Host;

/// Configuration space by aligned dword, and by word where a register must be written without its neighbour.
pub trait ConfigSpace {
    /// Reads the dword at `offset`; all ones where nothing answers.
    fn read32(&self, function: PciAddress, offset: u16) -> u32;
    /// Writes the dword at `offset`.
    fn write32(&self, function: PciAddress, offset: u16, value: u32);
    /// Writes the word at `offset`, and nothing else.
    fn write16(&self, function: PciAddress, offset: u16, value: u16);
    /// Clears and sets bits of the dword at `offset`: see [`Host::config_change32`].
    fn change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32);
}

impl<H: Host + ?Sized> ConfigSpace for H {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.config_read32(function, offset)
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.config_write32(function, offset, value);
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.config_write16(function, offset, value);
    }

    fn change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        self.config_change32(function, offset, clear, set);
    }
}

/// Register offsets of the common header.
pub(super) mod offset {
    pub const ID: u16 = 0x00;
    pub const COMMAND_STATUS: u16 = 0x04;
    pub const CLASS_REVISION: u16 = 0x08;
    pub const HEADER_TYPE: u16 = 0x0e;
    pub const BARS: u16 = 0x10;
    pub const BUS_NUMBERS: u16 = 0x18;
    pub const CAPABILITIES: u16 = 0x34;
    /// Where capabilities can begin: behind the 64-byte header.
    pub const HEADER_END: u16 = 0x40;
    /// Where extended capabilities begin.
    pub const EXTENDED: u16 = 0x100;
    /// End of the extended configuration space.
    pub const END: u16 = 0x1000;
}

/// Bits of the command register.
pub(super) mod command {
    pub const PORT: u16 = 1 << 0;
    pub const MEMORY: u16 = 1 << 1;
    pub const BUS_MASTER: u16 = 1 << 2;
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// The configuration space of one function.
pub struct Config<'a, C: ConfigSpace + ?Sized> {
    space: &'a C,
    function: PciAddress,
}

// Derived ones would ask for `C: Copy`.
impl<C: ConfigSpace + ?Sized> Clone for Config<'_, C> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<C: ConfigSpace + ?Sized> Copy for Config<'_, C> {}

impl<'a, C: ConfigSpace + ?Sized> Config<'a, C> {
    /// The configuration space of `function`.
    pub fn new(space: &'a C, function: PciAddress) -> Self {
        Self { space, function }
    }

    /// The function.
    pub fn function(&self) -> PciAddress {
        self.function
    }

    /// Reads the dword that contains `offset`.
    pub fn read32(&self, offset: u16) -> u32 {
        self.space.read32(self.function, offset & !3)
    }

    /// Reads the word at the even `offset`.
    pub fn read16(&self, offset: u16) -> u16 {
        (self.read32(offset) >> (8 * (offset & 2))) as u16
    }

    /// Reads the byte at `offset`.
    pub fn read8(&self, offset: u16) -> u8 {
        (self.read32(offset) >> (8 * (offset & 3))) as u8
    }

    /// Writes the dword at the aligned `offset`.
    pub fn write32(&self, offset: u16, value: u32) {
        self.space.write32(self.function, offset & !3, value);
    }

    /// Writes the word at the even `offset` and writes back what the other half reads as. For registers whose other
    /// half has no write-1-to-clear bits.
    pub fn write16(&self, offset: u16, value: u16) {
        let shift = 8 * (offset & 2);
        let other = self.read32(offset) & !(0xffff << shift);
        self.write32(offset, other | u32::from(value) << shift);
    }

    /// Writes the word at the even `offset`, and nothing of the other half.
    pub fn write_word(&self, offset: u16, value: u16) {
        self.space.write16(self.function, offset & !1, value);
    }

    /// Whether a function answers. A virtual one has no vendor of its own, but a class; where nothing is, all registers
    /// are all ones.
    pub fn is_present(&self) -> bool {
        let is_virtual = || {
            self.read32(offset::ID) == u32::MAX
                && !matches!(self.read32(offset::CLASS_REVISION), 0 | u32::MAX)
        };
        self.has_vendor() || is_virtual()
    }

    /// Whether a function answers that says who made it: vendor 0xffff is never given out, and 0 is what broken ones
    /// return.
    pub(super) fn has_vendor(&self) -> bool {
        !matches!(self.read16(offset::ID), 0xffff | 0)
    }

    /// Changes command bits, of which the IOMMU may be changing others. The status half is written as zeros, which
    /// leaves its write-1-to-clear bits alone.
    pub(super) fn change_command(&self, set: u16, clear: u16) {
        const STATUS: u32 = 0xffff << 16;
        self.space.change32(self.function, offset::COMMAND_STATUS, STATUS | u32::from(clear), set.into());
    }

    /// The command register.
    pub(super) fn command(&self) -> u16 {
        self.read16(offset::COMMAND_STATUS)
    }
}
