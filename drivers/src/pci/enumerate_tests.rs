use std::vec::Vec;

use iommu::PciAddress;

use super::{
    super::{
        fake::{FakeFunction, FakeSpace, at},
        function::Function,
    },
    BusRange, enumerate,
};

const ALL: BusRange = BusRange { segment: 0, first: 0, last: 255 };

fn endpoint() -> FakeFunction {
    FakeFunction::new(0x1042_1af4, 0x0100_0001, 0)
}

fn places(functions: &[Function]) -> Vec<(PciAddress, Option<PciAddress>)> {
    functions.iter().map(|function| (function.address, function.parent)).collect()
}

#[test]
fn bridges_are_followed_and_other_root_buses_found() {
    let space = FakeSpace::default();
    space.add(at(0, 0, 0), endpoint());
    space.add(at(0, 3, 0), FakeFunction::bridge(1, 3));
    space.add(at(1, 0, 0), FakeFunction::bridge(2, 3));
    space.add(at(2, 31, 0), endpoint());
    space.add(at(0x40, 0, 0), FakeFunction::bridge(0x41, 0x41));
    space.add(at(0x41, 0, 0), endpoint());
    let found = enumerate(&space, ALL).unwrap();
    assert_eq!(
        places(&found),
        [
            (at(0, 0, 0), None),
            (at(0, 3, 0), None),
            (at(1, 0, 0), Some(at(0, 3, 0))),
            (at(2, 31, 0), Some(at(1, 0, 0))),
            (at(0x40, 0, 0), None),
            (at(0x41, 0, 0), Some(at(0x40, 0, 0))),
        ]
    );
    assert!(space.writes.lock().unwrap().is_empty(), "enumeration changes nothing");
}

#[test]
fn functions_beyond_the_first_count_only_on_multifunction_devices() {
    let space = FakeSpace::default();
    space.add(at(0, 1, 0), endpoint());
    space.add(at(0, 1, 1), endpoint());
    space.add(at(0, 2, 0), FakeFunction::new(0x2922_8086, 0x0106_0100, 0x80));
    space.add(at(0, 2, 5), endpoint());
    space.add(at(0, 4, 1), endpoint());
    let found = enumerate(&space, ALL).unwrap();
    let found: Vec<_> = found.iter().map(|function| function.address).collect();
    assert_eq!(found, [at(0, 1, 0), at(0, 2, 0), at(0, 2, 5)]);
}

#[test]
fn bridges_that_lie_about_their_buses_are_leaves() {
    let space = FakeSpace::default();
    // Loops to its own bus, unset, backwards, out of range, and two that claim one bus.
    space.add(at(0, 1, 0), FakeFunction::bridge(0, 255));
    space.add(at(0, 2, 0), FakeFunction::bridge(5, 5));
    space.add(at(5, 0, 0), FakeFunction::bridge(5, 5));
    space.add(at(5, 1, 0), FakeFunction::bridge(2, 9));
    space.add(at(5, 2, 0), FakeFunction::bridge(200, 255));
    space.add(at(0, 3, 0), FakeFunction::bridge(5, 5));
    let found = enumerate(&space, BusRange { last: 127, ..ALL }).unwrap();
    assert_eq!(found.len(), 6);
    // The bridge that came first has the bus.
    assert!(found.iter().filter(|f| f.address.bus == 5).all(|f| f.parent == Some(at(0, 2, 0))));
}

#[test]
fn every_slot_of_every_bus_may_hold_a_bridge() {
    let space = FakeSpace::default();
    for bus in 0..=255 {
        for device in 0..32 {
            let next = if device == 31 { bus + u8::from(bus < 255) } else { device };
            space.add(at(bus, device, 0), FakeFunction::bridge(next, 255));
        }
    }
    assert_eq!(enumerate(&space, ALL).unwrap().len(), 256 * 32);
}

#[test]
fn what_answers_with_ones_or_zeros_is_no_function() {
    let space = FakeSpace::default();
    space.add(at(0, 1, 0), FakeFunction::new(0xffff_ffff, 0, 0x80));
    space.add(at(0, 2, 0), FakeFunction::new(0x0000_0000, 0, 0x80));
    space.add(at(0, 3, 0), FakeFunction::new(0x1234_ffff, 0, 0));
    assert!(enumerate(&space, ALL).unwrap().is_empty());
}
