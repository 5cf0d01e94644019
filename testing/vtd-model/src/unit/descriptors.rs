//! What the descriptors of the invalidation queue mean.

use super::{
    Unit,
    invalidation::Drains,
    queue::{Outstanding, Refused, Wait},
};
use crate::{
    complaints::Rule,
    context_cache::ContextScope,
    entries::bits,
    interrupt_cache::InterruptScope,
    iotlb::{self, IotlbScope, Tag},
    pasid_cache::PasidScope,
    world::World,
};

/// A cache that others are filled through.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Stage {
    Context,
    Pasid,
}

impl Unit {
    pub(super) fn execute(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        let kind = low & 0xf | (low >> 9 & 7) << 4;
        let result = match kind {
            _ if self.is_scalable() && !self.has_wide_queue() => Err(Refused::Width),
            1 => self.context_descriptor(world, low, high),
            2 => self.iotlb_descriptor(world, low, high),
            3 if self.config.device_tlb => self.device_descriptor(world, low, high),
            4 if self.config.interrupt_remapping => self.interrupt_descriptor(world, low, high),
            5 => self.wait_descriptor(world, low, high),
            6 if self.config.first_stage => self.pasid_iotlb_descriptor(world, low, high),
            7 if self.config.scalable => self.pasid_descriptor(world, low, high),
            _ => Err(Refused::Type),
        };
        if let Err(why) = result {
            self.complain(
                world,
                Rule::BadInvalidation,
                format!("descriptor {low:#x} {high:#x} refused: {why:?}"),
            );
        }
        self.queue.ends_in_wait = kind == 5;
        result
    }

