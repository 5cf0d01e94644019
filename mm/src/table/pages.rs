//! Lists of table pages that are linked through the pages themselves, so that setting pages aside never allocates.
//!
//! The link is a page's first entry: the next page's address, whose low twelve bits are zero. A walker in hardware
//! that still holds the page finds nothing present in it, before the link is written and after.

use super::atomic::{AtomicU64, Ordering};
use super::memory::TableMemory;
use crate::PhysAddr;

/// What the first entry of a page in a list says, and the head of a [`PageStack`].
#[derive(Clone, Copy, PartialEq, Eq)]
struct Link(u64);

impl Link {
    const ADDRESS: u64 = (1 << 52) - 1;
    const END: Self = Self(1 << 53);

    fn to(next: Option<PhysAddr>) -> Self {
        next.map_or(Self::END, |page| Self(page.as_u64()))
    }

    fn next(self) -> Option<PhysAddr> {
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

/// Pages in the hands of one owner.
#[derive(Default)]
pub struct PageList {
    ends: Option<(PhysAddr, PhysAddr)>,
}

impl PageList {
    pub const fn new() -> Self {
        Self { ends: None }
    }

    pub const fn is_empty(&self) -> bool {
        self.ends.is_none()
    }

    pub fn push<M: TableMemory>(&mut self, memory: &M, page: PhysAddr, kind: Kind) {
        write_link(memory, page, kind, self.ends.map(|(head, _)| head));
        let tail = self.ends.map_or(page, |(_, tail)| tail);
        self.ends = Some((page, tail));
    }

    /// The first page. Its link is cleared: every entry of the page is zero.
    pub fn pop<M: TableMemory>(&mut self, memory: &M) -> Option<(PhysAddr, Kind)> {
        let (head, tail) = self.ends?;
        let raw = first_entry(memory, head).swap(0, Ordering::AcqRel);
        self.ends = Link(raw).next().map(|next| (next, tail));
        Some((head, kind_of(raw)))
    }

    pub fn append<M: TableMemory>(&mut self, memory: &M, other: Self) {
        let Some((other_head, other_tail)) = other.ends else { return };
        let Some((head, tail)) = self.ends else {
            self.ends = other.ends;
            return;
        };
        let kind = kind_of(first_entry(memory, other_tail).load(Ordering::Acquire));
        write_link(memory, other_tail, kind, Some(head));
        self.ends = Some((other_head, tail));
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

    pub fn is_empty(&self) -> bool {
        Link(self.head.load(Ordering::Acquire)).next().is_none()
    }

    pub fn push<M: TableMemory>(&self, memory: &M, page: PhysAddr, kind: Kind) {
        let mut list = PageList::new();
        list.push(memory, page, kind);
        self.push_all(memory, list);
    }

    pub fn push_all<M: TableMemory>(&self, memory: &M, list: PageList) {
        let Some((first, last)) = list.ends else { return };
        let kind = kind_of(first_entry(memory, last).load(Ordering::Acquire));
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
        while let Some(next) = Link(first_entry(memory, last).load(Ordering::Acquire)).next() {
            last = next;
        }
        PageList { ends: Some((first, last)) }
    }
}
