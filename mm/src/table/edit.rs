//! Unmap and protect: clear leaves, or change their permissions.

use super::error::EditError;
use super::format::{Entry, Format, level_bytes};
use super::kept::Place;
use super::leaves;
use super::link::{self, Seen};
use super::lowest::Unmapped;
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::split::Split;
use super::stale::Stale;
use super::tree::{Detached, PageTable, index};
use crate::PAGE_BYTES;
use crate::machine::{AtomicU64, Ordering};

/// What an edit did to one table.
#[derive(Clone, Copy, Default)]
pub(super) struct Edited {
    /// Entries of the table that are empty now and were not.
    pub(super) removed: u64,
    /// Bytes whose mapping changed, in the table and below.
    pub(super) bytes: u64,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Removes what is mapped in the `bytes` bytes from `input`. Where nothing is mapped, nothing is done
    /// ([`Stale::changed_bytes`] tells). Superpages that the range covers in part are split, and the rest of them stays
    /// mapped at every moment.
    ///
    /// # Errors
    /// See [`EditError`]. The table then maps what it mapped before.
    ///
    /// # Safety
    /// - No other call maps, unmaps or protects any part of the input range at the same time.
    /// - Nobody relies on the mapping any more.
    #[inline(always)]
    pub unsafe fn unmap(&self, input: u64, bytes: u64) -> Result<Stale, EditError> {
        let done = if bytes == PAGE_BYTES { self.unmap_page(input) } else { Unmapped::Not };
        let stale = match done {
            Unmapped::Done => Stale::new(self.id(), input, input + (PAGE_BYTES - 1), PAGE_BYTES),
            Unmapped::Emptied | Unmapped::Not => self.unmap_rest(input, bytes, done)?,
        };
        Ok(stale)
    }

    /// What [`unmap`](Self::unmap) does in other cases than the simplest one; `page` says how far that came.
    #[inline(never)]
    fn unmap_rest(&self, input: u64, bytes: u64, page: Unmapped) -> Result<Stale, EditError> {
        if matches!(page, Unmapped::Emptied) {
            return Ok(self.emptied_lowest(input, input + (PAGE_BYTES - 1), 1));
        }
        match self.unmap_run(input, bytes) {
            Some((removed, Unmapped::Done)) => {
                Ok(Stale::new(self.id(), input, input + (bytes - 1), removed * PAGE_BYTES))
            }
            Some((removed, _)) => Ok(self.emptied_lowest(input, input + (bytes - 1), removed)),
            None => self.unmap_anywhere(input, bytes),
        }
    }

    #[inline(never)]
    fn unmap_anywhere(&self, input: u64, bytes: u64) -> Result<Stale, EditError> {
        let last = self.check_edit(input, bytes)?;
        let mut detached = Detached::new();
        let split = self.split(input, last, &mut detached)?;
        let edited = self.clear(self.root_table(), self.format.levels(), (input, last), true, &mut detached);
        let mut stale = self.stale_for(input, last, edited.bytes, detached);
        if let Some(split) = split {
            stale.cover_split(split);
        }
        Ok(stale)
    }

    /// Gives what is mapped in the `bytes` bytes from `input` the permissions and memory type `access`. Where nothing
    /// is mapped, nothing is done. Superpages that the range covers in part are split.
    ///
    /// # Errors
    /// See [`EditError`]. The table then maps what it mapped before, with the permissions that it had.
    ///
    /// # Safety
    /// - No other call maps, unmaps or protects any part of the input range at the same time.
    /// - Whoever walks the table can access the memory with `access`, and nobody relies on more.
    pub unsafe fn protect(&self, input: u64, bytes: u64, access: F::Access) -> Result<Stale, EditError> {
        let last = self.check_edit(input, bytes)?;
        let mut detached = Detached::new();
        let split = self.split(input, last, &mut detached)?;
        let levels = self.format.levels();
        let changed = self.change(self.root_table(), levels, (input, last), access, &mut detached);
        let mut stale = self.stale_for(input, last, changed, detached);
        if let Some(split) = split {
            stale.cover_split(split);
        }
        Ok(stale)
    }

    fn check_edit(&self, input: u64, bytes: u64) -> Result<u64, EditError> {
        if (input | bytes) & (PAGE_BYTES - 1) != 0 || bytes == 0 {
            return Err(EditError::Unaligned { input, bytes });
        }
        match input.checked_add(bytes - 1) {
            Some(last) if self.format.covers(input, last) => Ok(last),
            _ => Err(EditError::InputBeyondWidth { input, bytes }),
        }
    }

    fn split(&self, first: u64, last: u64, detached: &mut Detached) -> Result<Option<Split>, EditError> {
        self.split_edges(first, last, detached).map_err(|input| EditError::OutOfTables { input })
    }

