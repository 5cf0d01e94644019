use std::{collections::BTreeSet, vec::Vec};

use super::*;
use crate::pci::{
    Bar, BarKind, BusRange, Config, ConfigSpace, Function, enumerate,
    fake::{FakeFunction, FakeSpace, at},
};

/// Numbers that look random, the same in each run.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

fn addresses(ranges: &Ranges) -> BTreeSet<u64> {
    ranges.iter().flat_map(|(first, last)| first..=last).collect()
}

#[test]
fn ranges_are_a_set_of_addresses() {
    let mut random = Random(7);
    let (mut ranges, mut oracle) = (Ranges::new(), BTreeSet::new());
    for _ in 0..3_000 {
        let (first, bytes) = (random.below(64), random.below(12) + 1);
        let touched = first..first + bytes;
        match random.below(3) {
            0 => {
                ranges.add(first, touched.end - 1).unwrap();
                oracle.extend(touched);
            }
            1 => {
                ranges.remove(first, touched.end - 1).unwrap();
                oracle.retain(|address| !touched.contains(address));
            }
            _ => {
                let align = 1 << random.below(4);
                let fits = |start: &u64| (*start..start + bytes).all(|address| oracle.contains(&address));
                let lowest = (0..80).step_by(align as usize).find(fits);
                assert_eq!(ranges.take(bytes, align), lowest, "{bytes} at {align} of {ranges:?}");
                oracle.retain(|address| lowest.is_none_or(|start| !(start..start + bytes).contains(address)));
            }
        }
        assert_eq!(addresses(&ranges), oracle);
        let listed: Vec<_> = ranges.iter().collect();
        assert!(listed.windows(2).all(|pair| pair[0].1 + 1 < pair[1].0), "sorted and apart: {listed:x?}");
    }
}

#[test]
fn ranges_reach_to_the_end_of_addresses() {
    let mut ranges = Ranges::new();
    ranges.add(0, u64::MAX).unwrap();
    ranges.remove(0, 0xfff).unwrap();
    ranges.remove(u64::MAX, u64::MAX).unwrap();
    assert_eq!(ranges.iter().collect::<Vec<_>>(), [(0x1000, u64::MAX - 1)]);
    ranges.add(u64::MAX, u64::MAX).unwrap();
    assert_eq!(ranges.take(1 << 63, 1 << 63), Some(1 << 63));
    assert_eq!(ranges.take(1 << 63, 1 << 63), None);
    ranges.add(5, 4).unwrap();
    assert_eq!(ranges.take(0, 1), None);
}

const BRIDGE_WINDOW: u32 = 0xfff0_fff0;

/// A port to bus 1 whose memory windows are open as given.
fn port(memory: u32, prefetchable: Option<u32>) -> FakeFunction {
    let fake = FakeFunction::bridge(1, 1).writable(0x04, 7).with(0x20, memory).writable(0x20, BRIDGE_WINDOW);
    match prefetchable {
        None => fake,
        Some(value) => fake
            .with(0x24, value | 0x0001_0001)
            .writable(0x24, BRIDGE_WINDOW)
            .writable(0x28, u32::MAX)
            .writable(0x2c, u32::MAX),
    }
}

/// A function with random BARs.
fn endpoint(random: &mut Random) -> FakeFunction {
    let mut fake = FakeFunction::new(0x0010_1b36, 0, 0x80).writable(0x04, 7);
    let mut index = 0;
    while index < 6 {
        let register = 0x10 + 4 * index;
        let mask = !((1_u32 << (4 + random.below(18))) - 1);
        index += 1;
        fake = match random.below(5) {
            0 => fake,
            1 => fake.with(register, 1).writable(register, mask | 1),
            2 => fake.writable(register, mask),
            3 if index < 6 => {
                index += 1;
                fake.with(register, 0xc).writable(register, mask).writable(register + 4, u32::MAX)
            }
            _ => fake.with(register, 8).writable(register, mask),
        };
    }
    fake
}

fn behind(space: &FakeSpace) -> Vec<Function> {
    enumerate(space, BusRange { segment: 0, first: 1, last: 1 }).unwrap()
}

fn apertures(space: &FakeSpace) -> Apertures {
    let root = enumerate(space, BusRange { segment: 0, first: 0, last: 0 }).unwrap();
    Apertures::find(space, &root, 0xc000_0000, [(0xd000_0000, 0xdfff_ffff)].into_iter()).unwrap()
}

