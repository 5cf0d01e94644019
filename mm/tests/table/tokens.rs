//! What a token holds until it is redeemed.

use super::arena::Arena;
use super::format::{BOTH, READ, Remap};
use super::walker::Walker;
use super::{G1, K4, M2, Tree, finish, flush, range, remap, tree};
use mm::table::Stale;

/// Maps two pages at `input` while there may be tokens with tables.
fn map_two(tree: &Tree<'_>, input: u64) {
    // SAFETY: no other thread changes the tree.
    let stale = unsafe { tree.map(input, &[range(G1, 2 * K4)], BOTH) }.unwrap();
    if let Some(stale) = stale {
        assert!(!stale.holds_tables() && !stale.only_leaves());
        assert_eq!((stale.first(), stale.last(), stale.changed_bytes()), (input, input + 2 * K4 - 1, 0));
        tree.redeem(flush(stale));
    }
}

/// A token with the lowest table of `input` in it.
fn detached(tree: &Tree<'_>, input: u64) -> Stale {
    map_two(tree, input);
    // SAFETY: no other thread changes the tree.
    unsafe {
        let mut stale = tree.unmap(input, 2 * K4).unwrap();
        tree.merge(&mut stale, tree.trim().unwrap()).unwrap();
        stale
    }
}

#[test]
fn detached_tables_are_not_freed_before_the_flush() {
    let memory = Arena::new(32);
    let tree = tree(Remap { levels: 3, ..remap() }, &memory);
    // SAFETY: no other thread changes the tree.
    unsafe { assert!(tree.map(0, &[range(G1, 2 * K4)], BOTH).unwrap().is_none()) };
    let walker = Walker { root: tree.root(), levels: 3, snoops: true, present: 3 };
    let (lowest, _) = walker.walk(&memory, 0).unwrap().at;
    // SAFETY: as above.
    let mut stale = unsafe { tree.unmap(0, 2 * K4) }.unwrap();
    tree.merge(&mut stale, tree.trim().unwrap()).unwrap();
    assert!(stale.holds_tables() && !stale.only_leaves());
    assert_eq!((stale.first(), stale.last()), (0, G1 - 1), "the inputs of the tables above as well");
    // A walker that still holds the page reads it, and finds nothing present.
    for snoops in [true, false] {
        assert!((0..512).all(|index| memory.read(lowest, index, snoops) & 0xfff == 0));
    }
    assert_eq!(memory.used(), 3);
    // New tables are other pages.
    map_two(&tree, 0);
    assert_eq!(memory.used(), 5);
    tree.redeem(flush(stale));
    assert_eq!(memory.used(), 4, "the upper table is spare");
    finish(tree);
}

/// A walker that remembers the table that was there before does not find what is mapped in its successor.
#[test]
fn what_is_mapped_beside_a_table_that_is_not_flushed_needs_a_flush() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    let stale = detached(&tree, 0);
    for (input, pages) in [(0, 1), (M2 - K4, 2), (9 * G1, 5)] {
        // SAFETY: no other thread changes the tree.
        let own = unsafe { tree.map(input, &[range(G1, pages * K4)], BOTH) }.unwrap().expect("a flush");
        assert!(!own.only_leaves() && !own.holds_tables());
        assert_eq!((own.first(), own.last()), (input, input + pages * K4 - 1));
        tree.redeem(flush(own));
    }
    tree.redeem(flush(stale));
    // SAFETY: as above.
    unsafe { assert!(tree.map(K4, &[range(G1, K4)], BOTH).unwrap().is_none(), "it is over") };
    finish(tree);
}

#[test]
fn upper_tables_are_used_again() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    tree.redeem(flush(detached(&tree, 0)));
    let before = memory.allocations();
    tree.redeem(flush(detached(&tree, 1 << 40)));
    assert_eq!(memory.allocations(), before + 1, "the lowest table");
    finish(tree);
}

#[test]
fn tokens_of_one_tree_are_merged() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    let mut all = detached(&tree, 4 * M2);
    for place in [9 * M2, 2 * M2, G1] {
        let other = detached(&tree, place);
        tree.merge(&mut all, other).unwrap();
    }
    assert_eq!(all.changed_bytes(), 8 * K4);
    let before = memory.used();
    tree.redeem(flush(all));
    assert_eq!(memory.used(), before - 4);
    finish(tree);
}

