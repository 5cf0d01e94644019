//! The subsystem at work: the units of a machine, its groups, and the way of a fault.

mod claim;
mod created;
mod error;
mod hotplug;
mod layout;
mod reserved;
mod trace;

use alloc::{boxed::Box, collections::TryReserveError, sync::Arc, vec::Vec};
use core::sync::atomic::AtomicBool;

use crate::{
    Iova, Options, PciAddress, Platform, SourceId,
    arc::TryArc,
    checks::Checks,
    dma::{DmaDevice, DomainError, Stuck, reaper::Reaper, space::Space},
    dmar::Dmar,
    domain::Kind,
    dump::{GroupReport, Visitor},
    fault::Fault,
    fault_log::FaultLog,
    group::{ClaimError, DomainMaker, Group, GroupLayout, Incident, ReleaseError, stop_bus_master},
    interrupts::{self, InterruptError, MessageInterrupts, MessageSource, WiredInterrupt},
    platform::{Event, LockClass, Work},
    policy::{Limits, Verdict},
    strangers::Strangers,
    subsystem::{Control, Machine, Trust},
    sync::IrqLock,
    topology::{Function, FunctionKind, Topology},
    vtd::{InterruptControllers, Vtd},
};
use created::CreatedDomains;
pub use error::StartError;
pub use hotplug::HotplugError;
use layout::Layout;

/// How many warnings about one table or hierarchy are logged: firmware decides how many there are.
const MAX_LOGGED_WARNINGS: usize = 16;

/// The units, groups and faults of one machine.
pub(crate) struct Protection<P: Platform> {
    shared: Arc<Shared<P>>,
    maker: DomainMaker<Vtd<P>>,
    created: CreatedDomains<P>,
    options: Options,
    /// With `iommu=debug`.
    checks: Option<Arc<Checks<P>>>,
}

/// What a device handle shares with the subsystem.
struct Shared<P: Platform> {
    platform: Arc<P>,
    backend: Arc<Vtd<P>>,
    /// Firmware's table: what it says of a function holds for one that comes later too.
    dmar: Vec<u8>,
    /// Threads take it out; interrupts, which must not be the last to let go of one, look at it under the lock.
    layout: IrqLock<TryArc<Layout<P>>>,
    /// Somebody is making the next layout.
    changing: AtomicBool,
    faults: Box<FaultLog>,
    strangers: Strangers,
    /// How many faults of one group are put up with.
    limits: IrqLock<Limits>,
}

impl<P: Platform> Protection<P> {
    /// Brings the units up: everything blocked but reserved memory, then translation on.
    pub fn start(
        platform: Arc<P>,
        reaper: Arc<Reaper<P>>,
        table: &[u8],
        machine: &Machine<'_>,
        options: Options,
    ) -> Result<Self, StartError> {
        let dmar = Dmar::parse(table)?;
        log_warnings(&dmar);
        let mut topology = Topology::build(machine.functions, Some(&dmar))?;
        reserved::judge(&*platform, Some(&dmar), &mut topology)?;
        for problem in topology.problems().iter().take(MAX_LOGGED_WARNINGS) {
            log::warn!("{problem}");
        }
        stop_bus_masters(&*platform, &topology, |_| true);
        let controllers = InterruptControllers { io_apics: machine.io_apics, x2apic: machine.x2apic };
        let backend = Arc::new(Vtd::bring_up(platform.clone(), &dmar, &controllers, options)?);
        let layout = IrqLock::new(LockClass::Layout, Layout::new(topology)?);
        let maker = DomainMaker::new(backend.clone(), reaper, options.quarantine, copy_of(machine.memory)?);
        let limits = IrqLock::new(LockClass::FaultLimits, Limits::default());
        let (dmar, changing) = (copy_of(table)?, AtomicBool::new(false));
        let (faults, strangers) = (FaultLog::boxed(), Strangers::new());
        let shared =
            Arc::new(Shared { platform, backend, dmar, layout, changing, faults, strangers, limits });
        let checks = options.debug.then(|| Arc::new(Checks::new(shared.platform.clone())));
        let protection = Self { shared, maker, created: CreatedDomains::new(), options, checks };
        protection.map_reserved(protection.shared.layout().groups());
        protection.shared.backend.enable_translation()?;
        protection.log_start(options);
        Ok(protection)
    }

