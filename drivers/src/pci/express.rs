//! What PCI Express says about a function's place in the hierarchy, and which requests it keeps apart.

use bitflags::bitflags;

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

bitflags! {
    /// Access control services that a function has and has turned on.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct Acs: u16 {
        /// Checks the bus number of a requester.
        const SOURCE_VALIDATION = 1 << 0;
        /// Blocks requests with a translated address.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// Sends peer-to-peer requests up to the IOMMU.
        const REQUEST_REDIRECT = 1 << 2;
        /// Sends peer-to-peer completions up to the IOMMU.
        const COMPLETION_REDIRECT = 1 << 3;
        /// Sends what came up straight up again.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// Filters peer-to-peer by port.
        const EGRESS_CONTROL = 1 << 5;
        /// Lets translated requests go directly.
        const DIRECT_TRANSLATED = 1 << 6;
    }
}

impl Acs {
    /// What the functions behind a port need to be isolated from each other.
    pub const ISOLATION: Self = Self::SOURCE_VALIDATION
        .union(Self::REQUEST_REDIRECT)
        .union(Self::COMPLETION_REDIRECT)
        .union(Self::UPSTREAM_FORWARDING);
}

/// Where the control register of the ACS capability is; the capability register precedes it.
const ACS_CAPABILITY: u16 = 4;
const ACS_CONTROL: u16 = 6;
const ACS_BYTES: u16 = 8;

/// Bytes of the PCI Express capability up to its capabilities register.
const EXPRESS_BYTES: u16 = 4;

impl<C: ConfigSpace + ?Sized> Config<'_, C> {
    /// The device/port type, if the function has the PCI Express capability.
    pub fn port_type(self) -> Option<PortType> {
        let offset = self.find(id::EXPRESS, EXPRESS_BYTES)?;
        Some(PortType::decode(self.read16(offset + 2)))
    }

    /// The access control services that the function offers, and those that are on, if it has the capability.
    pub fn acs(self) -> Option<(Acs, Acs)> {
        let offset = self.find_extended(extended_id::ACS, ACS_BYTES)?;
        let offered = Acs::from_bits_truncate(self.read16(offset + ACS_CAPABILITY));
        let on = Acs::from_bits_truncate(self.read16(offset + ACS_CONTROL));
        Some((offered, on))
    }

    /// Turns on what the function offers of [`Acs::ISOLATION`], and returns what is on then; `None` without ACS.
    pub fn enable_isolation(self) -> Option<Acs> {
        let offset = self.find_extended(extended_id::ACS, ACS_BYTES)?;
        let (offered, on) = self.acs()?;
        let wanted = on.union(offered.intersection(Acs::ISOLATION));
        self.write16(offset + ACS_CONTROL, wanted.bits());
        self.acs().map(|(_, on)| on)
    }
}
