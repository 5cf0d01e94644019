//! A look at everything that the unit could walk at this moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::Ordering,
};

use super::Unit;
use crate::{
    complaints::Rule,
    entries::{ContextEntry, PageEntry, RootEntry, TranslationType, bits},
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
}

impl Unit {
    /// Checks each table that the unit can reach: that all of it was written back, that it was not freed, and that no
    /// reserved bit is set. A line that only the CPU has seen counts, for the cache may evict it at any time.
    pub fn audit(&self, world: &World) {
        let root = self.root & bits(63, 12);
        if !self.translates() || world.memory.is_firmware(root) {
            return;
        }
        let mut audit = Audit { unit: self, world, pages: 0, seen: BTreeSet::new() };
        audit.page(root, "root table");
        // Domain by id: all contexts of one must have the same table.
        let mut domains = BTreeMap::new();
        for bus in 0..256 {
            for low in audit.both(root + bus * 16) {
                let entry = RootEntry { low, high: 0 };
                if entry.present() {
                    audit.context_table(bus as u16, entry.context_table(), &mut domains);
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
    fn page(&mut self, physical: u64, what: &str) -> bool {
        self.pages += 1;
        let tables = &self.world.memory.tables;
        if !tables.is_live(physical) {
            self.complain(Rule::FreedWhileReachable, format!("{what} {physical:#x} is no page in use"));
            return false;
        }
        if !self.unit.config.coherent && tables.has_unwritten_lines(physical) {
            self.complain(Rule::LinkedBeforeWrittenBack, format!("{what} {physical:#x}"));
        }
        self.pages < LIMIT
    }

    fn context_table(&mut self, bus: u16, table: u64, domains: &mut BTreeMap<u16, (u64, u8)>) {
        if !self.page(table, "context table") {
            return;
        }
        for devfn in 0..256_u16 {
            let slot = table + u64::from(devfn) * 16;
            let snoop = self.unit.config.coherent;
            let (Some(low), Some(high)) =
                (self.world.memory.word(slot, snoop), self.world.memory.word(slot + 8, snoop))
            else {
                return;
            };
            let entry = ContextEntry { low, high };
            let translated = entry.translation_type() != Some(TranslationType::PassThrough);
            if !entry.present() || !translated || self.unit.check_context(entry).is_err() {
                continue;
            }
            let shape = (entry.table(), entry.width());
            match domains.insert(entry.domain(), shape) {
                None => self.table(entry.table(), entry.levels()),
                Some(before) if before == shape => {}
                Some(before) => {
                    let source = bus << 8 | devfn;
                    let text =
                        format!("domain {} is {before:x?} and {shape:x?} at {source:#06x}", entry.domain());
                    self.complain(Rule::DomainId, text);
                }
            }
        }
    }

    fn table(&mut self, table: u64, level: u8) {
        if !self.seen.insert((table, level)) || !self.page(table, "table") {
            return;
        }
        let tables = &self.world.memory.tables;
        let snoop = self.unit.config.coherent;
        let (Some(now), Some(soon)) = (tables.page_words(table, snoop), tables.page_words(table, true))
        else {
            return;
        };
        for (now, soon) in now.iter().zip(soon) {
            let (now, soon) = (now.load(Ordering::Acquire), soon.load(Ordering::Acquire));
            self.entry(table, level, PageEntry(now));
            if soon != now {
                self.entry(table, level, PageEntry(soon));
            }
        }
    }

    fn entry(&mut self, table: u64, level: u8, entry: PageEntry) {
        if !entry.present() {
            return;
        }
        if entry.reserved_set(level, &self.unit.config, self.unit.host_address_bits) {
            self.complain(Rule::ReservedBits, format!("level-{level} entry {:#x} in {table:#x}", entry.0));
        } else if !entry.is_leaf(level) {
            self.table(entry.address(), level - 1);
        }
    }
}
