//! The common case: a range within one table of the lowest level.
//!
//! Most changes are of a few pages, in tables that are there. They need no hand-over-hand walk: upper tables of a tree
//! stay tables of this tree for good, wherever they are linked, so that it is safe to read down through them without
//! pinning and to pin the lowest table only. Whether it was the right one is checked afterwards.

use super::format::{Entry, Format, level_bytes};
use super::kept::Place;
use super::memory::{Table, TableMemory};
use super::stale::Stale;
use super::tree::{Detached, PageTable, index};
use super::{leaves, link};
use crate::machine::{AtomicU64, Ordering};
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysRange};

/// Bytes that a table of the lowest level maps.
const TABLE_BYTES: u64 = level_bytes(2);

/// A lowest table that this thread has pinned.
struct Pinned<'t> {
    link: &'t AtomicU64,
    table: &'t Table,
    /// Whether no entry was in use, and nobody else inside.
    was_empty: bool,
}

/// How a simple map went.
pub(super) enum Simple {
    Done,
    /// It is not simple; nothing was done.
    Not,
    /// The leaf after this many, which are written, is in use.
    Occupied(u64),
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Pins the lowest table for `input`. `None` if there is none, or on any doubt.
    ///
    /// The link that is pinned was an entry of an upper table that may have left the tree after this thread had read
    /// the way to it, and that may have been linked elsewhere since. While the lowest table is pinned, that cannot happen
    /// any more; that it did not happen before is what the count of departures says.
    #[inline]
    fn pin_lowest(&self, input: u64) -> Option<Pinned<'_>> {
        let departures = self.departures.load(Ordering::Acquire);
        let mut table = self.root_table();
        let levels = self.format.levels();
        if levels >= 5 {
            table = self.upper(table, 5, input)?;
        }
        if levels >= 4 {
            table = self.upper(table, 4, input)?;
        }
        table = self.upper(table, 3, input)?;
        let link = &table[index(input, 2)];
        let (page, references) = link::try_pin(&self.format, 2, link)?;
        if self.departures.load(Ordering::Acquire) != departures {
            // Should this have been the last reference, nobody notes the table: `trim` finds it.
            link::unpin(link, 1);
            return None;
        }
        // SAFETY: pinned above.
        Some(Pinned { link, table: unsafe { self.table(page) }, was_empty: references == 0 })
    }

    /// The table behind the entry for `input` of `table`, which is of `level`, 3 or more.
    #[inline]
    fn upper(&self, table: &Table, level: u8, input: u64) -> Option<&Table> {
        let raw = table[index(input, level)].load(Ordering::Acquire);
        let Entry::Table(page) = self.format.decode(level, raw) else { return None };
        // SAFETY: a table of an upper level, found through a link.
        Some(unsafe { self.table(page) })
    }

    /// Whether the `bytes` bytes from `input` are whole pages in one lowest table, and not all of it (which a superpage
    /// might map).
    #[inline]
    fn is_within_lowest(&self, input: u64, bytes: u64) -> bool {
        let reach = bytes.wrapping_sub(1);
        let last = input.wrapping_add(reach);
        (input | bytes) & (PAGE_BYTES - 1) == 0
            && reach < TABLE_BYTES - 1
            && (input ^ last) < TABLE_BYTES
            && self.format.covers(input, last)
    }

    /// Maps `segment` at `input` if that is simple.
    #[inline]
    pub(super) fn map_in_lowest(&self, input: u64, segment: &PhysRange, access: F::Access) -> Simple {
        let start = segment.start.as_u64();
        let is_output = start & (PAGE_BYTES - 1) == 0
            && start.wrapping_add(segment.bytes.wrapping_sub(1)) >> self.format.output_bits() == 0;
        if !is_output || !self.is_within_lowest(input, segment.bytes) {
            return Simple::Not;
        }
        let Some(Pinned { link, table, was_empty }) = self.pin_lowest(input) else { return Simple::Not };
        let entries = &table[index(input, 1)..][..(segment.bytes >> PAGE_SHIFT) as usize];
        let raw = self.format.encode_leaf(1, segment.start, access);
        if was_empty {
            leaves::fill(entries, raw, PAGE_BYTES);
        } else {
            let written = leaves::fill_unused(entries, raw, PAGE_BYTES);
            if written != entries.len() {
                return self.retreat(link, input, written as u64);
            }
        }
        link::settle(link, entries.len() as u64);
        self.write_back(entries);
        Simple::Done
    }

    #[cold]
    fn retreat(&self, link: &AtomicU64, input: u64, written: u64) -> Simple {
        if written != 0 {
            link::settle(link, written);
        } else if link::unpin(link, 1) == 0 {
            self.emptied_without_token(Place::new(input, 1));
        }
        Simple::Occupied(written)
    }

    /// Unmaps the `bytes` bytes from `input` if that is simple.
    #[inline]
    pub(super) fn unmap_in_lowest(&self, input: u64, bytes: u64) -> Option<Stale> {
        if !self.is_within_lowest(input, bytes) {
            return None;
        }
        let Pinned { link, table, .. } = self.pin_lowest(input)?;
        let entries = &table[index(input, 1)..][..(bytes >> PAGE_SHIFT) as usize];
        let removed = leaves::clear(entries);
        self.write_back(entries);
        let mut detached = Detached::new();
        if link::unpin(link, 1 + removed) == 0 {
            self.emptied(Place::new(input, 1), true, &mut detached);
        }
        Some(self.stale_for(input, input + (bytes - 1), removed * PAGE_BYTES, detached))
    }
}
