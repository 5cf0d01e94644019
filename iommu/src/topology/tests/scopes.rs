//! What the DMAR table says of functions: fixed tables over one machine.

use std::{vec, vec::Vec};

use mm::{PhysAddr, PhysRange};

use super::{
    super::{Ats, BridgeKind, Function, PlatformDevice, Problem, Source, Topology},
    at, bridge, endpoint, isolating, root_port,
};
use crate::{
    PciAddress,
    dmar::{
        Dmar, ScopeKind,
        builder::{ScopeBytes, TableBytes},
    },
};

/// A graphics device, a switch with two devices, a conventional bus with two, and a physical function with a virtual
/// one.
fn machine() -> Vec<Function> {
    vec![
        endpoint(0, 2, 0),
        root_port(3, 1, 4),
        isolating(bridge((1, 0, 0), BridgeKind::UpstreamPort, 2, 4)),
        isolating(bridge((2, 0, 0), BridgeKind::DownstreamPort, 3, 3)),
        isolating(bridge((2, 1, 0), BridgeKind::DownstreamPort, 4, 4)),
        endpoint(3, 0, 0),
        endpoint(4, 0, 0),
        bridge((0, 0x1e, 0), BridgeKind::Conventional, 5, 5),
        endpoint(5, 1, 0),
        endpoint(5, 2, 0),
        root_port(4, 6, 7),
        endpoint(6, 0, 0),
        Function { physical: Some(at(6, 0, 0)), ..endpoint(7, 0, 0) },
    ]
}

fn build(table: TableBytes) -> Topology {
    let table = table.finish();
    Topology::build(&machine(), Some(&Dmar::parse(&table).unwrap())).unwrap()
}

fn units<const N: usize>(topology: &Topology, functions: [PciAddress; N]) -> [Option<usize>; N] {
    functions.map(|function| topology.unit(function))
}

#[test]
fn without_a_table_no_function_has_a_unit() {
    let topology = Topology::build(&machine(), None).unwrap();
    assert!(topology.functions().iter().all(|function| topology.unit(function.address).is_none()));
    assert!(topology.groups().all(|group| group.unit().is_none()));
    assert!(topology.groups().all(|group| group.reserved().unwrap().is_empty()));
    assert_eq!(topology.ats(at(3, 0, 0)), Ats::Denied);
}

#[test]
fn explicit_scopes_win_over_the_nearest_bridge_and_this_over_include_all() {
    let topology = build(
        TableBytes::new()
            .drhd(0x1000, 0, false, &[ScopeBytes::endpoint(0, &[(3, 0), (0, 0), (1, 0), (0, 0)])])
            .drhd(0x2000, 0, false, &[ScopeBytes::bridge(0, &[(3, 0)])])
            .drhd(0x3000, 0, false, &[ScopeBytes::bridge(0, &[(3, 0), (0, 0), (1, 0)])])
            .drhd(0x4000, 0, true, &[]),
    );
    let functions = [at(4, 0, 0), at(0, 3, 0), at(1, 0, 0), at(3, 0, 0), at(2, 1, 0), at(0, 2, 0)];
    assert_eq!(units(&topology, functions), [Some(0), Some(1), Some(1), Some(1), Some(2), Some(3)]);
    assert_eq!(topology.problems(), []);
}

#[test]
fn include_all_may_come_first_and_counts_for_its_segment_only() {
    let graphics = [ScopeBytes::endpoint(0, &[(2, 0)])];
    let topology = build(TableBytes::new().drhd(0x1000, 0, true, &[]).drhd(0x2000, 0, false, &graphics));
    assert_eq!(units(&topology, [at(0, 2, 0), at(3, 0, 0)]), [Some(1), Some(0)]);

    let topology = build(TableBytes::new().drhd(0x1000, 7, true, &[]).drhd(0x2000, 0, false, &graphics));
    assert_eq!(units(&topology, [at(0, 2, 0), at(3, 0, 0)]), [Some(1), None]);
}

#[test]
fn a_scope_that_starts_at_the_devices_own_bus_names_it() {
    let topology = build(TableBytes::new().drhd(0x1000, 0, false, &[ScopeBytes::endpoint(4, &[(0, 0)])]));
    assert_eq!(units(&topology, [at(4, 0, 0), at(3, 0, 0)]), [Some(0), None]);
}

