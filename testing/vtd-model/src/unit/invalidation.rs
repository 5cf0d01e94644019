//! Emptying caches, for registers and descriptors alike.

use super::{Access, AddressType, Request, Unit};
use crate::{
    complaints::Rule,
    context_cache::ContextScope,
    device_tlb::invalidated_pages,
    interrupt_cache::InterruptScope,
    iotlb::{IotlbScope, Translation},
    world::World,
};

/// Hardware may look again at what it just dropped, once in so many invalidations.
const PREFETCH_ONCE_IN: u64 = 8;

impl Unit {
    pub(super) fn invalidate_contexts(&mut self, world: &mut World, scope: ContextScope) {
        self.drain_write_buffer(world);
        self.check_contexts(world);
        let widened = Self::widened_context(world, scope);
        self.contexts.invalidate(widened);
        self.handshakes.contexts_invalidated(scope);
    }

    /// Hardware may invalidate more than it was asked for.
    fn widened_context(world: &mut World, scope: ContextScope) -> ContextScope {
        const ONCE_IN: u64 = 32;
        if world.random.once_in(ONCE_IN) { ContextScope::Global } else { scope }
    }

    pub(super) fn invalidate_iotlb(&mut self, world: &mut World, scope: IotlbScope, drain_writes: bool) {
        self.drain_write_buffer(world);
        if !matches!(scope, IotlbScope::Pages { .. }) {
            self.check_contexts(world);
        }
        if drain_writes || !self.config.drains {
            self.land_writes(world);
        }
        let dropped = self.iotlb.invalidate(scope);
        self.paging.invalidate(scope);
        self.handshakes.iotlb_invalidated(scope);
        let domain = match scope {
            IotlbScope::Global => return,
            IotlbScope::Domain(domain) | IotlbScope::Pages { domain, .. } => domain,
        };
        let user = self.contexts.sources_of(domain).next();
        if let Some(source) = user
            && world.random.once_in(PREFETCH_ONCE_IN)
        {
            self.prefetch(world, source, &dropped);
        }
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
            if world.random.once_in(PREFETCH_ONCE_IN) {
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

    /// Writes on their way reach memory now.
    pub(crate) fn land_writes(&mut self, world: &World) {
        for write in std::mem::take(&mut self.in_flight) {
            match world.memory.dma_target(write.physical, write.data.len()) {
                Ok(target) => {
                    // SAFETY: `dma_target` gives memory for so many bytes; a device's write races with nobody, for
                    // the driver has lent the memory to it.
                    unsafe {
                        target.copy_from_nonoverlapping(
                            std::ptr::NonNull::from(&write.data[0]),
                            write.data.len(),
                        );
                    }
                }
                Err(why) if !write.pass_through => self.complain(
                    world,
                    Rule::StrayDma,
                    format!("a write in flight landed at {:#x} ({why:?})", write.physical),
                ),
                Err(_) => {}
            }
        }
    }

    /// All caches that a root pointer or a reset invalidates.
    pub(super) fn forget_translations(&mut self) {
        self.contexts.invalidate(ContextScope::Global);
        self.iotlb.invalidate(IotlbScope::Global);
        self.paging.invalidate(IotlbScope::Global);
    }
}
