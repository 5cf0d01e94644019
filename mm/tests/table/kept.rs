//! Which emptied tables stay.

use super::arena::Arena;
use super::format::{BOTH, Remap};
use super::{G1, K4, M2, Tree, finish, flush, range, remap, tree};

fn map_and_unmap(tree: &Tree<'_>, input: u64) {
    // SAFETY: no other thread changes the tree.
    unsafe {
        assert!(tree.map(input, &[range(G1, K4)], BOTH).unwrap().is_none());
        tree.redeem(flush(tree.unmap(input, K4).unwrap()));
    }
}

#[test]
fn one_page_mapped_again_and_again_allocates_nothing() {
    let memory = Arena::new(16);
    let tree = tree(remap(), &memory);
    map_and_unmap(&tree, 5 * G1);
    let before = memory.allocations();
    for page in 0..512 {
        map_and_unmap(&tree, 5 * G1 + page * K4);
    }
    assert_eq!(memory.allocations(), before);
    finish(tree);
}

#[test]
fn as_many_hot_places_as_there_are_slots() {
    let memory = Arena::new(64);
    let tree = tree(remap(), &memory);
    for round in 0..3 {
        let before = memory.allocations();
        (0..8).for_each(|place| map_and_unmap(&tree, place * M2));
        assert!(round == 0 || memory.allocations() == before);
    }
    finish(tree);
}

#[test]
fn few_empty_tables_stay() {
    let memory = Arena::new(64);
    let tree = tree(remap(), &memory);
    for place in 0..if cfg!(miri) { 64 } else { 4096 } {
        map_and_unmap(&tree, place * 37 * M2);
        // The root; eight empty tables of the lowest level and what is above them; upper tables for the next use.
        assert!(memory.used() <= 1 + 8 * 3 + 2, "{} tables at {place}", memory.used());
    }
    finish(tree);
}

#[test]
fn trim_leaves_nothing_empty() {
    let memory = Arena::new(64);
    let mut tree = tree(Remap { levels: 5, ..remap() }, &memory);
    (0..20).for_each(|place| map_and_unmap(&tree, (place << 48) + place * G1));
    // SAFETY: no other thread changes the tree.
    unsafe { assert!(tree.map(7 * G1, &[range(0, K4)], BOTH).unwrap().is_none()) };
    let stale = tree.trim().unwrap();
    let before = memory.used();
    assert!(stale.holds_tables() && !stale.only_leaves() && stale.changed_bytes() == 0);
    tree.redeem(flush(stale));
    assert!(memory.used() < before);
    tree.release_spare();
    assert_eq!(memory.used(), 5, "the way to the page that is mapped");
    assert!(tree.trim().is_none() && tree.lookup(7 * G1).is_some());
    finish(tree);
}

#[test]
fn an_emptied_upper_table_goes_with_the_last_lower_one() {
    let memory = Arena::new(64);
    let mut tree = tree(remap(), &memory);
    // Two tables of the lowest level in one of the next, whose slots are then taken by others.
    map_and_unmap(&tree, 0);
    map_and_unmap(&tree, M2);
    (0..8).for_each(|place| map_and_unmap(&tree, 9 * G1 + place * M2));
    assert_eq!(tree.trace(0).steps().count(), 2, "the upper table is gone too");
    tree.release_spare();
    assert_eq!(memory.used(), 1 + 2 + 8);
    finish(tree);
}
