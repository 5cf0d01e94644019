//! The tree of tables: its pages, from allocation to redemption.

use super::atomic::{AtomicU64, AtomicUsize, Ordering};
use super::error::OutOfTables;
use super::format::{Entry, Format, level_shift};
use super::kept::{Kept, Place};
use super::link::{self, Seen};
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::pages::{Kind, PageList, PageStack};
use super::stale::{Flushed, Stale};
use crate::PhysAddr;

/// Names of trees: a token is good for one tree only. Sixty-four bits do not run out.
static NEXT_ID: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(1);

/// A tree of page tables, for a walker in hardware.
///
/// Inputs are addresses that the walker translates (virtual addresses, I/O virtual addresses), outputs are physical
/// addresses. Dropping it without [`destroy`](Self::destroy) loses its pages for good: hardware may be walking it.
pub struct PageTable<F: Format, M: TableMemory> {
    pub(super) format: F,
    pub(super) memory: M,
    root: PhysAddr,
    id: u64,
    kept: Kept,
    /// Threads that look at the tree without pinning.
    readers: AtomicUsize,
    /// Upper tables that left the tree. A thread that walks down may still be reading one, so they are used for upper
    /// tables of this tree again and for nothing else.
    spare: PageStack,
    /// Redeemed pages that wait until nobody is looking.
    limbo: PageStack,
    /// Pages taken from `memory` and not given back.
    pages: AtomicUsize,
}

/// Tables that a change has taken out of the tree, and the inputs they were for.
pub(super) struct Detached {
    pub(super) pages: PageList,
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Detached {
    pub(super) const fn new() -> Self {
        Self { pages: PageList::new(), first: u64::MAX, last: 0 }
    }
}

/// Index of `input`'s entry in a table of `level`.
pub(super) const fn index(input: u64, level: u8) -> usize {
    (input >> level_shift(level)) as usize % TABLE_ENTRIES
}

const fn kind(level: u8) -> Kind {
    if level == 1 { Kind::Lowest } else { Kind::Upper }
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// An empty tree.
    ///
    /// # Errors
    /// [`OutOfTables`] if `memory` has no page for the root.
    pub fn new(format: F, memory: M) -> Result<Self, OutOfTables> {
        let root = memory.allocate().ok_or(OutOfTables)?;
        let tree = Self {
            format,
            memory,
            root,
            id: NEXT_ID.fetch_add(1, core::sync::atomic::Ordering::Relaxed),
            kept: Kept::new(),
            readers: AtomicUsize::new(0),
            spare: PageStack::new(),
            limbo: PageStack::new(),
            pages: AtomicUsize::new(1),
        };
        tree.write_back(tree.root_table());
        Ok(tree)
    }

    /// Physical address of the root table.
    #[must_use]
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// What the entries look like.
    #[must_use]
    pub fn format(&self) -> &F {
        &self.format
    }

    /// Where table pages come from.
    #[must_use]
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Number of table pages that the tree holds: linked ones, those that wait to be redeemed, and spare ones.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages.load(Ordering::Relaxed)
    }

    /// Takes every empty table out of the tree. `None` if there was none.
    #[must_use]
    pub fn trim(&self) -> Option<Stale> {
        let mut detached = Detached::new();
        for place in self.kept.take() {
            self.reclaim(place, &mut detached);
        }
        self.stale_of(detached)
    }

    /// Takes `other` into `stale`, so that one flush serves both. A token of another tree is refused and comes back.
    ///
    /// # Errors
    /// `other`, if one of them is not this tree's.
    pub fn merge(&self, stale: &mut Stale, other: Stale) -> Result<(), Stale> {
        if stale.owner != self.id || other.owner != self.id {
            return Err(other);
        }
        stale.absorb(&self.memory, other);
        Ok(())
    }

    /// Gives the table pages of `flushed` back.
    ///
    /// A token of another tree redeems nothing: its pages are lost.
    pub fn redeem(&self, flushed: Flushed) {
        if flushed.owner() != self.id {
            log::error!("{flushed:?} redeemed at a page table that it is not of");
            return;
        }
        self.limbo.push_all(&self.memory, flushed.into_pages());
        self.settle_limbo();
    }

