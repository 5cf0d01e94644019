//! From a source to what translates its requests: root, context and PASID tables, and the caches of their entries.

use super::{Unit, translation::Refusal};
use crate::{
    complaints::Rule,
    context_cache::{CachedContext, Context},
    entries::{Binding, ContextEntry, RootEntry, TranslationType},
    pasid_cache::CachedPasid,
    reason::Reason,
    scalable_entries::{DirectoryEntry, PasidEntry, RootHalf, ScalableContext},
    world::World,
};

/// A refusal that no entry mutes.
fn heard<T>(reason: Reason) -> Result<T, Refusal> {
    Err(Refusal { reason, muted: false })
}

impl Unit {
    /// What translates the requests of a source.
    pub(super) fn binding(&mut self, world: &mut World, source: u16) -> Result<Binding, Refusal> {
        match self.context(world, source)? {
            Context::Legacy(entry) => Ok(entry.binding(self.config.coherent)),
            Context::Scalable(entry) => {
                self.pasid_entry(world, source, entry).map(|pasid| pasid.binding(entry))
            }
        }
    }

    /// The context entry of a source, from the cache or from memory.
    fn context(&mut self, world: &mut World, source: u16) -> Result<Context, Refusal> {
        match self.contexts.get(source) {
            Some(_) if world.drops() => self.contexts.remove(source),
            Some(CachedContext::Present(entry)) => return Ok(entry),
            Some(CachedContext::Faulting(reason, muted)) => return Err(Refusal { reason, muted }),
            None => {}
        }
        let fetched = if self.is_scalable() {
            self.fetch_scalable_context(world, source).map(Context::Scalable)
        } else {
            self.fetch_context(world, source).map(Context::Legacy)
        };
        match &fetched {
            Ok(entry) => self.contexts.insert(source, CachedContext::Present(*entry)),
            Err(Refusal { reason, muted }) if self.config.caching_mode => {
                self.contexts.insert(source, CachedContext::Faulting(*reason, *muted));
                self.newcomers.insert(source);
                // The cache behind may remember as well that nothing came of the request.
                if self.is_scalable() && self.pasids.get(source).is_none() && world.random.once_in(2) {
                    self.pasids.insert(source, 0, CachedPasid::Faulting(Reason::PasidNotPresent, *muted));
                }
            }
            Err(_) => {}
        }
        fetched
    }

    fn fetch_context(&mut self, world: &World, source: u16) -> Result<ContextEntry, Refusal> {
        let slot = (self.root & !0xfff) + u64::from(source >> 8) * 16;
        let Some((low, high)) = self.structure_pair(world, slot) else {
            return heard(Reason::RootNotAccessible);
        };
        let root = RootEntry { low, high };
        if !root.present() {
            return heard(Reason::RootNotPresent);
        }
        if root.reserved_set() {
            let text = format!("root entry {:#x} {low:#x} {high:#x}", source >> 8);
            self.complain(world, Rule::ReservedBits, text);
            return heard(Reason::RootReserved);
        }
        let slot = root.context_table() + u64::from(source & 0xff) * 16;
        let Some((low, high)) = self.structure_pair(world, slot) else {
            return heard(Reason::ContextNotAccessible);
        };
        let entry = ContextEntry { low, high };
        self.check_context(entry)
            .map_err(|reason| Refusal { reason, muted: entry.fault_processing_disabled() })
            .map(|()| entry)
    }

    /// The checks that the unit makes of a context entry.
    pub(super) fn check_context(&self, entry: ContextEntry) -> Result<(), Reason> {
        if !entry.present() {
            return Err(Reason::ContextNotPresent);
        }
        if entry.reserved_set(&self.config) {
            return Err(Reason::ContextReserved);
        }
        let translated = entry.translation_type() != Some(TranslationType::PassThrough);
        if !entry.is_supported(&self.config) || translated && self.is_beyond(entry.table()) {
            return Err(Reason::ContextInvalid);
        }
        Ok(())
    }

    fn is_beyond(&self, physical: u64) -> bool {
        physical.unbounded_shr(self.host_address_bits.into()) != 0
    }

    fn fetch_scalable_context(&mut self, world: &World, source: u16) -> Result<ScalableContext, Refusal> {
        let Some(half) = self.structure_word(world, self.root_half_slot(source)) else {
            return heard(Reason::ScalableRootNotAccessible);
        };
        let root = RootHalf(half);
        if !root.present() {
            return heard(Reason::ScalableRootNotPresent);
        }
        if root.reserved_set() {
            self.complain(world, Rule::ReservedBits, format!("root entry of {source:#06x}: {half:#x}"));
            return heard(Reason::ScalableRootReserved);
        }
        let slot = Self::scalable_context_slot(root, source);
        let Some(words) = self.structure_words(world, slot) else {
            return heard(Reason::ScalableContextNotAccessible);
        };
        let entry = ScalableContext(words);
        self.check_scalable_context(entry)
            .map_err(|reason| Refusal { reason, muted: entry.fault_processing_disabled() })
            .map(|()| entry)
    }

