//! Bridges that are plugged in: their bus numbers, and their windows.

use std::vec::Vec;

use iommu::PciAddress;

use super::*;
use crate::pci::{
    Bar, BusRange, Config, ConfigSpace, Function, enumerate,
    fake::{FakeFunction, FakeSpace, at},
};

const PORT: PciAddress = at(0, 3, 0);
const BUSES: BusRange = BusRange { segment: 0, first: 1, last: 9 };

/// A bridge as it comes out of a reset, or with what it had before.
fn bridge(buses: u32) -> FakeFunction {
    FakeFunction::new(0x8232_104c, 0x0604_0000, 0x81)
        .writable(0x04, 7)
        .with(0x18, buses)
        .writable(0x18, 0xffff_ffff)
        .writable(0x1c, 0xf0f0)
        .writable(0x20, 0xfff0_fff0)
        .with(0x24, 0x0001_0001)
        .writable(0x24, 0xfff0_fff0)
        .writable(0x28, u32::MAX)
        .writable(0x2c, u32::MAX)
}

/// A function with registers of these sizes.
fn endpoint(bytes: &[u32]) -> FakeFunction {
    bytes
        .iter()
        .zip(0..)
        .fold(FakeFunction::new(0x11e8_1234, 0, 0).writable(0x04, 7), |fake, (&bytes, index)| {
            fake.writable(0x10 + 4 * index, !(bytes - 1))
        })
}

/// A switch behind a port that leads to `last`: upstream port on bus 1; downstream ports on bus 2, to buses 3, 4 and 6;
/// a PCI bridge behind the second of them, to bus 5.
fn switch(last: u8, stale: u32) -> FakeSpace {
    let space = FakeSpace::default();
    let port = FakeFunction::bridge(1, last).writable(0x04, 7).with(0x20, 0x0000_fff0);
    space.add(PORT, port.writable(0x20, 0xfff0_fff0));
    for address in [at(1, 0, 0), at(2, 0, 0), at(2, 1, 0), at(4, 0, 0), at(2, 2, 0)] {
        space.add(address, bridge(stale));
    }
    space.add(at(1, 0, 1), endpoint(&[0x4000]));
    space.add(at(3, 0, 0), endpoint(&[0x10_0000, 0x1000]));
    space.add(at(4, 0, 1), endpoint(&[0x80_0000]));
    space.add(at(5, 7, 0), endpoint(&[0x20_0000, 0x10_0000]));
    space
}

/// Configuration space as bridges pass cycles on: where none does, or two do, nothing answers.
struct Routed<'a>(&'a FakeSpace);

impl Routed<'_> {
    fn reaches(&self, target: u8) -> bool {
        let mut bus = BUSES.first;
        // Each bridge is on a lower bus than what is behind it.
        while bus < target {
            let ways = (0..=255).map(|devfn| PciAddress::from_devfn(0, bus, devfn)).filter_map(|bridge| {
                let [_, secondary, subordinate, _] = self.0.read32(bridge, 0x18).to_le_bytes();
                let is_bridge = self.0.read32(bridge, 0x0c) >> 16 & 0x7f == 1;
                (is_bridge && (secondary..=subordinate).contains(&target)).then_some(secondary)
            });
            match ways.collect::<Vec<_>>()[..] {
                [secondary] if secondary > bus => bus = secondary,
                _ => return false,
            }
        }
        bus == target
    }
}

impl ConfigSpace for Routed<'_> {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        if self.reaches(function.bus) { self.0.read32(function, offset) } else { u32::MAX }
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        if self.reaches(function.bus) {
            self.0.write32(function, offset, value);
        }
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        if self.reaches(function.bus) {
            self.0.write16(function, offset, value);
        }
    }

    fn change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        if self.reaches(function.bus) {
            self.0.change32(function, offset, clear, set);
        }
    }
}

fn set_up(space: &FakeSpace) -> Vec<Function> {
    number_buses(&Routed(space), BUSES).unwrap();
    enumerate(&Routed(space), BUSES).unwrap()
}

fn apertures(space: &FakeSpace) -> Apertures {
    let root = enumerate(space, BusRange { segment: 0, first: 0, last: 0 }).unwrap();
    Apertures::find(space, &root, 0xc000_0000, core::iter::empty()).unwrap()
}

