//! Drawn hierarchies of which firmware has configured a part, and an oracle that knows only what hardware does with bus
//! numbers, windows and registers.

use std::{cell::Cell, collections::BTreeMap, vec, vec::Vec};

use iommu::PciAddress;

use super::{buses::number_behind, tests::Random, *};
use crate::pci::{
    Bar, BarKind, Bridge, BusRange, Config, ConfigSpace, Function, Layout, enumerate,
    fake::{FakeFunction, FakeSpace},
};

const MEMORY_END: u64 = 0xc000_0000;
/// What firmware gives away.
const FIRMWARES: (u64, u64) = (0xd000_0000, 0xdfff_ffff);
/// The segment in which functions that are behind bridges are kept, by a number of their bus that never changes.
const KEPT: u16 = 7;

/// A machine whose bridges pass configuration cycles on as their numbers say.
struct Drawn {
    space: FakeSpace,
    roots: Vec<u8>,
    /// The kept bus behind each bridge, as it is kept itself.
    behind: BTreeMap<PciAddress, u8>,
    is_ambiguous: Cell<bool>,
}

impl Drawn {
    fn draw(random: &mut Random, roots: &[u8]) -> Self {
        let mut drawn = Self {
            space: FakeSpace::default(),
            roots: roots.to_vec(),
            behind: BTreeMap::new(),
            is_ambiguous: Cell::new(false),
        };
        for &root in roots {
            drawn.fill(random, PciAddress::from_devfn(0, root, 0), 3);
        }
        drawn
    }

    /// Puts functions on the bus of `first`.
    fn fill(&mut self, random: &mut Random, first: PciAddress, depth: u8) {
        for device in 0..=random.below(3) as u8 {
            let address = PciAddress::from_devfn(first.segment, first.bus, device << 3);
            if depth > 0 && random.below(2) == 0 {
                self.space.add(address, bridge());
                let bus = self.behind.len() as u8;
                self.behind.insert(address, bus);
                self.fill(random, PciAddress::from_devfn(KEPT, bus, 0), depth - 1);
            } else {
                self.space.add(address, endpoint(random));
            }
        }
    }

    fn functions(&self) -> usize {
        let on = |first: PciAddress| {
            (0..4)
                .filter(move |device| {
                    let address = PciAddress::from_devfn(first.segment, first.bus, device << 3);
                    self.space.read32(address, 0) != u32::MAX
                })
                .count()
        };
        let kept = self.behind.values().map(|&bus| on(PciAddress::from_devfn(KEPT, bus, 0)));
        let roots = self.roots.iter().map(|&bus| on(PciAddress::from_devfn(0, bus, 0)));
        kept.chain(roots).sum()
    }

    /// Where the function is kept that answers at `address`.
    fn resolve(&self, address: PciAddress) -> Option<PciAddress> {
        let root = self.roots.iter().rev().find(|&&root| root <= address.bus)?;
        let (mut kept, mut number) = (PciAddress::from_devfn(0, *root, 0), *root);
        while number != address.bus {
            let ways = self
                .behind
                .iter()
                .filter(|(bridge, _)| (bridge.segment, bridge.bus) == (kept.segment, kept.bus));
            let ways = ways.filter_map(|(&bridge, &bus)| {
                let [_, secondary, subordinate, _] = self.space.read32(bridge, 0x18).to_le_bytes();
                (secondary > number && (secondary..=subordinate).contains(&address.bus))
                    .then_some((secondary, bus))
            });
            match ways.collect::<Vec<_>>()[..] {
                [(secondary, bus)] => (kept, number) = (PciAddress::from_devfn(KEPT, bus, 0), secondary),
                [] => return None,
                _ => {
                    self.is_ambiguous.set(true);
                    return None;
                }
            }
        }
        Some(PciAddress::from_devfn(kept.segment, kept.bus, address.devfn()))
    }
}

impl ConfigSpace for Drawn {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        self.resolve(function).map_or(u32::MAX, |function| self.space.read32(function, offset))
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.resolve(function).into_iter().for_each(|function| self.space.write32(function, offset, value));
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        self.resolve(function).into_iter().for_each(|function| self.space.write16(function, offset, value));
    }

    fn change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        self.resolve(function)
            .into_iter()
            .for_each(|function| self.space.change32(function, offset, clear, set));
    }
}

