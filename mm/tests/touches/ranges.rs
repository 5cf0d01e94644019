//! Ranges over borders between tables: each leaf is touched once, and the walk does not go back to the top between
//! them.

use crate::counts::{Touched, Touches, Tree, touched, tree};
use crate::memory::Memory;
use crate::table::{Stale, level_bytes, x86::X86Access};
use crate::{PAGE_BYTES, PhysAddr, PhysRange};

const M2: u64 = 1 << 21;
const G1: u64 = 1 << 30;

/// The last pages of one table, all of two more, the first pages of a fourth; the border in the middle is one between
/// tables of level 2 as well.
const PAGES: u64 = 16 + 512 + 512 + 40;
const RANGE: (u64, u64) = (G1 - M2 - 16 * PAGE_BYTES, PAGES * PAGE_BYTES);

/// Memory in one piece, where no leaf above 4 KiB can be.
fn one_piece() -> [PhysRange; 1] {
    [PhysRange::new(PhysAddr::new(5 * G1 + PAGE_BYTES), RANGE.1)]
}

fn scattered() -> Vec<PhysRange> {
    let page = |page| PhysRange::new(PhysAddr::new(5 * G1 + 2 * page * PAGE_BYTES), PAGE_BYTES);
    (0..PAGES).map(page).collect()
}

fn map(tree: &Tree<'_>, input: u64, segments: &[PhysRange]) -> Touches {
    // SAFETY: no other thread changes the tree.
    Touches::of(tree, || unsafe { tree.map(input, segments, X86Access::WRITE) }.unwrap())
}

fn unmap(tree: &Tree<'_>, (input, bytes): (u64, u64)) -> Touches {
    // SAFETY: no other thread changes the tree.
    let unmap = || -> Stale { unsafe { tree.unmap(input, bytes) }.unwrap() };
    Touches::of(tree, || {
        let stale = unmap();
        assert_eq!(stale.changed_bytes(), bytes);
        Some(stale)
    })
}

fn protect(tree: &Tree<'_>, (input, bytes): (u64, u64)) -> Touches {
    // SAFETY: no other thread changes the tree.
    let protect = || -> Stale { unsafe { tree.protect(input, bytes, X86Access::USER) }.unwrap() };
    Touches::of(tree, || {
        let stale = protect();
        assert_eq!(stale.changed_bytes(), bytes);
        Some(stale)
    })
}

/// Each table on the way was entered and left once. At both ends, a change also looks for a superpage to split: from
/// the top, to see how many pages that takes, and by another way down.
fn assert_entered_once(touches: &Touches, levels: core::ops::RangeInclusive<u8>, (input, bytes): (u64, u64)) {
    for level in levels {
        let links = touches.at_level(level);
        let span = level_bytes(level);
        let first = input & !(span - 1);
        assert!(links.keys().copied().eq((first..input + bytes).step_by(span as usize)), "level {level}");
        for (at, Touched { reads, writes, updates }) in links {
            assert_eq!((writes, updates), (0, 2), "level {level}, {at:#x}");
            let is_end = at <= input || input + bytes <= at + span;
            assert!(reads <= if is_end { 6 } else { 2 }, "level {level}, {at:#x}: {reads} reads");
        }
    }
}

#[test]
fn new_tables_are_filled_before_they_are_linked() {
    let memory = Memory::new(16);
    let tree = tree(&memory);
    let touches = map(&tree, RANGE.0, &one_piece());
    touches.assert_each(1, RANGE, touched(0, 1, 0));
    // Seen to be missing, and linked.
    (2..=4).for_each(|level| touches.assert_each(level, RANGE, touched(1, 0, 1)));
}

#[test]
fn tables_that_are_there_are_entered_once() {
    let memory = Memory::new(16);
    let tree = tree(&memory);
    map(&tree, RANGE.0, &one_piece());
    let touches = protect(&tree, RANGE);
    touches.assert_each(1, RANGE, touched(1, 0, 1));
    assert_entered_once(&touches, 2..=4, RANGE);
    let touches = unmap(&tree, RANGE);
    touches.assert_each(1, RANGE, touched(1, 1, 0));
    assert_entered_once(&touches, 2..=4, RANGE);
    // The empty tables have stayed.
    let touches = map(&tree, RANGE.0, &one_piece());
    touches.assert_each(1, RANGE, touched(1, 1, 0));
    (2..=4).for_each(|level| touches.assert_each(level, RANGE, touched(2, 0, 2)));
}

