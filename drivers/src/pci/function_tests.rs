use iommu::topology::{Acs, BridgeKind, FunctionKind};

use super::{
    super::{
        config::Config,
        fake::{FakeFunction, FakeSpace, at},
    },
    Function,
};

/// The PCI Express capability with device/port type `port`, at 0x40.
fn express(function: FakeFunction, port: u32) -> FakeFunction {
    function.with(0x04, 1 << 20).with(0x34, 0x40).with(0x40, 0x0002_0010 | port << 20)
}

fn read(function: FakeFunction) -> Function {
    let space = FakeSpace::default();
    space.add(at(0, 1, 0), function);
    Function::read(Config::new(&space, at(0, 1, 0)), None).unwrap()
}

fn bridge_kind(function: FakeFunction) -> BridgeKind {
    match read(function).topology().kind {
        FunctionKind::Bridge { kind, secondary: 2, subordinate: 7 } => kind,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_bridge_is_of_its_port_type() {
    let kinds = [
        (4, BridgeKind::RootPort),
        (5, BridgeKind::UpstreamPort),
        (6, BridgeKind::DownstreamPort),
        (7, BridgeKind::ToPci),
        (8, BridgeKind::FromPci),
        // An endpoint type on a bridge is nonsense, and taken for what tells least apart.
        (0, BridgeKind::Conventional),
        (15, BridgeKind::Conventional),
    ];
    for (port, kind) in kinds {
        assert_eq!(bridge_kind(express(FakeFunction::bridge(2, 7), port)), kind, "type {port}");
    }
    assert_eq!(bridge_kind(FakeFunction::bridge(2, 7)), BridgeKind::Conventional);
}

#[test]
fn a_cardbus_bridge_has_a_bus_behind_it() {
    let function = FakeFunction::new(0x8039_104c, 0x0607_0000, 2).with(0x18, 0x0007_0200);
    assert_eq!(bridge_kind(function), BridgeKind::Conventional);
}

#[test]
fn what_is_no_bridge_is_an_endpoint() {
    for header in [0, 3, 0x7f] {
        let function = FakeFunction::new(0x11e8_1234, 0x00ff_0000, header).with(0x18, 0x0007_0200);
        assert_eq!(read(function).topology().kind, FunctionKind::Endpoint, "header {header:#x}");
    }
}

#[test]
fn phantom_functions_count_only_when_they_are_on() {
    let endpoint = || express(FakeFunction::new(0x11e8_1234, 0, 0), 0).with(0x44, 2 << 3);
    assert_eq!(read(endpoint()).topology().phantom_bits, 0);
    assert_eq!(read(endpoint().with(0x48, 1 << 9)).topology().phantom_bits, 2);
}

#[test]
fn access_control_is_handed_on_after_it_was_turned_on() {
    let space = FakeSpace::default();
    let port = express(FakeFunction::bridge(2, 7), 6);
    space.add(at(0, 1, 0), port.with(0x100, 0x0001_000d).with(0x104, 0x001f).writable(0x104, 0xffff_0000));
    let mut function = Function::read(Config::new(&space, at(0, 1, 0)), None).unwrap();
    assert_eq!(function.topology().acs, Some(Acs { offered: 0x1f, enabled: 0 }));
    function.enable_isolation(&space);
    assert_eq!(function.topology().acs, Some(Acs { offered: 0x1f, enabled: Acs::ISOLATION }));
}

#[test]
fn a_device_known_to_send_as_another_function_has_that_alias() {
    let marvell = FakeFunction::new(0x9230_1b4b, 0x0106_0100, 0);
    assert_eq!(read(marvell).topology().alias_devfn, Some(at(0, 1, 1).devfn()));
    let other = FakeFunction::new(0x1042_1af4, 0x0100_0001, 0);
    assert_eq!(read(other).topology().alias_devfn, None);
}
