//! What can be wrong with a controller.

use core::fmt;

use iommu::DmaError;

use crate::{
    host::InterruptError,
    mmio::OutsideWindow,
    net::engine::EngineError,
    pci::{BarError, MsixError},
};

/// What can be wrong with a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum E1000eError {
    /// Nothing answers.
    Absent,
    /// Its registers cannot be mapped.
    Bar(BarError),
    /// There are fewer registers than there should be.
    Registers(OutsideWindow),
    /// MSI-X is unusable.
    Msix(MsixError),
    /// It has no address, or one that no interface can have.
    NoMac,
    /// It did not end its requests, or its reset, within the deadline.
    NotQuiet {
        /// CTRL.
        control: u32,
        /// STATUS.
        status: u32,
    },
    /// No memory that it can reach.
    Dma(DmaError),
    /// No memory for bookkeeping.
    OutOfMemory,
    /// It says that it wrote more into a buffer than it holds.
    TooLong {
        /// Bytes that it says it wrote.
        bytes: usize,
    },
}

impl fmt::Display for E1000eError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing answers"),
            Self::Bar(error) => error.fmt(f),
            Self::Registers(error) => error.fmt(f),
            Self::Msix(error) => error.fmt(f),
            Self::NoMac => f.write_str("no usable address"),
            Self::NotQuiet { control, status } => {
                write!(f, "not quiet after a reset: CTRL {control:#x}, STATUS {status:#x}")
            }
            Self::Dma(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory"),
            Self::TooLong { bytes } => write!(f, "device says it wrote {bytes} bytes into a buffer"),
        }
    }
}

impl core::error::Error for E1000eError {}

impl From<BarError> for E1000eError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

impl From<OutsideWindow> for E1000eError {
    fn from(error: OutsideWindow) -> Self {
        Self::Registers(error)
    }
}

impl From<MsixError> for E1000eError {
    fn from(error: MsixError) -> Self {
        Self::Msix(error)
    }
}

impl From<InterruptError> for E1000eError {
    fn from(error: InterruptError) -> Self {
        Self::Msix(MsixError::Interrupt(error))
    }
}

impl From<DmaError> for E1000eError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

impl From<EngineError<Self>> for E1000eError {
    fn from(error: EngineError<Self>) -> Self {
        match error {
            EngineError::OutOfMemory => Self::OutOfMemory,
            EngineError::Rings(error) => error,
        }
    }
}
