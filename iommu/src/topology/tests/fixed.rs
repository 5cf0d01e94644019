//! Topologies that QEMU does not offer, and bus numbers that cannot be.

use std::{vec, vec::Vec};

use super::{
    super::{Acs, BridgeKind, Function, MAX_FUNCTIONS, Problem, Topology, TopologyError},
    at, bridge, build, endpoint, groups, ids, isolating, root_port,
};
use crate::{
    PciAddress, SourceId,
    interrupts::{IgnoredBits, Sender},
};

#[test]
fn phantom_functions_bring_their_ids() {
    let device = |bits| [Function { phantom_bits: bits, ..endpoint(1, 0, 1) }, root_port(3, 1, 1)];
    assert_eq!(ids(&build(&device(1)), at(1, 0, 1)), [0x0101, 0x0105]);
    assert_eq!(ids(&build(&device(2)), at(1, 0, 1)), [0x0101, 0x0103, 0x0105, 0x0107]);
    let all = ids(&build(&device(3)), at(1, 0, 1));
    assert_eq!(all.len(), 8);
    assert!((0x0100..0x0108).all(|id| all.contains(&id)));
    // More bits than a function number has are as good as all of them.
    assert_eq!(ids(&build(&device(200)), at(1, 0, 1)), all);
}

#[test]
fn a_function_that_sends_under_anothers_id_joins_its_group() {
    let quirk = Function { alias_devfn: Some(1), ..isolating(endpoint(1, 0, 0)) };
    let topology = build(&[root_port(3, 1, 1), quirk, isolating(endpoint(1, 0, 1))]);
    assert_eq!(ids(&topology, at(1, 0, 0)), [0x0100, 0x0101]);
    assert_eq!(groups(&topology), [vec![at(0, 3, 0)], vec![at(1, 0, 0), at(1, 0, 1)]]);
}

#[test]
fn ids_add_up_along_a_chain_of_bridges() {
    let topology = build(&[
        root_port(3, 1, 4),
        bridge((1, 0, 0), BridgeKind::ToPci, 2, 4),
        bridge((2, 5, 0), BridgeKind::Conventional, 3, 4),
        bridge((3, 1, 0), BridgeKind::FromPci, 4, 4),
        endpoint(4, 0, 0),
    ]);
    assert_eq!(ids(&topology, at(4, 0, 0)), [0x0400, 0x0308, 0x0228, 0x0200]);
    assert_eq!(topology.groups().count(), 2);
}

#[test]
fn an_interrupt_comes_from_the_function_unless_a_bridge_puts_its_own_id_in() {
    let exactly = |requester| Some(Sender::Function(SourceId { segment: 0, requester }));
    let buses = |first, last| Some(Sender::Buses { first, last });
    let topology = build(&[
        endpoint(0, 2, 3),
        root_port(3, 1, 4),
        bridge((1, 0, 0), BridgeKind::ToPci, 2, 4),
        endpoint(2, 4, 0),
        bridge((2, 5, 0), BridgeKind::Conventional, 3, 4),
        endpoint(3, 2, 0),
        bridge((3, 1, 0), BridgeKind::FromPci, 4, 4),
        endpoint(4, 0, 0),
        bridge((0, 0x1e, 0), BridgeKind::Conventional, 7, 8),
        endpoint(7, 1, 0),
        bridge((7, 2, 0), BridgeKind::Conventional, 8, 8),
        endpoint(8, 1, 0),
    ]);
    let sender = |bus, device, function| topology.interrupt_sender(at(bus, device, function));
    assert_eq!(sender(0, 2, 3), exactly(0x0013));
    assert_eq!(sender(1, 0, 0), exactly(0x0100));
    assert_eq!(sender(2, 4, 0), buses(2, 4));
    assert_eq!(sender(3, 2, 0), buses(2, 4));
    assert_eq!(sender(4, 0, 0), buses(2, 4));
    assert_eq!(sender(7, 1, 0), exactly(0x00f0));
    assert_eq!(sender(8, 1, 0), exactly(0x00f0));
    assert_eq!(sender(5, 0, 0), None);
}

