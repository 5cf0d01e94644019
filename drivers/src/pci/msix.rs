//! Message-signalled interrupts by the MSI-X capability and its table.

use alloc::{boxed::Box, vec::Vec};
use core::fmt;

use iommu::platform::MsiMessage;

use super::{bar::BarError, capability::id, device::Device};
use crate::{
    host::{Interrupt, InterruptError},
    mmio::{Mmio, OutsideWindow, ReadWrite, Register},
};

/// Offsets in the capability, and bits of its message control register.
mod layout {
    pub const CONTROL: u16 = 2;
    pub const TABLE: u16 = 4;
    pub const BYTES: u16 = 12;
    pub const TABLE_SIZE: u16 = 0x7ff;
    pub const FUNCTION_MASK: u16 = 1 << 14;
    pub const ENABLE: u16 = 1 << 15;
    pub const TABLE_BAR: u32 = 0x7;
}

/// Bytes of a table entry.
const ENTRY_BYTES: usize = 16;
/// Vector control: the entry is masked.
const MASKED: u32 = 1;

/// The MSI-X table of a function and the interrupts in it: on until it is dropped.
pub struct Msix {
    device: Device,
    capability: u16,
    table: Mmio,
    entries: u16,
    /// Given back only after MSI-X is off (see `drop`).
    interrupts: Vec<(u16, Box<dyn Interrupt>)>,
    /// The function may be somebody else's.
    abandoned: bool,
}

/// Why a function's MSI-X cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsixError {
    /// It has no MSI-X capability, or one that does not fit into its configuration space.
    NoCapability,
    /// The BAR that the table should be in is unusable.
    Bar(BarError),
    /// The table does not fit into its BAR.
    Table(OutsideWindow),
    /// The table has no such entry.
    NoSuchEntry {
        /// Index asked for.
        index: u16,
        /// Entries that there are.
        entries: u16,
    },
    /// The entry has an interrupt already.
    Taken(u16),
    /// The entry has no interrupt.
    NotInUse(u16),
    /// No memory for the record of one more interrupt.
    OutOfMemory,
    /// The host gave no vector.
    Interrupt(InterruptError),
}

