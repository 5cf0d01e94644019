//! Two threads that meet in a new table whose link is not written back yet, in front of a walker that does not snoop.

use std::sync::mpsc;
use std::thread;

use super::arena::Arena;
use super::format::BOTH;
use super::walker::Walker;
use super::{G1, K4, M2, Tree, finish, flush, range, remap, tree};

/// More than any operation here writes back.
const MOMENTS: usize = 8;

/// Does `first`, and before its `nth` write-back, all of `second` in another thread.
fn meet(
    memory: &Arena,
    nth: usize,
    tree: &Tree<'_>,
    first: impl FnOnce(&Tree<'_>),
    second: impl FnOnce(&Tree<'_>) + Send,
) {
    let (go, started) = mpsc::channel();
    let (done, ended) = mpsc::channel::<()>();
    memory.delay_write_back(nth, move |_| {
        go.send(()).unwrap();
        let _ = ended.recv();
    });
    thread::scope(|scope| {
        scope.spawn(move || {
            // Dropped in the end, even if the test fails.
            let _done = done;
            // There may be fewer write-backs: then the second thread comes too late, which is a moment as well.
            let _ = started.recv();
            second(tree);
        });
        first(tree);
        memory.delay_write_back(0, |_| ());
    });
}

#[test]
fn what_is_mapped_beside_somebody_is_visible_at_once() {
    for nth in 1..=MOMENTS {
        let memory = Arena::new(64);
        let tree = tree(remap(), &memory);
        let walker = Walker { root: tree.root(), levels: 4, snoops: false, present: 3 };
        let map = |tree: &Tree<'_>, page: u64| {
            let (input, output) = (4 * G1 + page * K4, 8 * G1 + page * K4);
            // SAFETY: each thread has a page of its own.
            unsafe { assert!(tree.map(input, &[range(output, K4)], BOTH).unwrap().is_none()) };
            let found = walker.walk(&memory, input).map(|found| found.output);
            assert_eq!(found, Some(output), "page {page}, with the other before write-back {nth}");
        };
        meet(
            &memory,
            nth,
            &tree,
            |tree| map(tree, 0),
            |tree| [1, 2].into_iter().for_each(|page| map(tree, page)),
        );
        finish(tree);
    }
}

#[test]
fn what_is_unmapped_beside_a_split_is_out_of_reach_after_its_flush() {
    for nth in 1..=MOMENTS {
        let memory = Arena::new(64);
        let tree = tree(remap(), &memory);
        let walker = Walker { root: tree.root(), levels: 4, snoops: false, present: 3 };
        // SAFETY: no other thread changes the tree yet.
        unsafe { assert!(tree.map(4 * G1, &[range(8 * G1, M2)], BOTH).unwrap().is_none()) };
        let unmap = |tree: &Tree<'_>, page: u64| {
            let input = 4 * G1 + page * K4;
            // SAFETY: each thread has a page of its own.
            let stale = unsafe { tree.unmap(input, K4) }.unwrap();
            let found = walker.walk(&memory, input).map(|found| found.output);
            assert_eq!(found, None, "page {page}, with the other before write-back {nth}");
            tree.redeem(flush(stale));
        };
        meet(
            &memory,
            nth,
            &tree,
            |tree| unmap(tree, 0),
            |tree| [511, 1].into_iter().for_each(|page| unmap(tree, page)),
        );
        finish(tree);
    }
}
