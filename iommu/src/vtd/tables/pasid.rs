//! Below a context entry of scalable mode: the PASID directory of a source, and its PASID table.
//!
//! Each source has a page for either, of which only the entries of PASID 0 are used. They are made when the source is
//! first translated, and stay with its context entry.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::PhysAddr;

use super::{ContextTables, Shown, Target, context_state, entry_words, load};
use crate::{
    Platform,
    dma::DmaError,
    reach::TableKind,
    vtd::{
        mode::{TableStage, TranslationMode},
        spec::{FirstStagePointer, PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry},
    },
    walk::Path,
};

/// 64-bit words in an entry of a PASID table.
const PASID_ENTRY_WORDS: usize = 8;

impl<P: Platform> ContextTables<P> {
    /// Stores the PASID entry for `target` below the context entry in `context`, which is not present, and returns what
    /// that entry is to be.
    ///
    /// What was there may say that it is present. No unit has a way there: the context entry was withdrawn, and
    /// everything that was cached on the way forgotten.
    pub(super) fn pasid_context(
        &self,
        context: &[AtomicU64],
        target: Target,
    ) -> Result<ScalableContextEntry, DmaError> {
        let directory = match self.directory(context) {
            Some(directory) => directory,
            None => self.add_directory(context)?,
        };
        let table = match self.pasid_table(directory) {
            Some(table) => table,
            None => self.add_pasid_table(directory)?,
        };
        let (entry, third) = self.entry(target);
        self.store_longer(entry_words(self.table(table), 0, PASID_ENTRY_WORDS), entry.into_bits(), third);
        Ok(ScalableContextEntry::to_directory(directory, target.device_tlb))
    }

    /// Links an empty directory into the context entry in `context`, which stays not present: whatever fails next, it
    /// is there.
    fn add_directory(&self, context: &[AtomicU64]) -> Result<PhysAddr, DmaError> {
        let page = self.add_page(TableKind::PasidDirectory)?;
        let linked = ScalableContextEntry::to_directory(page, false)
            .with_present(false)
            .with_fault_reporting_disabled(context_state(context).fault_reporting_disabled());
        self.store(context, linked.into_bits());
        Ok(page)
    }

    fn add_pasid_table(&self, directory: PhysAddr) -> Result<PhysAddr, DmaError> {
        let page = self.add_page(TableKind::Pasid)?;
        let slot = &self.table(directory)[0];
        slot.store(PasidDirectoryEntry::to_table(page).into_bits(), Ordering::Release);
        self.write_back(core::slice::from_ref(slot));
        Ok(page)
    }

    /// The entry for `target`, and its third word.
    fn entry(&self, target: Target) -> (PasidEntry, u64) {
        let Target { domain, table, width, .. } = target;
        let (entry, third) = match target.stage {
            TableStage::First => {
                let entry = PasidEntry::first_stage(domain, self.mode.width_of_first_stage());
                (entry, FirstStagePointer::to_table(table).into_bits())
            }
            TableStage::Second => (PasidEntry::second_stage(domain, table, width), 0),
        };
        let entry = match self.mode {
            TranslationMode::Legacy => entry,
            TranslationMode::Scalable { walks_snoop, accesses_snoop, .. } => {
                entry.with_walks_snoop(walks_snoop).with_accesses_snoop(accesses_snoop)
            }
        };
        (entry, third)
    }

    /// The PASID entry that the context entry in `context` leads to.
    pub(super) fn pasid_entry(&self, context: &[AtomicU64]) -> Option<PasidEntry> {
        let table = self.pasid_table(self.directory(context)?)?;
        Some(PasidEntry::from_bits(load(entry_words(self.table(table), 0, PASID_ENTRY_WORDS))))
    }

    fn first_stage_root(&self, context: &[AtomicU64]) -> Option<PhysAddr> {
        let table = self.pasid_table(self.directory(context)?)?;
        let third = entry_words(self.table(table), 0, PASID_ENTRY_WORDS)[2].load(Ordering::Relaxed);
        Some(FirstStagePointer::from_bits(third).table())
    }

    /// Continues `path` from the context entry in `context`, which is present.
    pub(super) fn pasid_path(&self, context: &[AtomicU64], path: Path) -> Path {
        let Some(directory) = self.directory(context) else { return path };
        let slot = self.table(directory)[0].load(Ordering::Acquire);
        let path = path.through(Shown::PasidDirectory, slot.into());
        let Some(entry) = self.pasid_entry(context) else { return path };
        let root = match entry.translation() {
            PasidTranslation::FirstStage => self.first_stage_root(context).unwrap_or(entry.root()),
            _ => entry.root(),
        };
        path.through(Shown::Pasid, entry.into_bits()).to_page_table(root)
    }

    /// The directory of a context entry, whether or not that is present.
    fn directory(&self, context: &[AtomicU64]) -> Option<PhysAddr> {
        let directory = ScalableContextEntry::from_bits(load(context)).directory();
        (directory.as_u64() != 0).then_some(directory)
    }

    fn pasid_table(&self, directory: PhysAddr) -> Option<PhysAddr> {
        PasidDirectoryEntry::from_bits(self.table(directory)[0].load(Ordering::Acquire)).table()
    }
}
