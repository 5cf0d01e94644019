//! The ids that requests of a function may carry by the time they reach a remapping unit.

use alloc::vec::Vec;

use super::{
    BridgeKind, Function, TopologyError,
    hierarchy::{Hierarchy, push},
};
use crate::{PciAddress, SourceId};

/// Highest number of phantom bits that a function can have: the width of a function number.
const MAX_PHANTOM_BITS: u8 = 3;

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
            for bridge in hierarchy.ancestors(index) {
                all.put(alias_behind(&hierarchy.functions()[bridge]))?;
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
        self.put(Some(function.address.source_id()))?;
        // A bridge from PCI Express sends in the name of the bus behind it, for itself as well.
        if function.bridge_kind() == Some(BridgeKind::ToPci) {
            self.put(alias_behind(function))?;
        }
        let bits = function.phantom_bits.min(MAX_PHANTOM_BITS);
        let shift = MAX_PHANTOM_BITS - bits;
        let own = devfn & !(((1 << bits) - 1) << shift);
        for phantom in 0..1 << bits {
            self.put(Some(PciAddress::from_devfn(segment, bus, own | phantom << shift).source_id()))?;
        }
        let alias = function.alias_devfn.map(|devfn| PciAddress::from_devfn(segment, bus, devfn));
        self.put(alias.map(PciAddress::source_id))
    }

    /// Adds an id of the function at the end of the list, once.
    fn put(&mut self, id: Option<SourceId>) -> Result<(), TopologyError> {
        let start = self.ends.last().copied().unwrap_or(0);
        match id {
            Some(id) if !self.ids[start..].contains(&id) => push(&mut self.ids, id),
            _ => Ok(()),
        }
    }
}

/// The id that `bridge` may put into requests from behind it in place of the sender's.
fn alias_behind(bridge: &Function) -> Option<SourceId> {
    let (secondary, _) = bridge.buses()?;
    match bridge.bridge_kind()? {
        BridgeKind::RootPort | BridgeKind::UpstreamPort | BridgeKind::DownstreamPort => None,
        BridgeKind::ToPci => Some(PciAddress::from_devfn(bridge.address.segment, secondary, 0).source_id()),
        BridgeKind::FromPci | BridgeKind::Conventional => Some(bridge.address.source_id()),
    }
}
