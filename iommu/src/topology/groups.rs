//! Isolation groups: which functions can reach each other, or be taken for each other, without a remapping unit seeing
//! it.
//!
//! Two functions are in one group if one of these rules, or a chain of them, says so. In doubt they are together.
//!
//! 1. They share a requester id.
//! 2. They are physical functions of one device of which any lacks ACS: requests may pass inside the device. Virtual
//!    functions are exempt: SR-IOV keeps them apart from each other.
//! 3. One is a bridge that does not keep what is behind it apart, the other is behind it:
//!    - a bridge to or from a conventional bus;
//!    - a root or downstream port that lacks ACS;
//!    - an upstream port of a switch of which any downstream port lacks ACS, because that port's devices reach those of
//!      every other port;
//!    - a bridge that is a function of a device by rule 2;
//!    - a bridge that shares its secondary bus number with another one.
//!
//! Devices on the root bus are taken to be kept apart by the root complex.

use alloc::vec::Vec;

use super::{
    BridgeKind, TopologyError,
    hierarchy::{Hierarchy, push},
    ids::RequesterIds,
};
use crate::SourceId;

/// Groups the functions; returns for each function its group. Groups are numbered in the order of their first function.
pub(super) fn assign(hierarchy: &Hierarchy, ids: &RequesterIds) -> Result<Vec<u32>, TopologyError> {
    let count = hierarchy.functions().len();
    let mut sets = Sets::new(count)?;
    join_shared_ids(&mut sets, count, ids)?;

    let mut open = open_bridges(hierarchy)?;
    join_devices(&mut sets, &mut open, hierarchy)?;
    for (one, other) in hierarchy.rivals() {
        sets.join(one, other);
        open[one] = true;
        open[other] = true;
    }
    for index in 0..count {
        for bridge in hierarchy.ancestors(index).filter(|&bridge| open[bridge]) {
            sets.join(index, bridge);
        }
    }
    sets.number()
}

/// Rule 1.
fn join_shared_ids(sets: &mut Sets, count: usize, ids: &RequesterIds) -> Result<(), TopologyError> {
    let mut owners: Vec<(SourceId, usize)> = Vec::new();
    for index in 0..count {
        for &id in ids.of(index) {
            push(&mut owners, (id, index))?;
        }
    }
    owners.sort_unstable();
    for [(one_id, one), (next_id, next)] in owners.array_windows() {
        if one_id == next_id {
            sets.join(*one, *next);
        }
    }
    Ok(())
}

/// For each function whether it is a bridge that, by its kind and its ACS alone, does not keep what is behind it apart.
fn open_bridges(hierarchy: &Hierarchy) -> Result<Vec<bool>, TopologyError> {
    let functions = hierarchy.functions();
    let mut open = Vec::new();
    open.try_reserve_exact(functions.len())?;
    open.extend(functions.iter().map(|function| match function.bridge_kind() {
        Some(BridgeKind::ToPci | BridgeKind::FromPci | BridgeKind::Conventional) => true,
        Some(BridgeKind::RootPort | BridgeKind::DownstreamPort) => !function.isolates(),
        Some(BridgeKind::UpstreamPort) | None => false,
    }));
    for (index, function) in functions.iter().enumerate() {
        let Some(above) = hierarchy.parent(index) else { continue };
        let closed = function.bridge_kind() == Some(BridgeKind::DownstreamPort) && function.isolates();
        if functions[above].bridge_kind() == Some(BridgeKind::UpstreamPort) && !closed {
            open[above] = true;
        }
    }
    Ok(open)
}

/// Rule 2. Bridges of such a device become open.
fn join_devices(sets: &mut Sets, open: &mut [bool], hierarchy: &Hierarchy) -> Result<(), TopologyError> {
    let functions = hierarchy.functions();
    let mut physical = Vec::new();
    for index in (0..functions.len()).filter(|&index| !functions[index].is_virtual()) {
        push(&mut physical, (hierarchy.device(index), index))?;
    }
    // Functions of one device follow each other: they have been taken in the order of addresses.
    for device in physical.chunk_by(|(one, _), (other, _)| one == other) {
        let isolated = device.iter().all(|&(_, index)| functions[index].isolates());
        let [(_, first), others @ ..] = device else { continue };
        if isolated || others.is_empty() {
            continue;
        }
        for &(_, index) in device {
            sets.join(*first, index);
            open[index] = true;
        }
    }
    Ok(())
}

/// Disjoint sets of functions, each known by its lowest member.
struct Sets {
    above: Vec<u32>,
}

impl Sets {
    fn new(count: usize) -> Result<Self, TopologyError> {
        let mut above = Vec::new();
        above.try_reserve_exact(count)?;
        above.extend(0..count as u32);
        Ok(Self { above })
    }

    fn lowest(&mut self, mut member: usize) -> usize {
        while self.above[member] as usize != member {
            // Halves the path for the next one who asks.
            self.above[member] = self.above[self.above[member] as usize];
            member = self.above[member] as usize;
        }
        member
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.lowest(one), self.lowest(other));
        self.above[one.max(other)] = one.min(other) as u32;
    }

    /// Numbers the sets in the order of their lowest members.
    fn number(mut self) -> Result<Vec<u32>, TopologyError> {
        let mut numbers: Vec<u32> = Vec::new();
        numbers.try_reserve_exact(self.above.len())?;
        let mut next = 0;
        for member in 0..self.above.len() {
            let lowest = self.lowest(member);
            if lowest == member {
                numbers.push(next);
                next += 1;
            } else {
                numbers.push(numbers[lowest]);
            }
        }
        Ok(numbers)
    }
}
