//! Why a group did not change hands.

use core::fmt;

use crate::{
    PciAddress,
    dma::{DmaError, Stuck},
};

/// Why a function could not be claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimError {
    /// There is no such function, or no unit covers it.
    Unknown {
        /// The function asked for.
        function: PciAddress,
    },
    /// A driver has it already.
    Claimed {
        /// The function asked for.
        function: PciAddress,
    },
    /// Its group is changing hands at this moment.
    Busy {
        /// The function asked for.
        function: PciAddress,
    },
    /// Its group is in quarantine, until it is released.
    Quarantined {
        /// The function asked for.
        function: PciAddress,
    },
    /// Its group is attached to another domain than the one that is asked for.
    Elsewhere {
        /// The function asked for.
        function: PciAddress,
        /// Number of the domain that it is attached to.
        domain: u64,
    },
    /// The function could not be made quiet, so that its group is not given to a new owner.
    NotQuiet {
        /// The function of the group that was not reset.
        function: PciAddress,
    },
    /// Firmware wants its group to reach memory at all times (RMRR), and so to share it with whoever made that memory:
    /// it is not given to an owner who is to be isolated, unless `iommu=rmrr=relaxed` says so.
    Reserved {
        /// The function asked for.
        function: PciAddress,
    },
    /// There is no such domain, or not any more.
    NoDomain {
        /// Its number.
        domain: u64,
    },
    /// There is no remapping unit, and `iommu=off` was not given.
    NoUnit,
    /// The domain could not be made or attached.
    Domain(DmaError),
}

impl fmt::Display for ClaimError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { function } => {
                write!(f, "{function} is not a function that a remapping unit covers")
            }
            Self::Claimed { function } => write!(f, "{function} has a driver already"),
            Self::Busy { function } => write!(f, "the group of {function} is changing hands"),
            Self::Quarantined { function } => write!(f, "the group of {function} is in quarantine"),
            Self::Elsewhere { function, domain } => {
                write!(f, "the group of {function} is in domain {domain}")
            }
            Self::NotQuiet { function } => write!(f, "{function} could not be made quiet"),
            Self::Reserved { function } => {
                write!(f, "firmware reserves memory for the group of {function}, which is not assigned")
            }
            Self::NoDomain { domain } => write!(f, "there is no domain {domain}"),
            Self::NoUnit => f.write_str("no remapping unit isolates devices, and iommu=off was not given"),
            Self::Domain(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ClaimError {}

impl From<DmaError> for ClaimError {
    fn from(error: DmaError) -> Self {
        Self::Domain(error)
    }
}

/// Why a group could not be taken back from its drivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReleaseError {
    /// There is no such function, or no unit covers it.
    Unknown {
        /// The function asked for.
        function: PciAddress,
    },
    /// Its group is changing hands at this moment.
    Busy {
        /// The function asked for.
        function: PciAddress,
    },
    /// What [`DmaDevice::release`](crate::DmaDevice::release) was to give back was taken back before.
    Over {
        /// The function.
        function: PciAddress,
    },
    /// The function could not be made quiet. Its group is in quarantine, and what was mapped for it stays pinned.
    NotQuiet {
        /// The function of the group that was not reset.
        function: PciAddress,
    },
    /// A unit does not answer. What is behind it is stopped, and stays pinned.
    Stuck(Stuck),
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { function } => {
                write!(f, "{function} is not a function that a remapping unit covers")
            }
            Self::Busy { function } => write!(f, "the group of {function} is changing hands"),
            Self::Over { function } => write!(f, "{function} was taken back before"),
            Self::NotQuiet { function } => {
                write!(f, "{function} could not be made quiet; its group is in quarantine")
            }
            Self::Stuck(stuck) => stuck.fmt(f),
        }
    }
}

impl core::error::Error for ReleaseError {}

impl From<Stuck> for ReleaseError {
    fn from(stuck: Stuck) -> Self {
        Self::Stuck(stuck)
    }
}
