//! Magazines, racks and depots by themselves, and how seldom they need the lock of the whole space.

use std::{sync::atomic::Ordering, vec::Vec};

use super::{
    super::{
        IovaSpace,
        holes::{HIGH, Holes, Run},
        magazine::{Depot, Kind, Magazine, Rack},
    },
    MASK_48,
    host::Host,
};
use crate::slab::{Slab, Slot};
use mm::{PAGE_BYTES as PAGE, PAGE_SHIFT};

const LAST: u64 = u64::MAX;

fn kind(pages: u64, last: u64) -> Kind {
    Kind::for_request(pages, last).expect("a size that magazines hold")
}

/// Slots for magazines, and the host that they come from.
struct Store(std::sync::Arc<Host>, Slab<Magazine>);

impl Store {
    fn new() -> Self {
        // SAFETY: one host; `drop` releases the slots last.
        Self(Host::new(256), unsafe { Slab::new() })
    }

    fn magazine(&mut self, kind: Kind, blocks: &[u64]) -> Slot<Magazine> {
        let mut magazine = self.1.take(&self.0.frames, Magazine::new(kind)).expect("there is memory");
        assert!(blocks.iter().all(|&first| magazine.push(first)));
        magazine
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.1.release(&self.0.frames);
    }
}

#[test]
fn sizes_and_parts_of_the_space_have_kinds_of_their_own() {
    for (pages, order) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (512, 9)] {
        let narrow = kind(pages, (HIGH << PAGE_SHIFT) - 1);
        let wide = kind(pages, HIGH << PAGE_SHIFT);
        assert_eq!((narrow.order, wide.order), (order, order));
        assert_eq!((narrow.index(), wide.index()), (2 * order as usize, 2 * order as usize + 1));
        assert_eq!(narrow.pages(), 1 << order);
        // 64 blocks, and no more than 2,048 pages.
        let rounds = [64, 64, 64, 64, 64, 64, 32, 16, 8, 4][order as usize];
        assert_eq!((narrow.rounds(), narrow.refill()), (rounds, rounds / 2));
    }
    assert!([0, 513, u64::MAX].into_iter().all(|pages| Kind::for_request(pages, LAST).is_none()));
    assert!(Kind::all().map(Kind::index).eq(0..20));
}

#[test]
fn a_magazine_is_a_stack() {
    let mut magazine = Magazine::new(kind(512, LAST));
    assert_eq!(magazine.pop(PAGE, LAST), None);
    let blocks = [1, 2, 3, 4].map(|block| block * 512 * PAGE);
    for (index, block) in blocks.into_iter().enumerate() {
        assert_eq!((magazine.len(), magazine.room()), (index, 4 - index));
        assert!(magazine.push(block));
    }
    assert!(!magazine.push(5 * 512 * PAGE), "it is full");
    assert_eq!((magazine.len(), magazine.room()), (4, 0));
    // The last of the bytes counts, not those of the block that nobody asked for.
    let end = blocks[3] + 3 * PAGE;
    assert_eq!(magazine.pop(3 * PAGE, end - 2), None);
    assert_eq!(magazine.pop(3 * PAGE, end - 1), Some(blocks[3]));
    assert_eq!(magazine.pop(PAGE, LAST), Some(blocks[2]));
    assert_eq!(magazine.drain().collect::<Vec<_>>(), blocks[..2]);
    assert_eq!((magazine.len(), magazine.pop(PAGE, LAST)), (0, None));
}

#[test]
fn the_topmost_block_that_fits_is_found_below_others() {
    let mut store = Store::new();
    let kind = kind(1, LAST);
    let block = |page: u64| page * PAGE;
    let loaded = store.magazine(kind, &[block(1), block(5), block(9), block(7)]);
    let previous = store.magazine(kind, &[block(3), block(20)]);
    let mut rack = Rack { loaded: Some(loaded), previous: Some(previous) };
    assert_eq!(rack.pop(PAGE, block(6)), None, "the top is beyond");
    assert_eq!(rack.pop_any(PAGE, block(6) - 1), Some(block(5)));
    assert_eq!(rack.pop_any(PAGE, block(4) - 1), Some(block(1)));
    assert_eq!(rack.pop_any(PAGE, block(4) - 1), Some(block(3)), "of the other magazine");
    assert_eq!(rack.pop_any(PAGE, block(4) - 1), None);
    // The others are where they were.
    assert_eq!((rack.pop(PAGE, LAST), rack.pop(PAGE, LAST)), (Some(block(7)), Some(block(9))));
    assert_eq!(rack.pop(PAGE, LAST), None);
    // An empty magazine makes way.
    assert_eq!(rack.pop_any(PAGE, LAST), Some(block(20)));
    assert_eq!(rack.loaded.as_ref().map(|magazine| magazine.room()), Some(64), "the other is loaded");
}

#[test]
fn a_rack_makes_room_with_the_magazine_that_has_some() {
    let mut store = Store::new();
    let kind = kind(512, LAST);
    let full: Vec<u64> = (1..=4).map(|block| block * 512 * PAGE).collect();
    let mut rack = Rack::default();
    assert!(!rack.make_room() && !rack.push(full[0]));
    rack.loaded = Some(store.magazine(kind, &full));
    rack.previous = Some(store.magazine(kind, &full[..3]));
    assert!(!rack.push(full[0]));
    assert!(rack.make_room() && rack.push(full[3]));
    assert!(!rack.make_room() && !rack.push(full[0]), "both are full");
    assert_eq!(rack.magazines().map(Magazine::len).collect::<Vec<_>>(), [4, 4]);
}

