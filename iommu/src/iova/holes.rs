//! The free addresses: an intrusive tree of holes, and for each power of two the holes that have room for it.
//!
//! A *hole* is a longest run of free pages. All holes are in one tree by address, which is how neighbours are found
//! when a range comes back. Each is also in the tree of its *order*: the largest power of two of pages that fits into
//! it naturally aligned. A request for 2^k aligned pages fits exactly the holes of order k and above, so the search
//! looks at the lowest hole of one order after the other: it needs no luck, and a device mask makes it no longer. It
//! takes the lowest order that fits, which is what keeps large aligned holes whole.
//!
//! Page 0, the rest below 4 GiB, and what lies above have walls between them that no hole crosses. So a device that
//! reaches all of the space leaves the addresses below 4 GiB to those that reach nothing else, and page 0 is there for
//! whoever asks for it by address only.

mod index;

use core::cell::Cell;

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};
use mm::{PAGE_BYTES, table::TableMemory};

use crate::slab::{Slab, Slot};
use index::Index;

/// First page above 4 GiB.
pub(super) const HIGH: u64 = 1 << 20;

/// Number of pages in the widest address space that VT-d knows: 57 bits.
pub(super) const MAX_PAGES: u64 = 1 << 45;

/// Pages at which a hole must end: see the module's documentation.
const WALLS: [u64; 2] = [1, HIGH];

/// The first page that is not wholly at or below address `last`.
pub(super) const fn limit(last: u64) -> u64 {
    let pages = last / PAGE_BYTES + (last % PAGE_BYTES == PAGE_BYTES - 1) as u64;
    if pages < MAX_PAGES { pages } else { MAX_PAGES }
}

/// Pages `first..end`: free, or to be taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Run {
    pub first: u64,
    pub end: u64,
}

impl Run {
    pub const fn pages(self) -> u64 {
        self.end - self.first
    }

    /// log2 of the largest naturally aligned block inside. A run of at least 2^m pages has one of 2^(m-1).
    const fn order(self) -> u32 {
        let largest = self.pages().ilog2();
        let aligned = self.first.next_multiple_of(1 << largest);
        if aligned + (1 << largest) <= self.end { largest } else { largest - 1 }
    }

    /// The parts between walls, lowest first.
    pub fn pieces(self) -> impl Iterator<Item = Run> {
        let mut rest = self;
        core::iter::from_fn(move || {
            if rest.first >= rest.end {
                return None;
            }
            let wall = WALLS.into_iter().find(|&wall| rest.first < wall).unwrap_or(u64::MAX);
            let piece = Run { first: rest.first, end: rest.end.min(wall) };
            rest.first = piece.end;
            Some(piece)
        })
    }
}

/// A longest run of free pages.
struct Hole {
    by_address: RBTreeLink,
    by_order: RBTreeLink,
    /// Both change while the hole is in the trees, but never past another hole.
    first: Cell<u64>,
    end: Cell<u64>,
}

impl Hole {
    fn new(run: Run) -> Self {
        Self {
            by_address: RBTreeLink::new(),
            by_order: RBTreeLink::new(),
            first: Cell::new(run.first),
            end: Cell::new(run.end),
        }
    }

    fn run(&self) -> Run {
        Run { first: self.first.get(), end: self.end.get() }
    }
}

intrusive_adapter!(ByAddress = UnsafeRef<Hole>: Hole { by_address => RBTreeLink });

impl KeyAdapter<'_> for ByAddress {
    type Key = u64;

    fn get_key(&self, hole: &Hole) -> u64 {
        hole.first.get()
    }
}

/// How a run must lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub pages: u64,
    /// In pages, a power of two.
    pub alignment: u64,
    /// In pages, a power of two, not less than `pages`: a multiple of it may not lie inside the run.
    pub boundary: u64,
    /// First page that the device cannot use.
    pub limit: u64,
}

impl Shape {
    /// The lowest place in `hole`.
    fn place(&self, hole: Run) -> Option<Run> {
        let end = hole.end.min(self.limit);
        let mut first = hole.first.next_multiple_of(self.alignment);
        if first / self.boundary != (first + self.pages - 1) / self.boundary {
            first = first.next_multiple_of(self.boundary.max(self.alignment));
        }
        (first + self.pages <= end).then(|| Run { first, end: first + self.pages })
    }
}