    /// Clears the entries of `table`, pinned by the caller, and of those below it, for `range` (inclusive).
    pub(super) fn clear(
        &self,
        table: &Table,
        level: u8,
        range: (u64, u64),
        keep: bool,
        detached: &mut Detached,
    ) -> Edited {
        let entries = entries_of(table, level, range);
        let mut edited = Edited::default();
        if level == 1 {
            edited.removed = leaves::clear(entries);
            edited.bytes = edited.removed * PAGE_BYTES;
        } else {
            self.clear_upper(entries, level, range, keep, detached, &mut edited);
        }
        if edited.removed != 0 {
            self.write_back(entries);
        }
        edited
    }

    fn clear_upper(
        &self,
        entries: &[AtomicU64],
        level: u8,
        range: (u64, u64),
        keep: bool,
        detached: &mut Detached,
        edited: &mut Edited,
    ) {
        let is_table = |raw| self.format.decode_table(level, raw).is_some();
        let first_entry = range.0 & !(level_bytes(level) - 1);
        let mut next = 0;
        while next < entries.len() {
            let (passed, removed) = leaves::clear_leaves(&entries[next..], is_table);
            edited.removed += removed;
            edited.bytes += removed * level_bytes(level);
            next += passed;
            if let Some(entry) = entries.get(next) {
                let input = first_entry + next as u64 * level_bytes(level);
                let part = (input.max(range.0), (input | (level_bytes(level) - 1)).min(range.1));
                edited.bytes += self.clear_table(entry, level, part, keep, detached);
                next += 1;
            }
        }
    }

    /// Clears the table behind `entry`, if it is still there, for `range` (inclusive). Returns the bytes that were
    /// mapped.
    fn clear_table(
        &self,
        entry: &AtomicU64,
        level: u8,
        range: (u64, u64),
        keep: bool,
        detached: &mut Detached,
    ) -> u64 {
        let Seen::Table(page) = self.pin(level, entry) else { return 0 };
        // SAFETY: pinned in the line above.
        let below = self.clear(unsafe { self.table(page) }, level - 1, range, keep, detached);
        if link::unpin(entry, 1 + below.removed) == 0 {
            self.emptied(Place::new(range.0, level - 1), keep, detached);
        }
        below.bytes
    }

    /// Gives the leaves in `table`, pinned by the caller, and in those below it, for `range` (inclusive), the
    /// permissions `access`. Returns the bytes whose leaves changed.
    fn change(
        &self,
        table: &Table,
        level: u8,
        range: (u64, u64),
        access: F::Access,
        detached: &mut Detached,
    ) -> u64 {
        let entries = entries_of(table, level, range);
        let mut own = 0;
        let mut bytes = 0;
        for (entry, range) in entries.iter().zip(parts(level, range)) {
            match self.pin(level, entry) {
                Seen::Empty => {}
                Seen::Leaf { raw, .. } => own += u64::from(self.change_leaf(entry, level, raw, access)),
                Seen::Table(page) => {
                    // SAFETY: pinned in the match.
                    bytes += self.change(unsafe { self.table(page) }, level - 1, range, access, detached);
                    if link::unpin(entry, 1) == 0 {
                        self.emptied(Place::new(range.0, level - 1), true, detached);
                    }
                }
            }
        }
        if own != 0 {
            self.write_back(entries);
        }
        bytes + own * level_bytes(level)
    }

    /// Gives the leaf `entry`, last seen as `raw`, the permissions `access`, and keeps what hardware has set in it.
    /// Returns whether that is a change.
    fn change_leaf(&self, entry: &AtomicU64, level: u8, mut raw: u64, access: F::Access) -> bool {
        while let Entry::Leaf(output, _) = self.format.decode(level, raw) {
            let new = self.format.encode_leaf(level, output, access) | raw & self.format.hardware_bits();
            if new == raw {
                return false;
            }
            match entry.compare_exchange_weak(raw, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => raw = now,
            }
        }
        false
    }
}

/// The entries of `table` for `range` (inclusive), which lies within the table.
fn entries_of(table: &Table, level: u8, range: (u64, u64)) -> &[AtomicU64] {
    let (first, last) = (index(range.0, level), index(range.1, level));
    table.get(first..=last.min(TABLE_ENTRIES - 1)).unwrap_or(&[])
}

/// `range` (inclusive) cut at the boundaries of entries of `level`.
fn parts(level: u8, range: (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let mut next = Some(range.0);
    core::iter::from_fn(move || {
        let first = next?;
        let entry_last = first | (level_bytes(level) - 1);
        next = if entry_last >= range.1 { None } else { Some(entry_last + 1) };
        Some((first, entry_last.min(range.1)))
    })
}
