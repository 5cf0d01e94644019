//! The state in which a unit is when the driver finds it.

use super::{Unit, global};
use crate::{
    context_cache::{CachedContext, Context},
    entries::{ContextEntry, InterruptEntry, bits},
    faults::status,
    iotlb::{Stage, Tag, Translation},
    paging_cache::CachedTable,
    pasid_cache::CachedPasid,
    scalable_entries::PasidEntry,
    world::World,
};

const PAGE: u64 = 4096;
/// Firmware's structures of one unit: root table, context table, second-stage table, queue, interrupt table.
const PAGES_PER_UNIT: u64 = 5;
/// The domain of firmware's own contexts.
const FIRMWARE_DOMAIN: u16 = 1;

impl Unit {
    /// Leaves the unit as firmware would, and its caches with whatever was in them.
    pub fn power_on(&mut self, world: &mut World, firmware: u64) {
        let base = firmware + self.index as u64 * PAGES_PER_UNIT * PAGE;
        if self.config.leftovers.garbage {
            self.scramble(world);
        }
        if self.config.leftovers.translation {
            self.leave_translation_on(world, base);
        }
        if self.config.leftovers.queue {
            self.leave_queue_on(base + 3 * PAGE);
            self.status |= global::QUEUE;
        }
        if self.config.leftovers.interrupts {
            self.interrupt_address = (base + 4 * PAGE) | 7;
            self.interrupt_table = self.interrupt_address;
            self.status |= global::INTERRUPTS | global::INTERRUPT_TABLE | global::COMPATIBILITY;
        }
        if self.config.leftovers.fault_log {
            self.status |= global::FAULT_LOG | global::FAULT_LOG_SET;
            self.faults.to_log = true;
            self.faults.raise(status::LOG_PENDING | status::LOG_OVERFLOW);
        }
        if self.config.protected_low {
            self.protected[..2].copy_from_slice(&[0, bits(31, 21)]);
        }
        if self.config.protected_high {
            self.protected[2..].copy_from_slice(&[1 << 32, bits(51, 21)]);
        }
        if self.config.has_protected_memory() {
            self.protection = self.config.leftovers.protection;
            self.protection_requested = self.protection;
        }
        self.plant_stale_entries(world);
    }

    /// Whether devices reached reserved memory when the unit was turned on: firmware's tables let everything through,
    /// or there were none.
    pub fn was_open_at_first(&self) -> bool {
        !self.config.leftovers.translation || self.config.pass_through
    }

    fn scramble(&mut self, world: &mut World) {
        let random = &mut world.random;
        self.root_address = random.bits();
        self.interrupt_address = random.bits();
        self.queue.scramble(random);
        self.commands.address_register = random.bits();
        self.fault_event.data = random.bits() as u32;
        self.fault_event.address = random.bits() as u32;
        self.fault_event.upper_address = random.bits() as u32;
        self.completion_event.address = random.bits() as u32;
        self.completed = random.once_in(2);
        if self.config.page_requests {
            self.page_event.set_control(0);
        }
        self.faults.scramble(random);
        if random.once_in(2) {
            // Firmware listened to faults: there may be a message to nobody.
            let message = self.fault_event.set_control(0);
            Self::send(world, message);
        }
    }

    /// Every function passes through, or reaches nothing where that is not possible.
    fn leave_translation_on(&mut self, world: &World, base: u64) {
        let (context_table, second_stage) = (base + PAGE, base + 2 * PAGE);
        let pass_through: u64 = if self.config.pass_through { 2 << 2 } else { 0 };
        let low = second_stage | pass_through | 1;
        let high = u64::from(FIRMWARE_DOMAIN) << 8 | u64::from(self.config.largest_width());
        for index in 0..256 {
            world.memory.store_firmware(base + index * 16, context_table | 1);
            world.memory.store_firmware(context_table + index * 16, low);
            world.memory.store_firmware(context_table + index * 16 + 8, high);
        }
        self.root_address = base;
        self.root = base;
        self.status |= global::TRANSLATION | global::ROOT;
    }

    /// A PASID entry from whoever used scalable mode before.
    fn plant_stale_pasid(&mut self, source: u16, trap: u64) {
        const SECOND_STAGE: u64 = 2 << 6;
        if self.config.scalable_second_stage {
            let low = trap | SECOND_STAGE | u64::from(self.config.largest_width()) << 2 | 1;
            let stale = PasidEntry([low, u64::from(FIRMWARE_DOMAIN), 0, 0, 0, 0, 0, 0]);
            self.pasids.insert(source, 0, CachedPasid::Present(stale));
        }
    }

    /// Caches are not empty at first: what they hold leads to memory that no driver ever lends.
    fn plant_stale_entries(&mut self, world: &World) {
        const DOMAINS: u16 = 16;
        const PAGES: u64 = 64;
        let trap = world.memory.tables.trap();
        let width = self.config.largest_width();
        let is_used = self.config.leftovers.translation;
        let unit = self.index;
        for function in world.functions.iter().filter(|f| f.unit == unit && !is_used) {
            let high = u64::from(FIRMWARE_DOMAIN) << 8 | u64::from(width);
            let stale = CachedContext::Present(Context::Legacy(ContextEntry { low: trap | 1, high }));
            self.contexts.insert(function.requester, stale);
            self.plant_stale_pasid(function.requester, trap);
        }
        let physical = trap;
        let stale = Translation { physical, page_shift: 12, read: true, write: true, pass_through: false };
        for (domain, stage) in
            (0..DOMAINS).flat_map(|domain| [Stage::First, Stage::Second].map(|s| (domain, s)))
        {
            let tag = Tag { stage, domain };
            for page in 0..PAGES {
                self.iotlb.insert(tag, page * PAGE, stale);
            }
            let cached = CachedTable { table: Some(trap), read: true, write: true };
            (2..=4).for_each(|level| self.paging.insert(tag, level, 0, cached));
        }
        for index in 0..256 {
            // Present, physical mode, vector 0xee, no source check.
            self.interrupts.insert(index, InterruptEntry { low: 0xee_0001, high: 0 });
        }
    }
}
