//! All units of a machine, as the vendor-neutral front uses them.

mod bring_up;
mod formats;
mod interrupts;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use mm::{
    PhysAddr,
    table::{Flushed, Format, Stale},
};

use super::{
    TableFormat,
    domain_ids::DomainIds,
    error::VtdError,
    fault::Drained,
    mode::{TableStage, TranslationMode},
    queue::{CachingDevice, Invalidation, QueueReport},
    spec::{AddressWidth, DomainId},
    tables::{ContextTables, Target},
    tags::Tags,
    unit::Unit,
};
use crate::{
    Iova, Options, Platform, SourceId,
    ats::DeviceTlb,
    backend::{Backend, UnitSet},
    dma::{DmaError, Silent, Stuck, Unflushed},
    dump::{UnitReport, Visitor},
    fault::Fault,
    platform::Work,
    stale_ranges::StaleRanges,
    sync::IrqLock,
    walk::Path,
};

pub(crate) use bring_up::Discovered;
pub(crate) use interrupts::InterruptControllers;

/// Every unit of a machine.
pub(crate) struct Vtd<P: Platform> {
    pub(super) platform: Arc<P>,
    pub(super) units: Vec<UnitState<P>>,
    /// Width of a physical address (host address width of the DMAR table), in bits.
    physical_bits: u8,
    options: Options,
    /// What all page tables are.
    pub(super) stage: TableStage,
    /// One bit a unit that was found not to answer: nothing new is mapped behind it.
    stuck: AtomicU64,
    /// One bit a unit whose failure the front has been told of.
    reported_stuck: AtomicU64,
    /// A device did not empty its TLB, and the front has not been told.
    pub(super) newly_silent: AtomicBool,
    /// No unit caches leaves that are not present or buffers writes: a new leaf is seen as soon as it is stored.
    publishes_freely: bool,
}

/// A unit and what it is told through memory.
pub(super) struct UnitState<P: Platform> {
    pub unit: Unit<P>,
    tables: IrqLock<Tables<P>>,
    /// Its fault records have to be read again, by a thread.
    more_faults: AtomicBool,
}

struct Tables<P: Platform> {
    contexts: ContextTables<P>,
    ids: DomainIds,
}

impl<P: Platform> Vtd<P> {
    /// Turns translation on, on every unit. If one does not obey, all others are turned off again.
    pub fn enable_translation(&self) -> Result<(), VtdError> {
        let enabled = self.units.iter().try_for_each(|state| state.unit.enable_translation(&*self.platform));
        Ok(enabled.inspect_err(|_| bring_up::withdraw(&*self.platform, &self.units))?)
    }

    /// Reads the fault records of unit `unit`. Callable in an interrupt.
    pub fn drain_faults(&self, unit: usize, sink: impl FnMut(Fault)) {
        let Some(state) = self.units.get(unit) else { return };
        self.after_draining(state, state.unit.drain_faults(&*self.platform, sink));
    }

    /// The same for whoever was called because there are some: see [`Unit::answer_faults`].
    pub fn answer_faults(&self, unit: usize, sink: impl FnMut(Fault)) {
        let Some(state) = self.units.get(unit) else { return };
        self.after_draining(state, state.unit.answer_faults(&*self.platform, sink));
    }

    /// The same for the thread that looks while the unit's events are masked: see [`Unit::look_at_faults`].
    pub fn look_at_faults(&self, unit: usize, sink: impl FnMut(Fault)) {
        let Some(state) = self.units.get(unit) else { return };
        state.unit.look_at_faults(&*self.platform, sink);
        self.after_draining(state, Drained::All);
    }

    /// When [`look_at_faults`](Self::look_at_faults) has something to do next for some unit.
    pub fn next_look_ns(&self) -> u64 {
        let looks = self.units.iter().map(|state| state.unit.next_look_ns(&*self.platform));
        looks.min().unwrap_or(u64::MAX)
    }

    #[inline]
    fn after_draining(&self, state: &UnitState<P>, drained: Drained) {
        if drained == Drained::More || state.unit.is_stuck() {
            self.tell_of(state, drained);
        }
    }

    /// Has the faults' thread look at a unit that has more of them, or that has just stopped answering.
    #[cold]
    fn tell_of(&self, state: &UnitState<P>, drained: Drained) {
        let unit = state.unit.index();
        if drained == Drained::More {
            state.more_faults.store(true, Ordering::Relaxed);
            self.platform.wake(Work::Faults);
        }
        if state.unit.is_stuck() && self.stuck.fetch_or(1 << unit, Ordering::Relaxed) >> unit & 1 == 0 {
            self.platform.wake(Work::Faults);
        }
    }

    /// Units whose records no event will come for: they filled up again while they were read, or faults came before the
    /// host could take events.
    pub fn take_undrained(&self) -> impl Iterator<Item = usize> {
        let undrained = |state: &&UnitState<P>| state.more_faults.swap(false, Ordering::Relaxed);
        self.units.iter().filter(undrained).map(|state| state.unit.index())
    }