    /// Where the half of the root entry lies that leads to a source.
    pub(super) fn root_half_slot(&self, source: u16) -> u64 {
        (self.root & !0xfff) + u64::from(source >> 8) * 16 + u64::from(source >> 7 & 1) * 8
    }

    pub(super) fn scalable_context_slot(root: RootHalf, source: u16) -> u64 {
        root.context_table() + u64::from(source & 0x7f) * ScalableContext::BYTES
    }

    pub(super) fn check_scalable_context(&self, entry: ScalableContext) -> Result<(), Reason> {
        if !entry.present() {
            return Err(Reason::ScalableContextNotPresent);
        }
        if entry.reserved_set() {
            return Err(Reason::ScalableContextReserved);
        }
        if !entry.is_supported(&self.config) || self.is_beyond(entry.directory()) {
            return Err(Reason::ScalableContextInvalid);
        }
        if entry.request_pasid() != 0 {
            // Nothing here reports RPS.
            return Err(Reason::RequestPasid);
        }
        Ok(())
    }

    /// The PASID entry of the requests of a source, from the cache or from memory.
    fn pasid_entry(
        &mut self,
        world: &mut World,
        source: u16,
        context: ScalableContext,
    ) -> Result<PasidEntry, Refusal> {
        match self.pasids.get(source) {
            Some(_) if world.drops() => self.pasids.remove(source),
            Some(CachedPasid::Present(entry)) => return Ok(entry),
            Some(CachedPasid::Faulting(reason, muted)) => return Err(Refusal { reason, muted }),
            None => {}
        }
        let fetched = self.fetch_pasid_entry(world, context);
        let pasid = context.request_pasid();
        match &fetched {
            Ok(entry) => self.pasids.insert(source, pasid, CachedPasid::Present(*entry)),
            Err(Refusal { reason, muted }) if self.config.caching_mode => {
                self.pasids.insert(source, pasid, CachedPasid::Faulting(*reason, *muted));
            }
            Err(_) => {}
        }
        fetched
    }

    fn fetch_pasid_entry(&mut self, world: &World, context: ScalableContext) -> Result<PasidEntry, Refusal> {
        let muted = context.fault_processing_disabled();
        let fail = |reason| Err(Refusal { reason, muted });
        let pasid = context.request_pasid();
        let Some(word) = self.structure_word(world, context.directory() + (pasid >> 6) * 8) else {
            return fail(Reason::PasidDirectoryNotAccessible);
        };
        let directory = DirectoryEntry(word);
        if !directory.present() {
            return fail(Reason::PasidDirectoryNotPresent);
        }
        if directory.reserved_set() {
            return fail(Reason::PasidDirectoryReserved);
        }
        let slot = directory.table() + (pasid & 63) * PasidEntry::BYTES;
        let Some(words) = self.structure_words(world, slot) else {
            return fail(Reason::PasidTableNotAccessible);
        };
        let entry = PasidEntry(words);
        self.check_pasid_entry(entry)
            .map_err(|reason| Refusal { reason, muted: muted || entry.fault_processing_disabled() })
            .map(|()| entry)
    }

    pub(super) fn check_pasid_entry(&self, entry: PasidEntry) -> Result<(), Reason> {
        if !entry.present() {
            return Err(Reason::PasidNotPresent);
        }
        if entry.reserved_set(&self.config) {
            return Err(Reason::PasidReserved);
        }
        if !entry.is_supported(&self.config) || self.is_beyond(entry.table()) {
            return Err(Reason::PasidInvalid);
        }
        Ok(())
    }

    /// What translates the requests of a source, as the tables stand in memory; nothing if something on the way is not
    /// present or not right.
    pub(super) fn binding_in_memory(&self, world: &World, source: u16) -> Option<Binding> {
        let snoop = self.config.coherent;
        if self.is_scalable() {
            let root = RootHalf(world.memory.word(self.root_half_slot(source), snoop)?);
            let context =
                ScalableContext(world.memory.words(Self::scalable_context_slot(root, source), snoop)?);
            self.check_scalable_context(context).ok().filter(|()| root.present())?;
            let pasid = context.request_pasid();
            let directory = DirectoryEntry(world.memory.word(context.directory() + (pasid >> 6) * 8, snoop)?);
            let slot = directory.table() + (pasid & 63) * PasidEntry::BYTES;
            let entry = PasidEntry(world.memory.words(slot, snoop)?);
            self.check_pasid_entry(entry).ok().filter(|()| directory.present())?;
            return Some(entry.binding(context));
        }
        let slot = (self.root & !0xfff) + u64::from(source >> 8) * 16;
        let root = RootEntry { low: world.memory.word(slot, snoop)?, high: 0 };
        let slot = root.context_table() + u64::from(source & 0xff) * 16;
        let [low, high] = world.memory.words(slot, snoop)?;
        let entry = ContextEntry { low, high };
        (root.present() && self.check_context(entry).is_ok()).then(|| entry.binding(snoop))
    }
}
