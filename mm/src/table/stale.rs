//! What a change of a table leaves behind in the caches of walkers in hardware, as a token.

use core::fmt;
use core::mem;
use core::num::NonZeroU64;
use core::sync::atomic::{AtomicU64, Ordering};

use super::memory::TableMemory;
use super::pages::PageList;
use super::split::Split;

/// Translations that walkers in hardware may still hold although the table no longer says so.
///
/// Every change that takes something away returns one. Until the caches have been flushed, the memory that was mapped
/// must not be used for anything else, and the table pages that were taken out of the tree are kept in the token. The
/// only way on is a flush, which turns the token into [`Flushed`], and then
/// [`PageTable::redeem`](super::PageTable::redeem).
///
/// Dropping a token loses the table pages in it for good. That is safe, and is never right.
#[must_use = "walkers in hardware may still use what was unmapped until their caches are flushed"]
pub struct Stale {
    owner: TreeId,
    /// First input address; bit 0: something else than leaves changed.
    first_and_flag: u64,
    last: u64,
    changed_bytes: u64,
    pages: PageList,
}

/// Which tree a token is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TreeId(NonZeroU64);

impl TreeId {
    /// An id that no other tree has.
    pub(super) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // Sixty-four bits do not run out.
        Self(NonZeroU64::new(NEXT.fetch_add(1, Ordering::Relaxed)).unwrap_or(NonZeroU64::MAX))
    }
}

const MORE_THAN_LEAVES: u64 = 1;

impl Stale {
    /// A token for a change of `changed_bytes` bytes in `first..=last`.
    #[inline]
    pub(super) const fn new(owner: TreeId, first: u64, last: u64, changed_bytes: u64) -> Self {
        Self { owner, first_and_flag: first, last, changed_bytes, pages: PageList::new() }
    }

    /// A token for `pages`, which were for inputs in `first..=last`.
    pub(super) const fn for_tables(owner: TreeId, first: u64, last: u64, pages: PageList) -> Self {
        Self { owner, first_and_flag: first | MORE_THAN_LEAVES, last, changed_bytes: 0, pages }
    }

    #[inline]
    pub(super) const fn owner(&self) -> TreeId {
        self.owner
    }

    /// Says that superpages were split: an entry above the new leaves changed, and what hardware remembers of any part
    /// of a superpage is of another size now.
    pub(super) fn cover_split(&mut self, split: Split) {
        self.first_and_flag = self.first().min(split.first) | MORE_THAN_LEAVES;
        self.last = self.last.max(split.last);
    }

    /// First input address that a cached translation may be for.
    #[must_use]
    #[inline]
    pub const fn first(&self) -> u64 {
        self.first_and_flag & !MORE_THAN_LEAVES
    }

    /// Last input address (inclusive) that a cached translation may be for.
    #[must_use]
    #[inline]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Number of bytes whose mapping was removed or changed; smaller than the range where it had holes.
    #[must_use]
    #[inline]
    pub const fn changed_bytes(&self) -> u64 {
        self.changed_bytes
    }

    /// Whether nothing but leaves changed, so that caches of upper levels may stay (VT-d's invalidation hint).
    #[must_use]
    #[inline]
    pub const fn only_leaves(&self) -> bool {
        self.first_and_flag & MORE_THAN_LEAVES == 0
    }

    /// Whether table pages wait in this token.
    #[must_use]
    #[inline]
    pub const fn holds_tables(&self) -> bool {
        !self.pages.is_empty()
    }

    /// The flush that this token asks for has been done.
    ///
    /// Called by what flushes: the invalidation queue of an IOMMU, and the MMU's TLB shoot-down. Nobody else has
    /// reason to.
    ///
    /// # Safety
    /// From now on no walker in hardware uses a translation of [`first`](Self::first)`..=`[`last`](Self::last), or,
    /// unless [`only_leaves`](Self::only_leaves), any entry of any level cached on the way there, that it read before
    /// this token was made.
    #[inline]
    pub unsafe fn assume_flushed(self) -> Flushed {
        Flushed { stale: self }
    }

    /// Takes over `other`, of the same table.
    #[inline]
    pub(super) fn absorb<M: TableMemory>(&mut self, memory: &M, mut other: Self) {
        let flag = (self.first_and_flag | other.first_and_flag) & MORE_THAN_LEAVES;
        self.first_and_flag = self.first().min(other.first()) | flag;
        self.last = self.last.max(other.last);
        self.changed_bytes += other.changed_bytes;
        self.pages.append(memory, mem::take(&mut other.pages));
        mem::forget(other);
    }
}

impl Drop for Stale {
    fn drop(&mut self) {
        log::debug!("{self:?} dropped without a flush");
    }
}

impl fmt::Debug for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stale")
            .field("first", &format_args!("{:#x}", self.first()))
            .field("last", &format_args!("{:#x}", self.last))
            .field("changed_bytes", &self.changed_bytes)
            .field("only_leaves", &self.only_leaves())
            .field("holds_tables", &self.holds_tables())
            .finish()
    }
}

/// Proof that what a [`Stale`] speaks of is in no cache any more.
///
/// Dropping it loses the table pages in it for good. Hand it to [`PageTable::redeem`](super::PageTable::redeem).
#[must_use = "table pages come back only when the token is redeemed"]
pub struct Flushed {
    stale: Stale,
}

impl Flushed {
    /// First input address that was flushed.
    #[must_use]
    #[inline]
    pub const fn first(&self) -> u64 {
        self.stale.first()
    }

    /// Last input address (inclusive) that was flushed.
    #[must_use]
    #[inline]
    pub const fn last(&self) -> u64 {
        self.stale.last
    }

    /// Ends the token: the tree that it is of, and the pages in it.
    #[inline]
    pub(super) fn into_parts(mut self) -> (TreeId, PageList) {
        let parts = (self.stale.owner, mem::take(&mut self.stale.pages));
        mem::forget(self);
        parts
    }
}

impl fmt::Debug for Flushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flushed({:#x}..={:#x})", self.first(), self.last())
    }
}
