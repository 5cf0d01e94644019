//! Watches that entries in use change only by the handshake: clear P, flush, then rewrite.

use std::collections::BTreeMap;

use super::{Unit, scalable_handshake::ScalableWatches};
use crate::{
    complaints::Rule,
    context_cache::ContextScope,
    entries::{ContextEntry, InterruptEntry, RootEntry},
    interrupt_cache::InterruptScope,
    iotlb::{IotlbScope, Tag},
    scalable_entries::RootHalf,
    world::World,
};

/// What is known of the entries that the unit may be using.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// By bus and half: legacy mode has no upper one.
    roots: BTreeMap<(u8, bool), u64>,
    contexts: BTreeMap<u16, Watch>,
    pub scalable: ScalableWatches,
    interrupts: BTreeMap<u32, InterruptEntry>,
}

#[derive(Clone, Copy, Debug)]
enum Watch {
    Present(ContextEntry),
    /// Not present any more; what it was, and which invalidations are still owed.
    Cleared {
        was: ContextEntry,
        owes_context: bool,
        owes_iotlb: bool,
    },
}

impl Handshakes {
    /// Begins anew: with translation off, or a new table, entries may be anything.
    pub fn forget_contexts(&mut self) {
        self.roots.clear();
        self.contexts.clear();
        self.scalable.clear();
    }

    pub fn forget_interrupts(&mut self) {
        self.interrupts.clear();
    }

    pub fn contexts_invalidated(&mut self, scope: ContextScope) {
        self.scalable.contexts_invalidated(scope);
        for (&source, watch) in &mut self.contexts {
            if let Watch::Cleared { was, owes_context, .. } = watch
                && scope.covers(source, Some(was.domain()))
            {
                *owes_context = false;
            }
        }
    }

    /// The IOTLB counts only after the context cache: before that it can be filled again from the old entry.
    pub fn iotlb_invalidated(&mut self, scope: IotlbScope) {
        self.scalable.iotlb_invalidated(scope);
        self.contexts.retain(|_, watch| {
            let Watch::Cleared { was, owes_context, owes_iotlb } = watch else { return true };
            let covered = match scope {
                IotlbScope::Global => true,
                IotlbScope::Domain(tag) => tag == Tag::second(was.domain()),
                IotlbScope::Pages { .. } => false,
            };
            *owes_iotlb &= !covered || *owes_context;
            *owes_iotlb || *owes_context
        });
    }

    pub fn interrupts_invalidated(&mut self, scope: InterruptScope) {
        self.interrupts.retain(|&index, _| !scope.covers(index));
    }

    fn see_context(&mut self, source: u16, now: ContextEntry) -> Result<(), &'static str> {
        let before = self.contexts.get(&source).copied();
        let (next, verdict) = match before {
            None if now.present() => (Some(Watch::Present(now)), Ok(())),
            None => (None, Ok(())),
            Some(Watch::Present(was)) if now.present() => {
                let verdict = if now.differs(was) { Err("changed while present") } else { Ok(()) };
                (Some(Watch::Present(now)), verdict)
            }
            Some(Watch::Present(was)) => {
                let cleared = Watch::Cleared { was, owes_context: true, owes_iotlb: true };
                let torn = now.high != was.high;
                (Some(cleared), if torn { Err("rewritten before it was flushed") } else { Ok(()) })
            }
            Some(Watch::Cleared { .. }) if now.present() => {
                (Some(Watch::Present(now)), Err("present again before the flush of what it was"))
            }
            Some(cleared) => (Some(cleared), Ok(())),
        };
        match next {
            Some(watch) => self.contexts.insert(source, watch),
            None => self.contexts.remove(&source),
        };
        verdict
    }

    fn see_root(&mut self, bus: u8, upper: bool, now: u64) -> Result<(), &'static str> {
        match self.roots.get(&(bus, upper)) {
            Some(&was) if was != now => {
                self.roots.insert((bus, upper), now);
                Err("changed while present")
            }
            Some(_) => Ok(()),
            None => {
                if now & 1 != 0 {
                    self.roots.insert((bus, upper), now);
                }
                Ok(())
            }
        }
    }
}

impl Unit {
    /// Compares all context entries with what they were.
    pub(super) fn check_contexts(&mut self, world: &World) {
        if !self.translates() {
            return;
        }
        let pair = |physical: u64| {
            Some((world.memory.word(physical, true)?, world.memory.word(physical + 8, true)?))
        };
        for bus in 0..=255_u8 {
            let Some((low, high)) = pair((self.root & !0xfff) + u64::from(bus) * 16) else { return };
            for (upper, half) in [(false, low), (true, high)] {
                if let Err(what) = self.handshakes.see_root(bus, upper, half) {
                    self.complain(world, Rule::ChangedWhilePresent, format!("root entry {bus:#x} {what}"));
                }
            }
            if self.is_scalable() {
                self.check_halves(world, bus, [low, high]);
                continue;
            }
            let root = RootEntry { low, high };
            if root.present() {
                self.check_context_table(world, bus, root.context_table());
            }
        }
    }

