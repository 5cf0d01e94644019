//! What the topology has to know of each PCI function.

use crate::PciAddress;

/// One PCI function as the host kernel found it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Whether anything is behind it.
    pub kind: FunctionKind,
    /// Its access control services; `None` without the capability. The host turns on what is offered *before* it
    /// builds the topology: groups follow what is on.
    pub acs: Option<Acs>,
    /// The physical function that this virtual function belongs to.
    pub physical: Option<PciAddress>,
    /// How many of the upper bits of the function number it uses for phantom functions, 0-3: whose ids its requests
    /// may carry too.
    pub phantom_bits: u8,
    /// Device and function number of another id on its bus that its requests are known to carry: a quirk.
    pub alias_devfn: Option<u8>,
}

/// Whether anything is behind a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FunctionKind {
    /// Nothing: an endpoint, conventional or PCI Express, integrated or not.
    Endpoint,
    /// Other buses.
    Bridge {
        /// What the bridge does with requests from behind it.
        kind: BridgeKind,
        /// The bus right behind it; 0 if nobody has set it.
        secondary: u8,
        /// The highest bus behind it.
        subordinate: u8,
    },
}

/// How a bridge passes requests on towards memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BridgeKind {
    /// Root port: requests keep their ids.
    RootPort,
    /// Upstream port of a switch: requests keep their ids.
    UpstreamPort,
    /// Downstream port of a switch: requests keep their ids.
    DownstreamPort,
    /// From PCI Express to PCI: requests may carry the id of device 0, function 0 on the secondary bus.
    ToPci,
    /// From PCI to PCI Express: requests carry the bridge's own id.
    FromPci,
    /// Between two conventional buses, or from the root complex to one: requests carry the bridge's own id. On a link,
    /// where no such bridge can be, it is one that hides its PCI Express capability: requests may carry the id of
    /// device 0, function 0 on the secondary bus, too.
    Conventional,
}

impl Function {
    /// An endpoint without any peculiarity.
    #[must_use]
    pub const fn endpoint(address: PciAddress) -> Self {
        let kind = FunctionKind::Endpoint;
        Self { address, kind, acs: None, physical: None, phantom_bits: 0, alias_devfn: None }
    }

    /// A bridge without any peculiarity.
    #[must_use]
    pub const fn bridge(address: PciAddress, kind: BridgeKind, secondary: u8, subordinate: u8) -> Self {
        let kind = FunctionKind::Bridge { kind, secondary, subordinate };
        Self { kind, ..Self::endpoint(address) }
    }

    /// Secondary and subordinate bus of a bridge, if they can be: above the bridge's own bus, and in order.
    pub(super) fn buses(&self) -> Option<(u8, u8)> {
        match self.kind {
            FunctionKind::Bridge { secondary, subordinate, .. } => {
                (secondary > self.address.bus && subordinate >= secondary).then_some((secondary, subordinate))
            }
            FunctionKind::Endpoint => None,
        }
    }

    pub(super) const fn bridge_kind(&self) -> Option<BridgeKind> {
        match self.kind {
            FunctionKind::Bridge { kind, .. } => Some(kind),
            FunctionKind::Endpoint => None,
        }
    }

    /// Whether this is a virtual function: a bridge never is.
    pub(super) const fn is_virtual(&self) -> bool {
        self.physical.is_some() && matches!(self.kind, FunctionKind::Endpoint)
    }

    /// Whether its peer-to-peer requests, and those that come up through it, all go to the root complex.
    pub(super) fn isolates(&self) -> bool {
        self.acs.is_some_and(|acs| acs.isolates(self.bridge_kind()))
    }
}

/// Access Control Services: the capability and control registers of the extended capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Acs {
    /// Capability register: what the function can do.
    pub offered: u16,
    /// Control register: what is on.
    pub enabled: u16,
}

impl Acs {
    /// What isolation takes: source validation (bit 0), request redirect (2), completion redirect (3) and upstream
    /// forwarding (4). Both registers have the same bits.
    pub const ISOLATION: u16 = 0b1_1101;

    /// A downstream port has to have all of [`ISOLATION`](Self::ISOLATION). Any other function leaves out what it needs
    /// no control for, because it never does peer-to-peer transfers that way.
    const fn isolates(self, bridge: Option<BridgeKind>) -> bool {
        let wanted = match bridge {
            Some(BridgeKind::DownstreamPort) => Self::ISOLATION,
            _ => Self::ISOLATION & self.offered,
        };
        self.enabled & wanted == wanted
    }
}