    fn context_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (bits(8, 6) | bits(15, 12) | bits(63, 50)) != 0 || high != 0 {
            return Err(Refused::Reserved);
        }
        let (domain, source) = ((low >> 16) as u16, (low >> 32) as u16);
        self.check_domain(world, domain);
        let scope = match low >> 4 & 3 {
            1 => ContextScope::Global,
            // In scalable mode entries belong to no domain.
            2 if self.is_scalable() => return Err(Refused::Mode),
            2 => ContextScope::Domain(domain),
            3 => ContextScope::Device { domain, source, function_mask: (low >> 48 & 3) as u8 },
            _ => return Err(Refused::Reserved),
        };
        self.queue.in_batch = self.queue.in_batch.max(Some(Stage::Context));
        self.invalidate_contexts(world, scope);
        Ok(())
    }

    fn iotlb_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (1 << 8 | bits(15, 12) | bits(63, 32)) != 0 || high & bits(11, 7) != 0 {
            return Err(Refused::Reserved);
        }
        let domain = (low >> 16) as u16;
        self.check_domain(world, domain);
        let scope = match low >> 4 & 3 {
            1 => IotlbScope::Global,
            2 => IotlbScope::Domain(Tag::second(domain)),
            3 => self.page_scope(world, Tag::second(domain), high).ok_or(Refused::Reserved)?,
            _ => return Err(Refused::Reserved),
        };
        self.check_order(world);
        if scope != IotlbScope::Global && self.is_of_first_stage(domain) {
            let text = format!(
                "IOTLB descriptor {low:#x} reaches nothing of the first stage, where domain {domain} is"
            );
            self.complain(world, Rule::BadInvalidation, text);
        }
        let drains = Drains { writes: low >> 6 & 1 != 0, reads: low >> 7 & 1 != 0 };
        self.invalidate_iotlb(world, scope, drains);
        Ok(())
    }

    /// Whether what is cached of a domain is of the first stage: that of any, where scalable mode has no other.
    fn is_of_first_stage(&self, domain: u16) -> bool {
        let tag = Tag { stage: iotlb::Stage::First, domain };
        self.is_scalable() && (!self.config.scalable_second_stage || self.iotlb.has(tag))
    }

    /// Whether what the IOTLB is filled through was waited for.
    fn check_order(&self, world: &World) {
        if let Some(stage) = self.queue.in_batch {
            let text = format!("no wait between {stage:?} and IOTLB invalidation");
            self.complain(world, Rule::InvalidationOrder, text);
        }
    }

    /// What is cached of the first stage. Accesses in flight are always waited for.
    fn pasid_iotlb_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (bits(8, 6) | bits(15, 12) | bits(63, 52)) != 0 || high & bits(11, 7) != 0 {
            return Err(Refused::Reserved);
        }
        if !self.is_scalable() {
            return Err(Refused::Mode);
        }
        let domain = (low >> 16) as u16;
        self.check_domain(world, domain);
        if low >> 32 & bits(19, 0) != 0 {
            let text = format!("PASID IOTLB descriptor {low:#x}: nothing here has a PASID of its own");
            self.complain(world, Rule::BadInvalidation, text);
        }
        let tag = Tag { stage: iotlb::Stage::First, domain };
        let scope = match low >> 4 & 3 {
            2 if high == 0 => IotlbScope::Domain(tag),
            3 => self.page_scope(world, tag, high).ok_or(Refused::Reserved)?,
            _ => return Err(Refused::Reserved),
        };
        self.check_order(world);
        let drains = Drains { writes: self.config.drains_writes, reads: self.config.drains_reads };
        self.invalidate_iotlb(world, scope, drains);
        Ok(())
    }

    fn pasid_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (bits(8, 6) | bits(15, 12) | bits(63, 52)) != 0 || high != 0 {
            return Err(Refused::Reserved);
        }
        if !self.is_scalable() {
            return Err(Refused::Mode);
        }
        let domain = (low >> 16) as u16;
        self.check_domain(world, domain);
        let scope = match low >> 4 & 3 {
            0 => PasidScope::Domain(domain),
            1 => PasidScope::Pasid { domain, pasid: (low >> 32 & bits(19, 0)) as u32 },
            3 => PasidScope::Global,
            _ => return Err(Refused::Reserved),
        };
        if self.queue.in_batch == Some(Stage::Context) {
            let text = "no wait between context and PASID invalidation";
            self.complain(world, Rule::InvalidationOrder, text);
        }
        self.queue.in_batch = Some(Stage::Pasid);
        self.invalidate_pasids(world, scope);
        Ok(())
    }

    fn device_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        let pfsid = if self.config.names_physical_function { 0 } else { bits(15, 12) | bits(63, 52) };
        if low & (bits(8, 4) | bits(31, 21) | bits(51, 48) | pfsid) != 0 || high & bits(11, 1) != 0 {
            return Err(Refused::Reserved);
        }
        let source = (low >> 32) as u16;
        self.check_device(world, source, low);
        let until_ns = world.now_ns + self.misbehaviour.device_limit_ns;
        let (address, size) = (high & bits(63, 12), high & 1 != 0);
        self.queue.outstanding.push_back(Outstanding::Device { source, address, size, until_ns });
        self.finish_outstanding(world);
        Ok(())
    }

    /// Whether the device exists, and the descriptor says the right things of it.
    fn check_device(&self, world: &World, source: u16, low: u64) {
        let Some(index) = world.functions_of(self.index, source).next() else {
            let text = format!("device TLB of {source:#06x}, which does not exist");
            return self.complain(world, Rule::BadInvalidation, text);
        };
        let (physical, depth) = world.functions[index].physical;
        let named = (low >> 12 & 0xf | low >> 52 << 4) as u16;
        let wanted = if self.config.names_physical_function { physical } else { 0 };
        if named != wanted {
            let text = format!("device TLB of {source:#06x} with physical function {named:#06x}");
            self.complain(world, Rule::BadInvalidation, text);
        }
        if (low >> 16 & 0x1f) as u8 != depth {
            let text = format!("device TLB of {source:#06x} with a queue depth other than its {depth}");
            self.complain(world, Rule::BadInvalidation, text);
        }
    }

    fn interrupt_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        if low & (bits(8, 5) | bits(26, 12) | bits(63, 48)) != 0 || high != 0 {
            return Err(Refused::Reserved);
        }
        let scope = if low >> 4 & 1 == 0 {
            InterruptScope::Global
        } else {
            let (mask, index) = (low >> 27 & 0x1f, (low >> 32) as u32 & 0xffff);
            let count = 1_u32 << mask.min(16);
            if mask > self.config.interrupt_mask.into() || index & (count - 1) != 0 {
                self.complain(
                    world,
                    Rule::BadInvalidation,
                    format!("interrupt entries {index} with mask {mask}"),
                );
                return Err(Refused::Reserved);
            }
            InterruptScope::Entries { first: index, last: index + count - 1 }
        };
        self.invalidate_interrupts(world, scope);
        Ok(())
    }

    fn wait_descriptor(&mut self, world: &mut World, low: u64, high: u64) -> Result<(), Refused> {
        const PAGE_REQUEST_DRAIN: u64 = 1 << 7;
        if low & (PAGE_REQUEST_DRAIN | 1 << 8 | bits(31, 12)) != 0 || high & 3 != 0 {
            return Err(Refused::Reserved);
        }
        self.queue.in_batch = None;
        let status = (low >> 5 & 1 != 0).then_some((high & !3, (low >> 32) as u32));
        let wait = Wait { status, interrupt: low >> 4 & 1 != 0 };
        if self.queue.outstanding.is_empty() {
            self.complete(world, wait);
        } else {
            self.queue.outstanding.push_back(Outstanding::Wait(wait));
        }
        Ok(())
    }
}
