//! What can go wrong with addresses.

use core::fmt;

use crate::Iova;

/// Why no addresses were handed out or reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IovaError {
    /// The host has no page for the bookkeeping.
    OutOfMemory,
    /// No free range fits.
    Exhausted {
        /// Pages asked for.
        pages: u64,
        /// Highest address that the device can use.
        last: u64,
    },
    /// The range was asked for at a fixed place, and some of it is in use, reserved, or outside the space.
    Taken {
        /// First address of the range.
        first: u64,
        /// Last address of the range.
        last: u64,
    },
    /// A range of no pages, or one that does not consist of whole pages.
    NotWholePages {
        /// First address of the range, or 0 if it was not given.
        first: u64,
        /// Its length in bytes.
        bytes: u64,
    },
    /// An alignment or a boundary that is not a power of two of at least one page, or a range longer than the boundary
    /// that it must not cross.
    Impossible {
        /// Pages asked for.
        pages: u64,
        /// Alignment in bytes.
        alignment: u64,
        /// Boundary in bytes.
        boundary: u64,
    },
}

impl fmt::Display for IovaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::OutOfMemory => write!(f, "no memory for the bookkeeping of IOVAs"),
            Self::Exhausted { pages, last } => write!(f, "no {pages} free pages of IOVA up to {last:#x}"),
            Self::Taken { first, last } => write!(f, "IOVAs {first:#x}..={last:#x} are not all free"),
            Self::NotWholePages { first, bytes } => {
                write!(f, "{bytes} bytes of IOVA at {first:#x} are not whole pages")
            }
            Self::Impossible { pages, alignment, boundary } => write!(
                f,
                "{pages} pages of IOVA cannot be aligned to {alignment:#x} within a boundary of {boundary:#x}"
            ),
        }
    }
}

impl core::error::Error for IovaError {}

/// Why addresses were not taken back: the caller does not own them. Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// Some of the range is free already, reserved, or outside the space.
    NotAllocated {
        /// First address of the range.
        iova: Iova,
        /// Its length in pages.
        pages: u64,
    },
    /// A range starts there, but it has another length.
    WrongLength {
        /// First address of the range.
        iova: Iova,
        /// Length given, in pages.
        pages: u64,
        /// Length of the range that is allocated there, in pages.
        allocated: u64,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotAllocated { iova, pages } => {
                write!(f, "{pages} pages of IOVA at {iova} are not allocated")
            }
            Self::WrongLength { iova, pages, allocated } => {
                write!(f, "{pages} pages of IOVA at {iova} given back, but {allocated} are allocated there")
            }
        }
    }
}

impl core::error::Error for FreeError {}
