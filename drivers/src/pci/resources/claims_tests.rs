use std::{string::ToString, vec::Vec};

use iommu::PciAddress;
use mm::{PhysAddr, PhysRange};

use super::*;
use crate::pci::{
    Bar, BarError, BarKind, BusRange, Function, enumerate,
    fake::{FakeFunction, FakeSpace, at},
};

const ROOT: PciAddress = at(0, 4, 0);
const NEIGHBOUR: PciAddress = at(0, 5, 0);
const PORT: PciAddress = at(0, 3, 0);
const OTHER_PORT: PciAddress = at(0, 6, 0);
const BEHIND: PciAddress = at(1, 0, 0);
const BESIDE: PciAddress = at(1, 0, 1);
const DEEP: PciAddress = at(2, 0, 0);
const PORT_FIRST: u64 = 0xc000_0000;
const INNER_FIRST: u64 = 0xc010_0000;
const OTHER_FIRST: u64 = 0xc040_0000;
const VIRTUAL: u64 = 0xc008_0000;
const CONFIGURATION: u64 = 0xb000_0000;
const UNIT: u64 = 0xa000_0000;

const fn range(first: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(first), bytes)
}

/// A function with registers of 64 KiB at `base`.
fn endpoint(base: u64) -> FakeFunction {
    FakeFunction::new(0x11e8_1234, 0, 0x80)
        .writable(0x04, 7)
        .with(0x10, base as u32)
        .writable(0x10, 0xffff_0000)
}

/// A bridge whose memory window is what the dword at 20h says.
fn bridge(secondary: u8, last: u8, window: u32) -> FakeFunction {
    FakeFunction::bridge(secondary, last).with(0x20, window).writable(0x20, 0xfff0_fff0)
}

/// Two functions on the root bus; behind a port two more, one of which can have four virtual functions, and a bridge
/// with one; another port.
fn machine() -> (FakeSpace, Vec<Function>) {
    let space = FakeSpace::default();
    space.add(ROOT, endpoint(0xe000_0000));
    space.add(NEIGHBOUR, endpoint(0xe001_0000));
    space.add(PORT, bridge(1, 2, 0xc030_c000));
    space.add(OTHER_PORT, bridge(9, 9, 0xc040_c040));
    space.add(BEHIND, endpoint(PORT_FIRST));
    space.add(BESIDE, endpoint(PORT_FIRST + 0x1_0000));
    space.add(at(1, 1, 0), bridge(2, 2, 0xc010_c010));
    space.add(DEEP, endpoint(INNER_FIRST));
    let mut functions = enumerate(&space, BusRange { segment: 0, first: 0, last: 9 }).unwrap();
    assert_eq!(functions.len(), 8);
    let behind = functions.iter_mut().find(|found| found.address == BEHIND).unwrap();
    let kind = BarKind::Memory { wide: false, prefetchable: false };
    behind.virtual_bars.get_or_insert_default()[0] =
        Some(Bar { index: 0, kind, base: VIRTUAL, bytes: 0x1_0000 });
    behind.virtual_room = 4;
    functions.iter_mut().for_each(|function| function.measure(&space));
    (space, functions)
}

fn claims() -> Claims {
    let mut claims = Claims::new();
    claims.add(UNIT, UNIT + 0x1fff, Claimant::RemappingUnit).unwrap();
    claims.add(CONFIGURATION, CONFIGURATION + 0xfff_ffff, Claimant::ConfigurationSpace).unwrap();
    claims.add(0, 0x7fff_ffff, Claimant::Memory).unwrap();
    claims
}

