//! Making the units, and the devices with TLBs of their own, see what changed.

use core::sync::atomic::Ordering;

use super::{
    hardware::Vtd,
    queue::{ContextScope, Invalidation, InvalidationError, IotlbScope, Plan},
    spec::{DomainId, FunctionMask},
    tags::{DeviceTag, Tag, Tags},
};
use crate::{
    Iova, Platform, SourceId,
    dma::{Silent, Stuck, Unflushed},
    platform::Work,
};

/// Inputs that some caches have to forget; both ends inclusive.
pub(super) struct IovaRange {
    pub first: Iova,
    pub last: Iova,
    pub only_leaves: bool,
}

impl<P: Platform> Vtd<P> {
    /// What a unit with caching mode or a write buffer needs before it sees a context entry that was not present before:
    /// one that leads to `domain`, or one that still leads nowhere.
    pub(super) fn publish_context(
        &self,
        unit: usize,
        source: SourceId,
        domain: Option<DomainId>,
    ) -> Result<(), Stuck> {
        let hardware = &self.units[unit].unit;
        if hardware.capability().caches_not_present() {
            // What is not present is cached under domain 0.
            let device = ContextScope::Device { domain: DomainId::new(0), source, mask: FunctionMask::Exact };
            let device = Invalidation::Context(device);
            return match domain {
                Some(domain) => {
                    self.invalidate(unit, &[device, Invalidation::Iotlb(IotlbScope::Domain(domain))])
                }
                None => self.invalidate(unit, &[device]),
            };
        }
        hardware.flush_write_buffer(&*self.platform).map_err(|error| self.failed(unit, error))
    }

    /// What units with caching mode or a write buffer need before they see new leaves.
    #[cold]
    pub(super) fn publish_slowly(&self, tags: &Tags, first: Iova, bytes: u64) -> Result<(), Unflushed> {
        let range = IovaRange { first, last: Iova::new(first.as_u64() + (bytes - 1)), only_leaves: false };
        let list = *tags.list.lock(&*self.platform);
        for tag in list.units.iter().flatten() {
            let unit = &self.units[tag.unit].unit;
            if unit.capability().caches_not_present() {
                // No device TLB holds what was not present.
                self.invalidate_range(tags, &[Some(*tag)], None, &range)?;
            } else {
                unit.flush_write_buffer(&*self.platform).map_err(|error| self.failed(tag.unit, error))?;
            }
        }
        Ok(())
    }

    /// Starts the invalidation of a range at each of `units`, and at the `device` behind one of them, then waits for all
    /// of them.
    pub(super) fn invalidate_range(
        &self,
        tags: &Tags,
        units: &[Option<Tag>],
        device: Option<DeviceTag>,
        range: &IovaRange,
    ) -> Result<(), Unflushed> {
        let [Some(tag), others @ ..] = units else { return Ok(()) };
        let unit = &self.units[tag.unit].unit;
        let behind = device.filter(|device| device.unit == tag.unit).map(|device| device.device);
        let mut plan = Plan::new(tag.domain, range.only_leaves, unit.capability()).with_device(behind);
        plan.add(range.first, range.last);
        let submitted = unit.submit(&*self.platform, plan.invalidations());
        let result = self.invalidate_range(tags, others, device, range);
        let completed = submitted.and_then(|ticket| ticket.wait(&*self.platform));
        completed.map_err(|error| self.unflushed(tags, tag.unit, error)).and(result)
    }

    /// Whose fault an `error` of `unit` is, on behalf of a domain. A device that did not answer is to be stopped, with its
    /// group; the unit goes on.
    #[cold]
    pub(super) fn unflushed(&self, tags: &Tags, unit: usize, error: InvalidationError) -> Unflushed {
        // A domain has one device with a TLB: there are no others.
        let InvalidationError::DeviceTimeout { source, .. } = error else {
            return self.failed(unit, error).into();
        };
        log::error!("unit {unit}: {error}");
        tags.set_silent(source);
        self.newly_silent.store(true, Ordering::Relaxed);
        self.platform.wake(Work::Faults);
        Unflushed::Device(Silent { source })
    }

    /// Makes a unit forget the entry of `source`, which is not present any more, and all that it led to. What `source` may
    /// hold in a TLB of its own does it no good: without the entry its translated requests are blocked as well.
    pub(super) fn forget_source(&self, unit: usize, source: SourceId, domain: DomainId) -> Result<(), Stuck> {
        let entry = ContextScope::Device { domain, source, mask: FunctionMask::Exact };
        let translations = IotlbScope::Domain(domain);
        self.invalidate(unit, &[Invalidation::Context(entry), Invalidation::Iotlb(translations)])
    }
}
