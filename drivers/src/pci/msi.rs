//! Message-signalled interrupts by the MSI capability: one vector.

use alloc::boxed::Box;
use core::fmt;

use iommu::platform::MsiMessage;

use super::{capability::id, device::Device};
use crate::host::{Interrupt, InterruptError};

/// Offsets in the capability, and bits of its message control register.
mod layout {
    pub const CONTROL: u16 = 2;
    pub const ADDRESS: u16 = 4;
    pub const ADDRESS_HIGH: u16 = 8;
    pub const DATA_NARROW: u16 = 8;
    pub const DATA_WIDE: u16 = 12;
    pub const BYTES_NARROW: u16 = 10;
    pub const BYTES_WIDE: u16 = 14;
    pub const ENABLE: u16 = 1;
    pub const MULTIPLE_ENABLE: u16 = 0x7 << 4;
    pub const WIDE: u16 = 1 << 7;
}

/// The single MSI vector of a function, on until it is dropped.
pub struct Msi {
    device: Device,
    capability: u16,
    interrupt: Box<dyn Interrupt>,
    /// The function may be somebody else's.
    abandoned: bool,
}

/// Why a function's MSI cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MsiError {
    /// It has no MSI capability, or one that does not fit into its configuration space.
    NoCapability,
    /// The capability holds 32 address bits and the message needs more.
    AddressTooWide(u64),
    /// The capability holds 16 data bits and the message needs more.
    DataTooWide(u32),
    /// The host gave no vector.
    Interrupt(InterruptError),
}

impl fmt::Display for MsiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCapability => f.write_str("no usable MSI capability"),
            Self::AddressTooWide(address) => write!(f, "MSI capability cannot hold address {address:#x}"),
            Self::DataTooWide(data) => write!(f, "MSI capability cannot hold data {data:#x}"),
            Self::Interrupt(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for MsiError {}

impl From<InterruptError> for MsiError {
    fn from(error: InterruptError) -> Self {
        Self::Interrupt(error)
    }
}

impl Msi {
    /// Makes `device` raise `interrupt` by MSI.
    ///
    /// # Errors
    /// The capability is missing or cannot hold the message.
    pub fn enable(device: &Device, interrupt: Box<dyn Interrupt>) -> Result<Self, MsiError> {
        let config = device.config();
        let capability = config.find(id::MSI, layout::BYTES_NARROW).ok_or(MsiError::NoCapability)?;
        let control = config.read16(capability + layout::CONTROL);
        let wide = control & layout::WIDE != 0;
        if wide {
            config.find(id::MSI, layout::BYTES_WIDE).ok_or(MsiError::NoCapability)?;
        }
        let mut msi = Self { device: device.clone(), capability, interrupt, abandoned: false };
        msi.program()?;
        Ok(msi)
    }

    /// Makes the device raise `interrupt` instead of the one that it has. What it has to raise meanwhile is lost.
    ///
    /// # Errors
    /// The capability cannot hold the message: it is off then.
    pub fn replace(&mut self, interrupt: Box<dyn Interrupt>) -> Result<(), MsiError> {
        self.interrupt = interrupt;
        self.program()
    }

    fn program(&mut self) -> Result<(), MsiError> {
        let (config, capability) = (self.device.config(), self.capability);
        let control = config.read16(capability + layout::CONTROL);
        let wide = control & layout::WIDE != 0;
        // Off while address and data change; one vector enabled.
        let off = control & !(layout::ENABLE | layout::MULTIPLE_ENABLE);
        config.write16(capability + layout::CONTROL, off);
        let message = fitting(self.interrupt.message(), wide)?;
        config.write32(capability + layout::ADDRESS, message.address);
        if wide {
            config.write32(capability + layout::ADDRESS_HIGH, message.address_high);
        }
        let data_at = if wide { layout::DATA_WIDE } else { layout::DATA_NARROW };
        config.write16(capability + data_at, message.data);
        config.write16(capability + layout::CONTROL, off | layout::ENABLE);
        Ok(())
    }

    /// Sends the interrupt to CPU number `cpu` from now on.
    ///
    /// # Errors
    /// See [`Interrupt::retarget`].
    pub fn retarget(&mut self, cpu: usize) -> Result<(), MsiError> {
        let before = self.interrupt.message();
        self.interrupt.retarget(cpu)?;
        let after = self.interrupt.message();
        if after != before {
            // Only the destination in the address has changed, so that one write does it while interrupts arrive: the
            // function is never off, and never sends half of each message.
            let at = self.capability + layout::ADDRESS;
            self.device.config().write32(at, fitting(after, false)?.address);
        }
        Ok(())
    }
}

/// A message as the capability holds it.
struct Fitting {
    address: u32,
    address_high: u32,
    data: u16,
}

fn fitting(message: MsiMessage, wide: bool) -> Result<Fitting, MsiError> {
    let MsiMessage { address, data } = message;
    let address_high = (address >> 32) as u32;
    if address_high != 0 && !wide {
        return Err(MsiError::AddressTooWide(address));
    }
    let data = u16::try_from(data).map_err(|_| MsiError::DataTooWide(data))?;
    Ok(Fitting { address: address as u32, address_high, data })
}

impl Msi {
    /// Gives the interrupt back without touching the function, which was taken away and is quiet.
    pub fn abandon(mut self) {
        self.abandoned = true;
    }
}

impl Drop for Msi {
    fn drop(&mut self) {
        if self.abandoned || self.device.was_taken_back() {
            return;
        }
        let config = self.device.config();
        let control = config.read16(self.capability + layout::CONTROL);
        config.write16(self.capability + layout::CONTROL, control & !layout::ENABLE);
    }
}
