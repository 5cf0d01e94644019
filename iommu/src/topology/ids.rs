//! The ids that requests of a function may carry by the time they reach a remapping unit.

use alloc::vec::Vec;

use super::{
    BridgeKind, Function, TopologyError,
    hierarchy::{Hierarchy, push},
};
use crate::{PciAddress, SourceId};

/// Highest number of phantom bits that a function can have: the width of a function number.
pub(super) const MAX_PHANTOM_BITS: u8 = 3;

/// For each function its ids, its own first.
#[derive(Clone, Debug)]
pub(super) struct RequesterIds {
    ids: Vec<SourceId>,
    /// Where each function's ids end in `ids`.
    ends: Vec<usize>,
}

impl RequesterIds {
    pub(super) fn build(hierarchy: &Hierarchy) -> Result<Self, TopologyError> {
        let mut all = Self { ids: Vec::new(), ends: Vec::new() };
        all.ends.try_reserve_exact(hierarchy.functions().len())?;
        for (index, function) in hierarchy.functions().iter().enumerate() {
            all.put_own(function)?;
            // A bridge from PCI Express sends in the name of the bus behind it, for itself as well.
            if is_from_link(hierarchy, index) {
                all.put_all(aliases_behind(hierarchy, index))?;
            }
            for bridge in hierarchy.ancestors(index) {
                all.put_all(aliases_behind(hierarchy, bridge))?;
            }
            all.ends.push(all.ids.len());
        }
        Ok(all)
    }

    pub(super) fn of(&self, index: usize) -> &[SourceId] {
        let end = self.ends.get(index).copied().unwrap_or(0);
        self.ids.get(self.start(index)..end).unwrap_or_default()
    }

    fn start(&self, index: usize) -> usize {
        index.checked_sub(1).map_or(0, |before| self.ends[before])
    }

    /// The ids that the function puts into requests by itself.
    fn put_own(&mut self, function: &Function) -> Result<(), TopologyError> {
        let PciAddress { segment, bus, .. } = function.address;
        let devfn = function.address.devfn();
        self.put(function.address.source_id())?;
        let bits = function.phantom_bits.min(MAX_PHANTOM_BITS);
        let shift = MAX_PHANTOM_BITS - bits;
        let own = devfn & !(((1 << bits) - 1) << shift);
        for phantom in 0..1 << bits {
            self.put(PciAddress::from_devfn(segment, bus, own | phantom << shift).source_id())?;
        }
        let alias = function.alias_devfn.map(|devfn| PciAddress::from_devfn(segment, bus, devfn));
        self.put_all([alias.map(PciAddress::source_id)])
    }

    fn put_all<const N: usize>(&mut self, ids: [Option<SourceId>; N]) -> Result<(), TopologyError> {
        ids.into_iter().flatten().try_for_each(|id| self.put(id))
    }

    /// Adds an id of the function at the end of the list, once.
    fn put(&mut self, id: SourceId) -> Result<(), TopologyError> {
        let start = self.ends.last().copied().unwrap_or(0);
        if self.ids[start..].contains(&id) { Ok(()) } else { push(&mut self.ids, id) }
    }
}

/// The ids that bridge `index` may put into requests from behind it in place of the sender's.
pub(super) fn aliases_behind(hierarchy: &Hierarchy, index: usize) -> [Option<SourceId>; 2] {
    let bridge = &hierarchy.functions()[index];
    let Some((secondary, _)) = bridge.buses() else { return [None; 2] };
    let own = bridge.address.source_id();
    let first_behind = PciAddress::from_devfn(bridge.address.segment, secondary, 0).source_id();
    match bridge.bridge_kind() {
        Some(BridgeKind::ToPci) => [Some(first_behind), None],
        Some(BridgeKind::Conventional) if is_from_link(hierarchy, index) => [Some(own), Some(first_behind)],
        Some(BridgeKind::FromPci | BridgeKind::Conventional) => [Some(own), None],
        Some(BridgeKind::RootPort | BridgeKind::UpstreamPort | BridgeKind::DownstreamPort) | None => {
            [None; 2]
        }
    }
}

/// Whether a function is a bridge from PCI Express to PCI. Some do not say so: they have no PCI Express capability, but
/// are on a link, where nothing conventional can be.
fn is_from_link(hierarchy: &Hierarchy, index: usize) -> bool {
    match hierarchy.functions()[index].bridge_kind() {
        Some(BridgeKind::ToPci) => true,
        Some(BridgeKind::Conventional) => hierarchy.is_on_link(index),
        _ => false,
    }
}
