//! Why an `edu` device could not be used, or did not do what it was asked for.

use core::fmt;

use crate::{
    host::InterruptError,
    mmio::OutsideWindow,
    pci::{BarError, MsiError},
};

/// Why the device could not be used, or did not do what it was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EduError {
    /// Nothing answers.
    Absent,
    /// Its registers cannot be mapped.
    Bar(BarError),
    /// Its registers do not fit into their BAR.
    Outside(OutsideWindow),
    /// It does not say that it is an `edu`.
    NotEdu(u32),
    /// No MSI.
    Msi(MsiError),
    /// The transfer is not inside the device's buffer, or touches its last byte.
    OutsideBuffer {
        /// Offset in the buffer.
        offset: usize,
        /// Length in bytes.
        bytes: usize,
    },
    /// A transfer is still running.
    Busy,
    /// It did not answer in time. It was stopped from mastering the bus.
    TimedOut,
    /// It did what it was asked for but its interrupt did not arrive in time.
    NoInterrupt,
    /// A register reads other than it must.
    Wrong {
        /// What it reads.
        got: u32,
        /// What it should.
        expected: u32,
    },
}

impl fmt::Display for EduError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing answers"),
            Self::Bar(error) => error.fmt(f),
            Self::Outside(error) => error.fmt(f),
            Self::NotEdu(id) => write!(f, "identification {id:#x} is not an edu's"),
            Self::Msi(error) => error.fmt(f),
            Self::OutsideBuffer { offset, bytes } => {
                write!(f, "{bytes} bytes at {offset:#x} are outside of the device's buffer")
            }
            Self::Busy => f.write_str("a transfer is running"),
            Self::TimedOut => f.write_str("the device did not answer in time"),
            Self::NoInterrupt => f.write_str("the device's interrupt did not arrive"),
            Self::Wrong { got, expected } => write!(f, "the device reads {got:#x} instead of {expected:#x}"),
        }
    }
}

impl core::error::Error for EduError {}

impl From<BarError> for EduError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

impl From<OutsideWindow> for EduError {
    fn from(error: OutsideWindow) -> Self {
        Self::Outside(error)
    }
}

impl From<MsiError> for EduError {
    fn from(error: MsiError) -> Self {
        Self::Msi(error)
    }
}

impl From<InterruptError> for EduError {
    fn from(error: InterruptError) -> Self {
        Self::Msi(MsiError::Interrupt(error))
    }
}