    fn check_halves(&mut self, world: &World, bus: u8, halves: [u64; 2]) {
        for (first, half) in [0, 0x80].into_iter().zip(halves.map(RootHalf)) {
            if half.reserved_set() {
                self.complain(world, Rule::ReservedBits, format!("root entry {bus:#x}: {:#x}", half.0));
            }
            if half.present() {
                self.check_scalable_table(world, u16::from(bus) << 8 | first, half);
            }
        }
    }

    fn check_context_table(&mut self, world: &World, bus: u8, table: u64) {
        for devfn in 0..=255_u8 {
            let slot = table + u64::from(devfn) * 16;
            let (Some(low), Some(high)) = (world.memory.word(slot, true), world.memory.word(slot + 8, true))
            else {
                return;
            };
            let (entry, source) = (ContextEntry { low, high }, u16::from(bus) << 8 | u16::from(devfn));
            if let Err(what) = self.handshakes.see_context(source, entry) {
                let text = format!("context entry {source:#06x} {what}: {low:#x} {high:#x}");
                self.complain(world, Rule::ChangedWhilePresent, text);
            }
            if entry.present() {
                self.judge_context(world, source, entry);
            }
        }
    }

    /// What is wrong with a present entry, whether or not a device ever uses it.
    fn judge_context(&self, world: &World, source: u16, entry: ContextEntry) {
        if let Err(reason) = self.check_context(entry) {
            let text = format!("context entry {source:#06x} {reason:?}: {:#x} {:#x}", entry.low, entry.high);
            self.complain(world, Rule::ReservedBits, text);
        }
        let (domain, count) = (u32::from(entry.domain()), self.config.domain_ids());
        if domain >= count || domain == 0 && self.config.caching_mode {
            self.complain(
                world,
                Rule::DomainId,
                format!("context entry {source:#06x} has domain {domain} of {count}"),
            );
        }
    }

    /// Compares interrupt entries with what they were: those of `scope`, or all.
    pub(super) fn check_interrupt_entries(&mut self, world: &World, scope: Option<InterruptScope>) {
        if !self.remaps_interrupts() {
            return;
        }
        let last = self.interrupt_entries() - 1;
        let range = match scope {
            Some(InterruptScope::Entries { first, last: end }) => first..=end.min(last),
            _ => 0..=last,
        };
        for index in range {
            let slot = self.interrupt_slot(index);
            let (Some(low), Some(high)) = (world.memory.word(slot, true), world.memory.word(slot + 8, true))
            else {
                return;
            };
            let entry = InterruptEntry { low, high };
            if !entry.present() {
                continue;
            }
            if entry.reserved_set(self.extended_interrupts()) {
                let text = format!("interrupt entry {index}: {low:#x} {high:#x}");
                self.complain(world, Rule::ReservedBits, text);
            }
            self.watch_interrupt(world, index, entry);
        }
    }

    /// A vector or a destination may change while the entry is present, by one store of 128 bits; its owner may not.
    pub(super) fn watch_interrupt(&mut self, world: &World, index: u32, entry: InterruptEntry) {
        if let Some(was) = self.handshakes.interrupts.get(&index)
            && was.source_differs(entry)
        {
            let text = format!("interrupt entry {index} went to another source without a flush");
            self.complain(world, Rule::ChangedWhilePresent, text);
        }
        self.handshakes.interrupts.insert(index, entry);
    }

    /// Compares every entry that is watched with what it was.
    pub fn check_entries(&mut self, world: &World) {
        self.check_contexts(world);
        self.check_interrupt_entries(world, None);
    }

    pub(super) fn forget_handshakes(&mut self) {
        self.handshakes.forget_contexts();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(low: u64, domain: u64) -> ContextEntry {
        ContextEntry { low, high: domain << 8 | 2 }
    }

    #[test]
    fn the_whole_handshake_is_fine() {
        let mut watch = Handshakes::default();
        assert!(watch.see_context(8, entry(0x5001, 3)).is_ok());
        assert!(watch.see_context(8, entry(0x5000, 3)).is_ok());
        watch.contexts_invalidated(ContextScope::Device { domain: 3, source: 8, function_mask: 0 });
        watch.iotlb_invalidated(IotlbScope::Domain(Tag::second(3)));
        assert!(watch.see_context(8, entry(0x9001, 4)).is_ok());
    }

    #[test]
    fn each_step_left_out_is_noticed() {
        let begin = || {
            let mut watch = Handshakes::default();
            watch.see_context(8, entry(0x5001, 3)).unwrap();
            watch
        };
        assert!(begin().see_context(8, entry(0x9001, 3)).is_err(), "changed in place");
        assert!(begin().see_context(8, entry(0x9000, 4)).is_err(), "rewritten at once");
        let mut watch = begin();
        watch.see_context(8, entry(0x5000, 3)).unwrap();
        watch.iotlb_invalidated(IotlbScope::Domain(Tag::second(3)));
        watch.contexts_invalidated(ContextScope::Global);
        assert!(watch.see_context(8, entry(0x9001, 4)).is_err(), "IOTLB before context cache");
        let mut watch = begin();
        watch.see_context(8, entry(0x5000, 3)).unwrap();
        watch.contexts_invalidated(ContextScope::Device { domain: 4, source: 8, function_mask: 0 });
        watch.iotlb_invalidated(IotlbScope::Domain(Tag::second(3)));
        assert!(watch.see_context(8, entry(0x9001, 4)).is_err(), "the new domain instead of the old one");
    }
}