/// Who is in the way of registers of `function` at `range`.
fn in_the_way(function: PciAddress, range: PhysRange) -> Option<Claimant> {
    let (space, functions) = machine();
    match claims().check(&space, &functions, function, range) {
        Ok(()) => None,
        Err(Misplaced::Taken { claim, .. }) => Some(claim.by),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn registers_where_everybody_expects_them_are_nobody_elses() {
    let (space, functions) = machine();
    for function in &functions {
        for bar in function.bars.unwrap().iter().flatten() {
            let range = range(bar.base, bar.bytes);
            assert_eq!(claims().check(&space, &functions, function.address, range), Ok(()));
        }
    }
}

/// A function that lies about where its registers are, or how long they are.
#[test]
fn registers_that_are_somebody_elses_are_refused_by_name() {
    let bar = |function| Claimant::Bar { function, index: 0 };
    for (function, range, by) in [
        (ROOT, range(0x4000_0000, 0x1000), Claimant::Memory),
        (ROOT, range(CONFIGURATION + 0x10_0000, 0x1000), Claimant::ConfigurationSpace),
        (ROOT, range(UNIT + 0x1000, 0x1000), Claimant::RemappingUnit),
        (ROOT, range(UNIT & !0xfff_ffff, 0x1000_0000), Claimant::RemappingUnit),
        // All of the other's, its last page, and what begins before it.
        (ROOT, range(0xe001_0000, 0x1_0000), bar(NEIGHBOUR)),
        (ROOT, range(0xe001_f000, 0x1000), bar(NEIGHBOUR)),
        (ROOT, range(0xe000_0000, 0x2_0000), bar(NEIGHBOUR)),
        (ROOT, range(PORT_FIRST + 0x20_0000, 0x1000), Claimant::Behind { bridge: PORT }),
        (BEHIND, range(PORT_FIRST + 0x1_0000, 0x1000), bar(BESIDE)),
        (BEHIND, range(INNER_FIRST + 0x8_0000, 0x1000), Claimant::Behind { bridge: at(1, 1, 0) }),
        (BESIDE, range(VIRTUAL + 0x3_f000, 0x1000), Claimant::VirtualFunctions { of: BEHIND, index: 0 }),
        (BEHIND, range(VIRTUAL, 0x1000), Claimant::VirtualFunctions { of: BEHIND, index: 0 }),
    ] {
        assert_eq!(in_the_way(function, range), Some(by), "{function}: {range:?}");
    }
    let free = [(ROOT, 0xe002_0000), (BESIDE, VIRTUAL + 0x4_0000), (DEEP, INNER_FIRST + 0x1_0000)];
    assert!(free.iter().all(|&(function, first)| in_the_way(function, range(first, 0x1000)).is_none()));
}

/// What a bridge does not pass on answers somewhere else.
#[test]
fn registers_outside_of_the_windows_above_are_refused() {
    let (space, functions) = machine();
    for (function, first, bytes, bridge) in [
        (BEHIND, OTHER_FIRST, 0x1000, PORT),
        (BEHIND, 0xe004_0000, 0x1000, PORT),
        (BEHIND, OTHER_FIRST - 0x1000, 0x2000, PORT),
        (DEEP, PORT_FIRST + 0x20_0000, 0x1000, at(1, 1, 0)),
    ] {
        let range = range(first, bytes);
        let refused = claims().check(&space, &functions, function, range);
        assert_eq!(refused, Err(Misplaced::NotPassedOn { range, bridge }));
    }
}

#[test]
fn a_virtual_function_has_its_part_of_the_room() {
    let (space, mut functions) = machine();
    let physical = functions.iter().find(|found| found.address == BEHIND).unwrap().clone();
    let first = physical.virtual_bars.unwrap()[0].unwrap();
    let mut of = |number: u8| {
        let bar = Bar { base: first.base + u64::from(number) * first.bytes, ..first };
        let mut bars = physical.bars.unwrap();
        bars[0] = Some(bar);
        let (address, physical) = (at(1, 0, 2 + number), Some(BEHIND));
        functions.push(Function {
            address,
            physical,
            bars: Some(bars),
            virtual_bars: None,
            ..functions[0].clone()
        });
        functions.last_mut().unwrap().parent = Some(PORT);
        (address, range(bar.base, bar.bytes))
    };
    let (one, other) = (of(0), of(1));
    assert_eq!(claims().check(&space, &functions, one.0, one.1), Ok(()));
    let Err(Misplaced::Taken { claim, .. }) = claims().check(&space, &functions, one.0, other.1) else {
        panic!("it has the other's registers");
    };
    assert_eq!(claim.by, Claimant::Bar { function: other.0, index: 0 });
}

#[test]
fn a_refusal_says_what_is_in_the_way() {
    let (space, functions) = machine();
    let error = claims().check(&space, &functions, ROOT, range(UNIT, 0x1000)).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("a remapping unit at 0xa0000000-0xa0001fff"), "{said}");
    let unknown = Misplaced::Unknown { function: at(7, 0, 0) };
    assert_eq!(claims().check(&space, &functions, at(7, 0, 0), range(UNIT, 0x1000)), Err(unknown));
}

/// What is measured is what counts, whatever a function says later.
#[test]
fn a_function_does_not_move_by_saying_so() {
    let (space, mut functions) = machine();
    let before = functions.clone();
    space.add(NEIGHBOUR, endpoint(0xe009_0000));
    assert_eq!(claims().check(&space, &functions, ROOT, range(0xe009_0000, 0x1000)), Ok(()));
    functions.iter_mut().for_each(|function| function.measure(&space));
    assert!(functions != before);
    assert!(claims().check(&space, &functions, ROOT, range(0xe009_0000, 0x1000)).is_err());
}

/// Who is in the way of BAR 0 of `function`, as it was settled.
fn settled(functions: &[Function], function: PciAddress) -> Option<Claimant> {
    let found = functions.iter().find(|found| found.address == function).unwrap();
    match found.places.unwrap().bar(0) {
        Ok(bar) => {
            assert_eq!(Some(bar), found.bars.unwrap()[0]);
            None
        }
        Err(BarError::Misplaced { index: 0, why: Misplaced::Taken { claim, .. } }) => Some(claim.by),
        // As of most bridges.
        Err(BarError::Absent(0)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A device that lies when it is measured is refused its registers, and so is everybody in whose place it says that
/// it is.
#[test]
fn what_is_settled_is_nobody_elses() {
    let (space, mut functions) = machine();
    claims().settle(&space, &mut functions, 0);
    assert!(functions.iter().all(|found| settled(&functions, found.address).is_none()));
    let bar = |function| Claimant::Bar { function, index: 0 };
    for (lie, root, neighbour) in [
        (UNIT, Some(Claimant::RemappingUnit), None),
        (0x4000_0000, Some(Claimant::Memory), None),
        (0xe001_0000, Some(bar(NEIGHBOUR)), Some(bar(ROOT))),
    ] {
        let found = functions.iter_mut().find(|found| found.address == ROOT).unwrap();
        found.bars.as_mut().unwrap()[0].as_mut().unwrap().base = lie;
        claims().settle(&space, &mut functions, 0);
        assert_eq!(
            (settled(&functions, ROOT), settled(&functions, NEIGHBOUR)),
            (root, neighbour),
            "{lie:#x}"
        );
    }
}

/// Who comes later is compared with all who are there, whose drivers go on.
#[test]
fn who_was_there_before_keeps_what_was_settled() {
    let (space, mut functions) = machine();
    claims().settle(&space, &mut functions, 0);
    let mut newcomer = functions.iter().find(|found| found.address == NEIGHBOUR).unwrap().clone();
    newcomer.address = at(0, 7, 0);
    newcomer.places = None;
    functions.push(newcomer);
    let first = functions.len() - 1;
    claims().settle(&space, &mut functions, first);
    assert_eq!(settled(&functions, at(0, 7, 0)), Some(Claimant::Bar { function: NEIGHBOUR, index: 0 }));
    assert_eq!(settled(&functions, NEIGHBOUR), None);
    // What is measured anew has to be settled anew.
    functions[first].measure(&space);
    assert_eq!(functions[first].places, None);
}

/// A device that calls memory its own is not believed, and takes nothing from its neighbours; the room of virtual
/// functions counts, also on a root bus.
#[test]
fn what_answers_besides_memory_is_known_one_by_one() {
    let (space, mut functions) = machine();
    let kind = BarKind::Memory { wide: false, prefetchable: false };
    let lies = Bar { index: 0, kind, base: 0x7fff_0000, bytes: 0x1_0000 };
    let next = Bar { base: 0x8000_0000, ..lies };
    for (address, bar) in [(ROOT, lies), (NEIGHBOUR, next)] {
        let function = functions.iter_mut().find(|found| found.address == address).unwrap();
        function.bars.as_mut().unwrap()[0] = Some(bar);
    }
    let physical = functions.iter_mut().find(|found| found.address == NEIGHBOUR).unwrap();
    physical.virtual_bars.get_or_insert_default()[0] = Some(Bar { base: 0x9000_0000, ..lies });
    physical.virtual_room = 3;
    let found: Vec<_> = claims().registers(&space, &functions).collect();
    for wanted in [
        range(0x8000_0000, 0x1_0000),
        range(0x9000_0000, 0x3_0000),
        range(PORT_FIRST, 0x40_0000),
        range(CONFIGURATION, 0x1000_0000),
    ] {
        assert!(found.contains(&wanted), "{wanted:?} is not in {found:?}");
    }
    assert!(found.iter().all(|range| range.start.as_u64() >= 0x8000_0000), "{found:?}");
}
