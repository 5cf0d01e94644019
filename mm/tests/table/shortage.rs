//! The Nth allocation of each operation fails, for every N: the operation says so, and everything is as before.

use mm::table::{EditError, MapError, Stale};

use super::arena::Arena;
use super::format::{BOTH, READ, Remap};
use super::{G1, K4, M2, Tree, finish, flush, range, remap, tree};

type Runs = Vec<(u64, u64, u64, u8)>;

fn state(tree: &Tree<'_>) -> Runs {
    tree.runs(0, (1 << 48) - 1).map(|run| (run.input, run.output.as_u64(), run.bytes, run.access.0)).collect()
}

/// Sets up a tree, then does `operation` with 0, 1, 2 ... allocations allowed until it succeeds. Each failure leaves
/// mappings and page counts as they were. Returns how often it failed.
fn exhaust(
    format: Remap,
    set_up: impl Fn(&Tree<'_>),
    operation: impl Fn(&Tree<'_>) -> Result<Option<Stale>, Option<Stale>>,
) -> usize {
    let memory = Arena::new(2048);
    for budget in 0.. {
        let mut tree = tree(format, &memory);
        set_up(&tree);
        let (before, pages) = (state(&tree), memory.used());
        memory.set_budget(budget);
        let result = operation(&tree);
        memory.set_budget(usize::MAX);
        match result {
            Ok(stale) => {
                stale.into_iter().for_each(|stale| tree.redeem(flush(stale)));
                finish(tree);
                return budget;
            }
            Err(stale) => {
                assert_eq!(state(&tree), before, "budget {budget}");
                stale.into_iter().for_each(|stale| tree.redeem(flush(stale)));
                tree.release_spare();
                assert_eq!(memory.used(), pages, "budget {budget}");
                finish(tree);
            }
        }
        assert!(budget < 1500, "never succeeds");
    }
    unreachable!()
}

fn map(tree: &Tree<'_>, input: u64, segments: &[mm::PhysRange]) -> Result<Option<Stale>, Option<Stale>> {
    // SAFETY: no other thread changes the tree.
    unsafe { tree.map(input, segments, BOTH) }.map_err(|error| {
        assert!(matches!(error, MapError::OutOfTables { .. }), "{error}");
        error.into_undone()
    })
}

fn edited(result: Result<Stale, EditError>) -> Result<Option<Stale>, Option<Stale>> {
    result.map(Some).map_err(|error| {
        assert!(matches!(error, EditError::OutOfTables { .. }), "{error}");
        None
    })
}

/// A page that is mapped before, near what the operation does.
fn neighbour(tree: &Tree<'_>) {
    assert!(map(tree, G1 - 3 * K4, &[range(0, K4)]).unwrap().is_none());
}

#[test]
fn new_tree() {
    let memory = Arena::new(8);
    memory.set_budget(0);
    assert!(mm::table::PageTable::new(remap(), &memory).is_err());
    assert_eq!(memory.used(), 0);
}

#[test]
fn map_of_one_page() {
    for levels in 3..=5 {
        let format = Remap { levels, ..remap() };
        let failures = exhaust(format, |_| {}, |tree| map(tree, 5 * G1, &[range(0, K4)]));
        assert_eq!(failures, usize::from(levels) - 1);
        assert_eq!(exhaust(format, neighbour, |tree| map(tree, G1 - K4, &[range(0, K4)])), 0);
    }
}

#[test]
fn map_across_tables_of_every_level() {
    for (border, tables) in [(M2, 1), (G1, 2), (1 << 39, 3)] {
        let pages = [range(G1, 5 * K4), range(K4, K4), range(0, 4 * K4)];
        let failures = exhaust(remap(), |_| {}, |tree| map(tree, border - 5 * K4, &pages));
        assert_eq!(failures, 3 + tables);
        let beside = |tree: &Tree<'_>| {
            assert!(map(tree, border - 9 * K4, &[range(0, K4)]).unwrap().is_none());
        };
        assert_eq!(exhaust(remap(), beside, |tree| map(tree, border - 5 * K4, &pages)), tables);
    }
}

#[test]
fn map_of_many_tables() {
    let pages = if cfg!(miri) { 1024 } else { 100 * 512 };
    let failures = exhaust(remap(), neighbour, |tree| map(tree, G1 - 2 * K4, &[range(K4, pages * K4)]));
    assert_eq!(failures as u64, pages / 512 + 1);
}

#[test]
fn map_of_mixed_leaves() {
    let (input, bytes) = (5 * G1 - M2 - K4, G1 + 2 * M2 + 3 * K4);
    let beside = |tree: &Tree<'_>| {
        assert!(map(tree, input - K4, &[range(0, K4)]).unwrap().is_none());
    };
    let failures = exhaust(remap(), beside, |tree| map(tree, input, &[range(2 * G1 + input, bytes)]));
    assert_eq!(failures, 2, "leaves of 4K, 2M and 1G in tables that are there, and two tables at the end");
}

#[test]
fn unmap_and_protect_that_split() {
    for (sizes, tables) in [(2 * M2, [1, 2]), (2 * G1, [2, 4])] {
        let superpages = |tree: &Tree<'_>| {
            assert!(map(tree, 4 * G1, &[range(8 * G1, sizes)]).unwrap().is_none());
        };
        let half = sizes / 2;
        for (first, bytes, failures) in [
            (4 * G1, K4, tables[0]),
            (4 * G1 + half - K4, K4, tables[0]),
            (4 * G1 + 5 * K4, K4, tables[0]),
            (4 * G1 + half - K4, 2 * K4, tables[1]),
            (4 * G1 + K4, sizes - 2 * K4, tables[1]),
            (4 * G1, half, 0),
        ] {
            // SAFETY: no other thread changes the tree.
            let unmap = |tree: &Tree<'_>| edited(unsafe { tree.unmap(first, bytes) });
            assert_eq!(exhaust(remap(), superpages, unmap), failures);
            // SAFETY: no other thread changes the tree.
            let protect = |tree: &Tree<'_>| edited(unsafe { tree.protect(first, bytes, READ) });
            assert_eq!(exhaust(remap(), superpages, protect), failures);
        }
    }
}

#[test]
fn with_spare_tables_at_hand() {
    let spare = |tree: &Tree<'_>| {
        for place in 0..3 {
            let input = place << 40;
            assert!(map(tree, input, &[range(0, K4)]).unwrap().is_none());
            // SAFETY: no other thread changes the tree.
            tree.redeem(flush(unsafe { tree.unmap(input, K4) }.unwrap()));
        }
        tree.redeem(flush(tree.trim().unwrap()));
    };
    let memory = Arena::new(64);
    let tree = tree(remap(), &memory);
    spare(&tree);
    let (before, pages) = (state(&tree), memory.used());
    memory.set_budget(0);
    let stale = map(&tree, 5 << 40, &[range(0, K4)]).unwrap_err();
    assert!(stale.is_none(), "nothing was ever visible");
    memory.set_budget(usize::MAX);
    assert_eq!((state(&tree), memory.used()), (before, pages));
    finish(tree);
}
