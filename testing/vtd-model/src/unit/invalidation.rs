//! Emptying caches, for registers and descriptors alike.

use super::{Access, AddressType, InFlight, InFlightKind, Request, Unit};
use crate::{
    complaints::Rule,
    config::UnitConfig,
    context_cache::ContextScope,
    device_tlb::invalidated_pages,
    interrupt_cache::InterruptScope,
    iotlb::{IotlbScope, Translation},
    pasid_cache::PasidScope,
    world::World,
};

/// Which accesses in flight an invalidation waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Drains {
    pub writes: bool,
    pub reads: bool,
}

impl Unit {
    pub(super) fn invalidate_contexts(&mut self, world: &mut World, scope: ContextScope) {
        self.drain_write_buffer(world);
        self.check_contexts(world);
        let widened = Self::widened_context(world, scope);
        self.contexts.invalidate(widened);
        self.handshakes.contexts_invalidated(scope);
    }

    pub(super) fn invalidate_pasids(&mut self, world: &World, scope: PasidScope) {
        self.drain_write_buffer(world);
        self.check_contexts(world);
        self.pasids.invalidate(scope);
        self.handshakes.scalable.pasids_invalidated(scope);
    }

    /// Hardware may invalidate more than it was asked for.
    fn widened_context(world: &mut World, scope: ContextScope) -> ContextScope {
        const ONCE_IN: u64 = 32;
        if world.random.once_in(ONCE_IN) { ContextScope::Global } else { scope }
    }

    /// `drains` says which accesses in flight it is to wait for.
    pub(super) fn invalidate_iotlb(&mut self, world: &mut World, scope: IotlbScope, drains: Drains) {
        self.drain_write_buffer(world);
        if !matches!(scope, IotlbScope::Pages { .. }) {
            self.check_contexts(world);
        }
        self.drain(world, drains);
        let dropped = self.iotlb.invalidate(scope);
        self.paging.invalidate(scope);
        self.handshakes.iotlb_invalidated(scope);
        self.admit_newcomers(world, scope);
        let domain = match scope {
            IotlbScope::Global => return,
            IotlbScope::Domain(tag) | IotlbScope::Pages { tag, .. } => tag.domain,
        };
        let user = self.contexts.sources_of(domain).chain(self.pasids.sources_of(domain)).next();
        if let Some(source) = user
            && world.prefetches()
        {
            self.prefetch(world, source, &dropped);
        }
    }

    /// Walks the tables of those who have come to the domain, from now on.
    fn admit_newcomers(&mut self, world: &World, scope: IotlbScope) {
        let newcomers = std::mem::take(&mut self.newcomers);
        let is_in = |source: u16, tag| {
            self.binding_in_memory(world, source).is_some_and(|binding| binding.tag() == tag)
        };
        let stays = |&source: &u16| match scope {
            IotlbScope::Global => false,
            IotlbScope::Domain(tag) => !is_in(source, tag),
            IotlbScope::Pages { .. } => true,
        };
        let left = newcomers.into_iter().filter(stays).collect();
        self.newcomers = left;
    }

    /// Translates addresses again that some device may use soon. What is not allowed any more finds nothing.
    fn prefetch(&mut self, world: &mut World, source: u16, addresses: &[u64]) {
        for &address in addresses.iter().take(4) {
            let address_type = AddressType::Untranslated;
            let request = Request { source, address, access: Access::Read, address_type, silent: true };
            // Only what it leaves in the caches counts.
            let _ = self.request(world, &request);
        }
    }

    pub(super) fn invalidate_interrupts(&mut self, world: &World, scope: InterruptScope) {
        self.drain_write_buffer(world);
        self.interrupts.invalidate(scope);
        self.check_interrupt_entries(world, Some(scope));
        self.handshakes.interrupts_invalidated(scope);
    }

    /// Empties the TLBs of the functions with `source`.
    pub(super) fn invalidate_device_tlb(&mut self, world: &mut World, source: u16, address: u64, size: bool) {
        let (first, last) = invalidated_pages(address, size);
        let functions: Vec<usize> = world.functions_of(self.index, source).collect();
        for index in functions {
            let dropped = world.functions[index].tlb.invalidate(first, last);
            if world.prefetches() {
                self.prefetch_device(world, index, source, &dropped);
            }
        }
    }

    /// The device asks again for what it just lost: if the unit still knows it, it is back.
    fn prefetch_device(&mut self, world: &mut World, index: usize, source: u16, addresses: &[u64]) {
        if !world.functions[index].config.ats_enabled() {
            return;
        }
        for &address in addresses.iter().take(4) {
            let address_type = AddressType::TranslationRequest;
            let request = Request { source, address, access: Access::Read, address_type, silent: true };
            if let Ok(translation) = self.request(world, &request) {
                world.functions[index].tlb.insert(address, translation);
            }
        }
    }

    /// The translation that a device gets when it asks for one.
    pub fn answer_device(
        &mut self,
        world: &mut World,
        source: u16,
        address: u64,
        access: Access,
        silent: bool,
    ) -> Result<Translation, super::Denied> {
        let address_type = AddressType::TranslationRequest;
        self.request(world, &Request { source, address, access, address_type, silent })
    }

    /// Waits for accesses in flight, as it is told; a unit that cannot be told always does.
    fn drain(&mut self, world: &World, drains: Drains) {
        let UnitConfig { drains_writes, drains_reads, .. } = self.config;
        if drains.writes && !drains_writes || drains.reads && !drains_reads {
            self.complain(world, Rule::BadInvalidation, format!("{drains:?} of what it does not have"));
        }
        if drains.writes || !drains_writes {
            self.land(world, |access| matches!(access.kind, InFlightKind::Write(_)));
        }
        if drains.reads || !drains_reads {
            self.land(world, |access| matches!(access.kind, InFlightKind::Read(_)));
        }
    }

    /// Accesses on their way reach memory now, those of which `is_due`.
    pub(crate) fn land(&mut self, world: &World, is_due: impl Fn(&InFlight) -> bool) {
        let (due, left) = std::mem::take(&mut self.in_flight).into_iter().partition(is_due);
        self.in_flight = left;
        let due: Vec<InFlight> = due;
        for InFlight { physical, kind, pass_through } in due {
            match (world.memory.dma_target(physical, kind.bytes()), kind) {
                (Ok(target), InFlightKind::Write(data)) => {
                    // SAFETY: `dma_target` gives memory for so many bytes; a device's write races with nobody, for
                    // the driver has lent the memory to it.
                    unsafe {
                        target.copy_from_nonoverlapping(std::ptr::NonNull::from(&data[0]), data.len());
                    }
                }
                // What a device reads is its own affair.
                (Ok(_), InFlightKind::Read(_)) => {}
                (Err(why), kind) if !pass_through => {
                    let text = format!("{kind:?} in flight landed at {physical:#x} ({why:?})");
                    self.complain(world, Rule::StrayDma, text);
                }
                (Err(_), _) => {}
            }
        }
    }

    /// All caches that a root pointer or a reset invalidates.
    pub(super) fn forget_translations(&mut self) {
        self.contexts.invalidate(ContextScope::Global);
        self.pasids.invalidate(PasidScope::Global);
        self.iotlb.invalidate(IotlbScope::Global);
        self.paging.invalidate(IotlbScope::Global);
        self.newcomers.clear();
    }
}