#[test]
fn an_endpoint_scope_of_a_bridge_names_the_bridge_alone() {
    let topology = build(TableBytes::new().drhd(0x1000, 0, false, &[ScopeBytes::endpoint(0, &[(3, 0)])]));
    assert_eq!(units(&topology, [at(0, 3, 0), at(1, 0, 0)]), [Some(0), None]);
    // And a bridge scope of an endpoint names that.
    let topology = build(TableBytes::new().drhd(0x1000, 0, false, &[ScopeBytes::bridge(0, &[(2, 0)])]));
    assert_eq!(topology.unit(at(0, 2, 0)), Some(0));
}

#[test]
fn a_virtual_function_has_the_unit_of_its_physical_one() {
    let scope = [ScopeBytes::endpoint(0, &[(4, 0), (0, 0)])];
    let table = TableBytes::new().drhd(0x1000, 0, false, &scope).drhd(0x2000, 0, true, &[]);
    assert_eq!(units(&build(table), [at(6, 0, 0), at(7, 0, 0)]), [Some(0), Some(0)]);
}

#[test]
fn scopes_that_lead_nowhere_are_problems() {
    let scopes = [
        ScopeBytes::endpoint(0, &[(2, 0), (0, 0)]),
        ScopeBytes::endpoint(0, &[(9, 0), (0, 0)]),
        ScopeBytes::endpoint(0, &[(32, 0)]),
        ScopeBytes::endpoint(0, &[(0x14, 0)]),
        ScopeBytes::new(9, 0, 0, &[(2, 0)]),
    ];
    let topology = build(TableBytes::new().drhd(0x1000, 0, false, &scopes));
    let broken = |offset| Problem::BrokenPath { offset };
    assert_eq!(
        topology.problems(),
        [
            broken(64),
            broken(74),
            broken(84),
            Problem::MissingFunction { offset: 92, function: at(0, 0x14, 0) },
        ]
    );
    assert_eq!(topology.unit(at(0, 2, 0)), None);
}

#[test]
fn the_first_unit_keeps_what_two_name() {
    let scopes = [ScopeBytes::endpoint(0, &[(2, 0)]), ScopeBytes::io_apic(8, 0xf0, (0x1f, 0))];
    let table = TableBytes::new().drhd(0x1000, 0, false, &scopes).drhd(0x2000, 0, false, &scopes);
    let topology = build(table);
    assert_eq!(topology.unit(at(0, 2, 0)), Some(0));
    assert_eq!(topology.io_apic(8).unwrap().unit, 0);
    let twice = |offset| Problem::NamedTwice { offset, first: 0, second: 1 };
    assert_eq!(topology.problems(), [twice(96), twice(104)]);
}

#[test]
fn platform_devices_have_a_unit_and_an_id() {
    let topology = build(TableBytes::new().drhd(0x1000, 0, false, &[]).drhd(
        0x2000,
        0,
        true,
        &[
            ScopeBytes::io_apic(2, 0, (0x1e, 7)),
            ScopeBytes::hpet(0, 0, (0x1e, 6)),
            ScopeBytes::acpi(1, 0, (0x15, 1)),
        ],
    ));
    let source = at(0, 0x1e, 7).source_id();
    let io_apic = PlatformDevice { kind: ScopeKind::IoApic { id: 2 }, unit: 1, source };
    assert_eq!(topology.io_apic(2), Some(io_apic));
    assert_eq!(topology.io_apic(0), None);
    assert_eq!(topology.hpet(0).unwrap().source, at(0, 0x1e, 6).source_id());
    assert_eq!(topology.hpet(2), None);
    assert_eq!(topology.platform_devices().len(), 3);
    // They need not be visible functions.
    assert_eq!(topology.problems(), []);
}

#[test]
fn a_shared_id_with_two_units_is_a_problem() {
    let scopes = [ScopeBytes::endpoint(5, &[(1, 0)])];
    let table = TableBytes::new().drhd(0x1000, 0, false, &scopes).drhd(0x2000, 0, true, &[]);
    let topology = build(table);
    let source = at(0, 0x1e, 0).source_id();
    assert_eq!(topology.problems(), [Problem::SplitSource { source, first: Some(0), second: Some(1) }]);
    let group = topology.group(at(5, 1, 0)).unwrap();
    assert_eq!(group.unit(), None);
    let shared = Source { id: source, unit: Some(0) };
    assert_eq!(group.sources().find(|other| other.id == source), Some(shared));
    assert_eq!(topology.group(at(0, 2, 0)).unwrap().unit(), Some(1));
}

