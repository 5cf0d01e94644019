//! Why the units could not be brought up.

use core::fmt;

use mm::{PhysAddr, PhysRange};

use super::unit::{BringUpError, DiscoverError};

/// Why the units could not be brought up.
///
/// What had been turned on of any of them is off again, interrupt remapping too, but for a unit that does not obey:
/// that one stays as it is, and the log says so. Translation that firmware had left on is off as well, from the moment
/// that its unit was taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VtdError {
    /// There is no usable unit where the DMAR table says.
    Discover(DiscoverError),
    /// A unit did not come up.
    BringUp(BringUpError),
    /// The register base address of a DRHD does not fit into 52 bits.
    BadBase {
        /// Index of the unit.
        unit: usize,
        /// The address.
        base: u64,
    },
    /// Two DRHDs have the same registers.
    SharedBase {
        /// Index of the unit.
        unit: usize,
        /// Index of the one before it with the same address.
        other: usize,
        /// The address.
        base: PhysAddr,
    },
    /// The registers of two units lie over each other.
    OverlappingRegisters {
        /// Index of the unit.
        unit: usize,
        /// Its registers.
        own: PhysRange,
        /// Index of the one before it.
        other: usize,
        /// The registers of that one.
        theirs: PhysRange,
    },
    /// More DRHDs than the subsystem holds.
    TooManyUnits,
    /// No memory for tables.
    OutOfMemory,
}

impl fmt::Display for VtdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Discover(error) => error.fmt(f),
            Self::BringUp(error) => error.fmt(f),
            Self::BadBase { unit, base } => {
                write!(f, "remapping unit {unit} cannot have its registers at {base:#x}")
            }
            Self::SharedBase { unit, other, base } => {
                write!(f, "remapping units {other} and {unit} both have their registers at {base}")
            }
            Self::OverlappingRegisters { unit, own, other, theirs } => write!(
                f,
                "remapping unit {unit} has {:#x} bytes of registers at {}, over the {:#x} bytes at {} of unit {other}",
                own.bytes, own.start, theirs.bytes, theirs.start
            ),
            Self::TooManyUnits => f.write_str("too many remapping units"),
            Self::OutOfMemory => f.write_str("no memory for the tables of a remapping unit"),
        }
    }
}

impl core::error::Error for VtdError {}

impl From<DiscoverError> for VtdError {
    fn from(error: DiscoverError) -> Self {
        Self::Discover(error)
    }
}

impl From<BringUpError> for VtdError {
    fn from(error: BringUpError) -> Self {
        Self::BringUp(error)
    }
}
