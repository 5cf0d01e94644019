//! What the subsystem's handle asks for, done.

use alloc::{collections::TryReserveError, vec::Vec};

use super::{MAX_LOGGED_WARNINGS, Protection, Shared};
use crate::{
    Iova, PciAddress, Platform,
    arc::TryArc,
    dma::{DmaDevice, DomainError, SharedTable, shared::SharedParts, space::Space},
    domain::Kind,
    dump::{GroupReport, Visitor},
    group::{ClaimError, GroupLayout, ReleaseError},
    interrupts::{self, InterruptError, MessageInterrupts, MessageSource, WiredInterrupt},
    platform::{Event, Work},
    policy::Limits,
    protection::HotplugError,
    subsystem::{Control, Trust},
    topology::Function,
};

impl<P: Platform> Control for Protection<P> {
    fn claim(&self, function: PciAddress, trust: Trust) -> Result<DmaDevice, ClaimError> {
        self.claim_own(function, trust)
    }

    fn create_domain(&self, functions: &[PciAddress]) -> Result<(u64, TryArc<dyn Space>), DomainError> {
        let domain = self.create(functions)?;
        Ok((domain.number(), domain.into()))
    }

    fn share_table(&self, functions: &[PciAddress], table: SharedTable) -> Result<SharedParts, DomainError> {
        let domain = self.share(functions, table)?;
        Ok(SharedParts { number: domain.number(), space: domain.clone().into(), shares: domain.into() })
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
        group.release(&self.maker, function, None, reset)
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
            let (faults, standing) = (group.faults(), group.standing(platform));
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
