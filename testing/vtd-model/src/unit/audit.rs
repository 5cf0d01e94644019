//! A look at everything that the unit could walk at this moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use super::Unit;
use crate::{
    complaints::Rule,
    entries::{Binding, ContextEntry, PageEntry, RootEntry, TranslationType, bits},
    iotlb::Stage,
    scalable_entries::{DirectoryEntry, PasidEntry, RootHalf, ScalableContext},
    world::World,
};

/// Pages that an audit looks at before it gives up: more than any test has.
const LIMIT: usize = 1 << 16;

struct Audit<'a> {
    unit: &'a Unit,
    world: &'a World,
    pages: usize,
    /// Paging tables that were looked at, with their levels: many entries may lead to one.
    seen: BTreeSet<(u64, u8)>,
    /// Root, width and stage of tables by domain: all sources of one must have the same.
    domains: BTreeMap<u16, (u64, u8, Stage)>,
}

impl Unit {
    /// Checks each table that the unit can reach: that all of it was written back, that it was not freed, and that no
    /// reserved bit is set. A line that only the CPU has seen counts, for the cache may evict it at any time.
    pub fn audit(&self, world: &World) {
        let root = self.root & bits(63, 12);
        if !self.translates() || world.memory.is_firmware(root) {
            return;
        }
        let (seen, domains) = (BTreeSet::new(), BTreeMap::new());
        let mut audit = Audit { unit: self, world, pages: 0, seen, domains };
        let coherent = self.config.coherent;
        audit.page(root, "root table", coherent);
        if self.is_scalable() {
            for half in 0..512_u16 {
                for word in audit.both(root + u64::from(half) * 8) {
                    let entry = RootHalf(word);
                    if entry.present() {
                        audit.scalable_table(half * 0x80, entry.context_table());
                    }
                }
            }
            return;
        }
        for bus in 0..256_u16 {
            for low in audit.both(root + u64::from(bus) * 16) {
                let entry = RootEntry { low, high: 0 };
                if entry.present() {
                    audit.context_table(bus, entry.context_table());
                }
            }
        }
    }
}

impl Audit<'_> {
    /// The word as the unit sees it now and, if the CPU has another, as it may see it soon.
    fn both(&self, physical: u64) -> impl Iterator<Item = u64> + use<> {
        let snoop = self.unit.config.coherent;
        let now = self.world.memory.word(physical, snoop);
        let soon = self.world.memory.word(physical, true);
        let soon = soon.filter(|_| soon != now);
        now.into_iter().chain(soon)
    }

    fn complain(&self, rule: Rule, text: String) {
        self.unit.complain(self.world, rule, text);
    }

    /// Checks the page as a whole; false if there is no use in reading it.
    fn page(&mut self, physical: u64, what: &str, coherent: bool) -> bool {
        self.pages += 1;
        let tables = &self.world.memory.tables;
        if !tables.is_live(physical) {
            self.complain(Rule::FreedWhileReachable, format!("{what} {physical:#x} is no page in use"));
            return false;
        }
        if !coherent && tables.has_unwritten_lines(physical) {
            self.complain(Rule::LinkedBeforeWrittenBack, format!("{what} {physical:#x}"));
        }
        self.pages < LIMIT
    }

    fn context_table(&mut self, bus: u16, table: u64) {
        let snoop = self.unit.config.coherent;
        if !self.page(table, "context table", snoop) {
            return;
        }
        for devfn in 0..256_u16 {
            let Some([low, high]) = self.world.memory.words(table + u64::from(devfn) * 16, snoop) else {
                return;
            };
            let entry = ContextEntry { low, high };
            let translated = entry.translation_type() != Some(TranslationType::PassThrough);
            if entry.present() && translated && self.unit.check_context(entry).is_ok() {
                self.binding(bus << 8 | devfn, entry.binding(snoop));
            }
        }
    }

    /// A context table of scalable mode: the sources from `first` on.
    fn scalable_table(&mut self, first: u16, table: u64) {
        let snoop = self.unit.config.coherent;
        if !self.page(table, "context table", snoop) {
            return;
        }
        for index in 0..ScalableContext::COUNT {
            let slot = table + index * ScalableContext::BYTES;
            let Some(context) = self.world.memory.words(slot, snoop).map(ScalableContext) else { return };
            if self.unit.check_scalable_context(context).is_ok() {
                self.directory(first + index as u16, context);
            }
        }
    }

    fn directory(&mut self, source: u16, context: ScalableContext) {
        let snoop = self.unit.config.coherent;
        if !self.page(context.directory(), "PASID directory", snoop) {
            return;
        }
        for index in 0..context.directory_entries() {
            let Some(word) = self.world.memory.word(context.directory() + index * 8, snoop) else { return };
            let entry = DirectoryEntry(word);
            if entry.present() && !entry.reserved_set() && self.page(entry.table(), "PASID table", snoop) {
                self.pasid_table(source, context, entry.table());
            }
        }
    }

    fn pasid_table(&mut self, source: u16, context: ScalableContext, table: u64) {
        let snoop = self.unit.config.coherent;
        for index in 0..PasidEntry::COUNT {
            let slot = table + index * PasidEntry::BYTES;
            let Some(entry) = self.world.memory.words(slot, snoop).map(PasidEntry) else { return };
            if self.unit.check_pasid_entry(entry).is_ok() {
                self.binding(source, entry.binding(context));
            }
        }
    }

    /// What a source is translated by.
    fn binding(&mut self, source: u16, binding: Binding) {
        let shape = (binding.table, binding.width, binding.stage);
        match self.domains.insert(binding.domain, shape) {
            None => self.table(binding.table, binding.levels(), (binding.stage, binding.snoops)),
            Some(before) if before == shape => {}
            Some(before) => {
                let text =
                    format!("domain {} is {before:x?} and {shape:x?} at {source:#06x}", binding.domain);
                self.complain(Rule::DomainId, text);
            }
        }
    }

    fn table(&mut self, table: u64, level: u8, (stage, snoop): (Stage, bool)) {
        if !self.seen.insert((table, level)) || !self.page(table, "table", snoop) {
            return;
        }
        let tables = &self.world.memory.tables;
        let (Some(now), Some(soon)) = (tables.page_words(table, snoop), tables.page_words(table, true))
        else {
            return;
        };
        for (now, soon) in now.iter().zip(soon) {
            let (now, soon) = (now.load(Ordering::Acquire), soon.load(Ordering::Acquire));
            self.entry(table, level, PageEntry { raw: now, stage }, snoop);
            if soon != now {
                self.entry(table, level, PageEntry { raw: soon, stage }, snoop);
            }
        }
    }

    fn entry(&mut self, table: u64, level: u8, entry: PageEntry, snoop: bool) {
        if !entry.present() {
            return;
        }
        if entry.reserved_set(level, &self.unit.config, self.unit.host_address_bits) {
            self.complain(Rule::ReservedBits, format!("level-{level} entry {:#x} in {table:#x}", entry.raw));
        } else if !entry.is_leaf(level) {
            self.table(entry.address(), level - 1, (entry.stage, snoop));
        }
    }
}
