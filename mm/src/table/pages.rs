//! Lists of table pages that are linked through the pages themselves, so that setting pages aside never allocates.
//!
//! The link is a page's first entry: the next page's address, whose low twelve bits are zero. A walker in hardware
//! that still holds the page finds nothing present in it, before the link is written and after.

use super::memory::TableMemory;
use crate::PhysAddr;
use crate::machine::{AtomicU64, Ordering};

/// What the first entry of a page in a list says, and the head of a [`PageStack`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u64);

impl Link {
    const ADDRESS: u64 = (1 << 52) - 1;
    const END: Self = Self(1 << 53);

    fn to(next: Option<PhysAddr>) -> Self {
        next.map_or(Self::END, |page| Self(page.as_u64()))
    }

    #[inline]
    const fn next(self) -> Option<PhysAddr> {
        if self.0 & Self::END.0 != 0 { None } else { Some(PhysAddr::new(self.0 & Self::ADDRESS)) }
    }
}

/// The kind of a table page that was taken out of the tree: what may be done with its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A table of level 1. Walkers hold it by reference only, so its memory may be given back.
    Lowest,
    /// A table of a higher level, which a walker may still be reading: its memory stays with the tree.
    Upper,
}

const UPPER: u64 = 1 << 52;

fn first_entry<M: TableMemory>(memory: &M, page: PhysAddr) -> &AtomicU64 {
    // SAFETY: pages in a list were detached from a tree whose memory this is, and leave the list before they are freed.
    unsafe { &memory.table(page)[0] }
}

fn kind_of(raw: u64) -> Kind {
    if raw & UPPER != 0 { Kind::Upper } else { Kind::Lowest }
}

fn write_link<M: TableMemory>(memory: &M, page: PhysAddr, kind: Kind, next: Option<PhysAddr>) {
    let flag = if kind == Kind::Upper { UPPER } else { 0 };
    first_entry(memory, page).store(Link::to(next).0 | flag, Ordering::Release);
}

fn read_link<M: TableMemory>(memory: &M, page: PhysAddr) -> (Option<PhysAddr>, Kind) {
    let raw = first_entry(memory, page).load(Ordering::Acquire);
    (Link(raw).next(), kind_of(raw))
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

    pub fn push<M: TableMemory>(&mut self, memory: &M, page: PhysAddr, kind: Kind) {
        match self.last.next() {
            None => {
                write_link(memory, page, kind, Some(page));
                self.last = Link::to(Some(page));
            }
            Some(last) => {
                let (first, last_kind) = read_link(memory, last);
                write_link(memory, page, kind, first);
                write_link(memory, last, last_kind, Some(page));
            }
        }
    }

    /// The first page. Its link is cleared: every entry of the page is zero.
    pub fn pop<M: TableMemory>(&mut self, memory: &M) -> Option<(PhysAddr, Kind)> {
        let last = self.last.next()?;
        let (first, last_kind) = read_link(memory, last);
        let first = first?;
        if first == last {
            self.last = Link::END;
        } else {
            write_link(memory, last, last_kind, read_link(memory, first).0);
        }
        let raw = first_entry(memory, first).swap(0, Ordering::AcqRel);
        Some((first, kind_of(raw)))
    }

    pub fn append<M: TableMemory>(&mut self, memory: &M, other: Self) {
        let (Some(last), Some(other_last)) = (self.last.next(), other.last.next()) else {
            if self.is_empty() {
                *self = other;
            }
            return;
        };
        let ((first, kind), (other_first, other_kind)) =
            (read_link(memory, last), read_link(memory, other_last));
        write_link(memory, last, kind, other_first);
        write_link(memory, other_last, other_kind, first);
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
/// Taking pages out always takes the whole list (there is no pop of one page), so that a page which went out and came
/// back in the meantime cannot be mistaken for the list that was seen.
pub struct PageStack {
    head: AtomicU64,
}

impl PageStack {
    pub fn new() -> Self {
        Self { head: AtomicU64::new(Link::END.0) }
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        Link(self.head.load(Ordering::Acquire)).next().is_none()
    }

    pub fn push<M: TableMemory>(&self, memory: &M, page: PhysAddr, kind: Kind) {
        let mut list = PageList::new();
        list.push(memory, page, kind);
        self.push_all(memory, list);
    }

    pub fn push_all<M: TableMemory>(&self, memory: &M, list: PageList) {
        let Some(last) = list.last.next() else { return };
        let (Some(first), kind) = read_link(memory, last) else { return };
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            write_link(memory, last, kind, Link(head).next());
            match self.head.compare_exchange_weak(head, first.as_u64(), Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    pub fn take_all<M: TableMemory>(&self, memory: &M) -> PageList {
        let head = self.head.swap(Link::END.0, Ordering::AcqRel);
        let Some(first) = Link(head).next() else { return PageList::new() };
        let mut last = first;
        loop {
            match read_link(memory, last) {
                (Some(next), _) => last = next,
                (None, kind) => {
                    write_link(memory, last, kind, Some(first));
                    return PageList { last: Link::to(Some(last)) };
                }
            }
        }
    }
}
