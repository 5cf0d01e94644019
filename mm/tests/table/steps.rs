//! What hardware sees between the steps of an operation. A walker that does not snoop sees something new exactly when
//! lines are written back, so looking after each write-back is looking at every moment there is.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mm::table::LeafSizes;

use super::arena::Arena;
use super::format::{BOTH, READ, Remap};
use super::walker::Walker;
use super::{G1, K4, M2, finish, flush, range, remap, tree};

/// Watches `inputs` through every moment of `operation` on a tree that maps `segments` at `4 * G1`. `allowed` says what
/// may be found at an input: (input, output found, if any).
fn at_every_moment(
    bytes: u64,
    inputs: Vec<u64>,
    allowed: impl Fn(u64, Option<(u64, u64)>) -> bool + Send + Sync + 'static,
    operation: impl Fn(&super::Tree<'_>),
) -> usize {
    let memory = Arena::new(if cfg!(miri) { 64 } else { 2048 });
    let tree = tree(remap(), &memory);
    if bytes > 0 {
        // SAFETY: no other thread changes the tree.
        unsafe { assert!(tree.map(4 * G1, &[range(8 * G1, bytes)], BOTH).unwrap().is_none()) };
    }
    let walker = Walker { root: tree.root(), levels: 4, snoops: false, present: 3 };
    let moments = Arc::new(AtomicUsize::new(0));
    let counted = moments.clone();
    memory.watch(move |memory| {
        counted.fetch_add(1, Ordering::Relaxed);
        for &input in &inputs {
            let found = walker.walk(memory, input).map(|found| (found.output, found.bits & 3));
            assert!(allowed(input, found), "{input:#x} leads to {found:x?}");
        }
    });
    operation(&tree);
    memory.unwatch();
    finish(tree);
    moments.load(Ordering::Relaxed)
}

/// Inputs at and around each of `borders`, from `first` to before `end`, but not in the hole.
fn around(borders: &[u64], first: u64, end: u64, hole: std::ops::Range<u64>) -> Vec<u64> {
    let near = borders.iter().flat_map(|border| [border.wrapping_sub(1), *border, border + K4, border + M2]);
    near.filter(|input| (first..end).contains(input) && !hole.contains(input)).collect()
}

#[test]
fn the_rest_of_a_split_superpage_is_always_mapped() {
    for (bytes, hole) in [
        (M2, 4 * G1..4 * G1 + K4),
        (M2, 4 * G1 + M2 - K4..4 * G1 + M2),
        (2 * M2, 4 * G1 + M2 - 2 * K4..4 * G1 + M2 + K4),
        (G1, 4 * G1 + M2 - K4..4 * G1 + M2 + K4),
        (2 * G1, 4 * G1 + K4..6 * G1 - K4),
    ] {
        let borders = [4 * G1, hole.start - K4, hole.start, hole.end, 4 * G1 + bytes - K4, 4 * G1 + bytes];
        let rest = around(&borders, 4 * G1, 4 * G1 + bytes, hole.clone());
        assert!(!rest.is_empty());
        let (first, length) = (hole.start, hole.end - hole.start);
        let same = |input, found: Option<(u64, u64)>| found == Some((input + 4 * G1, 3));
        let moments = at_every_moment(bytes, rest.clone(), same, |tree| {
            // SAFETY: no other thread changes the tree.
            let stale = unsafe { tree.unmap(first, length) }.unwrap();
            tree.redeem(flush(stale));
        });
        assert!(moments >= 3, "new table, link, leaves");
        // While permissions change, the page itself stays mapped as well.
        let mut inputs = rest;
        inputs.extend([first, first + length - 1]);
        let either = |input, found: Option<(u64, u64)>| {
            found == Some((input + 4 * G1, 3)) || found == Some((input + 4 * G1, 1))
        };
        at_every_moment(bytes, inputs, either, |tree| {
            // SAFETY: no other thread changes the tree.
            let stale = unsafe { tree.protect(first, length, READ) }.unwrap();
            tree.redeem(flush(stale));
        });
    }
}

/// Garbage in a table that was linked before it was written back would lead the walker out of the arena.
#[test]
fn new_tables_are_never_seen_before_they_are_written() {
    let many = if cfg!(miri) { 2 * M2 } else { G1 };
    for (input, bytes) in
        [(G1, K4), (G1 - K4, 2 * K4), ((1 << 39) - M2 - K4, many), (M2 - K4, 3 * M2 + 2 * K4)]
    {
        let inputs = around(&[input, input + bytes, input + bytes / 2], 0, 1 << 48, 0..0);
        let right = move |at: u64, found: Option<(u64, u64)>| {
            found.is_none()
                || found == Some((at - input + 8 * G1 + K4, 3)) && (input..input + bytes).contains(&at)
        };
        let moments = at_every_moment(0, inputs, right, |tree| {
            // SAFETY: no other thread changes the tree.
            unsafe { assert!(tree.map(input, &[range(8 * G1 + K4, bytes)], BOTH).unwrap().is_none()) };
        });
        assert!(moments >= 2, "new table, link");
    }
}

/// Each leaf, and each new table, is written back once: a line at a time, not an entry at a time.
#[test]
fn a_run_of_leaves_is_written_back_in_one_go() {
    let map = |tree: &super::Tree<'_>| {
        // SAFETY: no other thread changes the tree.
        unsafe { assert!(tree.map(4 * G1, &[range(K4, 256 * K4)], BOTH).unwrap().is_none()) };
    };
    let again = |tree: &super::Tree<'_>| {
        map(tree);
        // SAFETY: no other thread changes the tree.
        let stale = unsafe { tree.unmap(4 * G1, 256 * K4) }.unwrap();
        tree.redeem(flush(stale));
        map(tree);
    };
    let nothing = |_, _: Option<(u64, u64)>| true;
    // Three new tables and the link to them; then a run that is cleared and one that is written.
    assert_eq!(at_every_moment(0, vec![], nothing, map), 4);
    assert_eq!(at_every_moment(0, vec![], nothing, again), 6);
}

#[test]
fn a_walker_that_snoops_needs_no_write_back() {
    let memory = Arena::new(64);
    let tree = tree(Remap { coherent: true, sizes: LeafSizes::all(), ..remap() }, &memory);
    memory.watch(|_| panic!("written back"));
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(4 * G1, &[range(0, G1)], BOTH).unwrap().is_none());
        tree.redeem(flush(tree.protect(4 * G1 + K4, K4, READ).unwrap()));
        tree.redeem(flush(tree.unmap(4 * G1, G1).unwrap()));
    }
    memory.unwatch();
    finish(tree);
}
