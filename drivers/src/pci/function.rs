//! What enumeration learns about one function.

use core::fmt;

use iommu::{
    PciAddress,
    topology::{self, Acs, BridgeKind, FunctionKind},
};

use super::{
    bar::{Bar, Bars},
    config::{Config, ConfigSpace, offset},
    express::PortType,
    resources::Places,
};

/// One PCI function as enumeration found it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it.
    pub id: Id,
    /// What it does.
    pub class: Class,
    /// Revision.
    pub revision: u8,
    /// Layout of its header.
    pub layout: Layout,
    /// Whether its header says that the device has more than one function.
    pub multifunction: bool,
    /// Its PCI Express type; `None` for a conventional function.
    pub port: Option<PortType>,
    /// Access control services; `None` without the capability.
    pub acs: Option<Acs>,
    /// How many upper bits of its function number it uses for phantom functions.
    pub phantom_bits: u8,
    /// The bridge right above it; `None` on a root bus.
    pub parent: Option<PciAddress>,
    /// The physical function that it is a virtual function of.
    pub physical: Option<PciAddress>,
    /// Its registers, as they were when it was [measured](Self::measure); of a virtual function, as its physical one
    /// has them.
    pub bars: Option<Bars>,
    /// The same, compared with what others have, once that was [settled](super::Claims::settle): what drivers may map.
    pub places: Option<Places>,
    /// Of a physical function: the registers of the first virtual function, which those of the others follow, once they
    /// have addresses.
    pub virtual_bars: Option<Bars>,
    /// For how many virtual functions those addresses are, whatever the function says later.
    pub virtual_room: u16,
}

/// Vendor and device id.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Id {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// Class code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Class {
    /// Base class.
    pub base: u8,
    /// Sub-class.
    pub sub: u8,
    /// Programming interface.
    pub interface: u8,
}

impl Class {
    /// Base class of display controllers.
    pub const DISPLAY: u8 = 0x03;

    /// What the dword of class code and revision says.
    pub(super) const fn of(dword: u32) -> Self {
        Self { base: (dword >> 24) as u8, sub: (dword >> 16) as u8, interface: (dword >> 8) as u8 }
    }
}

/// Header layout.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Type 0: an endpoint with up to six BARs.
    Endpoint,
    /// Type 1: a PCI-to-PCI bridge.
    Bridge(Bridge),
    /// Type 2: a bridge to CardBus.
    CardBus(Bridge),
    /// One that is not defined: nothing beyond the common registers is known.
    Other(u8),
}

/// Bus numbers of a bridge, as firmware left them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bridge {
    /// The bus right behind the bridge.
    pub secondary: u8,
    /// The highest bus behind it.
    pub subordinate: u8,
}

impl Function {
    /// What `config` says about its function, or `None` if nothing answers there.
    pub fn read<C: ConfigSpace + ?Sized>(config: Config<'_, C>, parent: Option<PciAddress>) -> Option<Self> {
        if !config.has_vendor() {
            return None;
        }
        let id = config.read32(offset::ID);
        let class = config.read32(offset::CLASS_REVISION);
        let header = config.read8(offset::HEADER_TYPE);
        Some(Self {
            address: config.function(),
            id: Id { vendor: id as u16, device: (id >> 16) as u16 },
            class: Class::of(class),
            revision: class as u8,
            layout: Layout::read(config),
            multifunction: header & 0x80 != 0,
            port: config.port_type(),
            acs: config.acs(),
            phantom_bits: config.phantom_bits(),
            parent,
            physical: None,
            bars: None,
            places: None,
            virtual_bars: None,
            virtual_room: 0,
        })
    }

    /// A virtual function of this one, which says of itself only what differs.
    pub(super) fn virtual_one<C: ConfigSpace + ?Sized>(
        &self,
        config: Config<'_, C>,
        device: u16,
        bars: Bars,
    ) -> Self {
        Self {
            address: config.function(),
            id: Id { device, ..self.id },
            layout: Layout::Endpoint,
            multifunction: true,
            port: config.port_type(),
            acs: config.acs(),
            phantom_bits: config.phantom_bits(),
            physical: Some(self.address),
            bars: Some(bars),
            places: None,
            virtual_bars: None,
            virtual_room: 0,
            ..self.clone()
        }
    }

    /// Bus numbers, if this is a bridge.
    #[must_use]
    pub fn bridge(&self) -> Option<Bridge> {
        match self.layout {
            Layout::Bridge(bridge) | Layout::CardBus(bridge) => Some(bridge),
            Layout::Endpoint | Layout::Other(_) => None,
        }
    }

    /// Turns on what isolation takes of the function's access control services, as far as it has them. Comes before
    /// the topology is built.
    pub fn enable_isolation<C: ConfigSpace + ?Sized>(&mut self, space: &C) {
        self.acs = Config::new(space, self.address).enable_isolation();
    }

    /// Notes where its registers are. What it says of them later changes nothing. Comes after they have their
    /// addresses, and before anybody drives it: decoding is off for a moment.
    pub fn measure<C: ConfigSpace + ?Sized>(&mut self, space: &C) {
        if self.physical.is_some() {
            return;
        }
        let mut bars = Bars::default();
        for bar in Bar::all(Config::new(space, self.address), self.layout) {
            bars[usize::from(bar.index)] = Some(bar);
        }
        self.bars = Some(bars);
        self.places = None;
    }

    /// What the IOMMU has to know of the function.
    #[must_use]
    pub fn topology(&self) -> topology::Function {
        let endpoint = topology::Function::endpoint(self.address);
        let kind = self.bridge().map_or(FunctionKind::Endpoint, |Bridge { secondary, subordinate }| {
            FunctionKind::Bridge { kind: self.bridge_kind(), secondary, subordinate }
        });
        let (acs, physical, phantom_bits) = (self.acs, self.physical, self.phantom_bits);
        topology::Function { kind, acs, physical, phantom_bits, ..endpoint }
            .with_quirks(self.id.vendor, self.id.device)
    }

    /// How the bridge passes requests on. One without a PCI Express type, or with one that no bridge has, is taken for
    /// conventional: the kind that tells least apart.
    fn bridge_kind(&self) -> BridgeKind {
        match self.port {
            Some(PortType::RootPort) => BridgeKind::RootPort,
            Some(PortType::UpstreamPort) => BridgeKind::UpstreamPort,
            Some(PortType::DownstreamPort) => BridgeKind::DownstreamPort,
            Some(PortType::ToPciBridge) => BridgeKind::ToPci,
            Some(PortType::FromPciBridge) => BridgeKind::FromPci,
            _ => BridgeKind::Conventional,
        }
    }
}

impl Layout {
    /// The layout that `config` says its function's header has.
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: Config<'_, C>) -> Self {
        match config.read8(offset::HEADER_TYPE) & 0x7f {
            0 => Self::Endpoint,
            1 => Self::Bridge(Bridge::read(config)),
            2 => Self::CardBus(Bridge::read(config)),
            other => Self::Other(other),
        }
    }

    /// How many dwords of BARs the layout has.
    #[must_use]
    pub const fn bars(self) -> u8 {
        match self {
            Self::Endpoint => 6,
            Self::Bridge(_) => 2,
            Self::CardBus(_) => 1,
            Self::Other(_) => 0,
        }
    }
}

impl Bridge {
    /// Both kinds of bridge have their bus numbers in the same place.
    fn read<C: ConfigSpace + ?Sized>(config: Config<'_, C>) -> Self {
        let buses = config.read32(offset::BUS_NUMBERS);
        Self { secondary: (buses >> 8) as u8, subordinate: (buses >> 16) as u8 }
    }
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
