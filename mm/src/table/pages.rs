//! Lists of table pages that are linked through the pages themselves, so that setting pages aside never allocates.
//!
//! The link is a page's first entry: the next page's address, whose low twelve bits are zero. A walker in hardware
//! that still holds the page finds nothing present in it, before the link is written and after.

use super::memory::TableMemory;
use crate::machine::{AtomicU64, Ordering};
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysAddr};

/// What the first entry of a page in a list says: the next page, and the level that this one is of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u64);

impl Link {
    const ADDRESS: u64 = (1 << 52) - PAGE_BYTES;
    const LEVEL_SHIFT: u32 = 52;
    const LEVEL: u64 = 7;
    /// There is a next page.
    const NEXT: u64 = 1 << 55;
    const END: Self = Self(0);

    fn new(next: Option<PhysAddr>, level: u8) -> Self {
        let next = next.map_or(0, |next| next.as_u64() | Self::NEXT);
        Self(next | u64::from(level) << Self::LEVEL_SHIFT)
    }

    #[inline]
    const fn next(self) -> Option<PhysAddr> {
        if self.0 & Self::NEXT == 0 { None } else { Some(PhysAddr::new(self.0 & Self::ADDRESS)) }
    }

    const fn level(self) -> u8 {
        (self.0 >> Self::LEVEL_SHIFT & Self::LEVEL) as u8
    }
}

fn first_entry<M: TableMemory>(memory: &M, page: PhysAddr) -> &AtomicU64 {
    // SAFETY: pages in a list were detached from a tree whose memory this is, and leave the list before they are freed.
    unsafe { &memory.table(page)[0] }
}

fn write_link<M: TableMemory>(memory: &M, page: PhysAddr, link: Link) {
    first_entry(memory, page).store(link.0, Ordering::Release);
}

fn read_link<M: TableMemory>(memory: &M, page: PhysAddr) -> Link {
    Link(first_entry(memory, page).load(Ordering::Acquire))
}

/// Makes `next` the page after `page`, which is in a list.
fn relink<M: TableMemory>(memory: &M, page: PhysAddr, next: Option<PhysAddr>) {
    write_link(memory, page, Link::new(next, read_link(memory, page).level()));
}

/// Pages in the hands of one owner: a ring, known by its last page, so that a list is one word.
pub struct PageList {
    last: Link,
}

impl PageList {
    #[inline]
    pub const fn new() -> Self {
        Self { last: Link::END }
    }

    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.last.0 == Link::END.0
    }

    fn ending_with(last: PhysAddr) -> Self {
        Self { last: Link::new(Some(last), 0) }
    }

    /// Puts the table `page`, of `level`, in the list.
    pub fn push<M: TableMemory>(&mut self, memory: &M, page: PhysAddr, level: u8) {
        let first = match self.last.next() {
            None => page,
            Some(last) => {
                let first = read_link(memory, last).next();
                relink(memory, last, Some(page));
                first.unwrap_or(page)
            }
        };
        write_link(memory, page, Link::new(Some(first), level));
        *self = Self::ending_with(page);
    }

    /// The first page, and its level. Its link is cleared: every entry of the page is zero.
    pub fn pop<M: TableMemory>(&mut self, memory: &M) -> Option<(PhysAddr, u8)> {
        let last = self.last.next()?;
        let first = read_link(memory, last).next()?;
        if first == last {
            self.last = Link::END;
        } else {
            relink(memory, last, read_link(memory, first).next());
        }
        let link = Link(first_entry(memory, first).swap(0, Ordering::AcqRel));
        Some((first, link.level()))
    }

    #[inline]
    pub fn append<M: TableMemory>(&mut self, memory: &M, other: Self) {
        if !other.is_empty() {
            self.append_some(memory, other);
        }
    }

    fn append_some<M: TableMemory>(&mut self, memory: &M, other: Self) {
        let Some(last) = self.last.next() else {
            *self = other;
            return;
        };
        let Some(other_last) = other.last.next() else { return };
        let (first, other_first) = (read_link(memory, last).next(), read_link(memory, other_last).next());
        relink(memory, last, other_first);
        relink(memory, other_last, first);
        self.last = other.last;
    }
}