    fn log_start(&self, options: Options) {
        self.shared.backend.log_units();
        let layout = self.shared.layout();
        if layout.uncovered() > 0 {
            log::warn!("{} groups are not covered by any unit and cannot be claimed", layout.uncovered());
        }
        for group in layout.groups().filter(|_| options.verbose) {
            let GroupLayout { functions, sources, reserved, .. } = group.layout();
            log::info!("group of {functions:?}: ids and units {sources:?}, reserved {reserved:?}");
        }
    }

    /// Maps reserved memory for the groups that have any. A group for which that fails stays blocked.
    fn map_reserved<'a>(&self, groups: impl Iterator<Item = &'a TryArc<Group<Vtd<P>>>>) {
        for group in groups {
            if let Err(error) = group.map_reserved(&self.maker) {
                log::error!("reserved memory of {:?}: {error}", group.layout().functions);
            }
        }
    }
}

fn log_warnings(dmar: &Dmar<'_>) {
    let mut count = 0;
    dmar.warnings(|warning| {
        if count < MAX_LOGGED_WARNINGS {
            log::warn!("DMAR table: {warning}");
        }
        count += 1;
    });
    if count > MAX_LOGGED_WARNINGS {
        log::warn!("DMAR table: {} more warnings", count - MAX_LOGGED_WARNINGS);
    }
}

fn copy_of<T: Copy>(list: &[T]) -> Result<Vec<T>, StartError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(list.len()).map_err(|_| StartError::OutOfMemory)?;
    copy.extend_from_slice(list);
    Ok(copy)
}

/// Turns bus mastering off on every endpoint among `which` that needs no reserved memory: what firmware left running stops
/// before anything is translated. A driver turns it on again after its claim.
fn stop_bus_masters<P: Platform>(platform: &P, topology: &Topology, which: impl Fn(&Function) -> bool) {
    for function in topology.functions().iter().filter(|function| which(function)) {
        let runs_on = topology.reserved(function.address).next().is_some();
        if function.kind == FunctionKind::Endpoint && !runs_on {
            stop_bus_master(platform, function.address);
        }
    }
}

impl<P: Platform> Shared<P> {
    /// The groups as they are now. Not in an interrupt.
    fn layout(&self) -> TryArc<Layout<P>> {
        self.layout.lock(&*self.platform).clone()
    }

    fn replace_layout(&self, next: TryArc<Layout<P>>) {
        // What was there goes after the lock.
        let _before = core::mem::replace(&mut *self.layout.lock(&*self.platform), next);
    }

    fn group(&self, function: PciAddress) -> Option<TryArc<Group<Vtd<P>>>> {
        self.layout().group(function).cloned()
    }

    /// Enters a fault that `unit` has recorded. Callable in an interrupt.
    fn enter(&self, unit: usize, fault: Fault) {
        let layout = self.layout.lock(&*self.platform);
        let limits = *self.limits.lock(&*self.platform);
        let verdict = match layout.group_of_source(fault.source) {
            Some(group) => group.enter_fault(&self.platform, limits),
            None => self.strangers.enter_fault(&*self.platform, limits),
        };
        drop(layout);
        match verdict {
            Some(verdict) => {
                self.faults.record(&*self.platform, unit, fault, verdict != Verdict::Throttle);
            }
            // A group whose quarantine is decided, or a flood of nobody's: counted, and nothing new.
            None => self.platform.wake(Work::Faults),
        }
    }

    fn group_of_source(&self, source: SourceId) -> Option<TryArc<Group<Vtd<P>>>> {
        self.layout().group_of_source(source).cloned()
    }

