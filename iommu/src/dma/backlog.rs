//! The list of dropped mappings. It is cut from table pages, because its room grows while something is being mapped,
//! which does not touch the heap, and under a lock, which is no place to move what is there.

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
    len: usize,
    /// Those that nobody looks at before some device is quiet.
    set_aside: LinkedList<InOrder>,
    set_aside_len: usize,
    /// How often a device became quiet.
    roused: u64,
    slots: Slab<Waiting>,
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
        let slots = unsafe { Slab::new() };
        let [entries, set_aside] = [(); 2].map(|()| LinkedList::new(InOrder::new()));
        Self { entries, len: 0, set_aside, set_aside_len: 0, roused: 0, slots }
    }

    /// Number of those that are not set aside.
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
        let entry = self.entry(abandoned)?;
        self.entries.push_back(entry);
        self.len += 1;
        Ok(())
    }

    /// How often a device became quiet so far.
    pub fn roused(&self) -> u64 {
        self.roused
    }

    /// As [`push`](Self::push), for one that was tried after so many devices had become quiet, and waits for another:
    /// it is set aside, unless one has become quiet since. Returns whether it is.
    pub fn set_aside(&mut self, abandoned: Abandoned, roused: u64) -> Result<bool, Abandoned> {
        if roused != self.roused {
            return self.push(abandoned).map(|()| false);
        }
        let entry = self.entry(abandoned)?;
        self.set_aside.push_back(entry);
        self.set_aside_len += 1;
        Ok(true)
    }

    /// A device became quiet: those that were set aside are back in the list.
    pub fn rouse(&mut self) {
        self.entries.back_mut().splice_after(self.set_aside.take());
        self.len += core::mem::take(&mut self.set_aside_len);
        self.roused += 1;
    }

    fn entry(&mut self, abandoned: Abandoned) -> Result<UnsafeRef<Waiting>, Abandoned> {
        let entry = Waiting { link: LinkedListLink::new(), abandoned: None };
        let Some(mut slot) = self.slots.take_reserved(entry) else { return Err(abandoned) };
        slot.abandoned = Some(abandoned);
        Ok(slot.into_ref())
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
        self.rouse();
        while let Some(abandoned) = self.pop(tables) {
            drop(abandoned);
        }
        self.slots.release(tables);
    }
}
