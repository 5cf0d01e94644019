//! What was given back and waits for the next request: magazines of blocks of one size, two for each CPU and size, and
//! a depot that the CPUs exchange them through.
//!
//! After Bonwick and Adams, "Magazines and Vmem" (USENIX 2001). A CPU that allocates and frees in turn stays within its
//! two magazines; one that only frees hands full magazines to one that only allocates.

use core::mem;

use super::holes::{HIGH, Run};
use crate::slab::Slot;
use mm::PAGE_SHIFT;

/// Block sizes that magazines hold: 1 to 512 pages (2 MiB), in powers of two.
const ORDERS: usize = 10;

/// Pages in the largest of them.
const LARGEST: u64 = 1 << (ORDERS - 1);

/// Kinds of blocks: each size for devices that reach addresses below 4 GiB only, and for all others.
pub(super) const KINDS: usize = 2 * ORDERS;

/// Blocks in a magazine.
const ROUNDS: usize = 64;

/// Most pages in a magazine, whatever their blocks' size.
const MAGAZINE_PAGES: usize = 2048;

/// Full magazines of a kind in the depot, and the pages in them. What is given back beyond that returns to the holes.
const DEPOT_MAGAZINES: usize = 64;
const DEPOT_PAGES: usize = 1 << 15;

/// Most magazines of a CPU.
pub(super) const MAX_MAGAZINES: usize = 2 * KINDS;

/// Most magazines in the depot.
pub(super) const MAX_DEPOT_MAGAZINES: usize = KINDS * DEPOT_MAGAZINES;

/// A size of blocks and the part of the space that they serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Kind {
    pub order: u32,
    wide: bool,
}

impl Kind {
    /// The blocks for `pages` pages up to address `last`. `None` if magazines hold none of that size.
    #[inline]
    pub fn for_request(pages: u64, last: u64) -> Option<Self> {
        let others = pages.wrapping_sub(1);
        if others >= LARGEST {
            return None;
        }
        // The order of 2^k, and of everything above 2^(k-1), is k.
        let order = (2 * others + 1).ilog2();
        Some(Self { order, wide: last >= HIGH << PAGE_SHIFT })
    }

    /// The block that begins at address `first` and was handed out for `pages` pages. `None` if magazines hold none of
    /// that size.
    #[inline]
    pub fn of_block(first: u64, pages: u64) -> Option<Self> {
        Self::for_request(pages, first)
    }

    #[inline]
    pub fn index(self) -> usize {
        2 * self.order as usize + usize::from(self.wide)
    }

    pub fn pages(self) -> u64 {
        1 << self.order
    }

    /// Blocks in a magazine of this kind.
    pub fn rounds(self) -> usize {
        ROUNDS.min(MAGAZINE_PAGES >> self.order)
    }

    /// Blocks to fetch from the holes at once: half a magazine, so that what comes back next finds room.
    pub fn refill(self) -> usize {
        self.rounds().div_ceil(2)
    }

    /// The pages of the block at address `first`.
    pub fn run(self, first: u64) -> Run {
        let first = first >> PAGE_SHIFT;
        Run { first, end: first + self.pages() }
    }

    /// Whether `run` is a block of this kind. What begins with page 0 is none: that is for who asks for it by address.
    pub fn is_block(self, run: Run) -> bool {
        run.first != 0 && run.pages() == self.pages() && run.first.is_multiple_of(self.pages())
    }

    /// All kinds, by index.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..ORDERS as u32).flat_map(|order| [false, true].map(|wide| Self { order, wide }))
    }
}

/// A stack of blocks of one kind.
pub(super) struct Magazine {
    count: usize,
    rounds: usize,
    /// The next one in the depot.
    next: Option<Slot<Magazine>>,
    firsts: [u64; ROUNDS],
}

impl Magazine {
    pub fn new(kind: Kind) -> Self {
        Self { count: 0, rounds: kind.rounds(), next: None, firsts: [0; ROUNDS] }
    }

    /// Puts the block at address `first` on top. `false` if the magazine is full.
    #[inline]
    pub fn push(&mut self, first: u64) -> bool {
        let has_room = self.count < self.rounds;
        if has_room {
            // `rounds` is not above `ROUNDS`: the remainder only says so to the compiler.
            self.firsts[self.count % ROUNDS] = first;
            self.count += 1;
        }
        has_room
    }

