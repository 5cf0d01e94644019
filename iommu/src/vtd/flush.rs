//! Making the units, and the devices with TLBs of their own, see what changed.

use core::{iter, sync::atomic::Ordering};

use super::{
    hardware::Vtd,
    queue::{InvalidationError, IotlbScope, Plan},
    spec::DomainId,
    tags::{DeviceTag, Tag, Tags},
};
use crate::{
    Iova, Platform, SourceId,
    dma::{Silent, Stuck, Unflushed},
    platform::Work,
};

impl<P: Platform> Vtd<P> {
    /// What a unit with caching mode or a write buffer needs before it sees a context entry that was not present
    /// before: one that leads to `domain`, or one that still leads nowhere.
    pub(super) fn publish_context(
        &self,
        unit: usize,
        source: SourceId,
        domain: Option<DomainId>,
    ) -> Result<(), Stuck> {
        let hardware = &self.units[unit].unit;
        if hardware.capability().caches_not_present() {
            let mode = hardware.mode();
            return mode.publish_source(source, domain, |batch| self.invalidate(unit, batch));
        }
        hardware.flush_write_buffer(&*self.platform).map_err(|error| self.failed(unit, error))
    }

    /// What units that cache missing leaves or have a write buffer need before they see new ones.
    #[cold]
    pub(super) fn publish_slowly(&self, tags: &Tags, first: Iova, bytes: u64) -> Result<(), Unflushed> {
        let range = iter::once((first, Iova::new(first.as_u64() + (bytes - 1))));
        let list = *tags.list.lock(&*self.platform);
        for tag in list.units.iter().flatten() {
            let unit = &self.units[tag.unit].unit;
            if unit.caches_missing_leaves() {
                // No device TLB holds what was not present.
                self.invalidate_ranges(tags, &[Some(*tag)], None, false, range.clone())?;
            } else {
                unit.flush_write_buffer(&*self.platform).map_err(|error| self.failed(tag.unit, error))?;
            }
        }
        Ok(())
    }

    /// Makes every cache that may hold a translation of `first..=last` forget it:
    /// [`forget_ranges`](Self::forget_ranges) for the domain with one unit, and the range that one invalidation covers,
    /// which most are.
    #[inline(always)]
    pub(super) fn forget_range(
        &self,
        tags: &Tags,
        only_leaves: bool,
        first: Iova,
        last: Iova,
    ) -> Result<(), Unflushed> {
        if let Some((index, domain)) = tags.only_unit() {
            let unit = &self.units[index].unit;
            let scope =
                IotlbScope::covering(domain, only_leaves, unit.capability(), self.stage, (first, last));
            if let Some(scope) = scope {
                return unit
                    .forget(&*self.platform, &[scope])
                    .map_err(|error| self.unflushed(tags, index, error));
            }
        }
        self.forget_ranges(tags, only_leaves, iter::once((first, last)))
    }

    /// Makes every cache that may hold a translation of one of `ranges`, both ends inclusive, forget it; unless
    /// `only_leaves`, also what it knows of the upper levels on the way there. When this returns `Ok`, every unit that
    /// knows the domain, and its device if that has a TLB, has confirmed it. No other had a tag of the domain when the
    /// entries changed, if they did before the call.
    #[inline(never)]
    pub(super) fn forget_ranges(
        &self,
        tags: &Tags,
        only_leaves: bool,
        ranges: impl Iterator<Item = (Iova, Iova)> + Clone,
    ) -> Result<(), Unflushed> {
        if let Some(only) = tags.only_unit() {
            return self.invalidate_at(tags, only, only_leaves, ranges);
        }
        let list = *tags.list.lock(&*self.platform);
        // A device that did not answer once may hold anything, until it is blocked: nobody waits for it again.
        if list.device.is_some() {
            tags.check_devices().map_err(Unflushed::Device)?;
        }
        self.invalidate_ranges(tags, &list.units, list.device, only_leaves, ranges)
    }

    /// Invalidates `ranges` at the one unit that there is.
    #[inline]
    fn invalidate_at(
        &self,
        tags: &Tags,
        (index, domain): (usize, DomainId),
        only_leaves: bool,
        ranges: impl Iterator<Item = (Iova, Iova)>,
    ) -> Result<(), Unflushed> {
        let unit = &self.units[index].unit;
        let mut plan = Plan::new(domain, only_leaves, unit.capability(), self.stage);
        ranges.for_each(|(first, last)| plan.add(first, last));
        let result = unit.forget(&*self.platform, plan.scopes());
        result.map_err(|error| self.unflushed(tags, index, error))
    }

    /// Starts the invalidation of `ranges` at each of `units`, and at the `device` behind one of them, then waits for
    /// all of them.
    fn invalidate_ranges(
        &self,
        tags: &Tags,
        units: &[Option<Tag>],
        device: Option<DeviceTag>,
        only_leaves: bool,
        ranges: impl Iterator<Item = (Iova, Iova)> + Clone,
    ) -> Result<(), Unflushed> {
        let [Some(tag), others @ ..] = units else { return Ok(()) };
        let unit = &self.units[tag.unit].unit;
        let behind = device.filter(|device| device.unit == tag.unit).map(|device| device.device);
        let mut plan = Plan::new(tag.domain, only_leaves, unit.capability(), self.stage).with_device(behind);
        ranges.clone().for_each(|(first, last)| plan.add(first, last));
        let invalidations = plan.invalidations();
        let submitted = unit.submit(&*self.platform, &invalidations);
        let result = self.invalidate_ranges(tags, others, device, only_leaves, ranges);
        let completed = submitted.and_then(|ticket| ticket.wait(&*self.platform));
        completed.map_err(|error| self.unflushed(tags, tag.unit, error)).and(result)
    }

    /// Whose fault an `error` of `unit` is, on behalf of a domain. A device that did not answer is to be stopped, with
    /// its group; the unit goes on.
    #[cold]
    pub(super) fn unflushed(&self, tags: &Tags, unit: usize, error: InvalidationError) -> Unflushed {
        // A domain has one device with a TLB: there are no others.
        let InvalidationError::DeviceTimeout { source, .. } = error else {
            return self.failed(unit, error).into();
        };
        if tags.set_silent(source) {
            log::error!("unit {unit}: {error}");
        }
        self.newly_silent.store(true, Ordering::Relaxed);
        self.platform.wake(Work::Faults);
        Unflushed::Device(Silent { source })
    }

    /// Makes a unit forget the entry of `source`, which is not present any more, and all that it led to. What `source`
    /// may hold in a TLB of its own does it no good: without the entry its translated requests are blocked as well.
    pub(super) fn forget_source(&self, unit: usize, source: SourceId, domain: DomainId) -> Result<(), Stuck> {
        let mode = self.units[unit].unit.mode();
        mode.forget_source(source, domain, |batch| self.invalidate(unit, batch))
    }
}