/// A bridge as a reset leaves it.
fn bridge() -> FakeFunction {
    FakeFunction::new(0x8232_104c, 0x0604_0000, 0x01)
        .writable(0x04, 7)
        .with(0x18, 0)
        .writable(0x18, u32::MAX)
        .writable(0x1c, 0xf0f0)
        .writable(0x20, 0xfff0_fff0)
        .with(0x24, 0x0001_0001)
        .writable(0x24, 0xfff0_fff0)
        .writable(0x28, u32::MAX)
        .writable(0x2c, u32::MAX)
}

/// A function with registers of 16 bytes to 2 MiB, and in ports.
fn endpoint(random: &mut Random) -> FakeFunction {
    (0..4).fold(FakeFunction::new(0x0010_1b36, 0, 0).writable(0x04, 7).with(0x04, 1), |fake, index| {
        let (register, mask) = (0x10 + 4 * index, !((1_u32 << (4 + random.below(18))) - 1));
        match random.below(4) {
            0 => fake.with(register, 1).writable(register, mask | 1),
            1 => fake,
            _ => fake.writable(register, mask),
        }
    })
}

/// All that matters of a function's configuration.
fn registers(drawn: &Drawn, function: PciAddress) -> Vec<u32> {
    [0x04, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x28, 0x2c]
        .map(|offset| drawn.read32(function, offset))
        .to_vec()
}

/// Configures some of the bridges on root buses, and leaves one behind some of those without numbers.
fn configure_some(drawn: &Drawn, random: &mut Random, all: BusRange) {
    let root = enumerate(drawn, all).unwrap();
    let mut apertures = Apertures::nothing();
    apertures.give_back(FIRMWARES.0, FIRMWARES.1);
    let mut next = 1;
    for bridge in root.iter().filter(|function| function.bridge().is_some()) {
        next = next.max(bridge.address.bus + 1);
        let limit = drawn
            .roots
            .iter()
            .copied()
            .find(|&root| root > bridge.address.bus)
            .map_or(all.last, |root| root - 1);
        if random.below(2) == 0 || next > limit {
            continue;
        }
        let Ok(last) = number_behind(drawn, bridge, BusRange { first: next, last: limit, ..all }) else {
            continue;
        };
        let buses = BusRange { first: next, last, ..all };
        let found = enumerate(drawn, buses).unwrap();
        assign(drawn, bridge.address, &found, &mut apertures).unwrap();
        next = last.saturating_add(1 + random.below(3) as u8);
        let nested = found.iter().find(|function| function.bridge().is_some());
        if let Some(nested) = nested.filter(|_| random.below(2) == 0) {
            drawn.change32(nested.address, 0x18, 0x00ff_ffff, 0);
        }
    }
}

/// The memory that `function` decodes, or as a bridge passes on.
fn memory(drawn: &Drawn, function: &Function) -> Vec<(u64, u64)> {
    let config = Config::new(drawn, function.address);
    let bars = Bar::all(config, function.layout).filter(|bar| bar.kind != BarKind::Port && bar.base != 0);
    let mut ranges: Vec<_> = bars.map(|bar| (bar.base, bar.base + bar.bytes - 1)).collect();
    if function.bridge().is_some() {
        ranges.extend(Window::Memory.read(config));
    }
    ranges
}

/// What must hold of all that is behind each bridge; returns how many registers were looked at.
fn check(drawn: &Drawn, functions: &[Function], seed: u64) -> usize {
    let mut siblings: BTreeMap<Option<PciAddress>, Vec<(u64, u64)>> = BTreeMap::new();
    for function in functions {
        let its = memory(drawn, function);
        if let Some(parent) = function.parent {
            let window = Window::Memory.read(Config::new(drawn, parent));
            for &(first, last) in &its {
                let is_within = window.is_some_and(|(low, high)| low <= first && last <= high);
                assert!(is_within, "{seed}: {first:#x}-{last:#x} of {} in {window:x?}", function.address);
            }
            let config = Config::new(drawn, function.address);
            for bar in Bar::all(config, function.layout) {
                assert!(bar.kind == BarKind::Port || bar.base != 0, "{seed}: {bar:x?} has no address");
            }
            assert_eq!(config.command() & 1, 0, "{seed}: {} decodes ports", function.address);
        }
        siblings.entry(function.parent).or_default().extend(its);
    }
    for ranges in siblings.values_mut() {
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0), "{seed}: {ranges:x?}");
    }
    siblings.values().map(Vec::len).sum()
}

