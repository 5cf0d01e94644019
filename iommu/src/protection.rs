//! The subsystem at work: the units of a machine, its groups, and the way of a fault.

mod claim;
mod control;
mod created;
mod error;
mod hotplug;
mod layout;
mod reserved;
mod trace;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::AtomicBool;

use crate::{
    Options, PciAddress, Platform, SourceId,
    arc::TryArc,
    checks::Checks,
    dma::{Stuck, reaper::Reaper},
    dmar::Dmar,
    fault::Fault,
    fault_log::FaultLog,
    group::{DomainMaker, Group, GroupLayout, Incident, stop_bus_master},
    platform::{LockClass, Work},
    policy::{Limits, Verdict},
    registers::Registers,
    strangers::Strangers,
    subsystem::Machine,
    sync::IrqLock,
    topology::{Function, FunctionKind, Topology},
    vtd::{Discovered, InterruptControllers, Vtd},
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
    maker: Arc<DomainMaker<Vtd<P>>>,
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
        stop_bus_masters(&*platform, &topology, |_| true);
        let units = Discovered::find(&*platform, &dmar)?;
        let ranges = machine.registers.iter().copied().chain(units.registers());
        let registers = Registers::new(ranges).ok_or(StartError::OutOfMemory)?;
        reserved::judge(&*platform, &registers, &mut topology)?;
        for problem in topology.problems().iter().take(MAX_LOGGED_WARNINGS) {
            log::warn!("{problem}");
        }
        // Once more: some may have nothing any more that they could go on using.
        stop_bus_masters(&*platform, &topology, |_| true);
        let controllers = InterruptControllers { io_apics: machine.io_apics, x2apic: machine.x2apic };
        let layout = IrqLock::new(LockClass::Layout, Layout::new(topology)?);
        let (memory, copy) = (copy_of(machine.memory)?, copy_of(table)?);
        // The last that fails before translation is on, and what it leaves is a machine without units.
        let backend = Arc::new(Vtd::bring_up(platform.clone(), units, &dmar, &controllers, options)?);
        let maker =
            Arc::new(DomainMaker::new(backend.clone(), reaper, options.quarantine, memory, registers));
        let limits = IrqLock::new(LockClass::FaultLimits, Limits::default());
        let changing = AtomicBool::new(false);
        let (faults, strangers) = (FaultLog::boxed(), Strangers::new());
        let shared =
            Arc::new(Shared { platform, backend, dmar: copy, layout, changing, faults, strangers, limits });
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

/// Turns bus mastering off on every endpoint among `which` that needs no reserved memory: what firmware left running
/// stops before anything is translated. A driver turns it on again after its claim.
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
            // A group that is changing hands wakes this thread when it has; one behind a dead unit is in quarantine
            // too.
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
