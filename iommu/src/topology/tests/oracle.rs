//! A second implementation, slow and written apart from the first: it follows each request on its way up and collects
//! whom it can meet.

use std::{collections::BTreeSet, vec::Vec};

use super::super::{BridgeKind, Function, FunctionKind};

/// A machine with possible bus numbers.
pub(super) struct Machine<'a> {
    pub functions: &'a [Function],
    parents: Vec<Option<usize>>,
    /// For each function, it and all behind it.
    subtrees: Vec<Set>,
}

type Set = BTreeSet<usize>;

impl<'a> Machine<'a> {
    pub fn new(functions: &'a [Function]) -> Self {
        let mut machine = Self { functions, parents: Vec::new(), subtrees: Vec::new() };
        machine.parents = (0..functions.len()).map(|index| machine.innermost_around(index)).collect();
        machine.subtrees = (0..functions.len()).map(|index| machine.subtree(index)).collect();
        machine
    }

    fn kind(&self, index: usize) -> Option<(BridgeKind, u8, u8)> {
        match self.functions[index].kind {
            FunctionKind::Bridge { kind, secondary, subordinate } => Some((kind, secondary, subordinate)),
            FunctionKind::Endpoint => None,
        }
    }

    /// The bridge with the smallest range of buses around the function's.
    fn innermost_around(&self, index: usize) -> Option<usize> {
        let placed_by = self.functions[index].physical.unwrap_or(self.functions[index].address);
        (0..self.functions.len())
            .filter(|&other| {
                let same_segment = self.functions[other].address.segment == placed_by.segment;
                let range = self.kind(other).map(|(_, first, last)| first..=last);
                same_segment && range.is_some_and(|range| range.contains(&placed_by.bus))
            })
            .min_by_key(|&other| self.kind(other).map(|(_, first, last)| last - first))
    }

    pub fn parent(&self, index: usize) -> Option<usize> {
        self.parents[index]
    }

    /// A bridge and all behind it.
    fn subtree(&self, root: usize) -> Set {
        let mut found = Set::from([root]);
        loop {
            let more = (0..self.functions.len()).filter(|&index| {
                !found.contains(&index) && self.parents[index].is_some_and(|parent| found.contains(&parent))
            });
            let more: Vec<usize> = more.collect();
            if more.is_empty() {
                return found;
            }
            found.extend(more);
        }
    }

    /// Bus, device and function numbers that requests of the function may carry, within its segment.
    pub fn ids(&self, index: usize) -> BTreeSet<u16> {
        let function = &self.functions[index];
        let number = |bus: u8, devfn: u8| u16::from_be_bytes([bus, devfn]);
        let (bus, devfn) = (function.address.bus, function.address.devfn());
        let mut ids = BTreeSet::from([number(bus, devfn)]);
        // The uppermost bits of the function number may be anything.
        let free = [0, 0b100, 0b110, 0b111][usize::from(function.phantom_bits)];
        let phantom = |other: &u8| (other ^ devfn) & !free == 0;
        ids.extend((0..=255).filter(phantom).map(|other| number(bus, other)));
        ids.extend(function.alias_devfn.map(|alias| number(bus, alias)));
        if let (true, Some((_, secondary, _))) = (self.is_to_pci(index), self.kind(index)) {
            ids.insert(number(secondary, 0));
        }
        let mut place = index;
        while let Some(bridge) = self.parent(place) {
            let address = self.functions[bridge].address;
            let Some((kind, secondary, _)) = self.kind(bridge) else { unreachable!() };
            if self.is_to_pci(bridge) {
                ids.insert(number(secondary, 0));
            }
            if [BridgeKind::FromPci, BridgeKind::Conventional].contains(&kind) {
                ids.insert(number(address.bus, address.devfn()));
            }
            place = bridge;
        }
        ids
    }

    fn closed(&self, index: usize) -> bool {
        let Some(acs) = self.functions[index].acs else { return false };
        let needed = [0, 2, 3, 4].into_iter();
        let downstream = matches!(self.kind(index), Some((BridgeKind::DownstreamPort, ..)));
        needed.filter(|bit| downstream || acs.offered >> bit & 1 == 1).all(|bit| acs.enabled >> bit & 1 == 1)
    }

    /// Whether the bus that the function is on is the link of the bridge above it.
    fn is_on_link(&self, index: usize) -> bool {
        let above = self.parent(index).and_then(|parent| self.kind(parent));
        above.is_some_and(|(kind, secondary, _)| {
            secondary == self.functions[index].address.bus
                && [BridgeKind::RootPort, BridgeKind::DownstreamPort, BridgeKind::FromPci].contains(&kind)
        })
    }

    /// A bridge from a link to a conventional bus, whether it says so or not.
    fn is_to_pci(&self, index: usize) -> bool {
        match self.kind(index) {
            Some((BridgeKind::ToPci, ..)) => true,
            Some((BridgeKind::Conventional, ..)) => self.is_on_link(index),
            _ => false,
        }
    }

    /// The physical functions of the device that the physical function `index` belongs to.
    fn device(&self, index: usize) -> Set {
        let own = &self.functions[index];
        let link = self.is_on_link(index);
        let belongs = |other: &Function| {
            let (a, b) = (own.address, other.address);
            let place = (a.segment, a.bus) == (b.segment, b.bus);
            other.physical.is_none() && place && (link || a.device() == b.device())
        };
        (0..self.functions.len()).filter(|&other| belongs(&self.functions[other])).collect()
    }

    /// Whom a request of `index` can meet before it comes to the root complex.
    fn met(&self, index: usize) -> Set {
        let mut met = Set::new();
        let mut place = Some(index);
        while let Some(here) = place {
            let device = if self.functions[here].physical.is_none() { self.device(here) } else { Set::new() };
            if device.len() > 1 && device.iter().any(|&function| !self.closed(function)) {
                device.iter().for_each(|&function| met.extend(&self.subtrees[function]));
            }
            place = self.parent(here);
            let Some(bridge) = place else { break };
            let here_is_closed_port =
                matches!(self.kind(here), Some((BridgeKind::DownstreamPort, ..))) && self.closed(here);
            let turns = match self.kind(bridge).unwrap().0 {
                BridgeKind::ToPci | BridgeKind::FromPci | BridgeKind::Conventional => true,
                BridgeKind::RootPort | BridgeKind::DownstreamPort => !self.closed(bridge),
                BridgeKind::UpstreamPort => !here_is_closed_port,
            };
            if turns {
                met.extend(&self.subtrees[bridge]);
            }
        }
        met
    }

    /// The groups: sets of functions that no chain of meetings or shared ids connects with others.
    pub fn groups(&self) -> Vec<Set> {
        let count = self.functions.len();
        let ids: Vec<_> =
            (0..count).map(|index| (self.functions[index].address.segment, self.ids(index))).collect();
        let mut groups: Vec<Set> = Vec::new();
        for index in 0..count {
            let shares =
                |&other: &usize| ids[index].0 == ids[other].0 && !ids[index].1.is_disjoint(&ids[other].1);
            let mut group = self.met(index);
            group.extend((0..count).filter(shares));
            // Takes in every earlier group that it touches.
            groups.retain(|earlier| {
                let apart = earlier.is_disjoint(&group);
                if !apart {
                    group.extend(earlier);
                }
                apart
            });
            groups.push(group);
        }
        groups.sort();
        groups
    }
}