#[test]
fn a_token_of_another_tree_redeems_nothing() {
    let (memory, other_memory) = (Arena::new(32), Arena::new(32));
    let (tree, other) = (tree(remap(), &memory), super::tree(remap(), &other_memory));
    let mut own = detached(&tree, 0);
    let foreign = detached(&other, 0);
    let foreign = tree.merge(&mut own, foreign).expect_err("not this tree's");
    let before = (memory.used(), other_memory.used());
    tree.redeem(flush(foreign));
    assert_eq!((memory.used(), other_memory.used()), before, "the pages are lost, not freed twice");
    tree.redeem(flush(own));
    assert_eq!(memory.used(), before.0 - 1);
    finish(tree);
}

#[test]
fn dropping_a_token_loses_its_pages_and_nothing_else() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    drop(detached(&tree, 0));
    drop(flush(detached(&tree, 0)));
    let lost = 6;
    assert_eq!(memory.used(), 1 + lost);
    // SAFETY: no walker.
    unsafe { tree.destroy() };
    assert_eq!(memory.used(), lost);
}

/// Where a reader displaces a table, and the place of the one that it displaces.
const HOT: u64 = 9 * G1;
const DISPLACED: u64 = HOT + 8 * M2;

/// Looking pins what it looks at. A table that is emptied meanwhile is seen to by whoever looks, who has no token for
/// the table that has to leave for it.
fn displace_by_a_reader(tree: &Tree<'_>) {
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(DISPLACED, &[range(G1, K4)], BOTH).unwrap().is_none());
        tree.redeem(flush(tree.unmap(DISPLACED, K4).unwrap()));
        assert!(tree.map(HOT, &[range(G1, K4)], BOTH).unwrap().is_none());
    }
    std::thread::scope(|scope| {
        let (entered, entered_by) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            // Held up when it has pinned the lowest table, on its way from the fourth page that it uses.
            tree.memory().hold_use(4, move |_| {
                entered.send(()).unwrap();
                released.recv().unwrap();
            });
            assert_eq!(tree.lookup(HOT), None, "unmapped while the reader was held up");
        });
        entered_by.recv().unwrap();
        // SAFETY: no other thread changes the tree.
        let stale = unsafe { tree.unmap(HOT, K4) }.unwrap();
        assert!(!stale.holds_tables(), "somebody is inside");
        tree.redeem(flush(stale));
        release.send(()).unwrap();
    });
    assert_eq!(tree.trace(DISPLACED).steps().count(), 3, "displaced");
}

#[test]
fn tables_that_a_reader_displaces_wait_for_a_token() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    displace_by_a_reader(&tree);
    let before = memory.used();
    let stale = tree.trim().unwrap();
    assert!(stale.holds_tables() && !stale.only_leaves());
    assert_eq!((stale.first(), stale.last()), (0, u64::MAX), "nobody knows any more where it was");
    assert_eq!(memory.used(), before);
    tree.redeem(flush(stale));
    // The displaced table, and the one that is empty now; the three above it are spare.
    assert_eq!(memory.used(), before - 2);
    finish(tree);
}

/// The short way to unmap takes no such table along. If maps did not, each of them would need a flush from then on.
#[test]
fn one_map_takes_along_what_a_reader_displaced() {
    for pages in [1, 3] {
        let memory = Arena::new(32);
        let tree = tree(remap(), &memory);
        let (constant, changing) = (range(G1, K4), range(2 * G1, pages * K4));
        displace_by_a_reader(&tree);
        let before = memory.used();
        // SAFETY: no other thread changes the tree.
        unsafe {
            let stale = tree.map(HOT, &[constant], BOTH).unwrap().expect("a table that is not flushed");
            assert!(stale.holds_tables() && !stale.only_leaves());
            assert_eq!((stale.first(), stale.last()), (0, u64::MAX));
            tree.redeem(flush(stale));
            assert_eq!(memory.used(), before - 1);
            for _ in 0..3 {
                assert!(tree.map(HOT + M2 / 2, &[changing], BOTH).unwrap().is_none(), "all is flushed");
                tree.redeem(flush(tree.unmap(HOT + M2 / 2, pages * K4).unwrap()));
            }
        }
        finish(tree);
    }
}

