//! Why a unit cannot be used.

use core::fmt;

use mm::PhysAddr;

use crate::{
    dma::Stuck,
    reach::{TableError, Unreachable},
    vtd::{capability::CapabilityError, queue::InvalidationError},
};

/// Why there is no usable unit where firmware says that one is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscoverError {
    /// The base address is 0 or not page-aligned.
    BadBase {
        /// The address (DRHD, register base address).
        base: PhysAddr,
    },
    /// The registers could not be mapped.
    NotMapped {
        /// The base address.
        base: PhysAddr,
        /// How many bytes were to be mapped.
        bytes: usize,
    },
    /// The capability registers make no sense.
    Capability {
        /// The base address.
        base: PhysAddr,
        /// What is wrong.
        error: CapabilityError,
    },
}

impl fmt::Display for DiscoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadBase { base } => write!(f, "no remapping unit can have its registers at {base}"),
            Self::NotMapped { base, bytes } => {
                write!(f, "{bytes:#x} bytes of registers at {base} cannot be mapped")
            }
            Self::Capability { base, error } => write!(f, "remapping unit at {base}: {error}"),
        }
    }
}

impl core::error::Error for DiscoverError {}

/// A unit did not do what its command registers told it. It is given up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandError {
    /// A status bit did not change in time.
    Timeout {
        /// Index of the unit.
        unit: usize,
        /// The register that holds the bit.
        register: &'static str,
        /// The bit.
        bit: &'static str,
    },
    /// The registers read as all ones.
    Gone {
        /// Index of the unit.
        unit: usize,
    },
    /// An earlier command never came to an end.
    Busy {
        /// Index of the unit.
        unit: usize,
    },
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout { unit, register, bit } => {
                write!(f, "remapping unit {unit}: {register}.{bit} did not change in time")
            }
            Self::Gone { unit } => write!(f, "remapping unit {unit}: registers read as all ones"),
            Self::Busy { unit } => write!(f, "remapping unit {unit}: an earlier command never ended"),
        }
    }
}

impl core::error::Error for CommandError {}

/// Why a unit could not be brought up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BringUpError {
    /// It did not obey.
    Command(CommandError),
    /// Its caches could not be emptied.
    Invalidation(InvalidationError),
    /// No memory for its tables or its invalidation queue.
    OutOfMemory {
        /// Index of the unit.
        unit: usize,
    },
    /// What memory there is for a table of it, it does not reach.
    Unreachable {
        /// Index of the unit.
        unit: usize,
        /// The table.
        table: Unreachable,
    },
    /// No interrupt vector for its fault events.
    NoVector {
        /// Index of the unit.
        unit: usize,
    },
    /// There is no way to invalidate: no queue, or not to be used, and no registers for it either.
    NoInvalidation {
        /// Index of the unit.
        unit: usize,
    },
    /// It supports no second-stage table (CAP.SAGAW is 0), in either mode, and is not to use others: translation would
    /// never turn on.
    NoTranslation {
        /// Index of the unit.
        unit: usize,
        /// It has first-stage tables, which scalable mode can use.
        first_stage: bool,
    },
}

impl fmt::Display for BringUpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Command(error) => error.fmt(f),
            Self::Invalidation(error) => error.fmt(f),
            Self::OutOfMemory { unit } => {
                write!(f, "remapping unit {unit}: no memory for its queue or table")
            }
            Self::Unreachable { unit, table } => write!(f, "remapping unit {unit}: {table}"),
            Self::NoVector { unit } => write!(f, "remapping unit {unit}: no vector for its fault events"),
            Self::NoInvalidation { unit } => {
                write!(f, "remapping unit {unit}: no means to invalidate its caches")
            }
            Self::NoTranslation { unit, first_stage } => {
                write!(f, "remapping unit {unit}: it has no second stage, and translates no address width")?;
                f.write_str(if *first_stage { "; its first takes iommu=scalable and the queue" } else { "" })
            }
        }
    }
}

impl core::error::Error for BringUpError {}

impl BringUpError {
    /// Why unit `unit` has no memory for a table.
    pub(in crate::vtd) fn of_table(unit: usize, error: TableError) -> Self {
        match error {
            TableError::OutOfMemory => Self::OutOfMemory { unit },
            TableError::Unreachable(table) => Self::Unreachable { unit, table },
        }
    }
}

impl From<CommandError> for BringUpError {
    fn from(error: CommandError) -> Self {
        Self::Command(error)
    }
}

impl From<InvalidationError> for BringUpError {
    fn from(error: InvalidationError) -> Self {
        Self::Invalidation(error)
    }
}

impl From<Stuck> for BringUpError {
    fn from(stuck: Stuck) -> Self {
        Self::Invalidation(InvalidationError::Stuck(stuck))
    }
}