/// The first table takes the short way, without a look at each entry as it is known to be empty. Its link is the only
/// one that the walk comes to again, to go on behind it.
#[test]
fn a_list_is_mapped_in_one_walk() {
    let memory = Memory::new(16);
    let tree = tree(&memory);
    map(&tree, RANGE.0, &one_piece());
    unmap(&tree, RANGE);
    let touches = map(&tree, RANGE.0, &scattered());
    let leaves = touches.at_level(1);
    assert_eq!(leaves.len() as u64, PAGES);
    for (index, leaf) in leaves.into_values().enumerate() {
        assert_eq!(leaf, touched(usize::from(index >= 16), 1, 0), "page {index}");
    }
    let mut links = touches.at_level(2).into_values();
    assert_eq!(links.next(), Some(touched(2, 0, 4)));
    assert!(links.all(|link| link == touched(2, 0, 2)));
    for level in 3..=4 {
        assert!(touches.at_level(level).into_values().all(|link| link.updates == 2 && link.reads <= 3));
    }
}

#[test]
fn a_superpage_is_one_touch() {
    let memory = Memory::new(16);
    let tree = tree(&memory);
    // Three leaves of 2 MiB, two of 1 GiB, one of 2 MiB.
    let range = (G1 - 3 * M2, 3 * M2 + 2 * G1 + M2);
    let output = [PhysRange::new(PhysAddr::new(9 * G1 - 3 * M2), range.1)];
    let small = [G1 - 3 * M2, G1 - 2 * M2, G1 - M2, 3 * G1];
    let large = [G1, 2 * G1];
    let assert_leaves = |touches: &Touches, writes: usize, updates: usize| {
        assert!(touches.at_level(1).is_empty());
        for (leaves, level) in [(&small[..], 2), (&large, 3)] {
            let mut entries = touches.at_level(level);
            for leaf in leaves {
                let touched = entries.remove(leaf).unwrap_or_default();
                assert_eq!((touched.writes, touched.updates), (writes, updates), "{leaf:#x}");
                // Once more where the range begins, in search of a leaf that reaches over that.
                assert!(
                    (1..=1 + usize::from(*leaf == range.0)).contains(&touched.reads),
                    "{leaf:#x}: {touched:?}"
                );
            }
            let mut others = entries.into_values();
            assert!(others.all(|other| other.writes == 0 && (level == 3 || other.updates == 0)));
        }
    };
    map(&tree, range.0, &output);
    assert_leaves(&protect(&tree, range), 0, 1);
    assert_leaves(&unmap(&tree, range), 1, 0);
    assert_leaves(&map(&tree, range.0, &output), 1, 0);
}

/// The root is no busier with many tables below one of its entries than with few. (Not with more than may stay empty:
/// for each that leaves the tree, there is another walk.)
#[test]
fn the_length_of_a_range_is_nothing_to_the_upper_tables() {
    let root_and_below = |tables: u64| {
        let memory = Memory::new(64);
        let tree = tree(&memory);
        let range = (8 * M2 - PAGE_BYTES, (tables - 2) * M2 + 2 * PAGE_BYTES);
        let output = [PhysRange::new(PhysAddr::new(5 * G1), range.1)];
        let new = map(&tree, range.0, &output);
        let changed = protect(&tree, range);
        let gone = unmap(&tree, range);
        let kept = map(&tree, range.0, &output);
        [new, changed, gone, kept].map(|touches| {
            assert_eq!(touches.at_level(2).len() as u64, tables);
            [3, 4].map(|level| touches.at_level(level).into_values().collect::<Vec<_>>())
        })
    };
    assert_eq!(root_and_below(3), root_and_below(if cfg!(miri) { 4 } else { 8 }));
}
