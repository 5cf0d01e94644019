//! The root table of a unit and the tables below it, down to the page tables: who translates through what.
//!
//! This is the only place that knows their layout, in either [mode](super::mode).

mod pasid;

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{Table, TableMemory},
};

use super::{
    mode::{TableStage, TranslationMode},
    spec::{AddressWidth, ContextEntry, ContextState, DomainId, RootEntry, TranslationType},
};
use crate::{
    Platform, SourceId,
    dma::DmaError,
    dump::TableKind as Shown,
    reach::{HostWidth, TableError, TableKind},
    walk::Path,
};

/// 64-bit words in an entry of a root table.
const ROOT_ENTRY_WORDS: usize = 2;

/// Context entries of scalable mode that a table holds: half of a bus.
const SCALABLE_ENTRIES: u8 = 0x80;

/// The tables of one unit. They live as long as the unit, whose hardware walks them.
#[derive(Debug)]
pub(super) struct ContextTables<P: Platform> {
    platform: Arc<P>,
    mode: TranslationMode,
    root: PhysAddr,
    /// What the unit reaches.
    width: HostWidth,
    /// Whether the unit snoops the CPU's caches (ECAP.C).
    coherent: bool,
}

/// What the requests of a source are translated by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// The tag of what is cached of it.
    pub domain: DomainId,
    /// Root of the page table.
    pub table: PhysAddr,
    /// What it is.
    pub stage: TableStage,
    pub width: AddressWidth,
    /// Whether a device TLB is served.
    pub device_tlb: bool,
}

impl<P: Platform> ContextTables<P> {
    /// An empty root table: every request is blocked.
    pub fn new(
        platform: Arc<P>,
        mode: TranslationMode,
        width: HostWidth,
        coherent: bool,
    ) -> Result<Self, TableError> {
        let root = width.page(platform.tables(), TableKind::Root)?;
        let tables = Self { platform, mode, root, width, coherent };
        tables.write_back_page(root);
        Ok(tables)
    }

    /// Address of the root table.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// Has `source`, whose entry must not be present, translated by `target`. Whether its faults are recorded stays as
    /// it was said.
    pub fn publish(&mut self, source: SourceId, target: Target) -> Result<(), DmaError> {
        let words = match self.context_words(source) {
            Some(words) => words,
            None => {
                self.add_context_table(source)?;
                self.context_words(source).ok_or(DmaError::OutOfMemory)?
            }
        };
        let state = context_state(words);
        debug_assert!(!state.present(), "the context entry of {source} is present");
        let is_muted = state.fault_reporting_disabled();
        let bits = match self.mode {
            TranslationMode::Legacy => {
                legacy_entry(target).with_fault_reporting_disabled(is_muted).into_bits()
            }
            TranslationMode::Scalable { .. } => {
                self.pasid_context(words, target)?.with_fault_reporting_disabled(is_muted).into_bits()
            }
        };
        self.store(words, bits);
        Ok(())
    }

    /// Clears Present in the entry of `source`, leaving the rest for the unit to finish walks with, and returns the
    /// domain that it led to, if it was present. The unit may go on using it until it is invalidated.
    pub fn withdraw(&mut self, source: SourceId) -> Option<DomainId> {
        let words = self.context_words(source)?;
        let state = context_state(words);
        if !state.present() {
            return None;
        }
        let domain = match self.mode {
            TranslationMode::Legacy => ContextEntry::from_bits(load(words)).domain(),
            TranslationMode::Scalable { .. } => self.pasid_entry(words)?.domain(),
        };
        words[0].store(state.with_present(false).into_bits(), Ordering::Release);
        self.write_back(words);
        Some(domain)
    }

    /// Says whether faults of `source`, whose entry is not present, are recorded (FPD). Returns whether the entry
    /// changed.
    pub fn set_reporting(&mut self, source: SourceId, reports: bool) -> Result<bool, DmaError> {
        let words = match self.context_words(source) {
            Some(words) => words,
            None if reports => return Ok(false),
            None => {
                self.add_context_table(source)?;
                self.context_words(source).ok_or(DmaError::OutOfMemory)?
            }
        };
        let before = context_state(words);
        let state = before.with_fault_reporting_disabled(!reports);
        if before.present() || state == before {
            return Ok(false);
        }
        words[0].store(state.into_bits(), Ordering::Release);
        self.write_back(words);
        Ok(true)
    }

