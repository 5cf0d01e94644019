//! PCI topology: which unit sees a function's requests, under which ids, and from whom the function can be isolated.
//!
//! [`Topology::build`] is a pure function of the functions that the host kernel found and of the DMAR table. Both are
//! untrusted: bus numbers that cannot be are settled on the safe side (fewer, larger groups) and listed as
//! [`Problem`]s. A topology is a snapshot; when functions come or go, the next one is built.
//!
//! ```text
//! functions --hierarchy--> parents --ids--> requester ids --groups--> isolation groups
//!                             |                                          |
//! DMAR ------------------coverage--> unit, reserved memory, ATS ---------+--> Group { functions, sources, reserved }
//! ```

mod coverage;
mod function;
mod groups;
mod hierarchy;
mod ids;
mod problem;
mod quirks;
mod sender;
#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use mm::PhysRange;

pub use function::{Acs, BridgeKind, Function, FunctionKind};
pub use problem::{Problem, TopologyError};

use crate::{
    PciAddress, SourceId,
    dmar::{Dmar, ScopeKind},
    interrupts::Sender,
};
use coverage::Coverage;
use hierarchy::{Hierarchy, push};
use ids::RequesterIds;

/// Highest number of functions of all segments together.
pub const MAX_FUNCTIONS: usize = 1 << 16;

/// The topology of one machine at one moment.
#[derive(Clone, Debug)]
pub struct Topology {
    hierarchy: Hierarchy,
    ids: RequesterIds,
    coverage: Coverage,
    /// For each function its group.
    groups: Vec<u32>,
    /// Functions, those of group 0 first, then those of group 1, ...
    members: Vec<u32>,
    /// Sorted by group, then by id.
    sources: Vec<(u32, Source)>,
    /// The same, sorted by id.
    owners: Vec<(SourceId, u32)>,
    problems: Vec<Problem>,
}

/// An id under which a remapping unit sees requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The id.
    pub id: SourceId,
    /// The unit that sees it, as its position in [`Dmar::units`]; `None` if no unit covers the function.
    pub unit: Option<usize>,
}

/// A device that is no PCI function but sends requests, or interrupts, under an id of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlatformDevice {
    /// What it is: I/O APIC, HPET or ACPI device, and its number.
    pub kind: ScopeKind,
    /// The unit that sees its requests, as its position in [`Dmar::units`].
    pub unit: usize,
    /// The id in its requests.
    pub source: SourceId,
}

/// Whether a function may use an address translation cache (ATS).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ats {
    /// Neither its root port nor the function itself is listed.
    Denied,
    /// Its root port supports it (ATSR), or the function is listed (SATC).
    Allowed,
    /// The function does not work without it (SATC with ATC_REQUIRED).
    Required,
}

/// How much reserved memory all functions together may have. More than any firmware needs; with 4 KiB leaves, it takes
/// 32 MiB of tables.
const MAX_RESERVED_BYTES: u64 = 16 << 30;

impl Topology {
    /// Works out the topology of `functions`, in any order. Without a DMAR table no function has a unit.
    ///
    /// # Errors
    /// If memory runs out, or the list itself is wrong; what firmware or a bridge got wrong is a [`Problem`] instead.
    pub fn build(functions: &[Function], dmar: Option<&Dmar<'_>>) -> Result<Self, TopologyError> {
        if functions.len() > MAX_FUNCTIONS {
            return Err(TopologyError::TooManyFunctions { functions: functions.len() });
        }
        let mut problems = Vec::new();
        let hierarchy = Hierarchy::build(functions, &mut problems)?;
        let ids = RequesterIds::build(&hierarchy)?;
        let groups = groups::assign(&hierarchy, &ids)?;
        let coverage = match dmar {
            Some(dmar) => Coverage::build(&hierarchy, dmar, &mut problems)?,
            None => Coverage::default(),
        };
        let mut topology = Self {
            hierarchy,
            ids,
            coverage,
            groups,
            members: Vec::new(),
            sources: Vec::new(),
            owners: Vec::new(),
            problems,
        };
        topology.collect_groups()?;
        Ok(topology)
    }

    /// Takes reserved regions of which `is_refused` away from their functions, and those that are too much: each is a
    /// [`Problem`].
    ///
    /// # Errors
    /// Not enough memory for the problems.
    pub fn refuse_reserved(&mut self, is_refused: impl Fn(PhysRange) -> bool) -> Result<(), TopologyError> {
        let Coverage { regions, reserved, refused, .. } = &mut self.coverage;
        let (mut room, mut result) = (MAX_RESERVED_BYTES, Ok(()));
        reserved.retain(|&(index, region)| {
            let (function, region) =
                (self.hierarchy.functions()[index as usize].address, regions[region as usize]);
            let problem = match room.checked_sub(region.bytes) {
                _ if is_refused(region) => Problem::ReservedMemoryInUse { function, region },
                None => Problem::TooMuchReservedMemory { function, region },
                Some(left) => {
                    room = left;
                    return true;
                }
            };
            result = result.and(push(&mut self.problems, problem)).and(push(refused, index));
            false
        });
        result
    }

