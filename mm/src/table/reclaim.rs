//! What becomes of empty tables.

use super::format::{Entry, Format, level_bytes};
use super::kept::Place;
use super::link::{self, Seen};
use super::memory::{Table, TableMemory};
use super::stale::Stale;
use super::tree::{Detached, PageTable, index};
use crate::machine::{AtomicU64, Ordering};

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Takes every empty table out of the tree. `None` if there was none.
    #[must_use]
    pub fn trim(&self) -> Option<Stale> {
        let mut detached = Detached::new();
        self.sweep(self.root_table(), self.format.levels(), 0, &mut detached);
        self.stale_of(detached)
    }

    /// Takes the empty tables below `table`, pinned by the caller, out; `first` is its first input. Returns how many
    /// entries of it are empty now that were not.
    fn sweep(&self, table: &Table, level: u8, first: u64, detached: &mut Detached) -> u64 {
        let inputs = (0..).map(|index| self.canonical(first + index * level_bytes(level)));
        table.iter().zip(inputs).map(|(entry, input)| self.sweep_entry(entry, level, input, detached)).sum()
    }

    /// `input` as the format wants it, whose unused high bits may have to repeat the highest one that is used.
    fn canonical(&self, input: u64) -> u64 {
        let unused = !(level_bytes(self.format.levels() + 1) - 1);
        if self.format.covers(input, input) { input } else { input | unused }
    }

    fn sweep_entry(&self, entry: &AtomicU64, level: u8, input: u64, detached: &mut Detached) -> u64 {
        if level > 2 {
            let Seen::Table(below) = self.pin(level, entry) else { return 0 };
            // SAFETY: pinned in the line above.
            let removed = self.sweep(unsafe { self.table(below) }, level - 1, input, detached);
            if link::unpin(entry, 1 + removed) != 0 {
                return 0;
            }
        }
        u64::from(self.detach(entry, Place::new(input, level - 1), detached))
    }

    /// Sees to the table at `place`, which the caller has just emptied: if `keep`, it stays in a slot, and what was in
    /// the slot goes; else it goes itself.
    pub(super) fn emptied(&self, place: Place, keep: bool, detached: &mut Detached) {
        let victim = if keep { self.kept.offer(place) } else { Some(place) };
        if let Some(victim) = victim {
            self.reclaim(self.root_table(), self.format.levels(), victim, detached);
        }
    }

    /// The same for a caller that has no token to put tables in.
    #[cold]
    pub(super) fn emptied_without_token(&self, place: Place) {
        let mut detached = Detached::new();
        self.emptied(place, true, &mut detached);
        self.orphan(detached);
    }

    /// Takes the table at `place` out if it is there and empty, and the tables above it that this leaves empty.
    /// Returns how many entries of `table`, pinned by the caller, are empty now that were not.
    fn reclaim(&self, table: &Table, level: u8, place: Place, detached: &mut Detached) -> u64 {
        let entry = &table[index(place.first(), level)];
        if level > place.level() + 1 {
            let Seen::Table(below) = self.pin(level, entry) else { return 0 };
            // SAFETY: pinned in the line above.
            let removed = self.reclaim(unsafe { self.table(below) }, level - 1, place, detached);
            if link::unpin(entry, 1 + removed) != 0 {
                return 0;
            }
        }
        u64::from(self.detach(entry, Place::new(place.first(), level - 1), detached))
    }

    /// Takes the table at `place` out of the tree if its link `entry` says that it is empty.
    fn detach(&self, entry: &AtomicU64, place: Place, detached: &mut Detached) -> bool {
        let mut raw = entry.load(Ordering::SeqCst);
        loop {
            let Entry::Table(page) = self.format.decode(place.level() + 1, raw) else { return false };
            if link::count(raw) != 0 {
                return false;
            }
            match self.unlink(entry, (raw, 0), (page, place), detached) {
                Ok(()) => return true,
                Err(now) => raw = now,
            }
        }
    }
}
