//! Why a table cannot be read.

use core::fmt;

use super::{HEADER_BYTES, MAX_STRUCTURES, MAX_TABLE_BYTES, StructureKind};

/// Why a table cannot be read. Offsets count bytes from the start of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmarError {
    /// Fewer bytes than a header has.
    HeaderTruncated {
        /// Number of bytes there.
        available: usize,
    },
    /// The table is another one.
    Signature {
        /// Its first four bytes.
        found: [u8; 4],
    },
    /// The table's length leaves out part of the header.
    TableTooShort {
        /// Length in bytes, as the header says.
        length: u32,
    },
    /// The table is longer than [`MAX_TABLE_BYTES`].
    TableTooLong {
        /// Length in bytes, as the header says.
        length: u32,
    },
    /// The table is longer than the bytes handed over, although the structures in these are whole.
    TableTruncated {
        /// Length in bytes, as the header says.
        length: u32,
        /// Number of bytes there.
        available: usize,
    },
    /// More than [`MAX_STRUCTURES`] structures.
    TooManyStructures {
        /// Where the first one too many starts.
        offset: usize,
    },
    /// A structure's length, which may be 0, does not cover its fixed fields.
    StructureTooShort {
        /// What the structure says it is.
        kind: StructureKind,
        /// Where it starts.
        offset: usize,
        /// Length in bytes, as it says.
        length: usize,
        /// Bytes of its fixed fields.
        minimum: usize,
    },
    /// A structure reaches beyond the end of the table.
    StructurePastEnd {
        /// What the structure says it is.
        kind: StructureKind,
        /// Where it starts.
        offset: usize,
        /// Length in bytes, as it says.
        length: usize,
        /// Bytes from its start to the end of the table.
        available: usize,
    },
    /// A device scope's length, which may be 0, is not that of its fixed fields and a path of at least one hop.
    ScopeLength {
        /// The structure that holds the scope.
        kind: StructureKind,
        /// Where that structure starts.
        structure: usize,
        /// Where the scope starts.
        offset: usize,
        /// Length in bytes, as it says.
        length: usize,
    },
    /// A device scope reaches beyond the end of its structure, into the next.
    ScopePastEnd {
        /// The structure that holds the scope.
        kind: StructureKind,
        /// Where that structure starts.
        structure: usize,
        /// Where the scope starts.
        offset: usize,
        /// Bytes from its start to the end of the structure.
        available: usize,
    },
}

impl DmarError {
    /// Where in the table the trouble is: the header's field, the structure or the device scope.
    #[must_use]
    pub const fn offset(&self) -> usize {
        match *self {
            Self::Signature { .. } => 0,
            Self::TableTooShort { .. } | Self::TableTooLong { .. } => 4,
            Self::HeaderTruncated { available } | Self::TableTruncated { available, .. } => available,
            Self::TooManyStructures { offset }
            | Self::StructureTooShort { offset, .. }
            | Self::StructurePastEnd { offset, .. }
            | Self::ScopeLength { offset, .. }
            | Self::ScopePastEnd { offset, .. } => offset,
        }
    }
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::HeaderTruncated { available } => {
                write!(f, "header truncated: {available} of {HEADER_BYTES} bytes")
            }
            Self::Signature { found } => write!(f, "signature is \"{}\", not \"DMAR\"", found.escape_ascii()),
            Self::TableTooShort { length } => {
                write!(f, "header at offset 0x4: table length {length} is below the header's {HEADER_BYTES}")
            }
            Self::TableTooLong { length } => {
                write!(f, "header at offset 0x4: table length {length} is above {MAX_TABLE_BYTES}")
            }
            Self::TableTruncated { length, available } => {
                write!(f, "table truncated at offset {available:#x}: its length is {length:#x}")
            }
            Self::TooManyStructures { offset } => {
                write!(f, "structure at offset {offset:#x} is one more than {MAX_STRUCTURES}")
            }
            Self::StructureTooShort { kind, offset, length, minimum } => {
                write!(f, "{kind} at offset {offset:#x}: length {length} is below {minimum}")
            }
            Self::StructurePastEnd { kind, offset, length, available } => {
                write!(
                    f,
                    "{kind} at offset {offset:#x}: length {length} passes the table's end, {available} bytes on"
                )
            }
            Self::ScopeLength { kind, structure, offset, length } => write!(
                f,
                "device scope at offset {offset:#x} in {kind} at {structure:#x}: length {length} is not 6 and 2 for each \
                 hop of a path"
            ),
            Self::ScopePastEnd { kind, structure, offset, available } => write!(
                f,
                "device scope at offset {offset:#x} in {kind} at {structure:#x}: passes the structure's end, {available} \
                 bytes on"
            ),
        }
    }
}

impl core::error::Error for DmarError {}
