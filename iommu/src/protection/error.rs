//! Why the subsystem does not start.

use core::fmt;

use crate::{dmar::DmarError, topology::TopologyError, vtd::VtdError};

/// Why the subsystem could not start. The kernel must not let a driver turn bus mastering on then.
#[derive(Debug)]
pub enum StartError {
    /// `iommu=force`, and firmware describes no unit.
    NoUnit,
    /// The DMAR table cannot be read.
    Table(DmarError),
    /// The PCI hierarchy makes no sense.
    Topology(TopologyError),
    /// A unit could not be brought up.
    Unit(VtdError),
    /// No memory.
    OutOfMemory,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit => f.write_str("firmware describes no remapping unit"),
            Self::Table(error) => write!(f, "DMAR table: {error}"),
            Self::Topology(error) => write!(f, "PCI topology: {error}"),
            Self::Unit(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for StartError {}

impl From<DmarError> for StartError {
    fn from(error: DmarError) -> Self {
        Self::Table(error)
    }
}

impl From<TopologyError> for StartError {
    fn from(error: TopologyError) -> Self {
        Self::Topology(error)
    }
}

impl From<VtdError> for StartError {
    fn from(error: VtdError) -> Self {
        Self::Unit(error)
    }
}