    /// Gives the spare pages back to the memory that they came from.
    pub fn release_spare(&mut self) {
        self.settle_limbo();
        let mut pages = self.spare.take_all(&self.memory);
        while let Some((page, _)) = pages.pop(&self.memory) {
            // SAFETY: the page is out of the tree and redeemed, and `&mut self` says that nobody walks the tree.
            unsafe { self.free(page) };
        }
    }

    /// Frees every page of the tree, those of mappings that are still there included.
    ///
    /// # Safety
    /// No walker in hardware has the root any more, and none of their caches has an entry of the tree.
    pub unsafe fn destroy(mut self) {
        self.release_spare();
        let root = self.root;
        // SAFETY: nobody else walks the tree, in software (it was moved here) or in hardware (the caller's promise).
        unsafe { self.free_below(root, self.format.levels()) };
    }

    /// # Safety
    /// Nobody else uses the table or those below it.
    unsafe fn free_below(&self, page: PhysAddr, level: u8) {
        // SAFETY: the page is a table of this tree, and nobody else uses it (the caller's promise).
        for entry in unsafe { self.table(page) } {
            let raw = entry.swap(0, Ordering::Acquire);
            if let Entry::Table(below) = self.format.decode(level, raw)
                && level > 1
            {
                // SAFETY: as for this table; it was reachable only through the entry that is empty now.
                unsafe { self.free_below(below, level - 1) };
            }
        }
        // SAFETY: nobody uses the page (the caller's promise).
        unsafe { self.free(page) };
    }

    /// Moves redeemed pages on, unless somebody is looking at the tree. Pages in limbo were detached before; who
    /// starts to look after this check cannot find them.
    fn settle_limbo(&self) {
        if self.limbo.is_empty() {
            return;
        }
        let mut pages = self.limbo.take_all(&self.memory);
        if self.has_readers() {
            self.limbo.push_all(&self.memory, pages);
            return;
        }
        while let Some((page, kind)) = pages.pop(&self.memory) {
            match kind {
                Kind::Upper => self.spare.push(&self.memory, page, kind),
                // SAFETY: the page left the tree with no thread inside, hardware has forgotten it (it was redeemed),
                // and nobody is looking.
                Kind::Lowest => unsafe { self.free(page) },
            }
        }
    }

    pub(super) fn root_table(&self) -> &Table {
        // SAFETY: the root is allocated in `new` and freed only with the tree.
        unsafe { self.memory.table(self.root) }
    }

