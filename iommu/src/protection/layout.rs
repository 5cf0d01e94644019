//! Which groups there are: a snapshot, replaced as a whole when functions come and go.

use alloc::vec::Vec;

use crate::{
    PciAddress, Platform, SourceId,
    arc::TryArc,
    group::{Group, GroupLayout},
    topology::{Topology, TopologyError},
    vtd::Vtd,
};

type SharedGroup<P> = TryArc<Group<Vtd<P>>>;

/// The topology at one moment, and its groups. A group that a change does not concern is in the next one too.
pub(super) struct Layout<P: Platform> {
    pub topology: Topology,
    /// By the topology's group number; `None` for a group that some unit does not cover.
    groups: Vec<Option<SharedGroup<P>>>,
}

impl<P: Platform> Layout<P> {
    /// The layout of `topology`, with groups that nobody has claimed.
    pub fn new(topology: Topology) -> Result<TryArc<Self>, TopologyError> {
        Self::build(topology, |_| None)
    }

    /// What becomes of this layout when the topology is `topology`.
    pub fn next(&self, platform: &P, topology: Topology) -> Result<TryArc<Self>, TopologyError> {
        Self::build(topology, |layout| {
            let before = self.group(*layout.functions.first()?)?;
            (before.layout() == layout && !before.is_retired(platform)).then(|| before.clone())
        })
    }

    fn build(
        topology: Topology,
        known: impl Fn(&GroupLayout) -> Option<SharedGroup<P>>,
    ) -> Result<TryArc<Self>, TopologyError> {
        let mut groups = Vec::new();
        groups.try_reserve_exact(topology.groups().count())?;
        for group in topology.groups() {
            let shared = |layout| {
                let group = known(&layout).or_else(|| TryArc::try_new(Group::new(layout)));
                group.ok_or(TopologyError::OutOfMemory)
            };
            groups.push(GroupLayout::of(group)?.map(shared).transpose()?);
        }
        TryArc::try_new(Self { topology, groups }).ok_or(TopologyError::OutOfMemory)
    }

    /// All groups, by number.
    pub fn numbered(&self) -> impl Iterator<Item = (usize, &SharedGroup<P>)> {
        self.groups.iter().enumerate().filter_map(|(number, group)| Some((number, group.as_ref()?)))
    }

    /// All groups.
    pub fn groups(&self) -> impl Iterator<Item = &SharedGroup<P>> {
        self.groups.iter().flatten()
    }

    /// How many groups no unit covers.
    pub fn uncovered(&self) -> usize {
        self.groups.iter().filter(|group| group.is_none()).count()
    }

    /// The group of `function`.
    pub fn group(&self, function: PciAddress) -> Option<&SharedGroup<P>> {
        self.groups.get(self.topology.group(function)?.number())?.as_ref()
    }

    /// The group whose requests carry `source`.
    pub fn group_of_source(&self, source: SourceId) -> Option<&SharedGroup<P>> {
        self.groups.get(self.topology.group_of_source(source)?.number())?.as_ref()
    }

    /// The groups that `other` does not have.
    pub fn not_in<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a SharedGroup<P>> {
        let is_kept = |group: &SharedGroup<P>| {
            let first = group.layout().functions.first();
            first.and_then(|&first| other.group(first)).is_some_and(|there| TryArc::ptr_eq(there, group))
        };
        self.groups().filter(move |group| !is_kept(group))
    }
}
