//! Topologies: fixed ones, QEMU's among them, and random ones against a slow second implementation.

mod fixed;
mod oracle;
mod qemu;
mod random;
mod scopes;

use std::vec::Vec;

use super::{Acs, BridgeKind, Function, Topology};
use crate::PciAddress;

/// ACS as the host leaves it: everything that isolation takes is on.
const ISOLATING: Option<Acs> = Some(Acs { offered: Acs::ISOLATION, enabled: Acs::ISOLATION });

fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function).unwrap()
}

fn endpoint(bus: u8, device: u8, function: u8) -> Function {
    Function::endpoint(at(bus, device, function))
}

fn bridge(place: (u8, u8, u8), kind: BridgeKind, secondary: u8, subordinate: u8) -> Function {
    Function::bridge(at(place.0, place.1, place.2), kind, secondary, subordinate)
}

/// A root port with ACS on.
fn root_port(device: u8, secondary: u8, subordinate: u8) -> Function {
    isolating(bridge((0, device, 0), BridgeKind::RootPort, secondary, subordinate))
}

fn isolating(function: Function) -> Function {
    Function { acs: ISOLATING, ..function }
}

fn build(functions: &[Function]) -> Topology {
    Topology::build(functions, None).unwrap()
}

/// The addresses of each group.
fn groups(topology: &Topology) -> Vec<Vec<PciAddress>> {
    topology.groups().map(|group| group.functions().map(|function| function.address).collect()).collect()
}

/// The requester ids of a function.
fn ids(topology: &Topology, function: PciAddress) -> Vec<u16> {
    topology.requester_ids(function).iter().map(|id| id.requester).collect()
}

#[test]
fn an_empty_machine_has_no_groups() {
    let topology = build(&[]);
    assert!(groups(&topology).is_empty());
    assert_eq!(topology.unit(at(0, 0, 0)), None);
    assert!(topology.group(at(0, 0, 0)).is_none());
}
