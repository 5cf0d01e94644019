//! The way of a request through the tables, for fault reports and for the shell.

use mm::PhysAddr;

use super::Shared;
use crate::{
    Iova, PciAddress, Platform, SourceId,
    backend::{Backend, Formats},
    dump::Visitor,
    fault::{Fault, FaultTarget},
    group::Group,
    vtd::{TableAccess, Vtd},
    walk::{MAX_LEVELS, Steps, Walk},
};

impl<P: Platform> Shared<P> {
    /// The way of `fault`, which `unit` has recorded, through the tables as they are now, if it has one.
    pub(super) fn walk(&self, fault: &Fault, unit: usize) -> Option<Walk<TableAccess>> {
        let FaultTarget::Address(address) = fault.target else { return None };
        let group = self.group_of_source(fault.source);
        Some(self.walk_in(group.as_deref(), unit, fault.source, Some(address)))
    }

    /// Shows the ways of `function`'s requests. Returns whether a unit covers it.
    pub(super) fn trace(
        &self,
        function: PciAddress,
        address: Option<Iova>,
        visitor: &mut dyn Visitor,
    ) -> bool {
        let Some(group) = self.group(function) else { return false };
        for &(source, unit) in &group.layout().sources {
            visitor.way(source, unit);
            let walk = self.walk_in(Some(&*group), unit, source, address);
            walk.visit(|access| self.backend.rights(access), visitor);
        }
        true
    }

    /// The way of a request of `source`, of `group` if it is of any, as far as an address tells.
    fn walk_in(
        &self,
        group: Option<&Group<Vtd<P>>>,
        unit: usize,
        source: SourceId,
        address: Option<Iova>,
    ) -> Walk<TableAccess> {
        let path = self.backend.path(unit, source);
        let steps = match (path.page_table(), group, address) {
            (Some(table), Some(group), Some(address)) => self.steps(group, table, address),
            _ => [None; MAX_LEVELS],
        };
        Walk { path, steps }
    }

    /// The entries of the page table at `root`, if that is the one that `group` has.
    fn steps(&self, group: &Group<Vtd<P>>, root: PhysAddr, address: Iova) -> Steps<TableAccess> {
        let mut steps = [None; MAX_LEVELS];
        if let Some(domain) = group.domain(&self.platform)
            && let Some(table) = domain.table()
            && table.root() == root
        {
            let trace = table.trace(address.as_u64());
            steps.iter_mut().zip(trace.steps()).for_each(|(slot, step)| *slot = Some(step));
            return steps;
        }
        group.scratch_steps(&self.platform, root, address.as_u64()).unwrap_or(steps)
    }
}
