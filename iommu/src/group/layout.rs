//! What is known of a group before anything runs.

use alloc::vec::Vec;

use mm::PhysRange;

use crate::{
    PciAddress, SourceId,
    backend::UnitSet,
    topology::{self, FunctionKind, TopologyError},
};

/// What is known of a group before anything runs.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct GroupLayout {
    /// Its functions.
    pub functions: Vec<PciAddress>,
    /// Those of them that send requests of their own. Bridges do not: bus mastering lets those of others through, and
    /// no driver would turn it on again.
    pub endpoints: Vec<PciAddress>,
    /// The ids that requests of its functions carry, each with the index of the unit that sees it.
    pub sources: Vec<(SourceId, usize)>,
    /// Memory that firmware wants its functions to reach at all times: sorted and apart.
    pub reserved: Vec<PhysRange>,
    /// Firmware wants that of any, granted or not.
    pub is_firmwares: bool,
}

impl GroupLayout {
    /// What the topology says of a group. `None` if a part of it is covered by no unit: nothing could block it, so it
    /// is never handed out.
    pub fn of(group: topology::Group<'_>) -> Result<Option<Self>, TopologyError> {
        let (mut functions, mut endpoints, mut sources) = (Vec::new(), Vec::new(), Vec::new());
        functions.try_reserve_exact(group.functions().len())?;
        functions.extend(group.functions().map(|function| function.address));
        endpoints.try_reserve_exact(functions.len())?;
        let is_endpoint = |function: &&topology::Function| function.kind == FunctionKind::Endpoint;
        endpoints.extend(group.functions().filter(is_endpoint).map(|function| function.address));
        sources.try_reserve_exact(group.sources().len())?;
        for source in group.sources() {
            let Some(unit) = source.unit else { return Ok(None) };
            sources.push((source.id, unit));
        }
        let reserved = merge_overlapping(group.reserved()?);
        let is_firmwares = group.is_firmwares();
        Ok(Some(Self { functions, endpoints, sources, reserved, is_firmwares }))
    }

    /// The unit that sees the group's requests, if the group is one function with one requester id and no reserved
    /// memory: only such a one may be trusted with a TLB of its own (see [`ats`](crate::ats)).
    pub fn lone_function_unit(&self) -> Option<usize> {
        match (&*self.functions, &*self.sources, &*self.reserved) {
            ([_], &[(_, unit)], []) => Some(unit),
            _ => None,
        }
    }

    /// The units that see the group's requests.
    pub fn units(&self) -> UnitSet {
        self.sources.iter().fold(UnitSet::default(), |units, &(_, unit)| units.with(unit))
    }
}

/// Joins regions that overlap or touch; they come sorted by their start.
fn merge_overlapping(mut regions: Vec<PhysRange>) -> Vec<PhysRange> {
    regions.dedup_by(|next, kept| {
        let kept_end = kept.start.as_u64() + kept.bytes;
        let touches = next.start.as_u64() <= kept_end;
        if touches {
            kept.bytes = kept_end.max(next.start.as_u64() + next.bytes) - kept.start.as_u64();
        }
        touches
    });
    regions
}

#[cfg(test)]
mod tests {
    use mm::PhysAddr;
    use std::{vec, vec::Vec};

    use super::*;

    #[test]
    fn overlapping_regions_become_one() {
        let regions = |list: &[(u64, u64)]| -> Vec<PhysRange> {
            list.iter().map(|&(start, bytes)| PhysRange::new(PhysAddr::new(start), bytes)).collect()
        };
        let cases = [
            (vec![], vec![]),
            (vec![(0x1000, 0x1000), (0x3000, 0x1000)], vec![(0x1000, 0x1000), (0x3000, 0x1000)]),
            (vec![(0x1000, 0x1000), (0x2000, 0x1000)], vec![(0x1000, 0x2000)]),
            (vec![(0x1000, 0x5000), (0x2000, 0x1000), (0x5000, 0x3000)], vec![(0x1000, 0x7000)]),
        ];
        for (given, expected) in cases {
            assert_eq!(merge_overlapping(regions(&given)), regions(&expected), "{given:x?}");
        }
    }
}