#[test]
fn addresses_do_not_overlap_and_windows_cover_them() {
    let (mut taken_anew, mut kept) = (0, 0);
    for seed in 1..300 {
        let mut random = Random(seed);
        let space = FakeSpace::default();
        let memory = [0x0000_fff0, 0xe000_e000, 0xe070_e000][random.below(3) as usize];
        let prefetchable = [None, Some(0x0000_fff0), Some(0xe1f0_e100)][random.below(3) as usize];
        space.add(at(0, 3, 0), port(memory, prefetchable));
        let functions = random.below(3) + 1;
        (0..functions).for_each(|index| space.add(at(1, 0, index as u8), endpoint(&mut random)));
        let mut apertures = apertures(&space);
        let before = apertures.free().clone();
        let functions = behind(&space);
        assert_eq!(assign(&space, at(0, 3, 0), &functions, &mut apertures), Ok(()));
        let bridge = Config::new(&space, at(0, 3, 0));
        let windows = [Window::Memory, Window::Prefetchable].map(|window| window.read(bridge));
        for &(first, last) in windows.iter().flatten() {
            let was_open = [memory, prefetchable.unwrap_or(0)]
                .contains(&((last & 0xfff0_0000) as u32 | (first >> 16) as u32));
            if was_open {
                kept += 1
            } else {
                taken_anew += 1
            }
            // What is open now is the port's, and nobody else can get it.
            assert!(apertures.free().iter().all(|(low, high)| high < first || last < low), "{seed}");
            assert!(last < 0xd000_0000 || first > 0xdfff_ffff && last < 0xfec0_0000, "{seed}: {first:#x}");
        }
        let mut placed: Vec<(u64, u64)> = Vec::new();
        for function in &functions {
            for bar in Bar::all(Config::new(&space, function.address), function.layout) {
                let BarKind::Memory { wide, prefetchable } = bar.kind else { continue };
                let (first, last) = (bar.base, bar.base + bar.bytes - 1);
                assert!(first != 0 && first.is_multiple_of(bar.bytes), "{seed}: {bar:x?}");
                let its = if wide && prefetchable && windows[1].is_some() { windows[1] } else { windows[0] };
                assert!(
                    its.is_some_and(|(low, high)| low <= first && last <= high),
                    "{seed}: {bar:x?} {windows:x?}"
                );
                placed.push((first, last));
            }
        }
        placed.sort_unstable();
        assert!(placed.windows(2).all(|pair| pair[0].1 < pair[1].0), "{seed}: {placed:x?}");
        // Another device in the same slot gets the same windows: nothing more is taken, and nothing lost.
        let after = apertures.free().clone();
        assert_eq!(assign(&space, at(0, 3, 0), &functions, &mut apertures), Ok(()));
        assert_eq!(apertures.free(), &after);
        for (first, last) in windows.into_iter().flatten().filter(|&(_, last)| last < 0xfec0_0000) {
            apertures.give_back(first, last);
        }
        let mut all = before;
        for window in [Some(memory), prefetchable]
            .into_iter()
            .flatten()
            .filter(|&window| window >> 16 >= window & 0xfff0)
        {
            all.add(u64::from(window & 0xfff0) << 16, u64::from(window & 0xfff0_0000 | 0xf_ffff)).unwrap();
        }
        assert_eq!(apertures.free(), &all, "{seed}: everything came back");
    }
    assert!(taken_anew > 50 && kept > 50, "{taken_anew} {kept}");
}

#[test]
fn apertures_leave_out_what_firmware_has_given() {
    let space = FakeSpace::default();
    space.add(at(0, 3, 0), port(0xe070_e000, Some(0xe1f0_e100)));
    let fake = FakeFunction::new(0x0010_1b36, 0, 0).writable(0x04, 7);
    space.add(at(0, 4, 0), fake.with(0x10, 0xc010_0000).writable(0x10, 0xfff0_0000));
    // Behind the port: inside of its window, whatever it says.
    let fake = FakeFunction::new(0x0010_1b36, 0, 0).writable(0x04, 7);
    space.add(at(1, 0, 0), fake.with(0x10, 0xc500_0000).writable(0x10, 0xfff0_0000));
    let found: Vec<_> = apertures(&space).free().iter().collect();
    let expected = [
        (0xc000_0000, 0xc00f_ffff),
        (0xc020_0000, 0xcfff_ffff),
        (0xe080_0000, 0xe0ff_ffff),
        (0xe200_0000, 0xfebf_ffff),
    ];
    assert_eq!(found, expected);
    assert_eq!(space.read32(at(0, 4, 0), 0x10), 0xc010_0000, "as it was");
}

#[test]
fn a_device_that_needs_too_much_gets_nothing() {
    let space = FakeSpace::default();
    space.add(at(0, 3, 0), port(0x0000_fff0, None));
    let fake = FakeFunction::new(0x0010_1b36, 0, 0).writable(0x04, 7);
    space.add(at(1, 0, 0), fake.with(0x10, 4).writable(0x10, 0).writable(0x14, !0xf));
    let mut apertures = apertures(&space);
    let before = apertures.free().clone();
    let refused = assign(&space, at(0, 3, 0), &behind(&space), &mut apertures);
    let (bridge, bytes) = (at(0, 3, 0), 0x10_0000_0000);
    assert_eq!(refused, Err(ResourceError::NoRoom { bridge, window: Window::Memory, bytes }));
    assert_eq!(apertures.free(), &before);
    assert_eq!(space.read32(at(1, 0, 0), 0x04) & 2, 0, "it decodes nothing");
}

#[test]
fn a_port_that_does_not_take_a_window_is_named() {
    let space = FakeSpace::default();
    let bridge = at(0, 3, 0);
    space.add(bridge, FakeFunction::bridge(1, 1).writable(0x04, 7));
    let fake = FakeFunction::new(0x0010_1b36, 0, 0).writable(0x04, 7);
    space.add(at(1, 0, 0), fake.writable(0x10, 0xfff0_0000));
    let mut apertures = apertures(&space);
    let before = apertures.free().clone();
    let refused = assign(&space, bridge, &behind(&space), &mut apertures);
    assert_eq!(refused, Err(ResourceError::NoWindow { bridge, window: Window::Memory }));
    assert_eq!(apertures.free(), &before);
}
