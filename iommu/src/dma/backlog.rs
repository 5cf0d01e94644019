//! The list of dropped mappings. It is cut from table pages, because its room grows while something is being mapped, which
//! does not touch the heap, and under a lock, which is no place to move what is there.

use intrusive_collections::{LinkedList, LinkedListLink, UnsafeRef, intrusive_adapter};
use mm::table::TableMemory;

use super::reaper::Abandoned;
use crate::slab::{Slab, Slot};

/// An entry of the list.
struct Waiting {
    link: LinkedListLink,
    /// `None` once it has been taken out: a slab drops nothing.
    abandoned: Option<Abandoned>,
}

intrusive_adapter!(InOrder = UnsafeRef<Waiting>: Waiting { link => LinkedListLink });

/// Dropped mappings, the oldest first.
pub(super) struct Backlog {
    entries: LinkedList<InOrder>,
    slots: Slab<Waiting>,
    len: usize,
}

// SAFETY: all entries belong to this structure; no reference to one of them leaves it.
unsafe impl Send for Backlog {}

impl Backlog {
    /// Entries for which [`grow`](Self::grow) makes room.
    pub const GROWTH: usize = Slab::<Waiting>::PER_PAGE;

    /// An empty list without room.
    ///
    /// # Safety
    /// As for [`Slab::new`].
    pub unsafe fn new() -> Self {
        // SAFETY: slots are used by the list only, and `release` empties it first.
        Self { entries: LinkedList::new(InOrder::new()), slots: unsafe { Slab::new() }, len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes room for [`GROWTH`](Self::GROWTH) more entries. False if there is no memory for them.
    #[must_use]
    pub fn grow<M: TableMemory>(&mut self, tables: &M) -> bool {
        self.slots.reserve(tables, Self::GROWTH)
    }

    /// Adds `abandoned`, which comes back if there is no room.
    pub fn push(&mut self, abandoned: Abandoned) -> Result<(), Abandoned> {
        let entry = Waiting { link: LinkedListLink::new(), abandoned: None };
        let Some(mut slot) = self.slots.take_reserved(entry) else { return Err(abandoned) };
        slot.abandoned = Some(abandoned);
        self.entries.push_back(slot.into_ref());
        self.len += 1;
        Ok(())
    }

    /// Takes the oldest entry out; there is room for another one in its place.
    pub fn pop<M: TableMemory>(&mut self, tables: &M) -> Option<Abandoned> {
        let entry = self.entries.pop_front()?;
        // SAFETY: it came from `push`, and was in this list only.
        let mut slot = unsafe { Slot::from_ref(entry) };
        let abandoned = slot.abandoned.take();
        self.slots.put(tables, slot);
        // The slot just given back, so no page is needed for it.
        let is_reserved = self.slots.reserve(tables, 1);
        debug_assert!(is_reserved, "a slot that was given back is free");
        self.len -= 1;
        abandoned
    }

    /// Drops what is left, and gives the memory back.
    pub fn release<M: TableMemory>(&mut self, tables: &M) {
        while let Some(abandoned) = self.pop(tables) {
            drop(abandoned);
        }
        self.slots.release(tables);
    }
}
