//! Which bridge each function is behind.
//!
//! Bus numbers are firmware's or a device's word. A bridge counts only if its secondary bus is above its own, so that
//! every step up lowers the bus number and no chain of bridges is longer than 255 or comes back to its start.

use alloc::vec::Vec;

use super::{BridgeKind, Function, FunctionKind, Problem, TopologyError};
use crate::PciAddress;

/// The functions and their places below each other. A function is known by its index in the order of addresses.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    functions: Vec<Function>,
    parents: Vec<Option<u32>>,
    /// Bridges with possible bus numbers, by segment and secondary bus, then by address.
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    segment: u16,
    secondary: u8,
    subordinate: u8,
    bridge: u32,
}

impl Link {
    const fn bus(&self) -> (u16, u8) {
        (self.segment, self.secondary)
    }
}

impl Hierarchy {
    pub(super) fn build(functions: &[Function], problems: &mut Vec<Problem>) -> Result<Self, TopologyError> {
        let mut sorted = Vec::new();
        sorted.try_reserve_exact(functions.len())?;
        sorted.extend_from_slice(functions);
        sorted.sort_unstable_by_key(|function| function.address);
        let twice = sorted.array_windows().find(|[one, next]| one.address == next.address);
        if let Some([function, _]) = twice {
            return Err(TopologyError::Duplicate { function: function.address });
        }

        let links = links(&sorted, problems)?;
        let mut hierarchy = Self { functions: sorted, parents: Vec::new(), links };
        let mut parents = Vec::new();
        parents.try_reserve_exact(functions.len())?;
        for function in &hierarchy.functions {
            parents.push(hierarchy.bridge_above(function, problems)?);
        }
        hierarchy.parents = parents;
        Ok(hierarchy)
    }

    pub(super) fn functions(&self) -> &[Function] {
        &self.functions
    }

    pub(super) fn index(&self, address: PciAddress) -> Option<usize> {
        self.functions.binary_search_by_key(&address, |function| function.address).ok()
    }

    /// The bridge right above function `index`; `None` on a root bus.
    pub(super) fn parent(&self, index: usize) -> Option<usize> {
        self.parents.get(index).copied().flatten().map(|parent| parent as usize)
    }

    /// The bridges above function `index`, the nearest first.
    pub(super) fn ancestors(&self, index: usize) -> impl Iterator<Item = usize> {
        core::iter::successors(self.parent(index), |&bridge| self.parent(bridge))
    }

    /// Pairs of a bridge and another one that leads to the same bus.
    pub(super) fn rivals(&self) -> impl Iterator<Item = (usize, usize)> {
        self.links
            .array_windows()
            .filter(|[one, next]| one.bus() == next.bus())
            .map(|[one, next]| (one.bridge as usize, next.bridge as usize))
    }

    /// The device that a physical function belongs to: equal for functions of one device, and for those only. On a
    /// link there is but one device, and with alternative routing ids its functions have all 256 numbers.
    pub(super) fn device(&self, index: usize) -> (u16, u8, Option<u8>) {
        let address = self.functions[index].address;
        (address.segment, address.bus, (!self.is_on_link(index)).then_some(address.device()))
    }

    /// Whether function `index` is at the end of a PCI Express link.
    pub(super) fn is_on_link(&self, index: usize) -> bool {
        let above = self.parent(index).map(|parent| &self.functions[parent]);
        above.is_some_and(|bridge| {
            bridge.bridge_kind().is_some_and(BridgeKind::leads_to_link)
                && bridge.buses().is_some_and(|(secondary, _)| secondary == self.functions[index].address.bus)
        })
    }

    fn bridge_above(
        &self,
        function: &Function,
        problems: &mut Vec<Problem>,
    ) -> Result<Option<u32>, TopologyError> {
        let mut address = function.address;
        if let (true, Some(physical)) = (function.is_virtual(), function.physical) {
            // Virtual functions may have bus numbers that no bridge has as its secondary bus.
            if physical.segment == address.segment && self.index(physical).is_some() {
                address = physical;
            } else {
                push(problems, Problem::MissingPhysical { function: address, physical })?;
            }
        }
        let (segment, bus) = (address.segment, address.bus);
        let up_to = self.links.partition_point(|link| link.bus() < (segment, bus));
        let direct = self.links.get(up_to).filter(|link| link.bus() == (segment, bus));
        // The innermost of the bridges that enclose the bus: at most 255 secondary buses are below it.
        let enclosing = || {
            let below = self.links[..up_to].iter().rev().take_while(|link| link.segment == segment);
            let mut below = below.filter(|link| link.subordinate >= bus);
            below.next()
        };
        Ok(direct.or_else(enclosing).map(|link| link.bridge))
    }
}

impl BridgeKind {
    /// Whether the secondary side is a PCI Express link, with one device on it.
    const fn leads_to_link(self) -> bool {
        matches!(self, Self::RootPort | Self::DownstreamPort | Self::FromPci)
    }
}

/// The bridges of `functions` with possible bus numbers; the others are problems.
fn links(functions: &[Function], problems: &mut Vec<Problem>) -> Result<Vec<Link>, TopologyError> {
    let mut links = Vec::new();
    for (index, function) in functions.iter().enumerate() {
        let (bridge, segment) = (index as u32, function.address.segment);
        if let Some((secondary, subordinate)) = function.buses() {
            push(&mut links, Link { segment, secondary, subordinate, bridge })?;
            continue;
        }
        match function.kind {
            // Unset, or no bridge at all.
            FunctionKind::Bridge { secondary: 0, subordinate: 0, .. } | FunctionKind::Endpoint => {}
            FunctionKind::Bridge { secondary, subordinate, .. } => {
                push(problems, Problem::BadBuses { bridge: function.address, secondary, subordinate })?;
            }
        }
    }
    links.sort_unstable_by_key(|link| (link.bus(), link.bridge));
    for [one, next] in links.array_windows() {
        if one.bus() == next.bus() {
            let [first, second] = [one, next].map(|link: &Link| functions[link.bridge as usize].address);
            push(problems, Problem::SharedBus { first, second, bus: one.secondary })?;
        }
    }
    Ok(links)
}

/// Appends, or says that there is no memory.
pub(super) fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), TopologyError> {
    list.try_reserve(1)?;
    list.push(item);
    Ok(())
}
