//! From one structure to the next.

use super::{DmarError, HEADER_BYTES, MAX_STRUCTURES, Structure, StructureKind, read::u16_at};

/// A place in the table: between two structures, or in front of one that cannot be read.
#[derive(Clone, Debug)]
pub(super) struct Cursor<'a> {
    table: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    /// In front of the first structure.
    pub(super) const fn new(table: &'a [u8]) -> Self {
        Self { table, offset: HEADER_BYTES }
    }

    /// Where the next structure starts; at the end, where the bytes start that are too few for one.
    pub(super) const fn offset(&self) -> usize {
        self.offset
    }

    /// Reads the next structure, but not its scopes, and moves behind it; `None` if too few bytes are left for a type
    /// and a length. Stays in front of a structure that cannot be read: a caller has to stop there.
    pub(super) fn advance(&mut self) -> Option<Result<Structure<'a>, DmarError>> {
        let offset = self.offset;
        let rest = self.table.get(offset..)?;
        let kind = StructureKind::from_raw(u16_at(rest, 0)?);
        let length = usize::from(u16_at(rest, 2)?);
        let structure = match rest.get(..length) {
            Some(bytes) => Structure::parse(kind, bytes, offset),
            None => Err(DmarError::StructurePastEnd { kind, offset, length, available: rest.len() }),
        };
        if structure.is_ok() {
            // At least the type and the length: a shorter structure is an error.
            self.offset += length;
        }
        Some(structure)
    }

    /// Moves to the end, or in front of the first structure that cannot be read, itself or one of its scopes.
    pub(super) fn advance_to_end(&mut self) -> Result<(), DmarError> {
        for _ in 0..MAX_STRUCTURES {
            let offset = self.offset;
            let Some(structure) = self.advance() else { return Ok(()) };
            if let Some(scopes) = structure?.scopes() {
                scopes.check().inspect_err(|_| self.offset = offset)?;
            }
        }
        match self.clone().advance() {
            Some(_) => Err(DmarError::TooManyStructures { offset: self.offset }),
            None => Ok(()),
        }
    }
}