    /// An error of the invalidation queue of unit `unit` that was dealt with.
    pub fn take_queue_report(&self, unit: usize) -> Option<QueueReport> {
        self.units.get(unit)?.unit.take_queue_report(&*self.platform)
    }

    /// Number of units.
    pub fn count(&self) -> usize {
        self.units.len()
    }

    /// How many times unit `unit` had to drop faults because its records were full.
    pub fn lost_faults(&self, unit: usize) -> u64 {
        self.units.get(unit).map_or(0, |state| state.unit.overflows())
    }

    /// A unit that stopped answering and was not returned by this before.
    pub fn take_newly_stuck(&self) -> Option<Stuck> {
        let stuck = self.units.iter().filter(|state| state.unit.is_stuck()).map(|state| state.unit.index());
        let is_new =
            |&unit: &usize| self.reported_stuck.fetch_or(1 << unit, Ordering::Relaxed) >> unit & 1 == 0;
        let unit = stuck.into_iter().find(is_new)?;
        self.stuck.fetch_or(1 << unit, Ordering::Relaxed);
        Some(Stuck { unit })
    }

    /// Whether a device did not empty its TLB since this was last called: its domain knows.
    pub fn take_newly_silent(&self) -> bool {
        self.newly_silent.swap(false, Ordering::Relaxed)
    }

    /// Logs what the units are.
    pub fn log_units(&self) {
        if self.stage == TableStage::First {
            log::warn!("first-stage tables: what devices may write they can read");
        }
        for UnitState { unit, .. } in &self.units {
            let capability = unit.capability();
            log::info!(
                "unit {} at {}: {} address bits, {} domain ids, {} fault records, translation on{}{}",
                unit.index(),
                unit.base(),
                unit.address_bits(),
                capability.domain_ids(),
                capability.fault_records(),
                match unit.mode() {
                    TranslationMode::Legacy => "",
                    TranslationMode::Scalable { stage: TableStage::First, .. } =>
                        " in scalable mode, first stage",
                    TranslationMode::Scalable { .. } => " in scalable mode",
                },
                if unit.interrupts().is_some() { ", interrupts remapped" } else { "" },
            );
            if let Some(why) = TranslationMode::why_legacy(capability, self.options, self.stage) {
                log::warn!("unit {} is in legacy mode: {why}", unit.index());
            }
        }
    }

    /// Shows the units.
    pub fn visit(&self, visitor: &mut dyn Visitor) {
        for state in &self.units {
            visitor.unit(&state.report(&*self.platform));
            state.visit_interrupts(&*self.platform, visitor);
        }
    }

    /// Logs what made a unit fail, and has its devices stopped. What fails afterwards fails for that, and is not
    /// logged: it is as much as is mapped.
    #[cold]
    pub(super) fn failed(&self, unit: usize, error: impl core::fmt::Display) -> Stuck {
        if self.stuck.fetch_or(1 << unit, Ordering::Relaxed) >> unit & 1 == 0 {
            log::error!("{error}");
        }
        self.platform.wake(Work::Faults);
        Stuck { unit }
    }

    pub(super) fn invalidate(&self, unit: usize, batch: &[Invalidation]) -> Result<(), Stuck> {
        self.units[unit].unit.invalidate(&*self.platform, batch).map_err(|error| self.failed(unit, error))
    }

    pub(super) fn allocate_domain(&self, unit: usize) -> Result<DomainId, DmaError> {
        let domain = self.units[unit].tables.lock(&*self.platform).ids.allocate();
        domain.ok_or(DmaError::OutOfDomainIds { unit })
    }

    pub(super) fn free_domain(&self, unit: usize, domain: DomainId) {
        self.units[unit].tables.lock(&*self.platform).ids.free(domain);
    }

    /// What makes a source translate through the domain.
    fn target(tags: &Tags, domain: DomainId, device_tlb: bool) -> Result<Target, DmaError> {
        let Tags { root: table, format, .. } = *tags;
        let width = AddressWidth::from_levels(format.levels()).ok_or(DmaError::OutOfMemory)?;
        Ok(Target { domain, table, stage: format.stage(), width, device_tlb })
    }

    /// What invalidating the TLB of `source`, behind `unit`, takes.
    fn caching_device(&self, unit: usize, source: SourceId, device_tlb: DeviceTlb) -> CachingDevice {
        let DeviceTlb { physical, queue_depth } = device_tlb;
        let named = self.units[unit].unit.capability().names_physical_function();
        let physical_function = if named { physical.source_id().requester } else { 0 };
        CachingDevice { source, physical_function, queue_depth }
    }
}

impl<P: Platform> Backend for Vtd<P> {
    type Platform = P;
    type Tags = Tags;

    #[inline]
    fn platform(&self) -> &Arc<P> {
        &self.platform
    }

    #[inline]
    fn check(&self, units: UnitSet) -> Result<(), Stuck> {
        let stuck = UnitSet::from_bits(self.stuck.load(Ordering::Relaxed));
        stuck.common(units).first().map_or(Ok(()), |unit| Err(Stuck { unit }))
    }

