//! The addresses of this crate: what a device uses, and who a device is.

use core::fmt;

/// An address as a device uses it: the input of DMA remapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct Iova(u64);

impl Iova {
    /// The address `raw`.
    #[must_use]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The address as a number, to be written into a device's descriptor.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

impl fmt::Debug for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A PCI function: segment, bus, device, function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    /// PCI segment group, as in MCFG and DMAR.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    devfn: u8,
}

impl PciAddress {
    /// Function `function` (0-7) of device `device` (0-31), or `None` if one of them is out of range.
    #[must_use]
    pub const fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self { segment, bus, devfn: device << 3 | function })
        } else {
            None
        }
    }

    /// The function with the combined device and function number `devfn`.
    #[must_use]
    pub const fn from_devfn(segment: u16, bus: u8, devfn: u8) -> Self {
        Self { segment, bus, devfn }
    }

    /// Device number, 0-31.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// Function number, 0-7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }

    /// Device and function as one byte, device in bits 7:3.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.devfn
    }

    /// The requester id that the function puts into its own requests. What the IOMMU sees may be another: see
    /// [`SourceId`].
    #[must_use]
    pub const fn source_id(self) -> SourceId {
        SourceId { segment: self.segment, requester: (self.bus as u16) << 8 | self.devfn as u16 }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.segment, self.bus, self.device(), self.function())
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who a request comes from as the IOMMU sees it, after bridges have put in their own ids.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId {
    /// PCI segment group.
    pub segment: u16,
    /// Bus in bits 15:8, device in 7:3, function in 2:0.
    pub requester: u16,
}

impl SourceId {
    /// Bus number: the index into a root table.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.requester >> 8) as u8
    }

    /// Device and function: the index into a context table.
    #[must_use]
    pub const fn devfn(self) -> u8 {
        self.requester as u8
    }

    /// The function whose own requester id this is.
    #[must_use]
    pub const fn function(self) -> PciAddress {
        PciAddress::from_devfn(self.segment, self.bus(), self.devfn())
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.function(), f)
    }
}

impl fmt::Debug for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