    /// Notes as [`Problem`]s the reserved regions that are left and `is_odd`. Their functions keep them.
    ///
    /// # Errors
    /// Not enough memory for the problems.
    pub fn note_reserved(&mut self, is_odd: impl Fn(PhysRange) -> bool) -> Result<(), TopologyError> {
        let Coverage { regions, reserved, .. } = &self.coverage;
        for &(index, region) in reserved {
            let (function, region) =
                (self.hierarchy.functions()[index as usize].address, regions[region as usize]);
            if is_odd(region) {
                push(&mut self.problems, Problem::ReservedMemoryUnknown { function, region })?;
            }
        }
        Ok(())
    }

    /// All functions, sorted by address.
    #[must_use]
    pub fn functions(&self) -> &[Function] {
        self.hierarchy.functions()
    }

    /// The bridge right above `function`; `None` on a root bus, or if there is no such function.
    #[must_use]
    pub fn parent(&self, function: PciAddress) -> Option<&Function> {
        let parent = self.hierarchy.parent(self.hierarchy.index(function)?)?;
        self.functions().get(parent)
    }

    /// The unit that sees the requests of `function`, as its position in [`Dmar::units`].
    #[must_use]
    pub fn unit(&self, function: PciAddress) -> Option<usize> {
        self.unit_of(self.hierarchy.index(function)?)
    }

    /// The ids that requests of `function` may carry, its own first; empty if there is no such function.
    #[must_use]
    pub fn requester_ids(&self, function: PciAddress) -> &[SourceId] {
        self.hierarchy.index(function).map_or(&[], |index| self.ids.of(index))
    }

    /// Who an interrupt of `function` comes from, as its unit sees it; `None` if there is no such function.
    #[must_use]
    pub fn interrupt_sender(&self, function: PciAddress) -> Option<Sender> {
        Some(sender::of(&self.hierarchy, self.hierarchy.index(function)?))
    }

    /// The physical function that `function`, a virtual one, belongs to.
    #[must_use]
    pub fn physical(&self, function: PciAddress) -> Option<PciAddress> {
        let function = &self.functions()[self.hierarchy.index(function)?];
        function.physical.filter(|_| function.is_virtual())
    }

    /// The memory that firmware reserved for `function` itself, as whole pages. What it has to reach is that of its
    /// whole [group](Group::reserved).
    pub fn reserved(&self, function: PciAddress) -> impl Iterator<Item = PhysRange> {
        self.hierarchy.index(function).into_iter().flat_map(|index| self.reserved_of(index))
    }

    /// Whether `function` may use an address translation cache.
    #[must_use]
    pub fn ats(&self, function: PciAddress) -> Ats {
        let index = self.hierarchy.index(function);
        index.and_then(|index| self.coverage.ats.get(index)).copied().unwrap_or(Ats::Denied)
    }

    /// What is no PCI function but has an id: I/O APICs, HPETs, ACPI devices, in the order of the table.
    #[must_use]
    pub fn platform_devices(&self) -> &[PlatformDevice] {
        &self.coverage.platform
    }

    /// The I/O APIC with the id that the MADT gives it.
    #[must_use]
    pub fn io_apic(&self, id: u8) -> Option<PlatformDevice> {
        self.platform_device(ScopeKind::IoApic { id })
    }

    /// The HPET with the number that its ACPI table gives it.
    #[must_use]
    pub fn hpet(&self, id: u8) -> Option<PlatformDevice> {
        self.platform_device(ScopeKind::Hpet { id })
    }

