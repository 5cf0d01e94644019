//! What the DMAR table says of each function: its unit, its reserved memory, whether it may cache translations.

use alloc::vec::Vec;

use mm::PhysRange;

use super::{
    Ats, BridgeKind, PlatformDevice, Problem, TopologyError,
    hierarchy::{Hierarchy, push},
};
use crate::{
    PciAddress,
    dmar::{Dmar, Scope, ScopeKind, Scopes, Structure},
};

#[derive(Clone, Debug, Default)]
pub(super) struct Coverage {
    /// For each function its unit.
    pub units: Vec<Option<u32>>,
    /// What is no PCI function but has an id of its own.
    pub platform: Vec<PlatformDevice>,
    /// The regions that are possible at all.
    pub regions: Vec<PhysRange>,
    /// Function and region, sorted.
    pub reserved: Vec<(u32, u32)>,
    /// Functions of which some of that was refused, sorted.
    pub refused: Vec<u32>,
    /// For each function.
    pub ats: Vec<Ats>,
}

impl Coverage {
    pub(super) fn build(
        hierarchy: &Hierarchy,
        dmar: &Dmar<'_>,
        problems: &mut Vec<Problem>,
    ) -> Result<Self, TopologyError> {
        let mut resolver = Resolver { hierarchy, problems };
        let mut coverage = Self::default();
        coverage.units(&mut resolver, dmar)?;
        coverage.reserved(&mut resolver, dmar)?;
        coverage.ats(&mut resolver, dmar)?;
        Ok(coverage)
    }

    fn units(&mut self, resolver: &mut Resolver<'_>, dmar: &Dmar<'_>) -> Result<(), TopologyError> {
        let count = resolver.hierarchy.functions().len();
        let mut named = filled(None, count)?;
        let mut with_all_below = filled(None, count)?;
        let mut include_all = Vec::new();
        for (unit, drhd) in dmar.units().enumerate() {
            if drhd.include_pci_all {
                push(&mut include_all, (drhd.segment, unit as u32))?;
            }
            for scope in drhd.scopes {
                match scope.kind {
                    ScopeKind::Endpoint => resolver.claim(&scope, drhd.segment, unit, &mut named)?,
                    ScopeKind::Bridge => resolver.claim(&scope, drhd.segment, unit, &mut with_all_below)?,
                    ScopeKind::IoApic { .. } | ScopeKind::Hpet { .. } | ScopeKind::Acpi { .. } => {
                        self.platform_device(resolver, &scope, drhd.segment, unit)?;
                    }
                    ScopeKind::Unknown(_) => {}
                }
            }
        }

        self.units.try_reserve_exact(count)?;
        for index in 0..count {
            let subject = resolver.subject(index);
            let segment = resolver.hierarchy.functions()[subject].address.segment;
            let upstream = || resolver.hierarchy.ancestors(subject).find_map(|bridge| with_all_below[bridge]);
            let rest = || include_all.iter().find(|(all, _)| *all == segment).map(|&(_, unit)| unit);
            self.units.push(named[subject].or(with_all_below[subject]).or_else(upstream).or_else(rest));
        }
        Ok(())
    }

    fn platform_device(
        &mut self,
        resolver: &mut Resolver<'_>,
        scope: &Scope<'_>,
        segment: u16,
        unit: usize,
    ) -> Result<(), TopologyError> {
        let Some(address) = resolver.resolve(scope, segment)? else { return Ok(()) };
        let before = self.platform.iter().find(|device| device.kind == scope.kind);
        if let Some(PlatformDevice { unit: first, .. }) = before {
            let problem = Problem::NamedTwice { offset: scope.offset, first: *first, second: unit };
            return push(resolver.problems, problem);
        }
        push(&mut self.platform, PlatformDevice { kind: scope.kind, unit, source: address.source_id() })
    }

    /// However often a region names a function, or a bridge above it, it is the function's once: there are at most as
    /// many pairs as functions times regions, and of these no more than
    /// [`MAX_STRUCTURES`](crate::dmar::MAX_STRUCTURES).
    fn reserved(&mut self, resolver: &mut Resolver<'_>, dmar: &Dmar<'_>) -> Result<(), TopologyError> {
        let hierarchy = resolver.hierarchy;
        let count = hierarchy.functions().len();
        // The last region that names each function, alone or with all below.
        let mut named = filled(None, count)?;
        let mut with_all_below = filled(None, count)?;
        for rmrr in dmar.reserved_regions() {
            let Some(pages) = rmrr.pages() else { continue };
            let region = self.regions.len() as u32;
            push(&mut self.regions, pages)?;
            for scope in rmrr.scopes {
                let Some(index) = resolver.function(&scope, rmrr.segment)? else { continue };
                let marks = if scope.kind == ScopeKind::Bridge { &mut with_all_below } else { &mut named };
                marks[index] = Some(region);
            }
            for index in 0..count {
                let itself = [named[index], with_all_below[index]].contains(&Some(region));
                let mut bridges = hierarchy.ancestors(index);
                if itself || bridges.any(|bridge| with_all_below[bridge] == Some(region)) {
                    push(&mut self.reserved, (index as u32, region))?;
                }
            }
        }
        self.reserved.sort_unstable();
        Ok(())
    }

