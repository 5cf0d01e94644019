//! The subsystem at work: the units of a machine, its groups, and the way of a fault.

use alloc::{collections::TryReserveError, sync::Arc, vec::Vec};
use core::fmt;

use crate::{
    Options, PciAddress, Platform, SourceId,
    ats::{self, DeviceTlb},
    backend::Backend,
    dma::{
        DmaDevice, Stuck,
        device::{FaultCount, FaultCounts},
        reaper::Reaper,
    },
    dmar::{Dmar, DmarError},
    dump::{DomainReport, GroupReport, Visitor},
    fault::{Fault, FaultTarget},
    fault_log::FaultLog,
    group::{ClaimError, DomainMaker, Group, GroupLayout, Incident, ReleaseError, stop_bus_master},
    interrupts::{self, InterruptError, MessageInterrupts, MessageSource, WiredInterrupt},
    platform::{Event, LockClass, Work},
    policy::{Limits, Verdict},
    subsystem::{Control, Machine, Trust},
    sync::IrqLock,
    topology::{Ats, FunctionKind, Topology, TopologyError},
    vtd::{InterruptControllers, SecondStageAccess, Vtd, VtdError},
    walk::{Path, Walk},
};

/// Why the subsystem could not start. The kernel must not let a driver turn bus mastering on then.
#[derive(Debug)]
pub enum StartError {
    /// `iommu=force`, and firmware describes no unit.
    NoUnit,
    /// The DMAR table cannot be read.
    Table(DmarError),
    /// The PCI hierarchy makes no sense.
    Topology(TopologyError),
    /// A unit could not be brought up.
    Unit(VtdError),
    /// No memory.
    OutOfMemory,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit => f.write_str("firmware describes no remapping unit"),
            Self::Table(error) => write!(f, "DMAR table: {error}"),
            Self::Topology(error) => write!(f, "PCI topology: {error}"),
            Self::Unit(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for StartError {}

impl From<DmarError> for StartError {
    fn from(error: DmarError) -> Self {
        Self::Table(error)
    }
}

impl From<TopologyError> for StartError {
    fn from(error: TopologyError) -> Self {
        Self::Topology(error)
    }
}

impl From<VtdError> for StartError {
    fn from(error: VtdError) -> Self {
        Self::Unit(error)
    }
}

/// How many warnings about one table or hierarchy are logged: firmware decides how many there are.
const MAX_LOGGED_WARNINGS: usize = 16;

/// The units, groups and faults of one machine.
pub(crate) struct Protection<P: Platform> {
    shared: Arc<Shared<P>>,
    maker: DomainMaker<Vtd<P>>,
}

/// What a device handle shares with the subsystem.
struct Shared<P: Platform> {
    platform: Arc<P>,
    backend: Arc<Vtd<P>>,
    topology: Topology,
    /// By the topology's group number; `None` for a group that some unit does not cover.
    groups: Vec<Option<Group<Vtd<P>>>>,
    faults: FaultLog,
    /// How many faults of one group are put up with.
    limits: IrqLock<Limits>,
}

impl<P: Platform> Protection<P> {
    /// Brings the units up: everything blocked but reserved memory, then translation on.
    pub fn start(
        platform: Arc<P>,
        reaper: Arc<Reaper<P>>,
        dmar: &[u8],
        machine: &Machine<'_>,
        options: Options,
    ) -> Result<Self, StartError> {
        let dmar = Dmar::parse(dmar)?;
        log_warnings(&dmar);
        let topology = Topology::build(machine.functions, Some(&dmar))?;
        for problem in topology.problems().iter().take(MAX_LOGGED_WARNINGS) {
            log::warn!("{problem}");
        }
        stop_bus_masters(&*platform, &topology);
        let controllers = InterruptControllers { io_apics: machine.io_apics, x2apic: machine.x2apic };
        let backend = Arc::new(Vtd::bring_up(platform.clone(), &dmar, &controllers, options)?);
        let groups = make_groups(&topology)?;
        let maker = DomainMaker::new(backend.clone(), reaper);
        let (faults, limits) = (FaultLog::new(), IrqLock::new(LockClass::FaultLimits, Limits::default()));
        let shared = Arc::new(Shared { platform, backend, topology, groups, faults, limits });
        let protection = Self { shared, maker };
        protection.map_reserved();
        protection.shared.backend.enable_translation()?;
        protection.log_start(options);
        Ok(protection)
    }

    fn log_start(&self, options: Options) {
        let Shared { backend, groups, .. } = &*self.shared;
        backend.log_units();
        let uncovered = groups.iter().filter(|group| group.is_none()).count();
        if uncovered > 0 {
            log::warn!("{uncovered} groups are not covered by any unit and cannot be claimed");
        }
        for group in groups.iter().flatten().filter(|_| options.verbose) {
            let GroupLayout { functions, sources, reserved, .. } = group.layout();
            log::info!("group of {functions:?}: ids and units {sources:?}, reserved {reserved:?}");
        }
    }

    /// Maps reserved memory for the groups that have any. A group for which that fails stays blocked.
    fn map_reserved(&self) {
        for group in self.shared.groups.iter().flatten() {
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

/// Turns bus mastering off on every endpoint that needs no reserved memory: what firmware left running stops before
/// anything is translated. A driver turns it on again after its claim.
fn stop_bus_masters<P: Platform>(platform: &P, topology: &Topology) {
    for function in topology.functions() {
        let runs_on = topology.reserved(function.address).next().is_some();
        if function.kind == FunctionKind::Endpoint && !runs_on {
            stop_bus_master(platform, function.address);
        }
    }
}

fn make_groups<B: Backend>(topology: &Topology) -> Result<Vec<Option<Group<B>>>, StartError> {
    let mut groups = Vec::new();
    groups.try_reserve_exact(topology.groups().count()).map_err(|_| StartError::OutOfMemory)?;
    for group in topology.groups() {
        groups.push(GroupLayout::of(group)?.map(Group::new));
    }
    Ok(groups)
}

impl<P: Platform> Shared<P> {
    fn group(&self, function: PciAddress) -> Option<&Group<Vtd<P>>> {
        self.groups.get(self.topology.group(function)?.number())?.as_ref()
    }

    /// Reads the fault records of `unit` into the log. Callable in an interrupt.
    fn drain(&self, unit: usize) {
        self.backend.drain_faults(unit, |fault| {
            let verdict = match self.group_of_source(fault.source) {
                Some(group) => group.enter_fault(&self.platform, *self.limits.lock(&*self.platform)),
                // Nobody to blame: the log's own limit is what there is.
                None => Some(Verdict::Log),
            };
            match verdict {
                Some(verdict) => self.faults.record(&*self.platform, fault, verdict != Verdict::Throttle),
                // A group whose quarantine is decided: its faults are counted, and tell nothing new.
                None => self.platform.wake(Work::Faults),
            }
        });
    }

    fn group_of_source(&self, source: SourceId) -> Option<&Group<Vtd<P>>> {
        self.groups.get(self.topology.group_of_source(source)?.number())?.as_ref()
    }

    fn tell(&self, fault: &Fault) {
        if let Some(group) = self.group_of_source(fault.source) {
            group.tell(&self.platform, Incident::Fault(*fault));
        }
    }

    /// The way of `fault` through the tables as they are now, if it has one.
    fn walk(&self, fault: &Fault) -> Option<Walk<SecondStageAccess>> {
        let FaultTarget::Address(address) = fault.target else { return None };
        let group = self.group_of_source(fault.source)?;
        let &(_, unit) = group.layout().sources.iter().find(|(source, _)| *source == fault.source)?;
        let path = self.backend.path(unit, fault.source);
        let domain = group.domain(&self.platform).filter(
            |domain| matches!(path, Path::Translated { table, .. } if table == domain.table().root()),
        );
        let trace = domain.map(|domain| domain.table().trace(address.as_u64()));
        Some(Walk { path, trace })
    }

    /// Puts the groups in quarantine whose faults ask for it.
    fn quarantine_condemned(&self, maker: &DomainMaker<Vtd<P>>) {
        for group in self.groups.iter().flatten().filter(|group| group.awaits_quarantine(&self.platform)) {
            // A group that is changing hands wakes this thread when it has; one behind a dead unit is in quarantine too.
            let _ = group.layout().functions.first().map(|&function| group.quarantine(maker, function));
        }
    }

    /// The TLB that `function`, which its owner trusts, may use.
    fn device_tlb(&self, group: &Group<Vtd<P>>, function: PciAddress) -> Option<DeviceTlb> {
        let unit = group.layout().lone_function_unit()?;
        if self.topology.ats(function) != Ats::Allowed || !self.backend.serves_device_tlbs(unit) {
            return None;
        }
        ats::find(&*self.platform, function, self.topology.physical(function))
    }

    /// Stops the devices behind a unit that does not answer any more.
    fn stop_behind(&self, stuck: Stuck) {
        for group in self.groups.iter().flatten() {
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
        let shared = &self.shared;
        let group = shared.group(function).ok_or(ClaimError::Unknown { function })?;
        let device_tlb = match trust {
            Trust::Nothing => None,
            Trust::Translations => shared.device_tlb(group, function),
        };
        let domain = group.claim(&self.maker, function, device_tlb)?;
        // Only now may the device ask for translations. Firmware may have left ATS on.
        match device_tlb {
            Some(_) => ats::enable(&*shared.platform, function),
            None if shared.topology.ats(function) == Ats::Required => {}
            None => ats::disable(&*shared.platform, function),
        }
        let faults = DeviceFaults { shared: self.shared.clone(), function };
        Ok(DmaDevice::new(function, domain, Arc::new(faults)))
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
        let functions = group.map_or(&[][..], |group| &group.layout().functions);
        let mut list = Vec::new();
        list.try_reserve_exact(functions.len())?;
        list.extend_from_slice(functions);
        Ok(list)
    }

    fn message_interrupts(
        &self,
        source: MessageSource,
        count: u16,
    ) -> Result<MessageInterrupts, InterruptError> {
        interrupts::allocate_messages(&self.shared.backend, &self.shared.topology, source, count)
    }

    fn wired_interrupt(&self, io_apic: u8) -> Result<WiredInterrupt, InterruptError> {
        interrupts::allocate_wire(&self.shared.backend, &self.shared.topology, io_apic)
    }

    fn set_fault_limits(&self, limits: Limits) -> Limits {
        core::mem::replace(&mut *self.shared.limits.lock(&*self.shared.platform), limits)
    }

    fn handle_event(&self, event: Event) {
        match event {
            Event::Fault { unit } => {
                self.shared.drain(unit);
                self.shared.platform.wake(Work::Faults);
            }
        }
    }

    fn process_faults(&self) {
        let Shared { platform, backend, faults, .. } = &*self.shared;
        // One lap a unit: a unit whose records fill up faster than that wakes this thread again.
        backend.take_undrained().for_each(|unit| self.shared.drain(unit));
        faults.process(&**platform, |fault| self.shared.tell(fault), |fault| self.shared.walk(fault));
        if backend.take_newly_silent() {
            self.shared.groups.iter().flatten().for_each(|group| group.condemn_if_silent(platform));
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

    fn reap(&self) {
        self.maker.reaper.reap();
    }

    fn live_mappings(&self) -> usize {
        self.maker.reaper.live()
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        let backend = &*self.shared.backend;
        backend.visit(visitor);
        for (number, group) in self.shared.groups.iter().enumerate() {
            let Some(group) = group else { continue };
            let GroupLayout { functions, sources, reserved, .. } = group.layout();
            let platform = &*self.shared.platform;
            let (faults, standing) = (group.faults(platform), group.standing(platform));
            visitor.group(&GroupReport { group: number, functions, sources, reserved, faults, standing });
            let Some(domain) = group.domain(platform) else { continue };
            let table = domain.table();
            visitor.domain(&DomainReport {
                number: domain.number(),
                root: table.root(),
                levels: mm::table::Format::levels(table.format()),
                mapped_pages: domain.mapped_pages(),
            });
            domain.visit_mappings(visitor);
        }
        self.shared.faults.visit(&*self.shared.platform, visitor);
    }
}

/// The fault count of one claimed function: its group's, because its unit cannot tell them apart.
struct DeviceFaults<P: Platform> {
    shared: Arc<Shared<P>>,
    function: PciAddress,
}

impl<P: Platform> FaultCount for DeviceFaults<P> {
    fn faults(&self) -> FaultCounts {
        let Some(group) = self.shared.group(self.function) else { return FaultCounts::default() };
        let mut unattributed = 0;
        let mut last_unit = None;
        for &(_, unit) in &group.layout().sources {
            if last_unit.replace(unit) != Some(unit) {
                self.shared.drain(unit);
                unattributed += self.shared.backend.lost_faults(unit);
            }
        }
        FaultCounts { own: group.faults(&self.shared.platform), unattributed }
    }

    fn listen(&self, listener: Arc<dyn Fn(Incident) + Send + Sync>) {
        if let Some(group) = self.shared.group(self.function) {
            group.listen(&self.shared.platform, self.function, listener);
        }
    }
}
