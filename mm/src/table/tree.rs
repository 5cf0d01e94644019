//! The tree of tables: its pages, from allocation to redemption.

use super::error::OutOfTables;
use super::format::{Entry, Format, level_shift};
use super::hint::Hint;
use super::kept::{Kept, Place};
use super::link::{self, Seen};
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::pages::{PageList, PageStack};
use super::stale::{Flushed, Stale, TreeId};
use crate::machine::{AtomicU64, AtomicUsize, Ordering};
use crate::{PAGE_BYTES, PhysAddr, PhysRange};

/// A tree of page tables, for a walker in hardware.
///
/// Inputs are addresses that the walker translates (virtual addresses, I/O virtual addresses), outputs are physical
/// addresses. Dropping it without [`destroy`](Self::destroy) loses its pages for good: hardware may be walking it.
pub struct PageTable<F: Format, M: TableMemory> {
    pub(super) format: F,
    pub(super) memory: M,
    root: PhysAddr,
    id: TreeId,
    /// Bits that no output of a page has: those above the format's width, and those below a page.
    pub(super) no_output: u64,
    /// How often an upper table has left the tree. See [`pin_below`](Self::pin_below).
    pub(super) departures: AtomicU64,
    pub(super) hint: Hint,
    pub(super) kept: Kept,
    /// Upper tables that left the tree, those of level 2 first. A thread that walks down may still be reading one, and
    /// takes what it finds there for tables of the level below. So a page that was a table of some upper level of this
    /// tree is used for tables of that level again and for nothing else.
    spare: [PageStack; UPPER_LEVELS],
    /// Tables that left the tree where there was no token to put them in. The next token that is of more than leaves
    /// takes them along.
    pub(super) orphans: PageStack,
    /// Pages taken from `memory` and not given back.
    pages: AtomicUsize,
    /// Tables that left the tree, or are about to, and are not redeemed yet. See [`visible`](Self::visible).
    unflushed: AtomicUsize,
}

/// Upper levels below the root of a tree with the most levels: 2, 3 and 4.
const UPPER_LEVELS: usize = 3;

/// Tables that a change has taken out of the tree, and the inputs they were for.
pub(super) struct Detached {
    pages: PageList,
    first: u64,
    last: u64,
}

impl Detached {
    #[inline]
    pub(super) const fn new() -> Self {
        Self { pages: PageList::new(), first: u64::MAX, last: 0 }
    }
}

