use std::vec::Vec;

use iommu::topology::Acs;

use super::{
    super::{
        PortType,
        config::{Config, ConfigSpace},
        fake::{FakeFunction, FakeSpace, at},
    },
    ExtendedCapabilities,
};

const LISTED: u32 = 1 << 20;

fn space(function: FakeFunction) -> FakeSpace {
    let space = FakeSpace::default();
    space.add(at(0, 1, 0), function.with(0x04, LISTED));
    space
}

fn blank() -> FakeFunction {
    FakeFunction::new(0x11e8_1234, 0, 0)
}

fn config(space: &FakeSpace) -> Config<'_, FakeSpace> {
    Config::new(space, at(0, 1, 0))
}

#[test]
fn a_list_is_followed_in_its_order() {
    let space = space(blank().with(0x34, 0x42).with(0x40, 0x5005).with(0x50, 0x0042_0010));
    let found: Vec<_> = config(&space).capabilities().map(|c| (c.id, c.offset)).collect();
    assert_eq!(found, [(0x05, 0x40), (0x10, 0x50)]);
    assert_eq!(config(&space).port_type(), Some(PortType::RootPort));
}

#[test]
fn a_list_that_loops_ends() {
    let space = space(blank().with(0x34, 0x40).with(0x40, 0x4409).with(0x44, 0x4009));
    assert_eq!(config(&space).capabilities().count(), 48);
}

#[test]
fn a_list_into_the_header_or_without_its_status_bit_is_empty() {
    assert_eq!(config(&space(blank().with(0x34, 0x10))).capabilities().count(), 0);
    let unlisted = FakeSpace::default();
    unlisted.add(at(0, 1, 0), blank().with(0x34, 0x40).with(0x40, 0x0005));
    assert_eq!(config(&unlisted).capabilities().count(), 0);
    assert_eq!(config(&FakeSpace::default()).capabilities().count(), 0);
}

#[test]
fn a_capability_that_reaches_past_the_end_is_not_found() {
    let space = space(blank().with(0x34, 0xfc).with(0xfc, 0x0011));
    assert_eq!(config(&space).capabilities().count(), 1);
    assert_eq!(config(&space).find(0x11, 12), None);
    assert_eq!(config(&space).find(0x11, 4), Some(0xfc));
}

#[test]
fn extended_lists_are_bounded_too() {
    let looping = space(blank().with(0x100, 0x1001_000b).with(0x1f8, 0));
    assert_eq!(ExtendedCapabilities::new(config(&looping)).count(), 480);
    assert_eq!(ExtendedCapabilities::new(config(&space(blank()))).count(), 0);
    assert_eq!(ExtendedCapabilities::new(config(&FakeSpace::default())).count(), 0);
    let at_the_end = space(blank().with(0x100, 0xffc1_000b).with(0xffc, 0x0001_000d));
    assert_eq!(config(&at_the_end).acs(), None);
}

#[test]
fn isolation_is_turned_on_as_far_as_it_is_offered() {
    let port = blank().with(0x100, 0x0001_000d).with(0x104, 0x001d).writable(0x104, 0xffff_0000);
    let space = space(port);
    assert_eq!(config(&space).acs(), Some(Acs { offered: 0x1d, enabled: 0 }));
    assert_eq!(config(&space).enable_isolation(), Some(Acs { offered: 0x1d, enabled: Acs::ISOLATION }));
    assert_eq!(space.read32(at(0, 1, 0), 0x104), 0x001d_001d);
}