#[test]
fn an_interrupt_may_come_from_the_phantoms_of_a_function_but_not_from_its_neighbours() {
    let source = at(1, 0, 1).source_id();
    let sender = |function: Function| build(&[function, root_port(3, 1, 1)]).interrupt_sender(at(1, 0, 1));
    let masked = |ignored| Some(Sender::Functions { source, ignored });
    let phantoms = |phantom_bits| sender(Function { phantom_bits, ..endpoint(1, 0, 1) });
    assert_eq!(phantoms(0), Some(Sender::Function(source)));
    assert_eq!(phantoms(1), masked(IgnoredBits::Bit2));
    assert_eq!(phantoms(2), masked(IgnoredBits::Bits21));
    assert_eq!(phantoms(3), masked(IgnoredBits::Bits210));
    assert_eq!(phantoms(200), masked(IgnoredBits::Bits210));
    let quirk = |devfn| sender(Function { alias_devfn: Some(devfn), ..endpoint(1, 0, 1) });
    assert_eq!(quirk(5), masked(IgnoredBits::Bit2));
    assert_eq!(quirk(0), masked(IgnoredBits::Bits210));
    for another_device in [9, 10] {
        assert_eq!(quirk(another_device), Some(Sender::Function(source)));
    }
}

#[test]
fn a_bridge_on_a_link_that_does_not_say_what_it_is_may_send_under_either_id() {
    let topology =
        build(&[root_port(3, 1, 2), bridge((1, 0, 0), BridgeKind::Conventional, 2, 2), endpoint(2, 4, 0)]);
    assert_eq!(ids(&topology, at(2, 4, 0)), [0x0220, 0x0100, 0x0200]);
    assert_eq!(ids(&topology, at(1, 0, 0)), [0x0100, 0x0200]);
    assert_eq!(topology.interrupt_sender(at(2, 4, 0)), Some(Sender::Buses { first: 1, last: 2 }));
}

#[test]
fn a_function_beside_an_upstream_port_is_with_all_behind_the_switch() {
    let functions = [
        root_port(3, 1, 3),
        isolating(bridge((1, 0, 0), BridgeKind::UpstreamPort, 2, 3)),
        endpoint(1, 0, 1),
        isolating(bridge((2, 0, 0), BridgeKind::DownstreamPort, 3, 3)),
        endpoint(3, 0, 0),
    ];
    let group = vec![at(1, 0, 0), at(1, 0, 1), at(2, 0, 0), at(3, 0, 0)];
    assert_eq!(groups(&build(&functions)), [vec![at(0, 3, 0)], group]);
}

#[test]
fn a_downstream_port_needs_every_service_but_a_root_port_only_what_it_offers() {
    let partly = Some(Acs { offered: 0b0101, enabled: 0b0101 });
    let port = Function { acs: partly, ..root_port(3, 1, 3) };
    assert_eq!(build(&[port, endpoint(1, 0, 0)]).groups().count(), 2);
    let switch = [
        root_port(3, 1, 3),
        bridge((1, 0, 0), BridgeKind::UpstreamPort, 2, 3),
        Function { acs: partly, ..bridge((2, 0, 0), BridgeKind::DownstreamPort, 3, 3) },
        endpoint(3, 0, 0),
    ];
    assert_eq!(build(&switch).groups().count(), 2);
}

#[test]
fn functions_with_all_numbers_of_a_link_are_one_device() {
    // Alternative routing ids: function 9 of the device looks like device 1.
    let topology = build(&[root_port(3, 1, 1), endpoint(1, 0, 0), endpoint(1, 1, 1)]);
    assert_eq!(groups(&topology), [vec![at(0, 3, 0)], vec![at(1, 0, 0), at(1, 1, 1)]]);
}

#[test]
fn impossible_bus_numbers_lead_nowhere() {
    let bad = [(0, 5), (2, 9), (3, 3), (5, 4), (0, 255)];
    for (secondary, subordinate) in bad {
        let odd = bridge((3, 7, 0), BridgeKind::ToPci, secondary, subordinate);
        let topology =
            build(&[root_port(3, 3, 3), odd, endpoint(0, 0, 0), endpoint(2, 0, 0), endpoint(5, 0, 0)]);
        let problem = Problem::BadBuses { bridge: at(3, 7, 0), secondary, subordinate };
        assert_eq!(topology.problems(), [problem]);
        assert_eq!(topology.groups().count(), 5);
        assert_eq!(ids(&topology, at(3, 7, 0)), [0x0338]);
    }
    let unset = bridge((3, 7, 0), BridgeKind::ToPci, 0, 0);
    assert_eq!(build(&[unset]).problems(), []);
}

