//! Why a change of a table was refused.

use core::fmt;

use super::stale::Stale;
use crate::PhysRange;

/// There is no page for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutOfTables;

impl fmt::Display for OutOfTables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no page for a page table")
    }
}

impl core::error::Error for OutOfTables {}

/// Why [`PageTable::map`](super::PageTable::map) failed. The table maps what it mapped before.
///
/// Where leaves had already been written, they have been removed again, but a walker in hardware may have seen them:
/// `undone` then holds the token to flush and redeem. [`MapError::into_undone`] takes it out.
#[derive(Debug)]
pub enum MapError {
    /// The input address, or a segment's start or length, is not a multiple of 4 KiB, or there is nothing to map.
    Unaligned {
        /// Where the mapping was to start.
        input: u64,
        /// What to flush.
        undone: Option<Stale>,
    },
    /// The range does not lie within the addresses that the table translates.
    InputBeyondWidth {
        /// Where the mapping was to start.
        input: u64,
        /// Its length.
        bytes: u64,
        /// What to flush.
        undone: Option<Stale>,
    },
    /// A segment does not lie within the memory that an entry can name.
    OutputBeyondWidth {
        /// The segment.
        range: PhysRange,
        /// What to flush.
        undone: Option<Stale>,
    },
    /// Something is mapped in the range.
    AlreadyMapped {
        /// The input address where it was found.
        input: u64,
        /// What to flush.
        undone: Option<Stale>,
    },
    /// There is no page for a table.
    OutOfTables {
        /// The input address that needed it.
        input: u64,
        /// What to flush.
        undone: Option<Stale>,
    },
}

impl MapError {
    /// What has to be flushed after the failure, if anything was visible to a walker in between.
    #[must_use]
    pub fn into_undone(self) -> Option<Stale> {
        match self {
            Self::Unaligned { undone, .. }
            | Self::InputBeyondWidth { undone, .. }
            | Self::OutputBeyondWidth { undone, .. }
            | Self::AlreadyMapped { undone, .. }
            | Self::OutOfTables { undone, .. } => undone,
        }
    }
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned { input, .. } => {
                write!(f, "mapping at {input:#x} is empty or not in whole pages")
            }
            Self::InputBeyondWidth { input, bytes, .. } => {
                write!(f, "mapping of {bytes:#x} bytes at {input:#x} exceeds the table's input width")
            }
            Self::OutputBeyondWidth { range, .. } => {
                write!(f, "{:#x} bytes at {} exceed the table's output width", range.bytes, range.start)
            }
            Self::AlreadyMapped { input, .. } => write!(f, "{input:#x} is mapped already"),
            Self::OutOfTables { input, .. } => write!(f, "no page for a page table at {input:#x}"),
        }
    }
}

impl core::error::Error for MapError {}

/// Why [`PageTable::unmap`](super::PageTable::unmap) or [`PageTable::protect`](super::PageTable::protect) failed.
/// Nothing was changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EditError {
    /// The input address or the length is not a multiple of 4 KiB, or the length is 0.
    Unaligned {
        /// Where the range starts.
        input: u64,
        /// Its length.
        bytes: u64,
    },
    /// The range does not lie within the addresses that the table translates.
    InputBeyondWidth {
        /// Where the range starts.
        input: u64,
        /// Its length.
        bytes: u64,
    },
    /// A superpage that the range covers in part could not be split: there is no page for a table.
    OutOfTables {
        /// An input address inside the superpage.
        input: u64,
    },
}

impl fmt::Display for EditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unaligned { input, bytes } => {
                write!(f, "{bytes:#x} bytes at {input:#x} are not whole pages")
            }
            Self::InputBeyondWidth { input, bytes } => {
                write!(f, "{bytes:#x} bytes at {input:#x} exceed the table's input width")
            }
            Self::OutOfTables { input } => {
                write!(f, "no page for a page table to split the superpage at {input:#x}")
            }
        }
    }
}

impl core::error::Error for EditError {}