/// The free pages of a space.
pub(super) struct Holes {
    by_address: RBTree<ByAddress>,
    index: Index,
    /// Every run that is handed out keeps a node reserved for each of its pieces, so that it can always come back.
    nodes: Slab<Hole>,
}

// SAFETY: all nodes belong to this structure; no reference to one of them leaves it.
unsafe impl Send for Holes {}

impl Holes {
    /// No free pages at all.
    ///
    /// # Safety
    /// All calls get the same table memory, and [`release`](Self::release) is the last of them.
    pub unsafe fn new() -> Self {
        Self {
            by_address: RBTree::new(ByAddress::new()),
            index: Index::new(),
            // SAFETY: nodes are used by the trees only, and `release` empties those first.
            nodes: unsafe { Slab::new() },
        }
    }

    /// Gives the memory of all nodes back.
    pub fn release<M: TableMemory>(&mut self, tables: &M) {
        self.by_address.fast_clear();
        self.index = Index::new();
        self.nodes.release(tables);
    }

    /// Gives back memory of nodes that nothing needs now.
    pub fn trim<M: TableMemory>(&mut self, tables: &M) {
        self.nodes.trim(tables);
    }

    /// Pages of memory that hold nodes.
    pub fn memory_pages(&self) -> usize {
        self.nodes.pages()
    }

    /// The holes, lowest first.
    #[cfg(test)]
    pub fn iter(&self) -> impl Iterator<Item = Run> {
        self.by_address.iter().map(Hole::run)
    }

    /// Adds `run`, none of which is free, to the space. `false` if there is no memory for it.
    #[must_use]
    pub fn add<M: TableMemory>(&mut self, tables: &M, run: Run) -> bool {
        let added = self.nodes.reserve(tables, run.pieces().count());
        added && self.give(tables, run)
    }

    /// Sets nodes aside for one [`take`](Self::take) and for giving back what it takes in `parts` pieces. `false` if
    /// there is no memory for them.
    ///
    /// Taking a run out of the middle of a hole leaves one hole more, and each piece that comes back adds one at most.
    /// (A run that crosses a wall takes the end of one hole and the beginning of another, and leaves none more.)
    #[must_use]
    pub fn prepare<M: TableMemory>(&mut self, tables: &M, parts: usize) -> bool {
        self.nodes.reserve(tables, parts + 1)
    }

    /// Where 2^`order` naturally aligned pages are free below page `limit`: how many such blocks follow each other, up
    /// to `count`, and the first. Above 4 GiB first if `limit` reaches there.
    pub fn find_blocks(&self, order: u32, count: u64, limit: u64) -> Option<Run> {
        self.index.find_blocks(order, count, limit)
    }

    /// Where a run of any length may lie, in the lowest orders that can hold it.
    pub fn find(&self, shape: &Shape) -> Option<Run> {
        self.index.find(shape)
    }

    /// Whether all of `run` is free.
    pub fn is_free(&self, run: Run) -> bool {
        run.pieces().all(|piece| {
            let hole = self.by_address.upper_bound(Bound::Included(&piece.first));
            hole.get().is_some_and(|hole| hole.end.get() >= piece.end)
        })
    }

    /// Takes `run`, all of it free, out of the holes, after [`prepare`](Self::prepare).
    pub fn take<M: TableMemory>(&mut self, tables: &M, run: Run) {
        let mut split = false;
        for piece in run.pieces() {
            split |= self.take_piece(tables, piece);
        }
        if !split {
            self.nodes.unreserve(1);
        }
    }

    /// Takes `run` back, each of whose pieces has a node set aside. `false`, and nothing done, if some of it is free.
    #[must_use]
    pub fn give<M: TableMemory>(&mut self, tables: &M, run: Run) -> bool {
        // Nothing is changed before it is known of all pieces.
        let overlaps = run.pieces().nth(1).is_some() && self.touches(run);
        !overlaps && run.pieces().all(|piece| self.give_piece(tables, piece))
    }