/// 64 magazines, or 32,768 pages in them.
#[test]
fn a_depot_has_an_end() {
    let mut store = Store::new();
    for (pages, most) in [(1, 64), (32, 16), (512, 16)] {
        let kind = kind(pages, LAST);
        let blocks: Vec<u64> = (1..=kind.rounds() as u64).map(|block| block * pages * PAGE).collect();
        let mut depot = Depot::default();
        let mut count = 0;
        while depot.has_room(kind) {
            depot.push(store.magazine(kind, &blocks));
            count += 1;
            assert_eq!(depot.blocks(), count * blocks.len());
        }
        assert_eq!(count, most, "{pages} pages");
        while let Some(magazine) = depot.pop() {
            count -= 1;
            assert_eq!((depot.blocks(), depot.has_room(kind)), (count * blocks.len(), true));
            store.1.put(&store.0.frames, magazine);
        }
        assert_eq!(count, 0);
    }
}

/// A CPU at the edge of a magazine, where each step is one beyond it, goes to the depot now and then only.
#[test]
fn the_edge_of_a_magazine_costs_no_lock_a_step() {
    let host = Host::new(1024);
    let space = IovaSpace::new(host.clone(), MASK_48).expect("there is memory");
    let (blocks, edges) = if cfg!(miri) { (130, 4) } else { (1000, 200) };
    let mut held: Vec<_> = (0..blocks).map(|_| space.allocate(1, MASK_48).expect("room")).collect();
    for edge in 0..edges {
        let before = host.global_locks.load(Ordering::Relaxed);
        for _ in 0..20 {
            space.free(held.pop().expect("some"), 1).expect("it was allocated");
            held.push(space.allocate(1, MASK_48).expect("room"));
        }
        let locks = host.global_locks.load(Ordering::Relaxed) - before;
        assert!(locks <= 2, "{locks} locks for 20 steps after {edge} blocks");
        space.free(held.pop().expect("some"), 1).expect("it was allocated");
    }
}

#[test]
fn statistics_count_what_lies_in_magazines_and_depot() {
    let host = Host::new(4096);
    let space = IovaSpace::new(host.clone(), MASK_48).expect("there is memory");
    let count = if cfg!(miri) { 100 } else { 300 };
    // All of them stay, with what was fetched beside the last, but of the largest: of those the rack holds 8 and the
    // depot 64.
    for (pages, stay) in [(1_u64, count..=count + 31), (4, count..=count + 31), (512, 72..=72)] {
        let before = space.statistics();
        let live: Vec<_> = (0..count).map(|_| space.allocate(pages, MASK_48).expect("room")).collect();
        let statistics = space.statistics();
        assert_eq!(statistics.allocated_pages - before.allocated_pages, count * pages);
        assert_eq!(statistics.memory_pages, host.frames.in_use());
        live.into_iter().for_each(|iova| space.free(iova, pages).expect("it was allocated"));
        let statistics = space.statistics();
        assert_eq!(statistics.allocated_pages, before.allocated_pages);
        let kept = (statistics.cached_pages - before.cached_pages) / pages;
        assert!(stay.contains(&kept), "{kept} blocks of {pages} pages are kept");
    }
}

/// A run of two pieces, the upper of which is free: nothing is taken back, not even the lower one.
#[test]
fn a_run_that_is_free_in_part_is_not_taken_back() {
    let host = Host::new(16);
    // SAFETY: one host; `release` is the last call.
    let mut holes = unsafe { Holes::new() };
    let free = |holes: &Holes| holes.iter().map(|run| (run.first, run.end)).collect::<Vec<_>>();
    assert!(holes.add(&host.frames, Run { first: HIGH, end: HIGH + 8 }));
    assert!(holes.prepare(&host.frames, 2));
    for run in [Run { first: HIGH - 4, end: HIGH + 1 }, Run { first: HIGH - 4, end: HIGH + 9 }] {
        assert!(!holes.give(&host.frames, run));
        assert_eq!(free(&holes), [(HIGH, HIGH + 8)]);
    }
    assert!(holes.give(&host.frames, Run { first: HIGH - 4, end: HIGH }));
    assert_eq!(free(&holes), [(HIGH - 4, HIGH), (HIGH, HIGH + 8)]);
    holes.release(&host.frames);
    assert_eq!(host.frames.in_use(), 0);
}

/// What is taken from an end of a hole, and comes back, leaves no node set aside.
#[test]
fn taking_from_the_ends_of_holes_sets_no_memory_aside() {
    let host = Host::new(64);
    // SAFETY: one host; `release` is the last call.
    let mut holes = unsafe { Holes::new() };
    assert!(holes.add(&host.frames, Run { first: 16, end: 64 }));
    let before = holes.memory_pages();
    for run in [Run { first: 16, end: 20 }, Run { first: 60, end: 64 }, Run { first: 16, end: 64 }] {
        for _ in 0..if cfg!(miri) { 100 } else { 1000 } {
            assert!(holes.prepare(&host.frames, 1));
            holes.take(&host.frames, run);
            assert!(holes.give(&host.frames, run));
        }
        assert_eq!(holes.memory_pages(), before, "{run:?}");
    }
    holes.release(&host.frames);
}

#[test]
fn a_space_that_ends_with_ranges_out_leaves_nothing() {
    for new in [IovaSpace::new, IovaSpace::new_checked] {
        let host = Host::new(1024);
        let space = new(host.clone(), MASK_48).expect("there is memory");
        for pages in [1, 4, 513, 1000] {
            let _never_given_back = space.allocate(pages, MASK_48).expect("room");
        }
        drop(space);
        assert_eq!(host.frames.in_use(), 0);
    }
}