    /// The entries that `source` leads to, as far as they are there.
    pub fn path(&self, source: SourceId) -> Path {
        let root = load(root_words(self.table(self.root), source.bus()));
        let path = Path::default().through(Shown::Root, root);
        let Some(words) = self.context_words(source) else { return path };
        let path = path.through(Shown::Context, load(words));
        if !context_state(words).present() {
            return path;
        }
        match self.mode {
            TranslationMode::Legacy => path.to_page_table(ContextEntry::from_bits(load(words)).root()),
            TranslationMode::Scalable { .. } => self.pasid_path(words, path),
        }
    }

    /// Links an empty context table for `source` and its neighbours: all of the bus or, in scalable mode, half of it.
    fn add_context_table(&mut self, source: SourceId) -> Result<(), DmaError> {
        let page = self.add_page(TableKind::Context)?;
        let word = self.root_word(source);
        word.store(RootEntry::to_context_table(page).into_bits() as u64, Ordering::Release);
        self.write_back(core::slice::from_ref(word));
        Ok(())
    }

    /// An empty page, which the unit may be led to.
    fn add_page(&self, kind: TableKind) -> Result<PhysAddr, DmaError> {
        let page = self.width.page(self.platform.tables(), kind)?;
        self.write_back_page(page);
        Ok(page)
    }

    /// The half of the root entry that leads to `source`. Both halves look like the only one that legacy mode has.
    fn root_word(&self, source: SourceId) -> &AtomicU64 {
        let words = root_words(self.table(self.root), source.bus());
        match self.mode {
            TranslationMode::Legacy => &words[0],
            TranslationMode::Scalable { .. } => &words[usize::from(source.devfn() / SCALABLE_ENTRIES)],
        }
    }

    fn context_words(&self, source: SourceId) -> Option<&[AtomicU64]> {
        let half = self.root_word(source).load(Ordering::Acquire);
        let table = self.table(RootEntry::from_bits(half.into()).context_table()?);
        Some(match self.mode {
            TranslationMode::Legacy => entry_words(table, source.devfn(), 2),
            TranslationMode::Scalable { .. } => entry_words(table, source.devfn() % SCALABLE_ENTRIES, 4),
        })
    }

    fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: only the root and pages that `add_page` gave out and that were linked get here; none of them is ever
        // freed.
        unsafe { self.platform.tables().table(page) }
    }

    /// Stores an entry that was not present: the word with Present last, so that the unit never sees half of it.
    fn store(&self, words: &[AtomicU64], bits: u128) {
        self.store_longer(words, bits, 0);
    }

    /// The same for an entry of which a third word means something.
    fn store_longer(&self, words: &[AtomicU64], bits: u128, third: u64) {
        let upper = core::iter::once(third).chain(core::iter::repeat(0));
        words[2..].iter().zip(upper).for_each(|(word, bits)| word.store(bits, Ordering::Relaxed));
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

fn legacy_entry(target: Target) -> ContextEntry {
    let translation = match target.device_tlb {
        true => TranslationType::TranslateWithDeviceTlb,
        false => TranslationType::Translate,
    };
    ContextEntry::translating(target.domain, target.table, target.width, translation)
}

/// The words of the root entry of a bus.
fn root_words(table: &Table, bus: u8) -> &[AtomicU64] {
    entry_words(table, bus, ROOT_ENTRY_WORDS)
}

/// The words of entry `index` in a table whose entries have `count`.
fn entry_words(table: &Table, index: u8, count: usize) -> &[AtomicU64] {
    let first = usize::from(index) * count;
    &table[first..first + count]
}

fn context_state(words: &[AtomicU64]) -> ContextState {
    ContextState::from_bits(words[0].load(Ordering::Acquire))
}

/// The lower 128 bits of an entry, which are all that means anything in ours.
fn load(words: &[AtomicU64]) -> u128 {
    u128::from(words[1].load(Ordering::Relaxed)) << 64 | u128::from(words[0].load(Ordering::Acquire))
}