/// What comes of a machine with buses up to `last`, in which the kernel may give addresses up to `end`. Whether
/// everything has found a place is returned; what firmware has configured stays as it was.
fn configure(seed: u64, last: u8, taken_from: u64) -> (Drawn, Vec<Function>) {
    let mut random = Random::new(seed);
    let roots = if random.below(2) == 0 && last > 0x40 { vec![0, 0x40] } else { vec![0] };
    let drawn = Drawn::draw(&mut random, &roots);
    let all = BusRange { segment: 0, first: 0, last };
    configure_some(&drawn, &mut random, all);
    let before = enumerate(&drawn, all).unwrap();
    let leads = |function: &&Function| {
        function.bridge().is_none_or(|Bridge { secondary, .. }| secondary != 0) && function.parent.is_some()
    };
    let firmwares: Vec<_> = before
        .iter()
        .filter(leads)
        .map(|function| (function.address, registers(&drawn, function.address)))
        .collect();
    let numbered = number_unconfigured(&drawn, all).unwrap();
    let found = enumerate(&drawn, all).unwrap();
    assert!(!drawn.is_ambiguous.get(), "{seed}: two bridges pass on one cycle");
    let taken = core::iter::once((taken_from, u64::from(u32::MAX)));
    let mut apertures = Apertures::find(&drawn, &found, MEMORY_END, taken).unwrap();
    assign_unconfigured(&drawn, &numbered, &found, &mut apertures).unwrap();
    for (function, registers_before) in firmwares {
        assert_eq!(registers(&drawn, function), registers_before, "{seed}: {function} is firmware's");
    }
    for bridge in found.iter().filter(|function| numbered.contains(&function.address)) {
        assert!(
            matches!(bridge.layout, Layout::Bridge(Bridge { secondary, .. }) if secondary > bridge.address.bus)
        );
    }
    (drawn, found)
}

#[test]
fn bridges_that_firmware_left_alone_are_configured_beside_the_others() {
    let mut looked_at = 0;
    for seed in 1..200 {
        let (drawn, found) = configure(seed, 0xff, 0xfec0_0000);
        assert_eq!(found.len(), drawn.functions(), "{seed}: something is not found");
        looked_at += check(&drawn, &found, seed);
    }
    assert!(looked_at > 1000, "{looked_at}");
}

#[test]
fn what_finds_no_bus_or_no_address_leaves_the_others_alone() {
    let mut missed = 0;
    for seed in 1..200 {
        let (drawn, found) = configure(seed, 6, MEMORY_END + 0x40_0000);
        missed += drawn.functions() - found.len();
        let is_open = |function: &&Function| {
            let above = core::iter::successors(function.parent, |parent| {
                found.iter().find(|function| function.address == *parent)?.parent
            });
            // Nothing decodes or passes on what got no addresses.
            above.into_iter().all(|bridge| Config::new(&drawn, bridge).command() & 2 != 0)
        };
        let open: Vec<Function> = found.iter().filter(is_open).cloned().collect();
        check(&drawn, &open, seed);
    }
    assert!(missed > 100, "{missed}");
}

#[test]
fn a_bridge_that_takes_no_numbers_leads_nowhere() {
    let space = FakeSpace::default();
    let at = |devfn| PciAddress::from_devfn(0, 0, devfn);
    space.add(at(8), bridge().writable(0x18, 0));
    space.add(at(16), bridge());
    let all = BusRange { segment: 0, first: 0, last: 9 };
    assert_eq!(number_unconfigured(&space, all).unwrap(), [at(16)]);
    assert_eq!(space.read32(at(16), 0x18), 0x0001_0100);
    // Nothing is free above the last bus.
    let space = FakeSpace::default();
    space.add(PciAddress::from_devfn(0, 9, 0), bridge());
    assert_eq!(number_unconfigured(&space, all).unwrap(), []);
    // As by a reset again.
    let space = FakeSpace::default();
    space.add(at(8), bridge());
    number_unconfigured(&space, all).unwrap();
    assert_ne!(space.read32(at(8), 0x18), 0);
    unconfigure(&space, all).unwrap();
    assert_eq!(space.read32(at(8), 0x18), 0);
}