#[test]
fn reserved_memory_goes_to_the_functions_named_and_to_all_of_their_group() {
    let topology = build(
        TableBytes::new()
            .drhd(0x1000, 0, true, &[])
            .rmrr(0x7000_0000, 0x7000_ffff, 0, &[ScopeBytes::endpoint(0, &[(2, 0)])])
            .rmrr(0x8000_0000, 0x8000_0fff, 0, &[ScopeBytes::endpoint(5, &[(2, 0)])])
            .rmrr(0x9000_0000, 0x9000_0fff, 0, &[ScopeBytes::bridge(0, &[(3, 0)])])
            .rmrr(0xa000_0000, 0x9fff_ffff, 0, &[ScopeBytes::endpoint(0, &[(2, 0)])])
            .rmrr(0xb000_0000, 0xb000_0fff, 1, &[ScopeBytes::endpoint(0, &[(2, 0)])]),
    );
    let region = |start, bytes| PhysRange::new(PhysAddr::new(start), bytes);
    let reserved = |function| topology.reserved(function).collect::<Vec<_>>();
    assert_eq!(reserved(at(0, 2, 0)), [region(0x7000_0000, 0x1_0000)]);
    assert_eq!(reserved(at(5, 1, 0)), []);
    let shared = topology.group(at(5, 1, 0)).unwrap().reserved().unwrap();
    assert_eq!(shared, [region(0x8000_0000, 0x1000)]);
    for function in [at(0, 3, 0), at(2, 1, 0), at(4, 0, 0)] {
        assert_eq!(reserved(function), [region(0x9000_0000, 0x1000)]);
    }
    assert_eq!(reserved(at(6, 0, 0)), []);
}

#[test]
fn regions_of_a_group_that_overlap_or_adjoin_are_one() {
    let scope = [ScopeBytes::endpoint(0, &[(2, 0)])];
    let topology = build(
        TableBytes::new()
            .rmrr(0x9000, 0x9fff, 0, &scope)
            .rmrr(0x5000, 0x8fff, 0, &scope)
            .rmrr(0x6000, 0x6fff, 0, &scope)
            .rmrr(0x8000, 0x8fff, 0, &scope)
            .rmrr(0xb000, 0xbfff, 0, &scope),
    );
    let regions = topology.group(at(0, 2, 0)).unwrap().reserved().unwrap();
    let region = |start, bytes| PhysRange::new(PhysAddr::new(start), bytes);
    assert_eq!(regions, [region(0x5000, 0x5000), region(0xb000, 0x1000)]);
}

#[test]
fn translation_caches_are_allowed_by_port_or_by_name() {
    let port = [ScopeBytes::bridge(0, &[(3, 0)])];
    let by_port = build(TableBytes::new().atsr(0, false, &port));
    let ats =
        |topology: &Topology, functions: [PciAddress; 3]| functions.map(|function| topology.ats(function));
    let functions = [at(3, 0, 0), at(6, 0, 0), at(0, 2, 0)];
    assert_eq!(ats(&by_port, functions), [Ats::Allowed, Ats::Denied, Ats::Denied]);

    let all = build(TableBytes::new().atsr(0, true, &[]));
    assert_eq!(ats(&all, functions), [Ats::Allowed; 3]);
    assert_eq!(all.ats(at(7, 0, 0)), Ats::Allowed);
    // Behind a conventional bridge there is no ATS.
    assert_eq!(all.ats(at(5, 1, 0)), Ats::Denied);
    assert_eq!(build(TableBytes::new().atsr(1, true, &[])).ats(at(3, 0, 0)), Ats::Denied);

    let graphics = [ScopeBytes::endpoint(0, &[(2, 0)])];
    assert_eq!(build(TableBytes::new().satc(0, false, &graphics)).ats(at(0, 2, 0)), Ats::Allowed);
    assert_eq!(build(TableBytes::new().satc(0, true, &graphics)).ats(at(0, 2, 0)), Ats::Required);
}

/// However many scopes of a region a function is in, the list does not grow with them.
#[test]
fn a_region_that_names_a_bridge_many_times_is_that_of_each_function_once() {
    let scopes: Vec<_> = (0..8000).map(|_| ScopeBytes::bridge(0, &[(3, 0)])).collect();
    let topology =
        build(TableBytes::new().drhd(0x1000, 0, true, &[]).rmrr(0x9000_0000, 0x9000_0fff, 0, &scopes));
    let pages = PhysRange::new(PhysAddr::new(0x9000_0000), 0x1000);
    let concerned = topology.groups().filter(|group| group.reserved().unwrap() == [pages]).count();
    assert_eq!(concerned, 6, "the port, three of the switch, and two devices");
    assert!(topology.coverage.reserved.capacity() < 100, "{}", topology.coverage.reserved.capacity());
}