    /// Takes the top block, if the last of its first `bytes` bytes is at or below address `last`.
    #[inline]
    pub fn pop(&mut self, bytes: u64, last: u64) -> Option<u64> {
        // Out of bounds if there is none.
        let top = self.count.wrapping_sub(1);
        let first = *self.firsts.get(top)?;
        if first + (bytes - 1) > last {
            return None;
        }
        self.count = top;
        Some(first)
    }

    /// Takes any block whose first `bytes` bytes are at or below address `last`.
    fn pop_any(&mut self, bytes: u64, last: u64) -> Option<u64> {
        let blocks = self.firsts.get_mut(..self.count)?;
        let fitting = blocks.iter().rposition(|first| first + (bytes - 1) <= last)?;
        blocks[fitting..].rotate_left(1);
        self.count -= 1;
        self.firsts.get(self.count).copied()
    }

    /// Takes all blocks.
    pub fn drain(&mut self) -> impl Iterator<Item = u64> {
        let count = mem::take(&mut self.count);
        self.firsts.iter().take(count).copied()
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Blocks that still fit.
    pub fn room(&self) -> usize {
        self.rounds.saturating_sub(self.count)
    }
}

/// One CPU's magazines of one kind.
#[derive(Default)]
pub(super) struct Rack {
    pub loaded: Option<Slot<Magazine>>,
    /// Full or empty as it left `loaded`, so that a CPU at the edge of a magazine does not go to the depot each time.
    pub previous: Option<Slot<Magazine>>,
}

impl Rack {
    /// A block from the top of the loaded magazine, if it fits.
    #[inline]
    pub fn pop(&mut self, bytes: u64, last: u64) -> Option<u64> {
        self.loaded.as_mut()?.pop(bytes, last)
    }

    /// Puts a block on top of the loaded magazine. `false` if there is no room.
    #[inline]
    pub fn push(&mut self, first: u64) -> bool {
        self.loaded.as_mut().is_some_and(|magazine| magazine.push(first))
    }

    /// Any block of either magazine that fits.
    pub fn pop_any(&mut self, bytes: u64, last: u64) -> Option<u64> {
        if self.loaded.as_ref().is_none_or(|magazine| magazine.len() == 0) {
            self.swap();
        }
        let from_loaded = self.loaded.as_mut().and_then(|magazine| magazine.pop_any(bytes, last));
        from_loaded.or_else(|| self.previous.as_mut()?.pop_any(bytes, last))
    }

    /// Exchanges the two magazines if that makes room for a block.
    pub fn make_room(&mut self) -> bool {
        let room = self.previous.as_ref().is_some_and(|magazine| magazine.room() > 0);
        if room {
            self.swap();
        }
        room
    }

    pub fn swap(&mut self) {
        mem::swap(&mut self.loaded, &mut self.previous);
    }

    /// Both magazines.
    pub fn magazines(&self) -> impl Iterator<Item = &Magazine> {
        self.loaded.iter().chain(&self.previous).map(|magazine| &**magazine)
    }

    /// Takes a magazine, if there is one.
    pub fn take(&mut self) -> Option<Slot<Magazine>> {
        self.loaded.take().or_else(|| self.previous.take())
    }
}

/// Full magazines of one kind.
#[derive(Default)]
pub(super) struct Depot {
    top: Option<Slot<Magazine>>,
    magazines: usize,
    blocks: usize,
}

impl Depot {
    pub fn has_room(&self, kind: Kind) -> bool {
        self.magazines < DEPOT_MAGAZINES && self.blocks << kind.order < DEPOT_PAGES
    }

    pub fn push(&mut self, mut magazine: Slot<Magazine>) {
        self.magazines += 1;
        self.blocks += magazine.len();
        magazine.next = self.top.take();
        self.top = Some(magazine);
    }

    pub fn pop(&mut self) -> Option<Slot<Magazine>> {
        let mut magazine = self.top.take()?;
        self.top = magazine.next.take();
        self.magazines -= 1;
        self.blocks -= magazine.len();
        Some(magazine)
    }

    /// Blocks in all magazines.
    pub fn blocks(&self) -> usize {
        self.blocks
    }
}
