//! What the subsystem shows of itself, collected for comparison.

use alloc::vec::Vec;

use iommu::{
    Iommu, PciAddress, SourceId,
    dump::{
        DomainKind, DomainReport, GroupReport, GroupStanding, InterruptReport, MappingReport, UnitReport,
        Visitor,
    },
    fault::Fault,
};
use mm::PhysRange;

/// The units.
pub fn units(iommu: &Iommu) -> Vec<UnitReport> {
    #[derive(Default)]
    struct Units(Vec<UnitReport>);
    impl Visitor for Units {
        fn unit(&mut self, unit: &UnitReport) {
            self.0.push(*unit);
        }
    }
    let mut units = Units::default();
    iommu.visit(&mut units);
    units.0
}

/// The interrupt entries in use.
pub fn interrupts(iommu: &Iommu) -> Vec<InterruptReport> {
    #[derive(Default)]
    struct Interrupts(Vec<InterruptReport>);
    impl Visitor for Interrupts {
        fn interrupt(&mut self, interrupt: &InterruptReport) {
            self.0.push(*interrupt);
        }
    }
    let mut interrupts = Interrupts::default();
    iommu.visit(&mut interrupts);
    interrupts.0
}

/// The last faults, oldest first.
pub fn faults(iommu: &Iommu) -> Vec<Fault> {
    #[derive(Default)]
    struct Faults(Vec<Fault>);
    impl Visitor for Faults {
        fn fault(&mut self, fault: &Fault) {
            self.0.push(*fault);
        }
    }
    let mut faults = Faults::default();
    iommu.visit(&mut faults);
    faults.0
}

/// What is known about the group of one function.
#[derive(Default)]
pub struct Group {
    /// The ids that its requests carry.
    pub sources: Vec<SourceId>,
    /// The unit that sees the first of them.
    pub unit: Option<usize>,
    /// Memory that firmware wants it to reach at all times.
    pub reserved: Vec<PhysRange>,
    /// Its domain, if it is not blocked.
    pub domain: Option<DomainReport>,
    /// What the domain maps.
    pub mappings: Vec<MappingReport>,
    /// Faults so far.
    pub faults: u64,
    /// Who has it.
    pub standing: Option<GroupStanding>,
}

impl Group {
    /// Whether an owner of a domain that was created has it.
    #[must_use]
    pub fn is_assigned(&self) -> bool {
        self.standing == Some(GroupStanding::Claimed)
            && self
                .domain
                .is_some_and(|domain| matches!(domain.kind, DomainKind::Assigned | DomainKind::Shared))
    }
}

/// The group of `function`, if a unit covers it.
pub fn group(iommu: &Iommu, function: PciAddress) -> Option<Group> {
    struct Search {
        function: PciAddress,
        /// The group shown last is the one that is looked for.
        here: bool,
        found: Option<Group>,
    }
    impl Visitor for Search {
        fn group(&mut self, group: &GroupReport<'_>) {
            self.here = group.functions.contains(&self.function);
            if self.here {
                let sources = group.sources.iter().map(|&(source, _)| source).collect();
                let unit = group.sources.first().map(|&(_, unit)| unit);
                let (faults, standing) = (group.faults, Some(group.standing));
                let reserved = group.reserved.to_vec();
                self.found = Some(Group { sources, unit, reserved, faults, standing, ..Group::default() });
            }
        }

        fn domain(&mut self, domain: &DomainReport) {
            if let (true, Some(found)) = (self.here, &mut self.found) {
                found.domain = Some(*domain);
            }
        }

        fn created_domain(&mut self, _domain: &DomainReport, _groups: usize) {
            self.here = false;
        }

        fn mapping(&mut self, mapping: &MappingReport) {
            if let (true, Some(found)) = (self.here, &mut self.found) {
                found.mappings.push(*mapping);
            }
        }
    }
    let mut search = Search { function, here: false, found: None };
    iommu.visit(&mut search);
    search.found
}
