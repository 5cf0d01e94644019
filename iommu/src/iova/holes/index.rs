//! The holes by order: where the search begins.

use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};

use super::{HIGH, Hole, MAX_PAGES, Run, Shape};

/// Orders 0 to 45.
const ORDERS: usize = MAX_PAGES.ilog2() as usize + 1;

/// Holes that an exact search looks at before it gives up: it runs with interrupts off.
const MAX_EXACT_LOOKS: usize = 4096;

intrusive_adapter!(ByOrder = UnsafeRef<Hole>: Hole { by_order => RBTreeLink });

impl KeyAdapter<'_> for ByOrder {
    type Key = u64;

    fn get_key(&self, hole: &Hole) -> u64 {
        hole.first.get()
    }
}

/// The holes of one part of the space by order.
struct Orders {
    /// Bit k is set if there is a hole of order k.
    present: u64,
    trees: [RBTree<ByOrder>; ORDERS],
}

impl Orders {
    fn new() -> Self {
        Self { present: 0, trees: core::array::from_fn(|_| RBTree::new(ByOrder::new())) }
    }

    /// The trees of the orders from `order` up that are not empty, lowest first.
    fn from(&self, order: u32) -> impl Iterator<Item = &RBTree<ByOrder>> {
        let mut left = self.present & (!0 << order);
        core::iter::from_fn(move || {
            let lowest = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            self.trees.get(lowest)
        })
    }
}

/// All holes but page 0, by order.
pub(super) struct Index {
    low: Orders,
    high: Orders,
}

impl Index {
    pub fn new() -> Self {
        Self { low: Orders::new(), high: Orders::new() }
    }

    /// Where holes that start at page `first` belong; nowhere if it is page 0.
    fn of(&mut self, first: u64) -> Option<&mut Orders> {
        match first {
            0 => None,
            1..HIGH => Some(&mut self.low),
            _ => Some(&mut self.high),
        }
    }

    pub fn insert(&mut self, hole: UnsafeRef<Hole>) {
        let Run { first, .. } = hole.run();
        let order = hole.run().order();
        if let Some(orders) = self.of(first) {
            orders.present |= 1 << order;
            orders.trees[order as usize].insert(hole);
        }
    }

    /// Takes out the hole at `first`, which was put in when its order was `order`.
    pub fn remove(&mut self, first: u64, order: u32) {
        if let Some(orders) = self.of(first) {
            orders.trees[order as usize].find_mut(&first).remove();
            if orders.trees[order as usize].is_empty() {
                orders.present &= !(1 << order);
            }
        }
    }

    /// Moves `hole`, which has grown or shrunk, from order `old` to the one that it has now.
    pub fn moved(&mut self, hole: UnsafeRef<Hole>, old: u32) {
        let run = hole.run();
        if run.order() != old {
            self.remove(run.first, old);
            self.insert(hole);
        }
    }

    /// The parts to search for a run below page `limit`, in order of preference.
    fn search(&self, limit: u64) -> impl Iterator<Item = &Orders> {
        (limit > HIGH).then_some(&self.high).into_iter().chain([&self.low])
    }

    /// Where 2^`order` naturally aligned pages are free below page `limit`: how many such blocks follow each other, up
    /// to `count`, and the first. Above 4 GiB first if `limit` reaches there.
    pub fn find_blocks(&self, order: u32, count: u64, limit: u64) -> Option<Run> {
        for orders in self.search(limit) {
            for tree in orders.from(order) {
                // Every hole of this tree has room, so the lowest has the lowest room.
                let Some(hole) = tree.front().get() else { continue };
                let first = hole.first.get().next_multiple_of(1 << order);
                let room = hole.end.get().min(limit).saturating_sub(first) >> order;
                if room > 0 {
                    return Some(Run { first, end: first + (room.min(count) << order) });
                }
            }
        }
        None
    }

    /// Where a run of any length may lie, in the lowest orders that can hold it.
    pub fn find(&self, shape: &Shape) -> Option<Run> {
        let least = shape.pages.ilog2().saturating_sub(1);
        let trees = self.search(shape.limit).flat_map(|orders| orders.from(least));
        let holes = trees.flat_map(|tree| tree.iter().take_while(|hole| hole.first.get() < shape.limit));
        holes.take(MAX_EXACT_LOOKS).find_map(|hole| shape.place(hole.run()))
    }
}
