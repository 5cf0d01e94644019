//! The register windows of a virtio PCI function, found by its vendor capabilities.

use bitflags::bitflags;

use crate::{
    mmio::{Mmio, OutsideWindow, ReadOnly, ReadWrite, Register},
    pci::{BarError, Device},
};

bitflags! {
    /// The device status register.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Status: u8 {
        /// The driver has noticed the device.
        const ACKNOWLEDGE = 1;
        /// The driver knows how to drive it.
        const DRIVER = 2;
        /// The driver is ready.
        const DRIVER_OK = 4;
        /// The device accepted the features.
        const FEATURES_OK = 8;
        /// The device met an error that only a reset ends.
        const NEEDS_RESET = 64;
        /// The driver gave up.
        const FAILED = 128;
    }
}

/// The common configuration structure. Everything behind a select register is that of the selected item.
///
/// A 64-bit field is written as two dwords: wider accesses are not allowed to it.
pub struct Common {
    pub device_feature_select: Register<u32>,
    pub device_feature: Register<u32, ReadOnly>,
    pub driver_feature_select: Register<u32>,
    pub driver_feature: Register<u32>,
    pub config_vector: Register<u16>,
    pub queues: Register<u16, ReadOnly>,
    pub status: Register<u8>,
    pub queue_select: Register<u16>,
    pub queue_size: Register<u16>,
    pub queue_vector: Register<u16>,
    pub queue_enable: Register<u16>,
    pub queue_notify_offset: Register<u16, ReadOnly>,
    pub queue_descriptors: [Register<u32>; 2],
    pub queue_driver: [Register<u32>; 2],
    pub queue_device: [Register<u32>; 2],
}

impl Common {
    /// The structure at the start of `window`.
    pub fn at(window: &Mmio) -> Result<Self, OutsideWindow> {
        let halves = |at| -> Result<[Register<u32>; 2], OutsideWindow> {
            Ok([window.register::<_, ReadWrite>(at)?, window.register(at + 4)?])
        };
        Ok(Self {
            device_feature_select: window.register(0x00)?,
            device_feature: window.register(0x04)?,
            driver_feature_select: window.register(0x08)?,
            driver_feature: window.register(0x0c)?,
            config_vector: window.register(0x10)?,
            queues: window.register(0x12)?,
            status: window.register(0x14)?,
            queue_select: window.register(0x16)?,
            queue_size: window.register(0x18)?,
            queue_vector: window.register(0x1a)?,
            queue_enable: window.register(0x1c)?,
            queue_notify_offset: window.register(0x1e)?,
            queue_descriptors: halves(0x20)?,
            queue_driver: halves(0x28)?,
            queue_device: halves(0x30)?,
        })
    }
}

/// Vendor capability: which structure it leads to, in which BAR, where, and how long.
mod capability {
    pub const KIND: u16 = 3;
    pub const BAR: u16 = 4;
    pub const OFFSET: u16 = 8;
    pub const LENGTH: u16 = 12;
    pub const BYTES: u16 = 16;
    pub const NOTIFY_MULTIPLIER: u16 = 16;
    pub const NOTIFY_BYTES: u16 = 20;

    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const DEVICE: u8 = 4;

    /// End of the conventional configuration space, where capabilities live.
    pub const END: u16 = 0x100;
}

/// The windows of a function that has the modern interface.
pub struct Windows {
    pub common: Mmio,
    pub notify: Mmio,
    /// Bytes between the doorbells of neighbouring notify offsets.
    pub notify_multiplier: u32,
    /// Device-specific configuration, if the device has any.
    pub device: Option<Mmio>,
}

/// Why the windows of a function cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WindowError {
    /// No usable capability leads to this kind of structure: the device has no modern interface.
    Missing(u8),
    /// The BAR that a structure should be in is unusable.
    Bar(BarError),
    /// A structure does not fit into its BAR.
    Outside(OutsideWindow),
}

impl From<BarError> for WindowError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

impl Windows {
    /// Finds and maps the windows of `device`. Of several capabilities of a kind the first is the preferred one.
    pub fn find(device: &Device) -> Result<Self, WindowError> {
        let notify_at = Self::capability(device, capability::NOTIFY, capability::NOTIFY_BYTES)
            .ok_or(WindowError::Missing(capability::NOTIFY))?;
        let device_at = Self::capability(device, capability::DEVICE, capability::BYTES);
        let common_at = Self::capability(device, capability::COMMON, capability::BYTES)
            .ok_or(WindowError::Missing(capability::COMMON))?;
        Ok(Self {
            common: Self::map(device, common_at)?,
            notify: Self::map(device, notify_at)?,
            notify_multiplier: device.config().read32(notify_at + capability::NOTIFY_MULTIPLIER),
            device: device_at.map(|at| Self::map(device, at)).transpose()?,
        })
    }

    /// Offset of the first capability of `kind` that leaves room for `bytes` bytes.
    fn capability(device: &Device, kind: u8, bytes: u16) -> Option<u16> {
        let config = device.config();
        let mut of_kind = config
            .vendor_capabilities()
            .filter(|&at| at + bytes <= capability::END && config.read8(at + capability::KIND) == kind);
        of_kind.next()
    }

    fn map(device: &Device, at: u16) -> Result<Mmio, WindowError> {
        let config = device.config();
        let bar = device.map_bar(config.read8(at + capability::BAR))?;
        let offset = config.read32(at + capability::OFFSET) as usize;
        let bytes = config.read32(at + capability::LENGTH) as usize;
        let outside = OutsideWindow { offset, width: bytes, window_bytes: bar.bytes() };
        bar.window(offset, bytes).ok_or(WindowError::Outside(outside))
    }
}