#[test]
fn bridges_are_numbered_from_the_port_down() {
    // What they had before leads nowhere, to buses of others, or in circles.
    for stale in [0, 0x00ff_0100, 0x4001_0101, 0x00ff_ffff, 0x0006_0302] {
        let space = switch(9, stale);
        let found = set_up(&space);
        let numbers = |address| space.read32(address, 0x18) & 0x00ff_ffff;
        assert_eq!(numbers(at(1, 0, 0)), 0x06_02_01, "{stale:#x}");
        assert_eq!(numbers(at(2, 0, 0)), 0x03_03_02);
        assert_eq!(numbers(at(2, 1, 0)), 0x05_04_02);
        assert_eq!(numbers(at(4, 0, 0)), 0x05_05_04);
        assert_eq!(numbers(at(2, 2, 0)), 0x06_06_02);
        assert_eq!(
            space.read32(at(1, 0, 0), 0x18) >> 24,
            stale >> 24,
            "the latency timer is another register"
        );
        let parent = |address| found.iter().find(|function| function.address == address).unwrap().parent;
        assert_eq!(found.len(), 9);
        assert_eq!(parent(at(1, 0, 1)), None);
        assert_eq!(parent(at(2, 2, 0)), Some(at(1, 0, 0)));
        assert_eq!(parent(at(3, 0, 0)), Some(at(2, 0, 0)));
        assert_eq!(parent(at(5, 7, 0)), Some(at(4, 0, 0)));
    }
}

#[test]
fn a_bridge_that_gets_no_number_is_named() {
    let narrow = BusRange { last: 4, ..BUSES };
    let refused = number_buses(&switch(4, 0), narrow);
    assert_eq!(refused, Err(ResourceError::NoBus { bridge: at(4, 0, 0), last: 4 }));
    let whole = BusRange { last: 255, first: 255, ..BUSES };
    let space = FakeSpace::default();
    space.add(at(255, 0, 0), bridge(0));
    assert_eq!(number_buses(&space, whole), Err(ResourceError::NoBus { bridge: at(255, 0, 0), last: 255 }));
    let space = FakeSpace::default();
    space.add(at(1, 0, 0), FakeFunction::bridge(0, 0));
    assert_eq!(number_buses(&space, BUSES), Err(ResourceError::NotNumbered { bridge: at(1, 0, 0) }));
    // One behind the other, for ever.
    let space = FakeSpace::default();
    (1..=255).for_each(|bus| space.add(at(bus, 0, 0), bridge(0)));
    let refused = number_buses(&space, BusRange { last: 255, ..BUSES });
    assert_eq!(refused, Err(ResourceError::TooDeep { bridge: at(9, 0, 0) }));
}

#[test]
fn each_window_holds_what_is_behind_it_and_nothing_else() {
    let space = switch(9, 0);
    let mut apertures = apertures(&space);
    let found = set_up(&space);
    assert_eq!(assign(&space, PORT, &found, &mut apertures), Ok(()));
    let memory = |bridge| Window::Memory.read(Config::new(&space, bridge));
    let mut below: Vec<(PciAddress, (u64, u64))> = Vec::new();
    for function in &found {
        let parent = function.parent.unwrap_or(PORT);
        let config = Config::new(&space, function.address);
        let bars = Bar::all(config, function.layout).map(|bar| (bar.base, bar.base + bar.bytes - 1));
        below.extend(bars.map(|range| (parent, range)));
        if function.bridge().is_some() {
            below.extend(memory(function.address).map(|range| (parent, range)));
            assert_eq!(
                space.read32(function.address, 0x04) & 7,
                6,
                "{}: it passes on nothing",
                function.address
            );
            assert_eq!(Window::Prefetchable.read(config), None);
            assert_eq!(space.read32(function.address, 0x1c), 0x00f0, "its ports are open");
        }
    }
    assert_eq!(below.len(), 4 + 6, "{below:x?}");
    for &(parent, (first, last)) in &below {
        let (low, high) = memory(parent).expect("a window above");
        assert!(low <= first && last <= high, "{first:#x}-{last:#x} is not behind {parent}");
        let length = last - first + 1;
        assert!(first.is_multiple_of(length & length.wrapping_neg()), "{first:#x} {length:#x}");
    }
    for (index, &(parent, (first, last))) in below.iter().enumerate() {
        let beside = below.iter().skip(index + 1).filter(|other| other.0 == parent);
        for &(_, (low, high)) in beside.clone() {
            assert!(last < low || high < first, "{first:#x}-{last:#x} and {low:#x}-{high:#x}");
        }
    }
    assert_eq!(memory(at(2, 2, 0)), None, "nothing is behind it");
    assert_eq!(memory(at(4, 0, 0)).map(|(first, last)| last - first + 1), Some(0x40_0000));
    let (first, last) = memory(PORT).unwrap();
    assert!(apertures.free().iter().all(|(low, high)| high < first || last < low));
}

