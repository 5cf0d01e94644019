//! What PCI Express says about a function's place in the hierarchy, and which requests it keeps apart.

use iommu::topology::Acs;

use super::{
    capability::{extended_id, id},
    config::{Config, ConfigSpace},
};

/// Device/port type of the PCI Express capabilities register.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortType {
    /// Endpoint.
    Endpoint,
    /// Legacy endpoint.
    LegacyEndpoint,
    /// Root port of a root complex.
    RootPort,
    /// Upstream port of a switch.
    UpstreamPort,
    /// Downstream port of a switch.
    DownstreamPort,
    /// Bridge from PCI Express to PCI or PCI-X.
    ToPciBridge,
    /// Bridge from PCI or PCI-X to PCI Express.
    FromPciBridge,
    /// Endpoint integrated into the root complex.
    IntegratedEndpoint,
    /// Root-complex event collector.
    EventCollector,
    /// A type that is not defined.
    Unknown(u8),
}

impl PortType {
    /// Decodes bits 7:4 of the PCI Express capabilities register.
    #[must_use]
    pub const fn decode(capabilities: u16) -> Self {
        match (capabilities >> 4 & 0xf) as u8 {
            0 => Self::Endpoint,
            1 => Self::LegacyEndpoint,
            4 => Self::RootPort,
            5 => Self::UpstreamPort,
            6 => Self::DownstreamPort,
            7 => Self::ToPciBridge,
            8 => Self::FromPciBridge,
            9 => Self::IntegratedEndpoint,
            10 => Self::EventCollector,
            other => Self::Unknown(other),
        }
    }
}

/// Where the control register of the ACS capability is; the capability register precedes it.
const ACS_CAPABILITY: u16 = 4;
const ACS_CONTROL: u16 = 6;
const ACS_BYTES: u16 = 8;

/// Bytes of the PCI Express capability up to its capabilities register, and up to its device status register.
const EXPRESS_BYTES: u16 = 4;
const EXPRESS_DEVICE_BYTES: u16 = 12;
const DEVICE_CAPABILITIES: u16 = 4;
const DEVICE_CONTROL: u16 = 8;
/// Bytes of the capability up to Device Status 2.
const EXPRESS_FORWARDING_BYTES: u16 = 0x2a;
const DEVICE_CAPABILITIES_2: u16 = 0x24;
const DEVICE_CONTROL_2: u16 = 0x28;
/// ARI Forwarding Supported of Device Capabilities 2, and ARI Forwarding Enable of Device Control 2.
const ARI_FORWARDING: u32 = 1 << 5;
const PHANTOM_FUNCTIONS_ENABLE: u16 = 1 << 9;

impl<C: ConfigSpace + ?Sized> Config<'_, C> {
    /// The device/port type, if the function has the PCI Express capability.
    pub fn port_type(self) -> Option<PortType> {
        let offset = self.find(id::EXPRESS, EXPRESS_BYTES)?;
        Some(PortType::decode(self.read16(offset + 2)))
    }

    /// Access control services, if the function has the capability.
    pub fn acs(self) -> Option<Acs> {
        let offset = self.find_extended(extended_id::ACS, ACS_BYTES)?;
        let (offered, enabled) = (self.read16(offset + ACS_CAPABILITY), self.read16(offset + ACS_CONTROL));
        Some(Acs { offered, enabled })
    }

    /// Turns on what the function offers of [`Acs::ISOLATION`], and returns what is on then; `None` without ACS.
    ///
    /// Until it is done, functions behind a port may reach each other without the IOMMU seeing it.
    pub fn enable_isolation(self) -> Option<Acs> {
        let offset = self.find_extended(extended_id::ACS, ACS_BYTES)?;
        let Acs { offered, enabled } = self.acs()?;
        // The other half of the dword is the read-only capability register.
        self.write16(offset + ACS_CONTROL, enabled | offered & Acs::ISOLATION);
        self.acs()
    }

    /// Has a port pass on configuration requests to all 256 function numbers of the device behind it, or only to the
    /// usual eight. Whether it does as told: not every port can.
    pub fn forward_all_functions(self, on: bool) -> bool {
        let Some(offset) = self.find(id::EXPRESS, EXPRESS_FORWARDING_BYTES) else { return false };
        // The first version of the capability ends before these registers.
        if self.read16(offset + 2) & 0xf < 2
            || self.read32(offset + DEVICE_CAPABILITIES_2) & ARI_FORWARDING == 0
        {
            return false;
        }
        let control = self.read16(offset + DEVICE_CONTROL_2);
        let forwarding = ARI_FORWARDING as u16;
        self.write_word(offset + DEVICE_CONTROL_2, control & !forwarding | if on { forwarding } else { 0 });
        (self.read16(offset + DEVICE_CONTROL_2) & forwarding != 0) == on
    }

    /// How many upper bits of its function number the function uses for phantom functions, which send requests under
    /// ids of their own.
    pub fn phantom_bits(self) -> u8 {
        let Some(offset) = self.find(id::EXPRESS, EXPRESS_DEVICE_BYTES) else {
            return 0;
        };
        let supported = (self.read32(offset + DEVICE_CAPABILITIES) >> 3 & 0x3) as u8;
        let enabled = self.read16(offset + DEVICE_CONTROL) & PHANTOM_FUNCTIONS_ENABLE != 0;
        if enabled { supported } else { 0 }
    }
}
