//! Topologies of arbitrary functions under an arbitrary DMAR table: every function is in one group, every id too.

#![no_main]

use std::collections::HashSet;

use iommu::PciAddress;
use iommu::dmar::Dmar;
use iommu::topology::{Acs, BridgeKind, Function, FunctionKind, Topology};
use libfuzzer_sys::fuzz_target;

/// Bytes that a function is made of.
const FUNCTION_BYTES: usize = 8;

/// Few buses, so that bridges meet; bits beyond them are left for other fields.
const BUSES: u8 = 32;

fuzz_target!(|bytes: &[u8]| {
    let Some((&count, rest)) = bytes.split_first() else { return };
    let (functions, table) = rest.split_at(rest.len().min(usize::from(count) * FUNCTION_BYTES));
    let mut seen = HashSet::new();
    let functions: Vec<Function> = functions
        .as_chunks::<FUNCTION_BYTES>()
        .0
        .iter()
        .map(function)
        .filter(|function| seen.insert(function.address))
        .collect();
    let dmar = Dmar::parse(table).ok();
    let topology = Topology::build(&functions, dmar.as_ref()).expect("no function is listed twice");
    check(&topology, dmar.map_or(0, |dmar| dmar.units().count()));
});

fn function(bytes: &[u8; FUNCTION_BYTES]) -> Function {
    use BridgeKind::{Conventional, DownstreamPort, FromPci, RootPort, ToPci, UpstreamPort};
    let [bus, devfn, kind, secondary, subordinate, acs, physical, quirks] = *bytes;
    let bridge =
        [RootPort, UpstreamPort, DownstreamPort, ToPci, FromPci, Conventional].get(usize::from(kind & 7));
    Function {
        address: PciAddress::from_devfn(u16::from(bus >> 7), bus % BUSES, devfn),
        kind: bridge.map_or(FunctionKind::Endpoint, |&kind| FunctionKind::Bridge {
            kind,
            secondary: secondary % BUSES,
            subordinate: subordinate % BUSES,
        }),
        acs: (acs & 0x80 != 0).then_some(Acs { offered: Acs::ISOLATION, enabled: u16::from(acs) }),
        physical: (quirks & 0x80 != 0).then_some(PciAddress::from_devfn(0, physical >> 3, quirks & 7)),
        phantom_bits: quirks >> 3 & 3,
        alias_devfn: (quirks & 0x40 != 0).then_some(physical),
    }
}

fn check(topology: &Topology, units: usize) {
    let (mut members, mut ids) = (HashSet::new(), HashSet::new());
    for group in topology.groups() {
        for function in group.functions() {
            assert!(members.insert(function.address), "{} is in two groups", function.address);
            assert!(topology.unit(function.address).is_none_or(|unit| unit < units));
        }
        for source in group.sources() {
            assert!(ids.insert(source.id), "{} belongs to two groups", source.id);
            assert_eq!(topology.group_of_source(source.id).map(|owner| owner.number()), Some(group.number()));
        }
        let regions = group.reserved().expect("there is memory");
        for [one, next] in regions.array_windows() {
            assert!(one.start.as_u64() + one.bytes < next.start.as_u64());
        }
    }
    assert_eq!(members.len(), topology.functions().len());
}