    /// Whether `fault` may be logged, as far as its source is concerned: see [`Budget::take`](crate::budget).
    fn take_line(&self, fault: &Fault) -> Option<u64> {
        match self.group_of_source(fault.source) {
            Some(group) => group.take_line(&self.platform),
            None => self.strangers.take_line(&*self.platform),
        }
    }

    fn tell(&self, fault: &Fault) {
        if let Some(group) = self.group_of_source(fault.source) {
            group.tell(&self.platform, Incident::Fault(*fault));
        }
    }

    /// Puts the groups in quarantine whose faults ask for it.
    fn quarantine_condemned(&self, maker: &DomainMaker<Vtd<P>>) {
        for group in self.layout().groups().filter(|group| group.awaits_quarantine(&self.platform)) {
            // A group that is changing hands wakes this thread when it has; one behind a dead unit is in quarantine too.
            let _ = group.layout().functions.first().map(|&function| group.quarantine(maker, function));
        }
    }

    /// Stops the devices behind a unit that does not answer any more.
    fn stop_behind(&self, stuck: Stuck) {
        for group in self.layout().groups() {
            if group.layout().sources.iter().any(|&(_, unit)| unit == stuck.unit) {
                for &function in &group.layout().functions {
                    stop_bus_master(&*self.platform, function);
                }
            }
        }
        log::error!("{stuck}: bus mastering is off behind it, what it may reach stays pinned");
    }
}

impl<P: Platform> Control for Protection<P> {
    fn claim(&self, function: PciAddress, trust: Trust) -> Result<DmaDevice, ClaimError> {
        self.claim_own(function, trust)
    }

    fn create_domain(&self, functions: &[PciAddress]) -> Result<(u64, TryArc<dyn Space>), DomainError> {
        let domain = self.create(functions)?;
        Ok((domain.number(), domain.into()))
    }

    fn created_domain(&self, number: u64) -> Option<TryArc<dyn Space>> {
        self.created(number).map(Into::into)
    }

    fn destroy_domain(&self, number: u64) -> Result<(), DomainError> {
        self.destroy(number)
    }