    fn new_tags(&self, root: PhysAddr, format: TableFormat) -> Tags {
        Tags::new(root, format)
    }

    fn serves_device_tlbs(&self, unit: usize) -> bool {
        // Without its queue, which options may keep off, a unit has no way to invalidate them.
        self.units.get(unit).is_some_and(|state| {
            state.unit.capability().has_device_tlbs()
                && state.unit.queue_statistics(&*self.platform).is_some()
        })
    }

    fn attach(
        &self,
        tags: &Tags,
        unit: usize,
        source: SourceId,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<(), DmaError> {
        self.check(UnitSet::default().with(unit))?;
        let device = device_tlb.map(|device_tlb| self.caching_device(unit, source, device_tlb));
        // The tag comes first: an unmap that runs at the same time either finds it, or has cleared its leaves before
        // the unit can walk them.
        let domain = self.add_tag(tags, unit, device)?;
        let published = Self::target(tags, domain, device.is_some()).and_then(|target| {
            self.units[unit].tables.lock(&*self.platform).contexts.publish(source, target)
        });
        if let Err(error) = published {
            self.remove_tag(tags, unit, source);
            return Err(error);
        }
        Ok(self.publish_context(unit, source, Some(domain))?)
    }

    fn block(&self, tags: &Tags, unit: usize, source: SourceId) -> Result<(), Stuck> {
        let withdrawn = self.units[unit].tables.lock(&*self.platform).contexts.withdraw(source);
        // What an earlier call withdrew may still be cached, if that call failed: then the unit is stuck.
        let Some(domain) = withdrawn else { return self.check(UnitSet::default().with(unit)) };
        self.forget_source(unit, source, domain)?;
        self.remove_tag(tags, unit, source);
        Ok(())
    }

    fn mute(&self, unit: usize, source: SourceId) -> Result<(), Stuck> {
        let muted = self.units[unit].unit.mute_interrupts(&*self.platform, source);
        muted.map_err(|error| self.failed(unit, error))
    }

    fn set_reporting(&self, unit: usize, source: SourceId, reports: bool) -> Result<(), DmaError> {
        self.check(UnitSet::default().with(unit))?;
        if !self.units[unit].tables.lock(&*self.platform).contexts.set_reporting(source, reports)? {
            return Ok(());
        }
        Ok(self.publish_context(unit, source, None)?)
    }

    fn path(&self, unit: usize, source: SourceId) -> Path {
        self.units[unit].tables.lock(&*self.platform).contexts.path(source)
    }

    fn is_unused(&self, tags: &Tags) -> bool {
        tags.list.lock(&*self.platform).units.iter().all(Option::is_none)
    }

    #[inline]
    fn check_devices(&self, tags: &Tags) -> Result<(), Silent> {
        tags.check_devices()
    }

    #[inline]
    fn publish(&self, tags: &Tags, first: Iova, bytes: u64) -> Result<(), Unflushed> {
        if self.publishes_freely {
            return Ok(());
        }
        self.publish_slowly(tags, first, bytes)
    }

    #[inline(always)]
    fn forget(&self, tags: &Tags, stale: &Stale) -> Result<(), Unflushed> {
        self.forget_range(tags, stale.only_leaves(), Iova::new(stale.first()), Iova::new(stale.last()))
    }

    #[inline(always)]
    fn flush(&self, tags: &Tags, stale: Stale) -> Result<Flushed, Unflushed> {
        self.forget(tags, &stale)?;
        // SAFETY: `forget` was told of the token's range, and of what changed in it.
        Ok(unsafe { stale.assume_flushed() })
    }

    fn flush_ranges(
        &self,
        tags: &Tags,
        stale: StaleRanges,
    ) -> Result<impl Iterator<Item = Flushed>, Unflushed> {
        self.forget_ranges(tags, stale.only_leaves(), stale.ranges())?;
        // SAFETY: as in `flush`, for the range of each token.
        Ok(stale.into_iter().map(|stale| unsafe { stale.assume_flushed() }))
    }
}

impl<P: Platform> UnitState<P> {
    fn report(&self, platform: &P) -> UnitReport {
        let capability = self.unit.capability();
        let queue = self.unit.queue_statistics(platform).unwrap_or_default();
        UnitReport {
            unit: self.unit.index(),
            segment: self.unit.segment(),
            base: self.unit.base(),
            bytes: self.unit.registers().bytes,
            version: (capability.version().major(), capability.version().minor()),
            capability: capability.cap().into_bits(),
            extended_capability: capability.ecap().into_bits(),
            global_status: self.unit.read_global_status().into_bits(),
            root_table_address: self.unit.read_root_table_address().into_bits(),
            fault_status: self.unit.read_fault_status().into_bits(),
            address_bits: self.unit.address_bits().into(),
            first_stage: self.unit.mode().stage() == TableStage::First,
            domains: self.tables.lock(platform).ids.in_use(),
            alive: !self.unit.is_stuck(),
            fault_storms: self.unit.event_storms(platform),
            doorbells: queue.batches,
            descriptors: queue.descriptors,
        }
    }
}