    /// All isolation groups, in the order of their first functions.
    pub fn groups(&self) -> impl Iterator<Item = Group<'_>> {
        let count = self.groups.iter().max().map_or(0, |last| last + 1);
        (0..count).map(|number| Group { topology: self, number })
    }

    /// The group of `function`.
    #[must_use]
    pub fn group(&self, function: PciAddress) -> Option<Group<'_>> {
        let number = *self.groups.get(self.hierarchy.index(function)?)?;
        Some(Group { topology: self, number })
    }

    /// The group whose requests carry `id`: whom a fault report speaks of.
    #[must_use]
    pub fn group_of_source(&self, id: SourceId) -> Option<Group<'_>> {
        let place = self.owners.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(Group { topology: self, number: self.owners.get(place)?.1 })
    }

    /// What does not fit together.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    fn platform_device(&self, kind: ScopeKind) -> Option<PlatformDevice> {
        self.coverage.platform.iter().find(|device| device.kind == kind).copied()
    }

    fn unit_of(&self, index: usize) -> Option<usize> {
        self.coverage.units.get(index).copied().flatten().map(|unit| unit as usize)
    }

    fn reserved_of(&self, index: usize) -> impl Iterator<Item = PhysRange> {
        let all = &self.coverage.reserved;
        let start = all.partition_point(|&(function, _)| (function as usize) < index);
        let own = all[start..].iter().take_while(move |&&(function, _)| function as usize == index);
        own.filter_map(|&(_, region)| self.coverage.regions.get(region as usize).copied())
    }

    /// Fills `members`, `sources` and `owners` from `groups`.
    fn collect_groups(&mut self) -> Result<(), TopologyError> {
        let count = self.functions().len();
        let (mut members, mut sources) = (Vec::new(), Vec::new());
        members.try_reserve_exact(count)?;
        members.extend(0..count as u32);
        members.sort_unstable_by_key(|&index| (self.groups[index as usize], index));

        for (index, &group) in self.groups.iter().enumerate() {
            let unit = self.unit_of(index);
            for &id in self.ids.of(index) {
                push(&mut sources, (group, Source { id, unit }))?;
            }
        }
        // Where units disagree, the lowest comes first and stays; a function without any counts last.
        let unit_key = |source: &Source| (source.unit.is_none(), source.unit);
        sources.sort_unstable_by_key(|(group, source)| (*group, source.id, unit_key(source)));
        for [(_, one), (_, next)] in sources.array_windows() {
            if one.id == next.id && one.unit != next.unit {
                let (source, first, second) = (one.id, one.unit, next.unit);
                push(&mut self.problems, Problem::SplitSource { source, first, second })?;
            }
        }
        sources.dedup_by_key(|(_, source)| source.id);

        self.owners.try_reserve_exact(sources.len())?;
        self.owners.extend(sources.iter().map(|&(group, source)| (source.id, group)));
        self.owners.sort_unstable();
        (self.members, self.sources) = (members, sources);
        Ok(())
    }
}

/// The smallest set of functions that can be isolated from all others. It is attached, quarantined and released as a
/// whole.
#[derive(Clone, Copy, Debug)]
pub struct Group<'a> {
    topology: &'a Topology,
    number: u32,
}

impl<'a> Group<'a> {
    /// Number of the group in this topology, counted from 0.
    #[must_use]
    pub const fn number(self) -> usize {
        self.number as usize
    }

    /// Its functions, at least one, sorted by address.
    pub fn functions(self) -> impl ExactSizeIterator<Item = &'a Function> {
        self.members().iter().map(move |&index| &self.topology.functions()[index as usize])
    }

    /// The ids that its requests may carry, sorted. No other group has any of them.
    pub fn sources(self) -> impl ExactSizeIterator<Item = Source> {
        let all = &self.topology.sources;
        let start = all.partition_point(|&(group, _)| group < self.number);
        let end = all.partition_point(|&(group, _)| group <= self.number);
        all[start..end].iter().map(|&(_, source)| source)
    }

    /// The unit that sees all its requests; `None` if there is none, or more than one.
    #[must_use]
    pub fn unit(self) -> Option<usize> {
        let first = self.sources().next()?.unit;
        first.filter(|_| self.sources().all(|source| source.unit == first))
    }

    /// Whether firmware reserved memory for any of its functions, were it refused or not: firmware may use the device
    /// at any time.
    #[must_use]
    pub fn is_firmwares(self) -> bool {
        let Coverage { refused, .. } = &self.topology.coverage;
        self.members().iter().any(|&index| {
            self.topology.reserved_of(index as usize).next().is_some()
                || refused.binary_search(&index).is_ok()
        })
    }

    /// The memory that firmware reserved for any of its functions, as whole pages: every function of the group needs it
    /// mapped, because nothing tells them apart. Sorted; what overlaps or adjoins is one region.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn reserved(self) -> Result<Vec<PhysRange>, TopologyError> {
        let mut regions: Vec<PhysRange> = Vec::new();
        for &index in self.members() {
            for region in self.topology.reserved_of(index as usize) {
                push(&mut regions, region)?;
            }
        }
        regions.sort_unstable_by_key(|region| region.start);
        regions.dedup_by(|next, before| {
            let end = before.start.as_u64() + before.bytes;
            let joins = next.start.as_u64() <= end;
            if joins {
                before.bytes = end.max(next.start.as_u64() + next.bytes) - before.start.as_u64();
            }
            joins
        });
        Ok(regions)
    }

    fn members(self) -> &'a [u32] {
        let Topology { members, groups, .. } = self.topology;
        let start = members.partition_point(|&index| groups[index as usize] < self.number);
        let end = members.partition_point(|&index| groups[index as usize] <= self.number);
        &members[start..end]
    }
}