#[test]
fn bridges_that_lead_to_each_other_end() {
    let topology = build(&[
        bridge((3, 0, 0), BridgeKind::Conventional, 5, 5),
        bridge((5, 0, 0), BridgeKind::Conventional, 3, 3),
        endpoint(3, 1, 0),
        endpoint(5, 1, 0),
    ]);
    let bridge = at(5, 0, 0);
    assert_eq!(topology.problems(), [Problem::BadBuses { bridge, secondary: 3, subordinate: 3 }]);
    assert_eq!(groups(&topology), [vec![at(3, 0, 0), at(5, 0, 0), at(5, 1, 0)], vec![at(3, 1, 0)]]);
}

#[test]
fn bridges_that_share_a_bus_share_a_group() {
    let topology = build(&[root_port(3, 1, 1), root_port(4, 1, 1), root_port(5, 1, 1), endpoint(1, 0, 0)]);
    assert_eq!(
        topology.problems(),
        [
            Problem::SharedBus { first: at(0, 3, 0), second: at(0, 4, 0), bus: 1 },
            Problem::SharedBus { first: at(0, 4, 0), second: at(0, 5, 0), bus: 1 },
        ]
    );
    assert_eq!(topology.groups().count(), 1);
}

#[test]
fn a_bus_that_no_bridge_has_belongs_to_the_innermost_around_it() {
    let topology = build(&[
        root_port(3, 1, 9),
        bridge((1, 0, 0), BridgeKind::ToPci, 2, 5),
        endpoint(4, 0, 0),
        endpoint(7, 0, 0),
        endpoint(10, 0, 0),
    ]);
    let parent = |bus| topology.parent(at(bus, 0, 0)).map(|bridge| bridge.address);
    assert_eq!([4, 7, 10].map(parent), [Some(at(1, 0, 0)), Some(at(0, 3, 0)), None]);
}

#[test]
fn a_virtual_function_without_its_physical_one_is_placed_by_its_bus() {
    let (function, physical) = (at(1, 0, 1), at(1, 0, 0));
    let topology =
        build(&[root_port(3, 1, 1), Function { physical: Some(physical), ..Function::endpoint(function) }]);
    assert_eq!(topology.problems(), [Problem::MissingPhysical { function, physical }]);
    assert_eq!(topology.parent(function).unwrap().address, at(0, 3, 0));
}

#[test]
fn a_bridge_is_never_virtual() {
    // Were it taken for one, its parent would be that of 5:0.0, which is behind it.
    let odd = bridge((3, 0, 0), BridgeKind::Conventional, 5, 5);
    let odd = Function { physical: Some(at(5, 0, 0)), ..odd };
    let topology = build(&[odd, endpoint(5, 0, 0)]);
    assert_eq!(topology.parent(at(3, 0, 0)), None);
    assert_eq!(topology.parent(at(5, 0, 0)).unwrap().address, at(3, 0, 0));
}

#[test]
fn segments_do_not_mix() {
    let in_segment = |function: Function| {
        let PciAddress { bus, .. } = function.address;
        Function { address: PciAddress::from_devfn(1, bus, function.address.devfn()), ..function }
    };
    let pair = [bridge((0, 1, 0), BridgeKind::Conventional, 1, 1), endpoint(1, 0, 0)];
    let topology = build(&[pair[0], in_segment(pair[0]), in_segment(pair[1])]);
    assert_eq!(topology.problems(), []);
    assert_eq!(topology.groups().count(), 2);
    assert_eq!(topology.groups().next().unwrap().functions().len(), 1);
}

#[test]
fn lists_that_the_host_got_wrong_are_errors() {
    let twice = [endpoint(0, 1, 0), endpoint(0, 2, 0), endpoint(0, 1, 0)];
    let error = Topology::build(&twice, None).unwrap_err();
    assert_eq!(error, TopologyError::Duplicate { function: at(0, 1, 0) });
    let many: Vec<_> = vec![endpoint(0, 1, 0); MAX_FUNCTIONS + 1];
    let error = Topology::build(&many, None).unwrap_err();
    assert_eq!(error, TopologyError::TooManyFunctions { functions: MAX_FUNCTIONS + 1 });
}
