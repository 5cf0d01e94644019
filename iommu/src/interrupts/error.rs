//! Why an interrupt cannot be had, and why none is remapped.

use core::fmt;

use super::{MAX_MESSAGES, MessageSource};
use crate::{PciAddress, vtd::RouteError};

/// Why interrupts could not be given out or routed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptError {
    /// There is no such function or timer, or no unit covers it.
    Unknown(MessageSource),
    /// No unit covers the I/O APIC.
    UnknownIoApic {
        /// Its id in the MADT.
        id: u8,
    },
    /// The group of the function is in quarantine.
    Quarantined {
        /// The function.
        function: PciAddress,
    },
    /// Not a number of messages that a function can have in a row.
    BadCount {
        /// The number asked for.
        count: u16,
    },
    /// There is no interrupt of that number.
    NoSuchNumber {
        /// The number asked for.
        number: u16,
    },
    /// There are fewer vectors from that one on.
    TooManyVectors {
        /// The first vector.
        first: u8,
        /// The number of interrupts.
        count: u16,
    },
    /// Messages that are not remapped need a first vector that is a multiple of their number.
    Unaligned {
        /// The first vector.
        first: u8,
        /// The number of interrupts.
        count: u16,
    },
    /// Messages that are not remapped reach local APICs with ids below 255 only.
    FarCpu {
        /// The id.
        apic: u32,
    },
    /// The remapping unit refused, or does not answer.
    Route(RouteError),
}

impl InterruptError {
    /// The unit did not answer: what it knew before may still hold.
    #[must_use]
    pub const fn leaves_old_route(&self) -> bool {
        matches!(self, Self::Route(RouteError::Invalidation(_)))
    }
}

impl From<RouteError> for InterruptError {
    fn from(error: RouteError) -> Self {
        Self::Route(error)
    }
}

impl fmt::Display for InterruptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(MessageSource::Function(function)) => {
                write!(f, "{function} is not a function that a remapping unit covers")
            }
            Self::Unknown(MessageSource::Hpet { id }) => write!(f, "no remapping unit covers HPET {id}"),
            Self::UnknownIoApic { id } => write!(f, "no remapping unit covers I/O APIC {id}"),
            Self::Quarantined { function } => write!(f, "the group of {function} is in quarantine"),
            Self::BadCount { count } => {
                write!(f, "{count} interrupts in a row: not a power of two up to {MAX_MESSAGES}")
            }
            Self::NoSuchNumber { number } => write!(f, "there is no interrupt {number}"),
            Self::TooManyVectors { first, count } => write!(f, "no {count} vectors from {first:#x} on"),
            Self::Unaligned { first, count } => {
                write!(f, "vector {first:#x} is not a multiple of {count}, and interrupts are not remapped")
            }
            Self::FarCpu { apic } => write!(f, "no message reaches local APIC {apic:#x} without remapping"),
            Self::Route(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for InterruptError {}

/// Why a unit, or the whole machine, remaps no interrupts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotRemapped {
    /// `iommu=no-intremap`.
    NotWanted,
    /// The units are not in use.
    NoUnit,
    /// Firmware does not say that the platform supports it (INTR_REMAP of the DMAR table).
    NotSupported,
    /// The interrupts of an I/O APIC would be blocked: no unit has it in its scope.
    UncoveredIoApic {
        /// Its id in the MADT.
        id: u8,
    },
    /// A unit has no interrupt remapping, or no invalidation queue in use, which that takes.
    Unit {
        /// Index of the unit.
        unit: usize,
    },
}

impl fmt::Display for NotRemapped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWanted => f.write_str("iommu=no-intremap was given"),
            Self::NoUnit => f.write_str("no remapping unit is in use"),
            Self::NotSupported => f.write_str("firmware does not say that the platform supports it"),
            Self::UncoveredIoApic { id } => write!(f, "no unit covers I/O APIC {id}"),
            Self::Unit { unit } => write!(f, "unit {unit} cannot"),
        }
    }
}

/// Says what it costs that interrupts are not remapped.
pub(crate) fn warn_of(why: NotRemapped) {
    log::warn!(
        "interrupts are not remapped: {why}; a device can raise any vector on any CPU, NMIs and SMIs too"
    );
}
