//! Split superpages into tables of smaller leaves.

use super::format::{Entry, Format, LeafSizes, level_bytes, level_shift};
use super::kept::Place;
use super::link::{self, Seen};
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::tree::{Detached, PageTable, index};
use crate::PhysAddr;
use crate::machine::Ordering;

/// A page for a new table, and whether it was spare.
type NewPage = (PhysAddr, bool);

/// The pages that the splits at both ends of a range take: at most two tables of level 1 and two of level 2. They are
/// allocated before anything is split, so that a shortage changes nothing.
#[derive(Default)]
struct Reserve {
    pages: [[Option<NewPage>; 2]; 2],
}

/// The inputs of superpages that were split, from the first to the last of them.
#[derive(Clone, Copy)]
pub(super) struct Split {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Split {
    /// The leaf of `level` around `border`, besides `other`.
    fn around(border: u64, level: u8, other: Option<Self>) -> Self {
        let (first, last) = (border & !(level_bytes(level) - 1), border | (level_bytes(level) - 1));
        other.map_or(Self { first, last }, |other| Self {
            first: other.first.min(first),
            last: other.last.max(last),
        })
    }
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Sees to it that no superpage reaches over the start or the end of `first..=last`. Returns those that did.
    pub(super) fn split_edges(
        &self,
        first: u64,
        last: u64,
        detached: &mut Detached,
    ) -> Result<Option<Split>, u64> {
        if !self.format.leaf_sizes().contains(LeafSizes::SIZE_2M) {
            return Ok(None);
        }
        // The end is the address after the last, unless that is beyond the last of all.
        let borders = [Some(first), last.checked_add(1)];
        let mut reserve = Reserve::default();
        let reserved = self.fill_reserve(&mut reserve, borders);
        let mut split = None;
        if reserved.is_ok() && !reserve.is_empty() {
            for border in borders.into_iter().flatten() {
                let levels = self.format.levels();
                match self.split_at(self.root_table(), levels, border, &mut reserve, detached) {
                    0 => {}
                    level => split = Some(Split::around(border, level, split)),
                }
            }
        }
        for (pages, level) in reserve.pages.into_iter().zip(1..) {
            pages.into_iter().flatten().for_each(|(page, was_spare)| self.discard(page, level, was_spare));
        }
        reserved.map(|()| split)
    }

    fn fill_reserve(&self, reserve: &mut Reserve, borders: [Option<u64>; 2]) -> Result<(), u64> {
        for level in 2..=3 {
            // Both borders may be in the same superpage, which is split once.
            let mut split = None;
            for border in borders.into_iter().flatten() {
                let entry = border >> level_shift(level);
                let is_inside = border & (level_bytes(level) - 1) != 0;
                if is_inside && split != Some(entry) && self.superpage_at(border) >= level {
                    reserve.put(level - 1, self.allocate(level - 1).ok_or(border)?);
                    split = Some(entry);
                }
            }
        }
        Ok(())
    }

    /// Level of the superpage that `border` is in, or 0.
    ///
    /// Pins nothing, as in `lowest.rs`. A superpage of which the caller owns a part keeps the tables above it in their
    /// places, so it is not missed; one seen where there is none costs a page that is given back.
    fn superpage_at(&self, border: u64) -> u8 {
        let mut table = self.root_table();
        for level in (2..=self.format.levels()).rev() {
            match self.format.decode(level, table[index(border, level)].load(Ordering::Acquire)) {
                Entry::Leaf(..) => return level,
                // SAFETY: a table of an upper level, found through a link.
                Entry::Table(page) if level > 2 => table = unsafe { self.table(page) },
                Entry::Table(_) | Entry::Empty => return 0,
            }
        }
        0
    }

    /// Sees to it that no leaf below `table`, pinned by the caller, reaches over `border`. Returns the level of the one
    /// that did, or 0.
    fn split_at(
        &self,
        table: &Table,
        level: u8,
        border: u64,
        reserve: &mut Reserve,
        detached: &mut Detached,
    ) -> u8 {
        if border & (level_bytes(level) - 1) == 0 {
            return 0;
        }
        let entry = &table[index(border, level)];
        let mut split = 0;
        loop {
            match self.pin(level, entry) {
                Seen::Empty => return split,
                Seen::Table(page) => {
                    // SAFETY: pinned in the match.
                    let below = unsafe { self.table(page) };
                    split = split.max(self.split_at(below, level - 1, border, reserve, detached));
                    if link::unpin(entry, 1) == 0 {
                        self.emptied(Place::new(border, level - 1), true, detached);
                    }
                    return split;
                }
                Seen::Leaf { raw, output, access } => {
                    // The leaf was here when the reserve was filled: only its owner adds leaves, and that is the
                    // caller.
                    let Some((page, was_spare)) = reserve.take(level - 1) else { return split };
                    let kept = raw & self.format.hardware_bits();
                    let new = self.build_split(page, level - 1, output, access, kept);
                    // One store turns the leaf into a table that says the same. Who owns another part of the superpage
                    // may come first, and hardware may set a bit in the leaf: then the exchange fails.
                    if self.link(entry, raw, new) {
                        split = level;
                    } else {
                        self.clear_split(page);
                        reserve.put(level - 1, (page, was_spare));
                    }
                }
            }
        }
    }

    /// Fills the new table `page` of `level` with leaves that map `output` with `access`; each has the bits `kept`.
    /// Returns the entry that links it.
    fn build_split(&self, page: PhysAddr, level: u8, output: PhysAddr, access: F::Access, kept: u64) -> u64 {
        // SAFETY: not linked yet.
        let table = unsafe { self.table(page) };
        let mut raw = self.format.encode_leaf(level, output, access) | kept;
        for entry in table {
            entry.store(raw, Ordering::Relaxed);
            raw += level_bytes(level);
        }
        self.write_back(table);
        link::with_count(self.format.encode_table(page), TABLE_ENTRIES as u64)
    }

    fn clear_split(&self, page: PhysAddr) {
        // SAFETY: not linked.
        unsafe { self.table(page) }.iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
    }
}

impl Reserve {
    fn is_empty(&self) -> bool {
        self.pages.iter().flatten().all(Option::is_none)
    }

    fn of_level(&mut self, level: u8) -> &mut [Option<NewPage>; 2] {
        &mut self.pages[usize::from(level != 1)]
    }

    /// Adds a page for a table of `level`. There is room for all that two borders need.
    fn put(&mut self, level: u8, page: NewPage) {
        if let Some(slot) = self.of_level(level).iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(page);
        }
    }

    fn take(&mut self, level: u8) -> Option<NewPage> {
        self.of_level(level).iter_mut().find_map(Option::take)
    }
}