    /// # Safety
    /// `page` is a table of this tree that the caller has pinned, or reads between [`enter`](Self::enter_reader) and
    /// `leave_reader`, or has not linked yet.
    pub(super) unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: tables of the tree come from `memory`; in each of these cases the page is not freed meanwhile.
        unsafe { self.memory.table(page) }
    }

    /// A page for a table of `level`, and whether a thread may still be reading it as one that it was before.
    pub(super) fn allocate(&self, level: u8) -> Option<(PhysAddr, bool)> {
        if kind(level) == Kind::Upper && !self.spare.is_empty() {
            let mut pages = self.spare.take_all(&self.memory);
            let page = pages.pop(&self.memory);
            self.spare.push_all(&self.memory, pages);
            if let Some((page, _)) = page {
                return Some((page, true));
            }
        }
        let page = self.memory.allocate()?;
        self.pages.fetch_add(1, Ordering::Relaxed);
        Some((page, false))
    }

    /// Takes a table of `level` back that was never linked and whose entries are zero.
    pub(super) fn discard(&self, page: PhysAddr, level: u8, keep_upper: bool) {
        match kind(level) {
            Kind::Upper if keep_upper => self.spare.push(&self.memory, page, Kind::Upper),
            // SAFETY: the page was allocated by this thread and shown to nobody.
            _ => unsafe { self.free(page) },
        }
    }

    /// # Safety
    /// As [`TableMemory::free`].
    unsafe fn free(&self, page: PhysAddr) {
        self.pages.fetch_sub(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.memory.free(page) };
    }

    /// Writes `entries` back if the walker in hardware does not snoop.
    pub(super) fn write_back(&self, entries: &[AtomicU64]) {
        if !self.format.is_coherent() && !entries.is_empty() {
            self.memory.write_back(entries.as_ptr().cast(), size_of_val(entries));
        }
    }

    /// Sees to the table at `place`, which the caller has just emptied: it stays if `keep` and if there is a slot, and
    /// what it displaces goes.
    pub(super) fn emptied(&self, place: Place, keep: bool, detached: &mut Detached) {
        let victim = if keep { self.kept.offer(place) } else { Some(place) };
        if let Some(victim) = victim {
            self.reclaim(victim, detached);
        }
    }

    fn reclaim(&self, place: Place, detached: &mut Detached) {
        self.reclaim_below(self.root_table(), self.format.levels(), place, detached);
    }

    /// Takes the table at `place` out if it is there and empty, and the tables above it that this leaves empty.
    /// Returns how many entries of `table`, pinned by the caller, are empty now that were not.
    fn reclaim_below(&self, table: &Table, level: u8, place: Place, detached: &mut Detached) -> u64 {
        let entry = &table[index(place.first(), level)];
        if level > place.level() + 1 {
            let Seen::Table(below) = link::pin(&self.format, level, entry) else { return 0 };
            // SAFETY: pinned in the line above.
            let removed = self.reclaim_below(unsafe { self.table(below) }, level - 1, place, detached);
            if link::unpin(entry, 1 + removed) != 0 {
                return 0;
            }
        }
        u64::from(self.detach(entry, Place::new(place.first(), level - 1), detached))
    }

    /// Takes the table at `place` out of the tree if its link `entry` says that it is empty.
    fn detach(&self, entry: &AtomicU64, place: Place, detached: &mut Detached) -> bool {
        let mut raw = entry.load(Ordering::Acquire);
        loop {
            let Entry::Table(page) = self.format.decode(place.level() + 1, raw) else { return false };
            if link::count(raw) != 0 {
                return false;
            }
            match entry.compare_exchange_weak(raw, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.write_back(core::slice::from_ref(entry));
                    self.set_aside(page, place, detached);
                    return true;
                }
                Err(now) => raw = now,
            }
        }
    }

    /// Puts the detached table `page`, which was at `place`, on the list.
    pub(super) fn set_aside(&self, page: PhysAddr, place: Place, detached: &mut Detached) {
        detached.pages.push(&self.memory, page, kind(place.level()));
        detached.first = detached.first.min(place.first());
        detached.last = detached.last.max(place.last());
    }

    /// The token for `detached`, if there is anything in it.
    pub(super) fn stale_of(&self, detached: Detached) -> Option<Stale> {
        if detached.pages.is_empty() {
            return None;
        }
        let mut stale = Stale::new(self.id, detached.first, detached.last);
        stale.only_leaves = false;
        stale.pages = detached.pages;
        Some(stale)
    }

    /// The token for a change of `bytes` bytes within `first..=last`, and for `detached`.
    pub(super) fn stale_for(&self, first: u64, last: u64, bytes: u64, detached: Detached) -> Stale {
        let mut stale = Stale::new(self.id, first, last);
        stale.changed_bytes = bytes;
        if let Some(tables) = self.stale_of(detached) {
            stale.absorb(&self.memory, tables);
        }
        stale
    }

    pub(super) fn enter_reader(&self) {
        self.readers.fetch_add(1, Ordering::SeqCst);
        super::atomic::fence(Ordering::SeqCst);
    }

    pub(super) fn leave_reader(&self) {
        self.readers.fetch_sub(1, Ordering::Release);
    }

    fn has_readers(&self) -> bool {
        super::atomic::fence(Ordering::SeqCst);
        self.readers.load(Ordering::SeqCst) != 0
    }
}
