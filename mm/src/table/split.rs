//! Split a superpage into a table of smaller leaves.

use super::atomic::Ordering;
use super::error::OutOfTables;
use super::format::{Format, LeafSizes, level_bytes};
use super::kept::Place;
use super::link::{self, Seen};
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::tree::{Detached, PageTable, index};
use crate::PhysAddr;

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Sees to it that no leaf below `table`, pinned by the caller, reaches over `boundary`. Returns whether there was
    /// one.
    pub(super) fn split_at(
        &self,
        table: &Table,
        level: u8,
        boundary: u64,
        detached: &mut Detached,
    ) -> Result<bool, OutOfTables> {
        if boundary & (level_bytes(level) - 1) == 0 {
            return Ok(false);
        }
        let entry = &table[index(boundary, level)];
        let mut was_split = false;
        loop {
            match link::pin(&self.format, level, entry) {
                Seen::Empty => return Ok(was_split),
                Seen::Table(page) => {
                    // SAFETY: pinned in the match.
                    let below = self.split_at(unsafe { self.table(page) }, level - 1, boundary, detached);
                    if link::unpin(entry, 1) == 0 {
                        self.emptied(Place::new(boundary, level - 1), true, detached);
                    }
                    return below.map(|split| split || was_split);
                }
                Seen::Leaf { raw, output, access } => {
                    let (page, was_spare) = self.allocate(level - 1).ok_or(OutOfTables)?;
                    let kept_bits = raw & self.format.hardware_bits();
                    let new = self.build_split(page, level - 1, output, access, kept_bits);
                    // One store turns the leaf into a table that says the same. Whoever owns the other part of the
                    // superpage may come first; hardware may set a bit in the leaf. Both fail the exchange.
                    if entry.compare_exchange(raw, new, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                        self.write_back(core::slice::from_ref(entry));
                        was_split = true;
                    } else {
                        self.discard_split(page, level - 1, was_spare);
                    }
                }
            }
        }
    }

    /// Fills the new table `page` of `level` with leaves that map `output` with `access`; each keeps the bits `kept`.
    /// Returns the entry that links it.
    fn build_split(&self, page: PhysAddr, level: u8, output: PhysAddr, access: F::Access, kept: u64) -> u64 {
        debug_assert!(level == 1 || self.format.leaf_sizes().contains(LeafSizes::SIZE_2M));
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

    fn discard_split(&self, page: PhysAddr, level: u8, was_spare: bool) {
        // SAFETY: not linked.
        for entry in unsafe { self.table(page) } {
            entry.store(0, Ordering::Relaxed);
        }
        self.discard(page, level, was_spare);
    }
}