/// A thread may read an upper table that has left the tree meanwhile, and go on from there. What it finds is of no use
/// to it, but must be what stands in a table of that level: were it a table of level 2 by now, its links would be taken
/// for tables of level 2, and the lowest tables behind them can be freed at any time.
#[test]
fn an_upper_table_is_used_for_its_own_level_again() {
    let memory = Arena::new(32);
    let tree = tree(remap(), &memory);
    let (old, constant) = (5 << 39, 6 << 39);
    let other = constant + G1;
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(constant, &[range(8 * G1, K4)], BOTH).unwrap().is_none());
        assert!(tree.map(old, &[range(G1, K4)], BOTH).unwrap().is_none());
    }
    std::thread::scope(|scope| {
        let (reports, report) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let tree = &tree;
        scope.spawn(move || {
            // Held up when it has come to the table of level 3, on its way from the second page that it uses, and again
            // at what it finds there.
            tree.memory().hold_use(2, move |memory| {
                reports.send(()).unwrap();
                released.recv().unwrap();
                memory.hold_use(1, move |_| {
                    reports.send(()).unwrap();
                    released.recv().unwrap();
                });
            });
            // SAFETY: no other call maps these pages.
            unsafe { assert!(tree.map(old + K4, &[range(2 * G1, K4)], BOTH).unwrap().is_none()) };
        });
        report.recv().unwrap();
        // SAFETY: no other call changes these pages.
        unsafe {
            tree.redeem(flush(tree.unmap(old, K4).unwrap()));
            tree.redeem(flush(tree.trim().unwrap()));
            let before = memory.used();
            assert!(tree.map(other, &[range(3 * G1, K4)], BOTH).unwrap().is_none());
            assert_eq!(memory.used(), before + 1, "an upper table is used again");
            release.send(()).unwrap();
            report.recv().unwrap();
            tree.redeem(flush(tree.unmap(other, K4).unwrap()));
            tree.redeem(flush(tree.trim().unwrap()));
            assert_eq!(memory.used(), before, "the lowest table is gone");
        }
        release.send(()).unwrap();
    });
    for (input, output) in [(old + K4, Some(2 * G1)), (other, None), (constant, Some(8 * G1))] {
        assert_eq!(tree.lookup(input).map(|found| found.output.as_u64()), output);
    }
    finish(tree);
}

/// The rest of it is found by other entries now: what hardware remembers of any part of the superpage is to go.
#[test]
fn a_split_asks_for_the_flush_of_the_whole_superpage() {
    let pages = |first, last| (first, last, false);
    let (end, middle) = (2 * G1 + M2 - 1, G1 + 5 * M2 + 7 * K4);
    for (first, bytes, expected) in [
        (2 * G1, K4, pages(2 * G1, end)),
        (2 * G1 + K4, K4, pages(2 * G1, end)),
        (end + 1 - K4, K4, pages(2 * G1, end)),
        (2 * G1, M2, (2 * G1, end, true)),
        (middle, K4, pages(G1, 2 * G1 - 1)),
        (middle, M2, pages(G1, 2 * G1 - 1)),
        (middle, G1 - (middle - G1), pages(G1, 2 * G1 - 1)),
        (middle, G1 - (middle - G1) + K4, pages(G1, end)),
        (G1, G1 + M2, (G1, end, true)),
    ] {
        for protects in [true, false] {
            let memory = Arena::new(32);
            let tree = tree(remap(), &memory);
            // SAFETY: no other thread changes the tree.
            let stale = unsafe {
                assert!(tree.map(G1, &[range(G1, G1 + M2)], BOTH).unwrap().is_none());
                if protects { tree.protect(first, bytes, READ) } else { tree.unmap(first, bytes) }.unwrap()
            };
            assert_eq!(stale.changed_bytes(), bytes);
            // Unmapping leaves no table empty that is not kept.
            assert_eq!(
                (stale.first(), stale.last(), stale.only_leaves()),
                expected,
                "{first:#x}, {bytes:#x}"
            );
            tree.redeem(flush(stale));
            finish(tree);
        }
    }
}