#[test]
fn what_does_not_fit_behind_bridges_is_named_and_decodes_nothing() {
    let space = switch(9, 0);
    // As large as there are addresses, below a bridge.
    space.add(at(5, 8, 0), endpoint(&[0x8000_0000]));
    let mut apertures = apertures(&space);
    let before = apertures.free().clone();
    let found = set_up(&space);
    let refused = assign(&space, PORT, &found, &mut apertures).unwrap_err();
    assert!(matches!(refused, ResourceError::NoRoom { bytes, .. } if bytes >= 0x8000_0000), "{refused}");
    assert_eq!(apertures.free(), &before);
    assert!(found.iter().all(|function| space.read32(function.address, 0x04) & 7 == 0));
    // A bridge without a memory window.
    let space = switch(9, 0);
    space.add(at(4, 0, 0), bridge(0).writable(0x20, 0));
    let refused = assign(&space, PORT, &set_up(&space), &mut apertures);
    assert_eq!(refused, Err(ResourceError::NoWindow { bridge: at(4, 0, 0), window: Window::Memory }));
}

#[test]
fn functions_without_end_are_not_listed() {
    let space = FakeSpace::default();
    space.add(PORT, FakeFunction::bridge(1, 2));
    for devfn in 0..=255 {
        space.add(PciAddress::from_devfn(0, 1, devfn), bridge(0));
        space.add(PciAddress::from_devfn(0, 2, devfn), bridge(0));
    }
    let found = enumerate(&space, BUSES).unwrap();
    let refused = assign(&space, PORT, &found, &mut apertures(&space));
    assert_eq!(refused, Err(ResourceError::TooManyFunctions { port: PORT, functions: 512 }));
}

/// What was left on behind a bridge that nobody has configured masters the bus before anything is translated.
#[test]
fn nothing_behind_a_port_masters_the_bus_when_it_is_passed_on() {
    const MEMORY_AND_BUS_MASTER: u32 = 6;
    let space = FakeSpace::default();
    let port = FakeFunction::bridge(1, 2).writable(0x04, 7).with(0x20, 0x0000_fff0);
    space.add(PORT, port.writable(0x20, 0xfff0_fff0));
    space.add(at(1, 0, 0), bridge(0x0002_0201).with(0x04, MEMORY_AND_BUS_MASTER));
    for address in [at(1, 1, 0), at(2, 0, 0)] {
        space.add(address, endpoint(&[0x1000]).with(0x04, MEMORY_AND_BUS_MASTER));
    }
    // At the moment in which a bridge passes on what comes from behind it, all of that is stopped.
    space.react(|functions, (function, offset, value)| {
        let opens = offset == 0x04 && value & 4 != 0;
        if opens && (function == PORT || function == at(1, 0, 0)) {
            for address in [at(1, 1, 0), at(2, 0, 0)] {
                assert_eq!(functions[&address].get(0x04) & 4, 0, "{address} when {function} passes it on");
            }
        }
    });
    let mut apertures = Apertures::find(&space, &[], 0xc000_0000, core::iter::empty()).unwrap();
    let functions = enumerate(&space, BUSES).unwrap();
    assert_eq!(functions.len(), 3);
    assign(&space, PORT, &functions, &mut apertures).unwrap();
    let command = |function| space.read32(function, 0x04) & 7;
    assert_eq!([PORT, at(1, 0, 0), at(1, 1, 0), at(2, 0, 0)].map(command), [6, 6, 0, 0]);
}

#[test]
fn what_root_buses_decode_is_bars_and_windows() {
    let space = FakeSpace::default();
    let port = FakeFunction::bridge(1, 1).with(0x20, 0xc01f_c000).writable(0x20, 0xfff0_fff0);
    space.add(PORT, port);
    space.add(at(0, 4, 0), endpoint(&[0x2000, 0x1000]).with(0x10, 0xe000_0000));
    // It lies in the window.
    space.add(at(1, 0, 0), endpoint(&[0x1000]).with(0x10, 0xe100_0000));
    let functions = enumerate(&space, BusRange { first: 0, ..BUSES }).unwrap();
    assert_eq!(functions.len(), 3);
    let all: Vec<_> = Claims::new().registers(&space, &functions).collect();
    let all: Vec<_> = all.iter().map(|range| (range.start.as_u64(), range.bytes)).collect();
    assert_eq!(all, [(0xc000_0000, 0x20_0000), (0xe000_0000, 0x2000)]);
}
