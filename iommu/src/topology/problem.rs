//! What is wrong with a machine's topology.

use core::fmt;

use alloc::collections::TryReserveError;

use mm::PhysRange;

use crate::{PciAddress, SourceId};

/// Why a topology cannot be built.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TopologyError {
    /// Not enough memory.
    OutOfMemory,
    /// More than [`MAX_FUNCTIONS`](super::MAX_FUNCTIONS).
    TooManyFunctions {
        /// How many there are.
        functions: usize,
    },
    /// The host listed a function twice.
    Duplicate {
        /// The function.
        function: PciAddress,
    },
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfMemory => f.write_str("not enough memory for the PCI topology"),
            Self::TooManyFunctions { functions } => write!(f, "{functions} PCI functions are too many"),
            Self::Duplicate { function } => write!(f, "{function} is listed twice"),
        }
    }
}

impl core::error::Error for TopologyError {}

impl From<TryReserveError> for TopologyError {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

/// Something that does not fit together, and that the topology settles on the safe side. Offsets count bytes from the
/// start of the DMAR table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Problem {
    /// A bridge's bus numbers cannot be: not above its own bus, or in the wrong order. It is taken to have nothing
    /// behind it.
    BadBuses {
        /// The bridge.
        bridge: PciAddress,
        /// Its secondary bus.
        secondary: u8,
        /// Its subordinate bus.
        subordinate: u8,
    },
    /// Two bridges lead to one bus: all three form one group.
    SharedBus {
        /// The bridge that is taken to lead there.
        first: PciAddress,
        /// The other bridge.
        second: PciAddress,
        /// The bus.
        bus: u8,
    },
    /// The physical function of a virtual one is not there.
    MissingPhysical {
        /// The virtual function.
        function: PciAddress,
        /// The physical function that is missing.
        physical: PciAddress,
    },
    /// A device scope's path passes through something that is no bridge, or has an impossible hop.
    BrokenPath {
        /// Where the scope is.
        offset: usize,
    },
    /// A device scope names a function that is not there. Usual for devices that firmware has turned off.
    MissingFunction {
        /// Where the scope is.
        offset: usize,
        /// The function.
        function: PciAddress,
    },
    /// A scope names what another unit has: the first unit keeps it.
    NamedTwice {
        /// Where the second scope is.
        offset: usize,
        /// The unit that keeps it.
        first: usize,
        /// The unit that does not get it.
        second: usize,
    },
    /// Functions that share an id are covered by different units.
    SplitSource {
        /// The id.
        source: SourceId,
        /// The unit of one function, if any.
        first: Option<usize>,
        /// The unit of another.
        second: Option<usize>,
    },
    /// A function is to have what the kernel has as its own, memory or the registers of a unit, or the addresses that
    /// raise interrupts: it does not get it.
    ReservedMemoryInUse {
        /// The function.
        function: PciAddress,
        /// The region, as whole pages.
        region: PhysRange,
    },
    /// A function is to have memory that the host's memory map does not call reserved: it has it.
    ReservedMemoryUnknown {
        /// The function.
        function: PciAddress,
        /// The region, as whole pages.
        region: PhysRange,
    },
    /// A function is to have memory that, with that of others, is more than all functions together may have reserved:
    /// it does not get it.
    TooMuchReservedMemory {
        /// The function.
        function: PciAddress,
        /// The region, as whole pages.
        region: PhysRange,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::BadBuses { bridge, secondary, subordinate } => {
                write!(
                    f,
                    "{bridge}: bridge to buses {secondary:#04x}-{subordinate:#04x}, which cannot be behind it"
                )
            }
            Self::SharedBus { first, second, bus } => {
                write!(f, "{second}: bridge to bus {bus:#04x}, which {first} leads to")
            }
            Self::MissingPhysical { function, physical } => {
                write!(f, "{function}: virtual function of {physical}, which is not there")
            }
            Self::BrokenPath { offset } => write!(f, "DMAR offset {offset:#x}: the path leads nowhere"),
            Self::MissingFunction { offset, function } => {
                write!(f, "DMAR offset {offset:#x}: names {function}, which is not there")
            }
            Self::NamedTwice { offset, first, second } => {
                write!(f, "DMAR offset {offset:#x}: unit {second} names what unit {first} has")
            }
            Self::SplitSource { source, first, second } => {
                write!(f, "{source}: id of functions of different units (")?;
                for (separator, unit) in [("", first), (", ", second)] {
                    match unit {
                        Some(unit) => write!(f, "{separator}{unit}")?,
                        None => write!(f, "{separator}none")?,
                    }
                }
                f.write_str(")")
            }
            Self::ReservedMemoryInUse { function, region: PhysRange { start, bytes } } => {
                write!(
                    f,
                    "{function}: {bytes:#x} bytes at {start}, reserved for it, are the kernel's: refused"
                )
            }
            Self::ReservedMemoryUnknown { function, region: PhysRange { start, bytes } } => {
                write!(
                    f,
                    "{function}: {bytes:#x} bytes at {start}, reserved for it, are not in the memory map as such"
                )
            }
            Self::TooMuchReservedMemory { function, region: PhysRange { start, bytes } } => {
                write!(f, "{function}: {bytes:#x} bytes at {start}, reserved for it, are too many: refused")
            }
        }
    }
}