/// Index of `input`'s entry in a table of `level`.
#[inline]
pub(super) const fn index(input: u64, level: u8) -> usize {
    (input >> level_shift(level)) as usize % TABLE_ENTRIES
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// An empty tree.
    ///
    /// # Errors
    /// [`OutOfTables`] if `memory` has no page for the root.
    pub fn new(format: F, memory: M) -> Result<Self, OutOfTables> {
        let root = memory.allocate().ok_or(OutOfTables)?;
        let tree = Self::at(format, memory, root, 1);
        tree.write_back(tree.root_table());
        Ok(tree)
    }

    /// The tree at `root`, which somebody else has made, edits and frees: for whoever only has to say where it is.
    ///
    /// # Safety
    /// Nothing is asked of it but [`root`](Self::root), [`format`](Self::format), [`memory`](Self::memory) and
    /// [`pages`](Self::pages), of which it has none.
    pub unsafe fn named(format: F, memory: M, root: PhysAddr) -> Self {
        Self::at(format, memory, root, 0)
    }

    fn at(format: F, memory: M, root: PhysAddr, pages: usize) -> Self {
        Self {
            format,
            memory,
            root,
            id: TreeId::new(),
            no_output: !((1 << format.output_bits()) - PAGE_BYTES),
            departures: AtomicU64::new(0),
            hint: Hint::new(),
            kept: Kept::new(),
            spare: core::array::from_fn(|_| PageStack::new()),
            orphans: PageStack::new(),
            pages: AtomicUsize::new(pages),
            unflushed: AtomicUsize::new(0),
        }
    }

    /// Physical address of the root table.
    #[must_use]
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    #[inline]
    pub(super) fn id(&self) -> TreeId {
        self.id
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

    /// Takes `other` into `stale`, so that one flush serves both. A token of another tree is refused and comes back.
    ///
    /// # Errors
    /// `other`, if one of them is not this tree's.
    pub fn merge(&self, stale: &mut Stale, other: Stale) -> Result<(), Stale> {
        if stale.owner() != self.id || other.owner() != self.id {
            return Err(other);
        }
        stale.absorb(&self.memory, other);
        Ok(())
    }

    /// Gives the table pages of `flushed` back: those of the lowest level to the memory that they came from, the others
    /// to this tree's store of spare ones.
    ///
    /// A token of another tree redeems nothing: its pages are lost.
    #[inline]
    pub fn redeem(&self, flushed: Flushed) {
        let (owner, pages) = flushed.into_parts();
        if owner != self.id || !pages.is_empty() {
            self.redeem_tables(owner, pages);
        }
    }

    #[cold]
    fn redeem_tables(&self, owner: TreeId, mut pages: PageList) {
        if owner != self.id {
            log::error!("a token of {owner:?} redeemed at {:?}: its tables are lost", self.id);
            return;
        }
        while let Some((page, level)) = pages.pop(&self.memory) {
            match self.spare(level) {
                Some(spare) => spare.push(&self.memory, page, level),
                // SAFETY: the page left the tree with nobody inside, and hardware has forgotten it.
                None => unsafe { self.free(page) },
            }
            self.unflushed.fetch_sub(1, Ordering::Release);
        }
    }

    /// The spare pages for tables of `level`; tables of the lowest level have none, as threads read them only while
    /// they have them pinned.
    #[inline]
    fn spare(&self, level: u8) -> Option<&PageStack> {
        self.spare.get(usize::from(level).checked_sub(2)?)
    }

    /// Gives the spare pages back to the memory that they came from.
    pub fn release_spare(&mut self) {
        for spare in &self.spare {
            let mut pages = spare.take_all(&self.memory);
            while let Some((page, _)) = pages.pop(&self.memory) {
                // SAFETY: the page is out of the tree and redeemed, and `&mut self` says that nobody walks the tree.
                unsafe { self.free(page) };
            }
        }
    }

    /// Frees every page of the tree, those of mappings that are still there included.
    ///
    /// # Safety
    /// No walker in hardware has the root any more, and none of their caches has an entry of the tree.
    pub unsafe fn destroy(mut self) {
        self.release_spare();
        let mut orphans = self.orphans.take_all(&self.memory);
        while let Some((page, _)) = orphans.pop(&self.memory) {
            // SAFETY: out of the tree, and no cache has an entry of it (the caller's promise).
            unsafe { self.free(page) };
        }
        let root = self.root;
        // SAFETY: nobody else walks the tree, in software (it was moved here) or in hardware (the caller's promise).
        unsafe { self.free_below(root, self.format.levels()) };
    }

    /// # Safety
    /// Nobody else uses the table or those below it.
    unsafe fn free_below(&self, page: PhysAddr, level: u8) {
        // SAFETY: the page is a table of this tree, and nobody else uses it (the caller's promise).
        for entry in unsafe { self.table(page) } {
            if let Entry::Table(below) = self.format.decode(level, entry.swap(0, Ordering::Acquire)) {
                // SAFETY: as for this table; it was reachable only through the entry that is empty now.
                unsafe { self.free_below(below, level - 1) };
            }
        }
        // SAFETY: nobody uses the page (the caller's promise).
        unsafe { self.free(page) };
    }

    #[inline]
    pub(super) fn root_table(&self) -> &Table {
        // SAFETY: the root is allocated in `new` and freed only with the tree.
        unsafe { self.memory.table(self.root) }
    }

    /// # Safety
    /// `page` is a table of this tree that the caller has pinned or has not linked yet, or it is one of an upper level,
    /// found through a link.
    #[inline]
    pub(super) unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: tables of the tree come from `memory`, and in each of these cases the page is not freed meanwhile.
        unsafe { self.memory.table(page) }
    }

    /// A page for a table of `level`, and whether a thread may still be reading it as one that it was before.
    pub(super) fn allocate(&self, level: u8) -> Option<(PhysAddr, bool)> {
        if let Some(spare) = self.spare(level) {
            // SAFETY: spare pages are freed by `release_spare` and `destroy`, which have the tree to themselves.
            if let Some(page) = unsafe { spare.pop(&self.memory) } {
                return Some((page, true));
            }
        }
        let page = self.memory.allocate()?;
        self.pages.fetch_add(1, Ordering::Relaxed);
        Some((page, false))
    }

    /// Takes a table of `level` back that was never linked and whose entries are zero.
    pub(super) fn discard(&self, page: PhysAddr, level: u8, was_spare: bool) {
        match self.spare(level) {
            Some(spare) if was_spare => spare.push(&self.memory, page, level),
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
    #[inline]
    pub(super) fn write_back(&self, entries: &[AtomicU64]) {
        if !self.format.is_coherent() && !entries.is_empty() {
            self.memory.write_back(entries.as_ptr().cast(), size_of_val(entries));
        }
    }

    /// The same for one entry.
    #[inline]
    pub(super) fn write_back_entry(&self, entry: &AtomicU64) {
        if !self.format.is_coherent() {
            self.memory.write_back_entry(entry);
        }
    }

    /// Pins the table behind `link`, an entry at `level` of a table that is linked.
    #[inline]
    pub(super) fn pin(&self, level: u8, link: &AtomicU64) -> Seen<F::Access> {
        link::pin(&self.format, level, link, |link| self.write_back_entry(link))
    }

    /// Replaces `link`, last seen as `raw`, in a table that is linked, by `new`, which points to a table that is
    /// written back. False if it has changed. Who comes in before the link itself is written back sees that it is not.
    pub(super) fn link(&self, link: &AtomicU64, raw: u64, new: u64) -> bool {
        let unwritten = if self.format.is_coherent() { 0 } else { link::UNWRITTEN };
        let linked = link.compare_exchange(raw, new | unwritten, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if linked && unwritten != 0 {
            link::set_written(link, |link| self.write_back_entry(link));
        }
        linked
    }

    /// Replaces `link`, last seen as `raw`, which points to an empty table at `place`, by `new`, and puts the table,
    /// `page`, on the list. If the link has changed, returns what it says now.
    pub(super) fn unlink(
        &self,
        link: &AtomicU64,
        (raw, new): (u64, u64),
        (page, place): (PhysAddr, Place),
        detached: &mut Detached,
    ) -> Result<(), u64> {
        // Before the link changes, so that whoever sees that the table has gone sees that it counts.
        self.unflushed.fetch_add(1, Ordering::Relaxed);
        if let Err(now) = link.compare_exchange(raw, new, Ordering::AcqRel, Ordering::Acquire) {
            self.unflushed.fetch_sub(1, Ordering::Relaxed);
            return Err(now);
        }
        self.write_back_entry(link);
        self.set_aside(page, place, detached);
        Ok(())
    }

    /// Puts the table `page`, which has just left the tree at `place`, on the list.
    fn set_aside(&self, page: PhysAddr, place: Place, detached: &mut Detached) {
        let level = place.level();
        if level > 1 {
            self.hint.clear();
            self.departures.fetch_add(1, Ordering::AcqRel);
        }
        detached.pages.push(&self.memory, page, level);
        detached.first = detached.first.min(place.first());
        detached.last = detached.last.max(place.last());
    }

    /// Leaves `detached`, for which there is no token, to the next one.
    pub(super) fn orphan(&self, detached: Detached) {
        self.orphans.push_all(&self.memory, detached.pages);
    }

    /// The token for `detached` and for orphans, if there are any.
    #[inline]
    pub(super) fn stale_of(&self, detached: Detached) -> Option<Stale> {
        if detached.pages.is_empty() && self.orphans.is_empty() {
            return None;
        }
        self.stale_of_tables(detached)
    }

    #[cold]
    fn stale_of_tables(&self, mut detached: Detached) -> Option<Stale> {
        let orphans = self.orphans.take_all(&self.memory);
        if !orphans.is_empty() {
            // Where they were is not known any more.
            (detached.first, detached.last) = (0, u64::MAX);
            detached.pages.append(&self.memory, orphans);
        }
        let is_empty = detached.pages.is_empty();
        (!is_empty).then(|| Stale::for_tables(self.id, detached.first, detached.last, detached.pages))
    }

    /// The token for leaves that were just written at `input`, for `segments`, on top of `own` which the same change
    /// has led to.
    ///
    /// A walker in hardware may remember a table that was here before the one that the leaves are in, and find them
    /// missing there. Until the flush on behalf of whoever took that table out is over, the leaves need one of their
    /// own.
    #[inline(always)]
    pub(super) fn visible(&self, own: Option<Stale>, input: u64, segments: &[PhysRange]) -> Option<Stale> {
        if self.all_flushed() { own } else { self.cover(own, input, segments) }
    }

    /// Whether every table that left the tree has been redeemed.
    #[inline(always)]
    pub(super) fn all_flushed(&self) -> bool {
        self.unflushed.load(Ordering::Acquire) == 0
    }

    #[cold]
    #[inline(never)]
    fn cover(&self, own: Option<Stale>, input: u64, segments: &[PhysRange]) -> Option<Stale> {
        let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let mut stale = Stale::for_tables(self.id, input, input + (bytes - 1), PageList::new());
        // Orphans that nobody else takes along would have every map come here.
        if let Some(tables) = own.or_else(|| self.stale_of(Detached::new())) {
            stale.absorb(&self.memory, tables);
        }
        Some(stale)
    }

    /// The token for a change of `bytes` bytes within `first..=last`, for `detached` and for orphans.
    #[inline]
    pub(super) fn stale_for(&self, first: u64, last: u64, bytes: u64, detached: Detached) -> Stale {
        let mut stale = Stale::new(self.id, first, last, bytes);
        if let Some(tables) = self.stale_of(detached) {
            stale.absorb(&self.memory, tables);
        }
        stale
    }
}