    fn assign(
        &self,
        function: PciAddress,
        domain: u64,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<DmaDevice, ClaimError> {
        self.assign_to(function, domain, reset)
    }

    fn quarantine(&self, function: PciAddress) -> Result<(), ReleaseError> {
        let group = self.shared.group(function).ok_or(ReleaseError::Unknown { function })?;
        group.quarantine(&self.maker, function)
    }

    fn release(
        &self,
        function: PciAddress,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        let group = self.shared.group(function).ok_or(ReleaseError::Unknown { function })?;
        group.release(&self.maker, function, reset)
    }

    fn group(&self, function: PciAddress) -> Result<Vec<PciAddress>, TryReserveError> {
        let group = self.shared.group(function);
        let functions = group.as_ref().map_or(&[][..], |group| &group.layout().functions);
        let mut list = Vec::new();
        list.try_reserve_exact(functions.len())?;
        list.extend_from_slice(functions);
        Ok(list)
    }

    fn functions_appeared(&self, functions: &[Function]) -> Result<(), HotplugError> {
        self.add(functions)
    }

    fn functions_gone(
        &self,
        functions: &[PciAddress],
        quiet: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), HotplugError> {
        self.remove(functions, quiet)
    }

    fn message_interrupts(
        &self,
        source: MessageSource,
        count: u16,
    ) -> Result<MessageInterrupts, InterruptError> {
        let Shared { platform, backend, .. } = &*self.shared;
        let interrupts =
            interrupts::allocate_messages(backend, &self.shared.layout().topology, source, count)?;
        // Asked only now: a quarantine that began before is seen here, and one that begins later takes the entries.
        if let MessageSource::Function(function) = source
            && self.shared.group(function).is_some_and(|group| group.is_muted(platform))
        {
            return Err(InterruptError::Quarantined { function });
        }
        Ok(interrupts)
    }

    fn wired_interrupt(&self, io_apic: u8) -> Result<WiredInterrupt, InterruptError> {
        interrupts::allocate_wire(&self.shared.backend, &self.shared.layout().topology, io_apic)
    }

    fn set_fault_limits(&self, limits: Limits) -> Limits {
        core::mem::replace(&mut *self.shared.limits.lock(&*self.shared.platform), limits)
    }

    fn handle_event(&self, event: Event) {
        match event {
            Event::Fault { unit } => {
                self.shared.backend.answer_faults(unit, |fault| self.shared.enter(unit, fault));
                self.shared.platform.wake(Work::Faults);
            }
        }
    }

    fn process_faults(&self) {
        let shared = &self.shared;
        let Shared { platform, backend, faults, .. } = &**shared;
        // One lap a unit: a unit whose records fill up faster than that wakes this thread again.
        backend
            .take_undrained()
            .for_each(|unit| backend.answer_faults(unit, |fault| shared.enter(unit, fault)));
        (0..backend.count()).for_each(|unit| backend.look_at_faults(unit, |fault| shared.enter(unit, fault)));
        faults.process(
            &**platform,
            |fault| self.shared.tell(fault),
            |fault| self.shared.take_line(fault),
            |fault, unit| self.shared.walk(fault, unit),
        );
        if backend.take_newly_silent() {
            self.shared.layout().groups().for_each(|group| group.condemn_if_silent(platform));
        }
        self.shared.quarantine_condemned(&self.maker);
        for unit in 0..backend.count() {
            // At most as many as are kept: a device that makes errors faster than they are logged wakes nobody.
            let reports = core::iter::from_fn(|| backend.take_queue_report(unit)).take(MAX_LOGGED_WARNINGS);
            reports.for_each(|report| faults.log(&**platform, format_args!("unit {unit}: {report}")));
        }
        while let Some(stuck) = self.shared.backend.take_newly_stuck() {
            self.shared.stop_behind(stuck);
        }
    }

    fn next_faults_ns(&self) -> u64 {
        self.shared.backend.next_look_ns()
    }

    fn reap(&self) {
        let (platform, reaper) = (&*self.shared.platform, &self.maker.reaper);
        let now_ns = platform.now_ns();
        if reaper.take_due(now_ns) {
            for domain in self.shared.layout().groups().filter_map(|group| group.domain(platform)) {
                domain.pay_what_is_due(now_ns);
            }
            self.each_created(|domain| domain.pay_what_is_due(now_ns));
        }
        reaper.reap();
        // After that: what was dropped is no leak.
        self.checks.iter().for_each(|checks| checks.look());
    }

    fn next_reap_ns(&self) -> u64 {
        let checks_ns = self.checks.as_ref().map_or(u64::MAX, |checks| checks.due_ns());
        self.maker.reaper.due_ns().min(checks_ns)
    }

    fn live_mappings(&self) -> usize {
        self.maker.reaper.live()
    }

    fn trace(&self, function: PciAddress, address: Option<Iova>, visitor: &mut dyn Visitor) -> bool {
        self.shared.trace(function, address, visitor)
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        let backend = &*self.shared.backend;
        backend.visit(visitor);
        for (number, group) in self.shared.layout().numbered() {
            let GroupLayout { functions, sources, reserved, .. } = group.layout();
            let platform = &*self.shared.platform;
            let (faults, standing) = (group.faults(platform), group.standing(platform));
            visitor.group(&GroupReport { group: number, functions, sources, reserved, faults, standing });
            let Some(domain) = group.domain(platform) else { continue };
            visitor.domain(&domain.report());
            if domain.kind() == Kind::Own {
                domain.visit_mappings(visitor);
            }
        }
        self.each_created(|domain| {
            visitor.created_domain(&domain.report(), domain.groups());
            domain.visit_mappings(visitor);
        });
        self.shared.faults.visit(&*self.shared.platform, visitor);
        visitor.stranger_faults(self.shared.strangers.faults(&*self.shared.platform));
        self.checks.iter().for_each(|checks| checks.visit(visitor));
    }
}