    /// Whether some of `run` is free.
    fn touches(&self, run: Run) -> bool {
        let below = self.by_address.upper_bound(Bound::Excluded(&run.end));
        below.get().is_some_and(|hole| hole.end.get() > run.first)
    }

    /// Takes `piece` out of the hole around it. Whether that took a node.
    fn take_piece<M: TableMemory>(&mut self, tables: &M, piece: Run) -> bool {
        let mut cursor = self.by_address.upper_bound_mut(Bound::Included(&piece.first));
        let Some(hole) = cursor.as_cursor().clone_pointer() else { return false };
        let around = hole.run();
        debug_assert!(piece.end <= around.end, "{piece:?} is not free");
        match (around.first < piece.first, piece.end < around.end) {
            (false, false) => {
                self.index.remove(around.first, around.order());
                cursor.remove();
                // SAFETY: the hole has just left both trees, and `hole` is not used again.
                self.nodes.put(tables, unsafe { Slot::from_ref(hole) });
                return false;
            }
            (true, false) => hole.end.set(piece.first),
            (false, true) => hole.first.set(piece.end),
            (true, true) => {
                hole.end.set(piece.first);
                let above = Hole::new(Run { first: piece.end, end: around.end });
                let above = self.nodes.take_reserved(above).map(Slot::into_ref);
                debug_assert!(above.is_some(), "no node set aside");
                if let Some(above) = above {
                    cursor.insert_after(above.clone());
                    self.index.insert(above);
                }
            }
        }
        self.index.moved(hole, around.order());
        around.first < piece.first && piece.end < around.end
    }

    /// Makes `piece` a hole, or part of its neighbours. `false`, and nothing done, if some of it is free.
    fn give_piece<M: TableMemory>(&mut self, tables: &M, piece: Run) -> bool {
        let mut cursor = self.by_address.upper_bound_mut(Bound::Included(&piece.first));
        let (below, above) = (cursor.as_cursor().clone_pointer(), cursor.peek_next().clone_pointer());
        if below.as_ref().is_some_and(|hole| hole.end.get() > piece.first)
            || above.as_ref().is_some_and(|hole| hole.first.get() < piece.end)
        {
            return false;
        }
        let meets = |end: u64, first: u64| end == first && !WALLS.contains(&first);
        let below = below.filter(|hole| meets(hole.end.get(), piece.first));
        let above = above.filter(|hole| meets(piece.end, hole.first.get()));
        match (below, above) {
            (None, None) => {
                let hole = self.nodes.take_reserved(Hole::new(piece)).map(Slot::into_ref);
                debug_assert!(hole.is_some(), "no node set aside");
                if let Some(hole) = hole {
                    cursor.insert_after(hole.clone());
                    self.index.insert(hole);
                }
                return true;
            }
            (None, Some(above)) => {
                let order = above.run().order();
                above.first.set(piece.first);
                self.index.moved(above, order);
            }
            (Some(below), above) => {
                let order = below.run().order();
                below.end.set(piece.end);
                if let Some(above) = above {
                    let run = above.run();
                    below.end.set(run.end);
                    self.index.remove(run.first, run.order());
                    cursor.move_next();
                    cursor.remove();
                    // SAFETY: the hole has just left both trees, and `above` is not used again.
                    self.nodes.put(tables, unsafe { Slot::from_ref(above) });
                }
                self.index.moved(below, order);
            }
        }
        self.nodes.unreserve(1);
        true
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_a_run_is_that_of_its_largest_aligned_block() {
        for (first, end) in (0..48_u64).flat_map(|first| (first + 1..=64).map(move |end| (first, end))) {
            let holds = |&order: &u32| first.next_multiple_of(1 << order) + (1 << order) <= end;
            let largest = (0..7).rev().find(holds);
            assert_eq!(Some(Run { first, end }.order()), largest, "{first}..{end}");
        }
    }

    #[test]
    fn a_page_that_ends_at_the_last_address_is_below_the_limit() {
        assert_eq!([0, 0xffe, 0xfff, 0x1000, 0x1fff].map(limit), [0, 0, 1, 1, 2]);
        assert_eq!(
            (limit((1 << 57) - 1), limit((1 << 57) - 2), limit(u64::MAX)),
            (MAX_PAGES, MAX_PAGES - 1, MAX_PAGES)
        );
    }
}
