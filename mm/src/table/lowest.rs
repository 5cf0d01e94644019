//! The common case: a range within one table of the lowest level.
//!
//! Most changes are of a few pages, in tables that are there. They need no hand-over-hand walk: upper tables of a tree
//! stay tables of this tree for good, wherever they are linked, so that it is safe to read down through them without
//! pinning and to pin the lowest table only. Whether it was the right one is checked afterwards.

use super::format::Format;
use super::kept::Place;
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::stale::Stale;
use super::tree::{Detached, PageTable, index};
use super::{leaves, link};
use crate::machine::{AtomicU64, Ordering};
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysAddr};

/// A lowest table that this thread has pinned, and its link.
pub(super) struct Pinned<'t> {
    pub(super) link: &'t AtomicU64,
    pub(super) table: &'t Table,
    /// Whether no entry was in use, and nobody inside.
    pub(super) was_empty: bool,
}

/// How the simple way to unmap went.
pub(super) enum Unmapped {
    Done,
    /// Done, and the table is empty, and not one that is kept.
    Emptied,
    /// It is not simple; nothing was done.
    Not,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// The table of level 2 on the way to `input`, if that is the address of a page, and there is such a table. The
    /// caller has read the count of departures before.
    #[inline(always)]
    fn level_2(&self, input: u64) -> Option<PhysAddr> {
        if !self.format.has_page(input) {
            return None;
        }
        match self.hint.get(input) {
            Some(page) => Some(page),
            None => self.find_level_2(input),
        }
    }

    /// Finds the table of level 2 on the way to `input`, from the root. It becomes the hint.
    #[inline(never)]
    fn find_level_2(&self, input: u64) -> Option<PhysAddr> {
        let departures = self.departures.load(Ordering::Acquire);
        let mut table = self.root_table();
        let mut page = self.root();
        for level in (3..=self.format.levels()).rev() {
            let raw = table[index(input, level)].load(Ordering::Acquire);
            // Somebody has yet to write this link back: who pins it helps.
            if raw & link::UNWRITTEN != 0 {
                return None;
            }
            page = self.format.decode_table(level, raw)?;
            // SAFETY: a table of an upper level, found through a link.
            table = unsafe { self.table(page) };
        }
        let Pinned { link, .. } = self.pin_below(table, input, departures)?;
        self.hint.set(input, page);
        self.retreat(link, input);
        Some(page)
    }

    /// Pins the lowest table for `input`. `None` if that is not the address of a page, if there is no such table, or on
    /// any doubt.
    #[inline(always)]
    pub(super) fn pin_lowest(&self, input: u64) -> Option<Pinned<'_>> {
        let departures = self.departures.load(Ordering::Acquire);
        let level_2 = self.level_2(input)?;
        // SAFETY: a table of an upper level, found through a link.
        self.pin_below(unsafe { self.table(level_2) }, input, departures)
    }

    /// Pins the lowest table for `input` that `level_2` points to.
    ///
    /// The upper table may have left the tree after this thread had found the way to it, and may have been linked
    /// elsewhere since. While the lowest table is pinned, that cannot happen any more; that it did not happen before is
    /// what the count of departures says, which was `departures` when the thread set out.
    #[inline(always)]
    fn pin_below<'t>(&'t self, level_2: &'t Table, input: u64, departures: u64) -> Option<Pinned<'t>> {
        let link = &level_2[index(input, 2)];
        let (page, references) = link::try_pin(&self.format, 2, link)?;
        if self.departures.load(Ordering::Acquire) != departures {
            // Should this have been the last reference, nobody notes the table: `trim` finds it.
            link::unpin(link, 1);
            return None;
        }
        // SAFETY: pinned above.
        Some(Pinned { link, table: unsafe { self.table(page) }, was_empty: references == 0 })
    }

    /// Maps the page at `input` to `output`, if both are addresses of pages, the lowest table is there, and its entry
    /// is not in use. Returns whether it did; if not, nothing was done.
    #[inline(always)]
    pub(super) fn map_page(&self, input: u64, output: PhysAddr, access: F::Access) -> bool {
        if output.as_u64() & self.no_output != 0 {
            return false;
        }
        let Some(Pinned { link, table, .. }) = self.pin_lowest(input) else { return false };
        let entry = &table[index(input, 1)];
        if entry.load(Ordering::Relaxed) != 0 {
            self.retreat(link, input);
            return false;
        }
        entry.store(self.format.encode_leaf(1, output, access), Ordering::Release);
        self.write_back_entry(entry);
        true
    }

    /// Leaves the lowest table for `input`, which the caller has pinned, as it was.
    #[cold]
    #[inline(never)]
    pub(super) fn retreat(&self, link: &AtomicU64, input: u64) {
        if link::unpin(link, 1) == 0 {
            self.emptied_without_token(Place::new(input, 1));
        }
    }

    /// Unmaps the page at `input`, if it is mapped in a lowest table.
    #[inline(always)]
    pub(super) fn unmap_page(&self, input: u64) -> Unmapped {
        let Some(Pinned { link, table, .. }) = self.pin_lowest(input) else { return Unmapped::Not };
        let entry = &table[index(input, 1)];
        if entry.load(Ordering::Relaxed) == 0 {
            self.retreat(link, input);
            return Unmapped::Not;
        }
        entry.store(0, Ordering::Release);
        self.write_back_entry(entry);
        self.let_go(link, input, 1)
    }

    /// Unmaps the `bytes` bytes from `input`, if they are pages in one lowest table that is there. Returns how many
    /// were mapped. `None`: nothing was done.
    #[inline(always)]
    pub(super) fn unmap_run(&self, input: u64, bytes: u64) -> Option<(u64, Unmapped)> {
        let first = index(input, 1);
        let pages =
            usize::try_from(bytes >> PAGE_SHIFT).ok().filter(|pages| *pages <= TABLE_ENTRIES - first)?;
        if bytes & (PAGE_BYTES - 1) != 0 || pages == 0 {
            return None;
        }
        let Pinned { link, table, .. } = self.pin_lowest(input)?;
        let entries = &table[first..][..pages];
        let removed = leaves::clear(entries);
        self.write_back(entries);
        Some((removed, self.let_go(link, input, removed)))
    }

    /// Unpins the lowest table for `input`, of which `removed` entries were emptied.
    #[inline(always)]
    fn let_go(&self, link: &AtomicU64, input: u64, removed: u64) -> Unmapped {
        if link::unpin(link, 1 + removed) == 0 && !self.kept.has(Place::new(input, 1)) {
            Unmapped::Emptied
        } else {
            Unmapped::Done
        }
    }

    /// The token for a change of `removed` pages in `first..=last`, which has emptied the lowest table that they are
    /// in.
    #[cold]
    #[inline(never)]
    pub(super) fn emptied_lowest(&self, first: u64, last: u64, removed: u64) -> Stale {
        let mut detached = Detached::new();
        self.emptied(Place::new(first, 1), true, &mut detached);
        self.stale_for(first, last, removed * PAGE_BYTES, detached)
    }
}
