//! Why the frame allocator refuses.

use core::fmt;

use crate::{PhysAddr, PhysRange};

/// Why an allocator cannot be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SetupError {
    /// There are more regions than the allocator can hold.
    TooManyRegions {
        /// How many it can hold.
        limit: usize,
    },
    /// A region overlaps one before it.
    Overlap {
        /// The region.
        region: PhysRange,
    },
    /// A region reaches beyond 16 TiB, where frame numbers no longer have 32 bits.
    TooHigh {
        /// The region.
        region: PhysRange,
    },
    /// There are not enough records for the frames.
    TooFewRecords {
        /// How many there must be.
        needed: usize,
        /// How many there are.
        given: usize,
    },
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyRegions { limit } => write!(f, "more than {limit} regions of memory"),
            Self::Overlap { region } => {
                write!(f, "the region of {:#x} bytes at {} overlaps another", region.bytes, region.start)
            }
            Self::TooHigh { region } => {
                write!(f, "the region of {:#x} bytes at {} reaches beyond 16 TiB", region.bytes, region.start)
            }
            Self::TooFewRecords { needed, given } => {
                write!(f, "{given} frame records where {needed} are needed")
            }
        }
    }
}

impl core::error::Error for SetupError {}

/// Why a frame, or a run of frames, cannot be given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeError {
    /// It is not memory that the allocator has, or not the start of a frame.
    Foreign {
        /// What was to be freed.
        start: PhysAddr,
    },
    /// It is free already, or the inside of something larger.
    NotAllocated {
        /// What was to be freed.
        start: PhysAddr,
    },
    /// It is allocated in another size.
    WrongSize {
        /// What was to be freed.
        start: PhysAddr,
        /// Number of frames that are allocated there; `None` if no run can have the size that was given.
        allocated: Option<usize>,
    },
}

impl fmt::Display for FreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign { start } => write!(f, "{start} is no frame of this allocator"),
            Self::NotAllocated { start } => write!(f, "the frame at {start} is not allocated"),
            Self::WrongSize { start, allocated: Some(frames) } => {
                write!(f, "{frames} frames are allocated at {start}, another number was freed")
            }
            Self::WrongSize { start, allocated: None } => write!(f, "no run at {start} can be that long"),
        }
    }
}

impl core::error::Error for FreeError {}