impl fmt::Display for MsixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCapability => f.write_str("no usable MSI-X capability"),
            Self::Bar(error) => write!(f, "MSI-X table: {error}"),
            Self::Table(error) => write!(f, "MSI-X table: {error}"),
            Self::NoSuchEntry { index, entries } => {
                write!(f, "no entry {index} in an MSI-X table of {entries}")
            }
            Self::NotInUse(index) => write!(f, "MSI-X entry {index} is not in use"),
            Self::Taken(index) => write!(f, "MSI-X entry {index} is in use"),
            Self::OutOfMemory => f.write_str("no memory for an MSI-X entry"),
            Self::Interrupt(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MsixError {}

impl From<BarError> for MsixError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

impl From<OutsideWindow> for MsixError {
    fn from(error: OutsideWindow) -> Self {
        Self::Table(error)
    }
}

impl From<InterruptError> for MsixError {
    fn from(error: InterruptError) -> Self {
        Self::Interrupt(error)
    }
}

/// One table entry.
struct Entry {
    address: Register<u32>,
    address_high: Register<u32>,
    data: Register<u32>,
    control: Register<u32>,
}

impl Entry {
    fn at(table: &Mmio, index: u16) -> Result<Self, OutsideWindow> {
        let at = usize::from(index) * ENTRY_BYTES;
        Ok(Self {
            address: table.register::<_, ReadWrite>(at)?,
            address_high: table.register(at + 4)?,
            data: table.register(at + 8)?,
            control: table.register(at + 12)?,
        })
    }

    fn mask(&self) {
        self.control.write(self.control.read() | MASKED);
    }

    /// Puts `message` into the entry, which is masked, and unmasks it.
    fn send(&self, message: MsiMessage) {
        self.address.write(message.address as u32);
        self.address_high.write((message.address >> 32) as u32);
        self.data.write(message.data);
        self.unmask();
    }

    fn unmask(&self) {
        self.control.write(self.control.read() & !MASKED);
    }
}

impl Msix {
    /// Turns MSI-X on with every entry masked.
    ///
    /// # Errors
    /// The capability is missing, or its table cannot be mapped or is not inside its BAR.
    pub fn open(device: &Device) -> Result<Self, MsixError> {
        let config = device.config();
        let capability = config.find(id::MSIX, layout::BYTES).ok_or(MsixError::NoCapability)?;
        let control = config.read16(capability + layout::CONTROL);
        let entries = (control & layout::TABLE_SIZE) + 1;
        let place = config.read32(capability + layout::TABLE);
        let bar = device.map_bar((place & layout::TABLE_BAR) as u8)?;
        let (offset, bytes) = ((place & !layout::TABLE_BAR) as usize, usize::from(entries) * ENTRY_BYTES);
        let outside = OutsideWindow { offset, width: bytes, window_bytes: bar.bytes() };
        let table = bar.window(offset, bytes).ok_or(outside)?;
        // The table can be written reliably only with MSI-X on; the function mask keeps it silent meanwhile.
        let on = control | layout::ENABLE | layout::FUNCTION_MASK;
        config.write16(capability + layout::CONTROL, on);
        for index in 0..entries {
            Entry::at(&table, index)?.mask();
        }
        config.write16(capability + layout::CONTROL, on & !layout::FUNCTION_MASK);
        Ok(Self {
            device: device.clone(),
            capability,
            table,
            entries,
            interrupts: Vec::new(),
            abandoned: false,
        })
    }

    /// Index of the BAR that the table of `device` is in, as it says; `None` if it has no MSI-X.
    #[must_use]
    pub fn table_bar(device: &Device) -> Option<u8> {
        let config = device.config();
        let capability = config.find(id::MSIX, layout::BYTES)?;
        Some((config.read32(capability + layout::TABLE) & layout::TABLE_BAR) as u8)
    }

    /// How many entries the table has.
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Puts `interrupt` into entry `index` and unmasks it.
    ///
    /// # Errors
    /// There is no such entry, or it is in use.
    pub fn set(&mut self, index: u16, interrupt: Box<dyn Interrupt>) -> Result<(), MsixError> {
        if index >= self.entries {
            return Err(MsixError::NoSuchEntry { index, entries: self.entries });
        }
        if self.interrupts.iter().any(|&(taken, _)| taken == index) {
            return Err(MsixError::Taken(index));
        }
        self.interrupts.try_reserve(1).map_err(|_| MsixError::OutOfMemory)?;
        Entry::at(&self.table, index)?.send(interrupt.message());
        self.interrupts.push((index, interrupt));
        Ok(())
    }

    /// Puts `interrupt` into entry `index` instead of what is there.
    ///
    /// # Errors
    /// The entry is not in use.
    pub fn replace(&mut self, index: u16, interrupt: Box<dyn Interrupt>) -> Result<(), MsixError> {
        let used = self.interrupts.iter_mut().find(|(used, _)| *used == index);
        let (_, current) = used.ok_or(MsixError::NotInUse(index))?;
        let entry = Entry::at(&self.table, index)?;
        // While it is masked, the function keeps what it has to raise.
        entry.mask();
        entry.send(interrupt.message());
        *current = interrupt;
        Ok(())
    }

    /// Sends the interrupt in entry `index` to CPU number `cpu` from now on.
    ///
    /// # Errors
    /// The entry is not in use; see [`Interrupt::retarget`].
    pub fn retarget(&mut self, index: u16, cpu: usize) -> Result<(), MsixError> {
        let used = self.interrupts.iter_mut().find(|(used, _)| *used == index);
        let (_, interrupt) = used.ok_or(MsixError::NotInUse(index))?;
        let before = interrupt.message();
        interrupt.retarget(cpu)?;
        if interrupt.message() != before {
            let entry = Entry::at(&self.table, index)?;
            // While it is masked, the function keeps what it has to raise.
            entry.mask();
            entry.send(interrupt.message());
        }
        Ok(())
    }
}

impl Msix {
    /// Gives the interrupts back without touching the function, which was taken away and is quiet.
    pub fn abandon(mut self) {
        self.abandoned = true;
    }
}

impl Drop for Msix {
    fn drop(&mut self) {
        if self.abandoned || self.device.was_taken_back() {
            return;
        }
        let config = self.device.config();
        let control = config.read16(self.capability + layout::CONTROL);
        config.write16(self.capability + layout::CONTROL, control & !layout::ENABLE);
    }
}