impl Default for PageList {
    fn default() -> Self {
        Self::new()
    }
}

/// Pages that several threads put in and take out, without a lock.
///
/// The head is the first page and a count of changes in one word, so that a page which went out and came back while a
/// thread was looking is not mistaken for the stack that it saw, whose second page may be another by now. For that to
/// fail, a thread would have to stand still between two instructions for exactly a multiple of 2²⁴ changes.
pub struct PageStack {
    head: AtomicU64,
}

/// What the head of a [`PageStack`] says: frame number and count of changes.
#[derive(Clone, Copy)]
struct Head(u64);

impl Head {
    const CHANGES_BITS: u32 = 24;
    const CHANGES: u64 = (1 << Self::CHANGES_BITS) - 1;
    /// The last frame of 52 bits of address space, which is no memory.
    const NO_FRAME: u64 = u64::MAX >> Self::CHANGES_BITS;
    const EMPTY: Self = Self(Self::NO_FRAME << Self::CHANGES_BITS);

    #[inline]
    const fn page(self) -> Option<PhysAddr> {
        let frame = self.0 >> Self::CHANGES_BITS;
        if frame == Self::NO_FRAME { None } else { Some(PhysAddr::new(frame << PAGE_SHIFT)) }
    }

    /// The head that puts `page` in the place of this one.
    fn then(self, page: Option<PhysAddr>) -> Self {
        let frame = page.map_or(Self::NO_FRAME, |page| page.as_u64() >> PAGE_SHIFT);
        Self(frame << Self::CHANGES_BITS | self.0.wrapping_add(1) & Self::CHANGES)
    }
}

impl PageStack {
    pub fn new() -> Self {
        Self { head: AtomicU64::new(Head::EMPTY.0) }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        Head(self.head.load(Ordering::Acquire)).page().is_none()
    }

    pub fn push<M: TableMemory>(&self, memory: &M, page: PhysAddr, level: u8) {
        let mut list = PageList::new();
        list.push(memory, page, level);
        self.push_all(memory, list);
    }

    pub fn push_all<M: TableMemory>(&self, memory: &M, list: PageList) {
        let Some(last) = list.last.next() else { return };
        let Some(first) = read_link(memory, last).next() else { return };
        self.change(|head| {
            relink(memory, last, head);
            Some(first)
        });
    }

    /// Takes one page out. Its link is cleared: every entry of the page is zero.
    ///
    /// # Safety
    /// No page that was in this stack is freed while a thread may be in here: one that comes second reads the link of
    /// a page that is out already.
    pub unsafe fn pop<M: TableMemory>(&self, memory: &M) -> Option<PhysAddr> {
        let page = self.change(|head| head.and_then(|page| read_link(memory, page).next()))?;
        first_entry(memory, page).store(0, Ordering::Release);
        Some(page)
    }

    pub fn take_all<M: TableMemory>(&self, memory: &M) -> PageList {
        let Some(first) = self.change(|_| None) else { return PageList::new() };
        let mut last = first;
        while let Some(next) = read_link(memory, last).next() {
            last = next;
        }
        relink(memory, last, Some(first));
        PageList::ending_with(last)
    }

    /// Replaces the first page by what `next` says for it. Returns the page that was the first.
    fn change(&self, mut next: impl FnMut(Option<PhysAddr>) -> Option<PhysAddr>) -> Option<PhysAddr> {
        let mut head = Head(self.head.load(Ordering::Acquire));
        loop {
            let new = head.then(next(head.page()));
            match self.head.compare_exchange_weak(head.0, new.0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return head.page(),
                Err(now) => head = Head(now),
            }
        }
    }
}
