//! What a change of a table leaves behind in the caches of walkers in hardware, as a token.

use core::fmt;
use core::mem;

use super::memory::TableMemory;
use super::pages::PageList;

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
    pub(super) owner: u64,
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) changed_bytes: u64,
    pub(super) only_leaves: bool,
    pub(super) pages: PageList,
}

impl Stale {
    pub(super) const fn new(owner: u64, first: u64, last: u64) -> Self {
        Self { owner, first, last, changed_bytes: 0, only_leaves: true, pages: PageList::new() }
    }

    /// First input address that a cached translation may be for.
    #[must_use]
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Last input address (inclusive) that a cached translation may be for.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Number of bytes whose mapping was removed or changed; smaller than the range where it had holes.
    #[must_use]
    pub const fn changed_bytes(&self) -> u64 {
        self.changed_bytes
    }

    /// Whether nothing but leaves changed, so that caches of upper levels may stay (VT-d's invalidation hint).
    #[must_use]
    pub const fn only_leaves(&self) -> bool {
        self.only_leaves
    }

    /// Whether table pages wait in this token.
    #[must_use]
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
    pub unsafe fn assume_flushed(self) -> Flushed {
        Flushed { stale: self }
    }

    /// Widens the token to cover `first..=last` too.
    pub(super) fn widen(&mut self, first: u64, last: u64) {
        self.first = self.first.min(first);
        self.last = self.last.max(last);
    }

    /// Takes over `other`, of the same table.
    pub(super) fn absorb<M: TableMemory>(&mut self, memory: &M, mut other: Self) {
        self.widen(other.first, other.last);
        self.changed_bytes += other.changed_bytes;
        self.only_leaves &= other.only_leaves;
        self.pages.append(memory, mem::take(&mut other.pages));
        mem::forget(other);
    }

    /// Takes the pages out; what is left of the token is nothing to worry about.
    pub(super) fn into_pages(mut self) -> PageList {
        let pages = mem::take(&mut self.pages);
        mem::forget(self);
        pages
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
            .field("first", &format_args!("{:#x}", self.first))
            .field("last", &format_args!("{:#x}", self.last))
            .field("changed_bytes", &self.changed_bytes)
            .field("only_leaves", &self.only_leaves)
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
    pub const fn first(&self) -> u64 {
        self.stale.first
    }

    /// Last input address (inclusive) that was flushed.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.stale.last
    }

    pub(super) const fn owner(&self) -> u64 {
        self.stale.owner
    }

    pub(super) fn into_pages(self) -> PageList {
        self.stale.into_pages()
    }
}

impl fmt::Debug for Flushed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flushed({:#x}..={:#x})", self.first(), self.last())
    }
}
