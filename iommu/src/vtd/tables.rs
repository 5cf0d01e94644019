//! The root table of a unit and the context tables below it: who translates through what.
//!
//! This is the only place that knows their layout, so that scalable-mode tables can join without a domain noticing.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{Table, TableMemory},
};

use super::spec::{ContextEntry, RootEntry};
use crate::{
    Platform, SourceId,
    dma::DmaError,
    reach::{HostWidth, TableError, TableKind},
};

/// 64-bit words in a root or context entry.
const ENTRY_WORDS: usize = 2;

/// The tables of one unit. They live as long as the unit, whose hardware walks them.
#[derive(Debug)]
pub(super) struct ContextTables<P: Platform> {
    platform: Arc<P>,
    root: PhysAddr,
    /// What the unit reaches.
    width: HostWidth,
    /// Whether the unit snoops the CPU's caches (ECAP.C).
    coherent: bool,
}

impl<P: Platform> ContextTables<P> {
    /// An empty root table: every request is blocked.
    pub fn new(platform: Arc<P>, width: HostWidth, coherent: bool) -> Result<Self, TableError> {
        let root = width.page(platform.tables(), TableKind::Root)?;
        let tables = Self { platform, root, width, coherent };
        tables.write_back_page(root);
        Ok(tables)
    }

    /// Address of the root table.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// The entry of `source`, if it is present.
    pub fn entry(&self, source: SourceId) -> Option<ContextEntry> {
        let words = self.context_words(source)?;
        let entry = ContextEntry::from_bits(load(words));
        entry.present().then_some(entry)
    }

    /// Stores `entry` for `source`, whose entry must not be present. Whether its faults are recorded stays as it was said.
    pub fn publish(&mut self, source: SourceId, entry: ContextEntry) -> Result<(), DmaError> {
        debug_assert!(self.entry(source).is_none(), "the context entry of {source} is present");
        let words = match self.context_words(source) {
            Some(words) => words,
            None => {
                self.add_context_table(source)?;
                self.context_words(source).ok_or(DmaError::OutOfMemory)?
            }
        };
        let is_muted = ContextEntry::from_bits(load(words)).fault_reporting_disabled();
        self.store(words, entry.with_fault_reporting_disabled(is_muted).into_bits());
        Ok(())
    }

    /// Clears Present in the entry of `source`, leaving the rest for the unit to finish walks with, and returns what
    /// it was. The unit may go on using it until it is invalidated.
    pub fn withdraw(&mut self, source: SourceId) -> Option<ContextEntry> {
        let entry = self.entry(source)?;
        let words = self.context_words(source)?;
        words[0].store(entry.with_present(false).into_bits() as u64, Ordering::Release);
        self.write_back(words);
        Some(entry)
    }

    /// Says whether faults of `source`, whose entry is not present, are recorded (FPD). Returns whether the entry changed.
    pub fn set_reporting(&mut self, source: SourceId, reports: bool) -> Result<bool, DmaError> {
        let words = match self.context_words(source) {
            Some(words) => words,
            None if reports => return Ok(false),
            None => {
                self.add_context_table(source)?;
                self.context_words(source).ok_or(DmaError::OutOfMemory)?
            }
        };
        let before = ContextEntry::from_bits(load(words));
        let entry = before.with_fault_reporting_disabled(!reports);
        if before.present() || entry == before {
            return Ok(false);
        }
        words[0].store(entry.into_bits() as u64, Ordering::Release);
        self.write_back(words);
        Ok(true)
    }

    /// The entries that `source` leads to: of the root table, and of its context table, as far as they are there.
    pub fn way(&self, source: SourceId) -> (RootEntry, Option<ContextEntry>) {
        let root = RootEntry::from_bits(load(entry_words(self.table(self.root), source.bus())));
        let context = self.context_words(source).map(|words| ContextEntry::from_bits(load(words)));
        (root, context)
    }

    /// Links an empty context table for the bus of `source`.
    fn add_context_table(&mut self, source: SourceId) -> Result<(), DmaError> {
        let page = self.width.page(self.platform.tables(), TableKind::Context)?;
        self.write_back_page(page);
        let words = entry_words(self.table(self.root), source.bus());
        self.store(words, RootEntry::to_context_table(page).into_bits());
        Ok(())
    }

    fn context_words(&self, source: SourceId) -> Option<&[AtomicU64]> {
        let root_entry = RootEntry::from_bits(load(entry_words(self.table(self.root), source.bus())));
        Some(entry_words(self.table(root_entry.context_table()?), source.devfn()))
    }

    fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: only the root and pages that `add_context_table` linked get here; none of them is ever freed.
        unsafe { self.platform.tables().table(page) }
    }

    /// Stores an entry that was not present: the word with Present last, so that the unit never sees half of it.
    fn store(&self, words: &[AtomicU64], bits: u128) {
        words[1].store((bits >> 64) as u64, Ordering::Relaxed);
        words[0].store(bits as u64, Ordering::Release);
        self.write_back(words);
    }

    fn write_back(&self, words: &[AtomicU64]) {
        if !self.coherent {
            self.platform.tables().write_back(words.as_ptr().cast(), size_of_val(words));
        }
    }

    fn write_back_page(&self, page: PhysAddr) {
        if !self.coherent {
            self.platform.tables().write_back(self.table(page).as_ptr().cast(), PAGE_BYTES as usize);
        }
    }
}

/// The words of entry `index`.
fn entry_words(table: &Table, index: u8) -> &[AtomicU64] {
    let first = usize::from(index) * ENTRY_WORDS;
    &table[first..first + ENTRY_WORDS]
}

fn load(words: &[AtomicU64]) -> u128 {
    u128::from(words[1].load(Ordering::Relaxed)) << 64 | u128::from(words[0].load(Ordering::Acquire))
}
