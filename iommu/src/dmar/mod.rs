//! The ACPI DMAR table: firmware's description of the remapping hardware.
//!
//! Firmware is untrusted (design invariant 5). [`Dmar::parse`] looks at every structure and every device scope once and
//! either accepts the whole table or names the structure and the offset that cannot be read; the iterators behind it
//! cannot fail any more. What can be read but should not be there is not an error: [`Dmar::warnings`] lists it, and the
//! caller decides.
//!
//! Nothing is allocated and nothing is copied but the fields themselves: all types borrow the table's bytes, so that
//! the parser can run before there is a heap. Every loop is bounded by [`MAX_TABLE_BYTES`] and [`MAX_STRUCTURES`].
//!
//! ```text
//! header 48 bytes | structure | structure | ...
//!                   type u16, length u16, fields, device scopes or a name
//!                                         type u8, length u8, .., id, bus, path of (device, function)
//! ```

#[cfg(any(test, feature = "dmar-builder"))]
pub mod builder;
mod check;
mod error;
mod header;
mod read;
mod region;
mod scope;
mod structure;
#[cfg(test)]
mod tests;
mod unit;
mod walk;
mod warning;

pub use error::DmarError;
pub use header::{HEADER_BYTES, Header, HeaderFlags};
pub use region::Rmrr;
pub use scope::{Hop, Path, Scope, ScopeFlags, ScopeKind, Scopes};
pub use structure::{Andd, Atsr, Rhsa, Satc, Sidp, Structure, StructureKind, Unknown};
pub use unit::Drhd;
pub use warning::Warning;

use walk::Cursor;

/// A table longer than this, in bytes, is refused. The largest that is known of a real machine has a few thousand.
pub const MAX_TABLE_BYTES: usize = 256 << 10;

/// A table with more structures than this is refused: checks that compare structures are quadratic.
pub const MAX_STRUCTURES: usize = 4096;

/// A DMAR table whose structures and scopes have all been found readable.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'a> {
    header: Header,
    /// What the header calls the table: from the signature to the last byte of the last structure.
    table: &'a [u8],
    /// Bytes handed over beyond the end of the table.
    surplus: usize,
}

impl<'a> Dmar<'a> {
    /// Reads a table from its signature on. `bytes` may be longer than the table; what follows it earns a warning.
    ///
    /// # Errors
    /// If any part of the table cannot be read; see [`DmarError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        match Self::parse_prefix(bytes)? {
            (dmar, None) => Ok(dmar),
            (_, Some(error)) => Err(error),
        }
    }

    /// As [`parse`](Self::parse), but keeps the structures before the first one that cannot be read, for a person to
    /// look at. A kernel must not use a table that came with an error: a reserved range that it does not know of is one
    /// that it blocks.
    ///
    /// # Errors
    /// If not even the header can be read.
    pub fn parse_prefix(bytes: &'a [u8]) -> Result<(Self, Option<DmarError>), DmarError> {
        let header = Header::parse(bytes)?;
        let length = header.length as usize;
        let (table, surplus) = bytes.split_at(bytes.len().min(length));

        let mut cursor = Cursor::new(table);
        let mut result = cursor.advance_to_end();
        if table.len() < length {
            result =
                result.and(Err(DmarError::TableTruncated { length: header.length, available: table.len() }));
        }
        match result {
            Ok(()) => Ok((Self { header, table, surplus: surplus.len() }, None)),
            Err(error) => {
                let (readable, _) = table.split_at(cursor.offset());
                Ok((Self { header, table: readable, surplus: 0 }, Some(error)))
            }
        }
    }

    /// The fields in front of the structures.
    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// All structures, in the order of the table.
    pub fn structures(&self) -> impl Iterator<Item = Structure<'a>> + use<'a> {
        let mut cursor = Cursor::new(self.table);
        // `parse` has seen every structure: there is no error left to stop at.
        core::iter::from_fn(move || cursor.advance()?.ok())
    }

    /// The remapping units. A unit's number, wherever one is given, is its position in this order.
    pub fn units(&self) -> impl Iterator<Item = Drhd<'a>> + use<'a> {
        self.structures().filter_map(|structure| match structure {
            Structure::Drhd(drhd) => Some(drhd),
            _ => None,
        })
    }

    /// The reserved memory regions.
    pub fn reserved_regions(&self) -> impl Iterator<Item = Rmrr<'a>> + use<'a> {
        self.structures().filter_map(|structure| match structure {
            Structure::Rmrr(rmrr) => Some(rmrr),
            _ => None,
        })
    }

    /// Tells `report` of everything that can be read but is wrong or suspicious, in the order of the table.
    ///
    /// The number of warnings is bounded only by the size of the table: a kernel that logs them sets its own limit.
    pub fn warnings(&self, mut report: impl FnMut(Warning)) {
        check::header(self, &mut report);
        check::structures(self, &mut report);
    }

    /// Offset and number of the bytes after the last structure: too few for another, or beyond the table's length.
    fn trailing(&self) -> (usize, usize) {
        let mut cursor = Cursor::new(self.table);
        while let Some(Ok(_)) = cursor.advance() {}
        (cursor.offset(), self.table.len() - cursor.offset() + self.surplus)
    }
}