    fn ats(&mut self, resolver: &mut Resolver<'_>, dmar: &Dmar<'_>) -> Result<(), TopologyError> {
        let hierarchy = resolver.hierarchy;
        let count = hierarchy.functions().len();
        let mut ports = filled(false, count)?;
        let mut integrated = filled(Ats::Denied, count)?;
        let mut all_ports = Vec::new();
        for structure in dmar.structures() {
            match structure {
                Structure::Atsr(atsr) if atsr.all_ports => push(&mut all_ports, atsr.segment)?,
                Structure::Atsr(atsr) => resolver.mark(atsr.scopes, atsr.segment, &mut ports, true)?,
                Structure::Satc(satc) => {
                    let ats = if satc.atc_required { Ats::Required } else { Ats::Allowed };
                    resolver.mark(satc.scopes, satc.segment, &mut integrated, ats)?;
                }
                _ => {}
            }
        }

        self.ats.try_reserve_exact(count)?;
        for index in 0..count {
            let subject = resolver.subject(index);
            let segment = hierarchy.functions()[subject].address.segment;
            let port_allows = match hierarchy.ancestors(subject).last() {
                Some(top) => ports[top] || (resolver.is_root_port(top) && all_ports.contains(&segment)),
                None => all_ports.contains(&segment),
            };
            let ats = match integrated[subject] {
                Ats::Denied if port_allows => Ats::Allowed,
                stated => stated,
            };
            self.ats.push(ats);
        }
        Ok(())
    }
}

/// From device scopes to functions.
struct Resolver<'a> {
    hierarchy: &'a Hierarchy,
    problems: &'a mut Vec<Problem>,
}

impl Resolver<'_> {
    /// The function whose scopes count for function `index`: a virtual function has those of its physical one.
    fn subject(&self, index: usize) -> usize {
        let function = &self.hierarchy.functions()[index];
        let physical = function.physical.filter(|_| function.is_virtual());
        physical.and_then(|physical| self.hierarchy.index(physical)).unwrap_or(index)
    }

    fn is_root_port(&self, index: usize) -> bool {
        self.hierarchy.functions()[index].bridge_kind() == Some(BridgeKind::RootPort)
    }

    /// Where the scope's path leads: from the start bus through the secondary bus of each bridge but the last hop.
    fn resolve(&mut self, scope: &Scope<'_>, segment: u16) -> Result<Option<PciAddress>, TopologyError> {
        let mut bus = Some(scope.start_bus);
        let mut reached = None;
        for hop in scope.path.hops() {
            reached = bus.and_then(|bus| hop.on(segment, bus));
            bus = reached.and_then(|address| self.secondary_bus(address));
        }
        if reached.is_none() {
            push(self.problems, Problem::BrokenPath { offset: scope.offset })?;
        }
        Ok(reached)
    }

    fn secondary_bus(&self, address: PciAddress) -> Option<u8> {
        let bridge = &self.hierarchy.functions()[self.hierarchy.index(address)?];
        bridge.buses().map(|(secondary, _)| secondary)
    }

    /// The function that the scope names, if it is there.
    fn function(&mut self, scope: &Scope<'_>, segment: u16) -> Result<Option<usize>, TopologyError> {
        if !matches!(scope.kind, ScopeKind::Endpoint | ScopeKind::Bridge) {
            return Ok(None);
        }
        let Some(function) = self.resolve(scope, segment)? else { return Ok(None) };
        let index = self.hierarchy.index(function);
        if index.is_none() {
            push(self.problems, Problem::MissingFunction { offset: scope.offset, function })?;
        }
        Ok(index)
    }

    /// Enters `unit` for the function that the scope names, unless another unit has it.
    fn claim(
        &mut self,
        scope: &Scope<'_>,
        segment: u16,
        unit: usize,
        claims: &mut [Option<u32>],
    ) -> Result<(), TopologyError> {
        let Some(index) = self.function(scope, segment)? else { return Ok(()) };
        match claims[index] {
            None => claims[index] = Some(unit as u32),
            Some(first) if first as usize == unit => {}
            Some(first) => {
                let (offset, first) = (scope.offset, first as usize);
                push(self.problems, Problem::NamedTwice { offset, first, second: unit })?;
            }
        }
        Ok(())
    }

    fn mark<T: Copy>(
        &mut self,
        scopes: Scopes<'_>,
        segment: u16,
        marks: &mut [T],
        mark: T,
    ) -> Result<(), TopologyError> {
        for scope in scopes {
            if let Some(index) = self.function(&scope, segment)? {
                marks[index] = mark;
            }
        }
        Ok(())
    }
}

fn filled<T: Clone>(value: T, count: usize) -> Result<Vec<T>, TopologyError> {
    let mut list = Vec::new();
    list.try_reserve_exact(count)?;
    list.resize(count, value);
    Ok(list)
}
