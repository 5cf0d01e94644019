//! Why requests are refused, and why they fail.

use core::fmt;

use iommu::{DmaError, PageBuffer};

use super::Request;

/// A request that the device did not take.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// The request as it was.
    pub request: Request,
}

/// Why a device did not take a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The device has as many requests as it can hold: wait for a completion and try again.
    QueueFull,
    /// `completions` has no room for another one: take some out.
    CompletionsFull,
    /// The device is being reset: try again a little later.
    Resetting,
    /// The device is out of order for good, or was shut down.
    Gone,
    /// The device is in quarantine: after its release another driver has to be started.
    Quarantined,
    /// The blocks are not all on the medium, or are none, or are more than a request can have.
    OutOfRange {
        /// First block.
        first: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// The buffer is shorter than the blocks.
    BufferTooShort {
        /// Its length in bytes.
        bytes: usize,
        /// The length of the blocks in bytes.
        needed: u64,
    },
    /// The medium cannot be written.
    ReadOnly,
    /// The device cannot do that at all.
    Unsupported,
    /// The buffer could not be mapped.
    Dma(DmaError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull => f.write_str("the device's queue is full"),
            Self::CompletionsFull => f.write_str("no room for another completion"),
            Self::Resetting => f.write_str("the device is being reset"),
            Self::Gone => f.write_str("the device is out of order"),
            Self::Quarantined => f.write_str("the device is in quarantine"),
            Self::OutOfRange { first, blocks } => {
                write!(f, "{blocks} blocks from {first} are no valid range")
            }
            Self::BufferTooShort { bytes, needed } => {
                write!(f, "a buffer of {bytes} bytes for {needed} bytes of blocks")
            }
            Self::ReadOnly => f.write_str("the medium cannot be written"),
            Self::Unsupported => f.write_str("the device cannot do that"),
            Self::Dma(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Reason {}

/// Why a request failed. Whether and how much of a failed write is on the medium is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockError {
    /// The device reports that the medium could not be read or written; the number is the device's own.
    Medium(u16),
    /// The device reports that it does not know the request, or something in it; the number is its own.
    Unsupported(u16),
    /// The device reports another error; the number is its own.
    Device(u16),
    /// The IOMMU blocked an access of the device while it had the request: what it says about it counts for nothing.
    Blocked,
    /// The device did not finish the request in time and was reset.
    TimedOut,
    /// The device was reset because it broke its protocol or asked for it.
    Reset,
    /// The device was shut down, or could not be made to work again.
    Gone,
    /// The device was put in quarantine. The buffer comes back to the system after its release.
    Quarantined,
    /// The buffer cannot be given back: a remapping unit does not answer, or the device was just being taken away, and
    /// the system frees the buffer when it is quiet ([`DmaError::Revoked`]).
    Pinned(DmaError),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Medium(status) => write!(f, "the medium cannot be read or written: error {status:#x}"),
            Self::Unsupported(status) => write!(f, "the device refuses the request: error {status:#x}"),
            Self::Device(status) => write!(f, "the device reports error {status:#x}"),
            Self::Blocked => f.write_str("the IOMMU blocked an access of the device"),
            Self::TimedOut => f.write_str("the device did not answer in time"),
            Self::Reset => f.write_str("the device was reset"),
            Self::Gone => f.write_str("the device is out of order"),
            Self::Quarantined => f.write_str("the device is in quarantine"),
            Self::Pinned(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for BlockError {}

/// Why a [`transfer`](super::transfer) failed.
#[derive(Debug)]
pub enum TransferError {
    /// The device did not take the request.
    Rejected(Rejected),
    /// The device took it and failed; the buffer comes back if it can.
    Failed(BlockError, Option<PageBuffer>),
    /// No memory for the completion.
    OutOfMemory,
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.reason.fmt(f),
            Self::Failed(error, _) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory for the completion"),
        }
    }
}

impl core::error::Error for TransferError {}

/// Why a device that was shut down may still reach what it had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotQuiet {
    /// It did not become quiet; what it had stays pinned. Its driver has ended.
    Device,
    /// Its driver has not ended in time, and may go on with it.
    Driver,
}

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "the device did not become quiet; its memory stays pinned",
            Self::Driver => "the device's driver does not end",
        })
    }
}

impl core::error::Error for NotQuiet {}
