//! The topologies that QEMU offers. Requester ids are those that QEMU's unit was seen to get.

use std::vec;

use super::{
    super::{Acs, BridgeKind, Function},
    at, bridge, build, endpoint, groups, ids, isolating, root_port,
};

#[test]
fn root_bus_devices_are_groups_of_their_own_and_the_ich9_is_one() {
    let topology = build(&[
        endpoint(0, 0, 0),
        endpoint(0, 1, 0),
        endpoint(0, 2, 0),
        endpoint(0, 0x1f, 0),
        endpoint(0, 0x1f, 2),
        endpoint(0, 0x1f, 3),
    ]);
    assert_eq!(
        groups(&topology),
        [
            vec![at(0, 0, 0)],
            vec![at(0, 1, 0)],
            vec![at(0, 2, 0)],
            vec![at(0, 0x1f, 0), at(0, 0x1f, 2), at(0, 0x1f, 3)],
        ]
    );
    assert_eq!(ids(&topology, at(0, 2, 0)), [0x0010]);
}

#[test]
fn root_port_with_acs_on_is_apart_from_its_device() {
    let port = root_port(3, 1, 1);
    let topology = build(&[port, endpoint(1, 0, 0)]);
    assert_eq!(groups(&topology), [vec![at(0, 3, 0)], vec![at(1, 0, 0)]]);
    assert_eq!(ids(&topology, at(1, 0, 0)), [0x0100]);

    // Offered but off, as firmware leaves it.
    let off = Some(Acs { offered: Acs::ISOLATION, enabled: 0 });
    let topology = build(&[Function { acs: off, ..port }, endpoint(1, 0, 0)]);
    assert_eq!(groups(&topology), [vec![at(0, 3, 0), at(1, 0, 0)]]);
}

#[test]
fn root_ports_of_one_device_are_apart_only_if_all_have_acs() {
    let port = |function, bus| isolating(bridge((0, 2, function), BridgeKind::RootPort, bus, bus));
    let devices = [endpoint(1, 0, 0), endpoint(2, 0, 0)];
    let topology = build(&[port(0, 1), port(1, 2), devices[0], devices[1]]);
    assert_eq!(topology.groups().count(), 4);

    let without = Function { acs: None, ..port(1, 2) };
    let topology = build(&[port(0, 1), without, devices[0], devices[1]]);
    assert_eq!(groups(&topology), [vec![at(0, 2, 0), at(0, 2, 1), at(1, 0, 0), at(2, 0, 0)]]);
}

#[test]
fn everything_behind_the_x3130_is_one_group() {
    // The x3130 switch has no ACS.
    let switch = [
        root_port(4, 1, 4),
        bridge((1, 0, 0), BridgeKind::UpstreamPort, 2, 4),
        bridge((2, 0, 0), BridgeKind::DownstreamPort, 3, 3),
        bridge((2, 1, 0), BridgeKind::DownstreamPort, 4, 4),
        endpoint(3, 0, 0),
        endpoint(4, 0, 0),
    ];
    let topology = build(&switch);
    let below = vec![at(1, 0, 0), at(2, 0, 0), at(2, 1, 0), at(3, 0, 0), at(4, 0, 0)];
    assert_eq!(groups(&topology), [vec![at(0, 4, 0)], below.clone()]);
    assert_eq!(ids(&topology, at(4, 0, 0)), [0x0400]);

    // One port without ACS is enough: its device reaches those of all others.
    let mut one = switch;
    one[2] = isolating(one[2]);
    assert_eq!(groups(&build(&one)), [vec![at(0, 4, 0)], below]);

    let mut all = one;
    all[3] = isolating(all[3]);
    assert_eq!(build(&all).groups().count(), 6);
}

#[test]
fn pcie_pci_bridge_sends_as_device_0_behind_it() {
    let topology = build(&[
        root_port(5, 1, 2),
        bridge((1, 0, 0), BridgeKind::ToPci, 2, 2),
        endpoint(2, 1, 0),
        endpoint(2, 2, 0),
    ]);
    assert_eq!(groups(&topology), [vec![at(0, 5, 0)], vec![at(1, 0, 0), at(2, 1, 0), at(2, 2, 0)]]);
    assert_eq!(ids(&topology, at(2, 1, 0)), [0x0208, 0x0200]);
    assert_eq!(ids(&topology, at(1, 0, 0)), [0x0100, 0x0200]);
    let group = topology.group_of_source(at(2, 0, 0).source_id()).unwrap();
    assert_eq!(group.number(), topology.group(at(2, 2, 0)).unwrap().number());
    let sources = group.sources().map(|source| source.id.requester);
    assert!(sources.eq([0x0100, 0x0200, 0x0208, 0x0210]));
}

#[test]
fn i82801b11_sends_under_its_own_id() {
    let topology =
        build(&[bridge((0, 0x1e, 0), BridgeKind::Conventional, 1, 1), endpoint(1, 3, 0), endpoint(1, 4, 0)]);
    assert_eq!(groups(&topology), [vec![at(0, 0x1e, 0), at(1, 3, 0), at(1, 4, 0)]]);
    assert_eq!(ids(&topology, at(1, 3, 0)), [0x0118, 0x00f0]);
    assert_eq!(ids(&topology, at(0, 0x1e, 0)), [0x00f0]);
}

#[test]
fn pxb_is_another_root_bus() {
    let topology = build(&[
        root_port(3, 1, 1),
        endpoint(1, 0, 0),
        isolating(bridge((0x40, 0, 0), BridgeKind::RootPort, 0x41, 0x41)),
        endpoint(0x40, 1, 0),
        endpoint(0x41, 0, 0),
    ]);
    assert_eq!(topology.groups().count(), 5);
    assert_eq!(ids(&topology, at(0x41, 0, 0)), [0x4100]);
    assert_eq!(topology.parent(at(0x40, 1, 0)), None);
}

#[test]
fn functions_of_one_endpoint_without_acs_are_one_group() {
    let port = root_port(3, 1, 1);
    let device = [endpoint(1, 0, 0), endpoint(1, 0, 1), endpoint(1, 0, 2)];
    let topology = build(&[port, device[0], device[1], device[2]]);
    let functions = vec![at(1, 0, 0), at(1, 0, 1), at(1, 0, 2)];
    assert_eq!(groups(&topology), [vec![at(0, 3, 0)], functions.clone()]);

    let topology = build(&[port, isolating(device[0]), isolating(device[1]), device[2]]);
    assert_eq!(groups(&topology), [vec![at(0, 3, 0)], functions]);

    let topology = build(&[port, isolating(device[0]), isolating(device[1]), isolating(device[2])]);
    assert_eq!(topology.groups().count(), 4);
}

#[test]
fn virtual_functions_are_groups_of_their_own() {
    // As QEMU's nvme and igb do: the physical function is 01:00.0, virtual ones follow on the same or the next bus.
    let virtual_at =
        |bus, device, function| Function { physical: Some(at(1, 0, 0)), ..endpoint(bus, device, function) };
    let topology = build(&[
        root_port(3, 1, 2),
        endpoint(1, 0, 0),
        virtual_at(1, 0, 1),
        virtual_at(1, 0, 2),
        virtual_at(2, 0, 0),
    ]);
    assert_eq!(topology.groups().count(), 5);
    assert_eq!(ids(&topology, at(2, 0, 0)), [0x0200]);
    assert_eq!(topology.parent(at(2, 0, 0)).unwrap().address, at(0, 3, 0));
    assert_eq!(topology.problems(), []);
}
