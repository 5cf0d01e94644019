//! Which buffers are lent: by claim and IOVA, to find one again, and by memory, to find what overlaps.

use core::cell::Cell;

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};
use mm::{PhysAddr, table::TableMemory};

use super::{Lent, Origin, misuse::Piece};
use crate::{
    Iova,
    slab::{Slab, Slot},
};

/// Records at a time, at most: some 7 MiB.
pub(super) const MAX_RECORDS: usize = 1 << 15;

/// A piece of a lent buffer.
struct Record {
    by_memory: RBTreeLink,
    by_claim: RBTreeLink,
    claim: u64,
    lent: Lent,
    piece: Piece,
    /// The CPU has the buffer. Of the first piece only.
    synced: Cell<Option<Synced>>,
}

/// What was seen when the CPU got a buffer.
#[derive(Clone, Copy)]
pub(super) struct Synced {
    /// Of the buffer's bytes.
    pub digest: u64,
    /// Where it was synced.
    pub origin: Origin,
}

intrusive_adapter!(ByMemory = UnsafeRef<Record>: Record { by_memory => RBTreeLink });
intrusive_adapter!(ByClaim = UnsafeRef<Record>: Record { by_claim => RBTreeLink });

impl KeyAdapter<'_> for ByMemory {
    type Key = PhysAddr;

    fn get_key(&self, record: &Record) -> PhysAddr {
        record.piece.memory.start
    }
}

impl KeyAdapter<'_> for ByClaim {
    type Key = (u64, Iova);

    fn get_key(&self, record: &Record) -> (u64, Iova) {
        (record.claim, record.iova())
    }
}

impl Record {
    /// Where the device finds the piece.
    fn iova(&self) -> Iova {
        Iova::new(self.lent.iova.as_u64() + self.piece.offset)
    }
}

/// The records of all claims.
pub(super) struct Records {
    by_memory: RBTree<ByMemory>,
    by_claim: RBTree<ByClaim>,
    slots: Slab<Record>,
    count: usize,
}

// SAFETY: all records belong to this structure; no reference to one of them leaves it.
unsafe impl Send for Records {}

impl Records {
    /// No records.
    ///
    /// # Safety
    /// All calls get the same table memory, and [`release`](Self::release) is the last of them.
    pub unsafe fn new() -> Self {
        Self {
            by_memory: RBTree::new(ByMemory::new()),
            by_claim: RBTree::new(ByClaim::new()),
            // SAFETY: slots are used by the trees only, and `release` empties those first.
            slots: unsafe { Slab::new() },
            count: 0,
        }
    }

    /// Gives the memory of all records back.
    pub fn release<M: TableMemory>(&mut self, tables: &M) {
        self.by_memory.fast_clear();
        self.by_claim.fast_clear();
        self.slots.release(tables);
    }

    /// Adds a record of `piece` of `lent`. False if there are too many, or there is no memory.
    #[must_use]
    pub fn add<M: TableMemory>(&mut self, tables: &M, claim: u64, lent: Lent, piece: Piece) -> bool {
        let (by_memory, by_claim) = (RBTreeLink::new(), RBTreeLink::new());
        let record = Record { by_memory, by_claim, claim, lent, piece, synced: Cell::new(None) };
        if self.count == MAX_RECORDS {
            return false;
        }
        let Some(slot) = self.slots.take(tables, record) else { return false };
        let record = slot.into_ref();
        self.by_memory.insert(record.clone());
        self.by_claim.insert(record);
        self.count += 1;
        true
    }

    /// Removes a record of the `bytes` bytes that `claim` has at `iova`: the first at `from` or behind it. Returns
    /// where that was. Without isolation others of the same claim may have a part of them too: theirs stay.
    pub fn remove<M: TableMemory>(
        &mut self,
        tables: &M,
        claim: u64,
        (iova, bytes): (Iova, u64),
        from: Iova,
    ) -> Option<Iova> {
        let last = iova.as_u64() + (bytes - 1);
        let mut cursor = self.by_claim.lower_bound_mut(Bound::Included(&(claim, from)));
        let at = loop {
            let record = cursor.get()?;
            if record.claim != claim || record.iova().as_u64() > last {
                return None;
            }
            if (record.lent.iova, record.lent.bytes) == (iova, bytes) {
                break record.iova();
            }
            cursor.move_next();
        };
        let record = cursor.remove()?;
        // SAFETY: a record in one of the trees is in the other one too.
        unsafe { self.by_memory.cursor_mut_from_ptr(&raw const *record) }.remove();
        // SAFETY: it came from `add`, and is in no tree any more.
        self.slots.put(tables, unsafe { Slot::from_ref(record) });
        self.count -= 1;
        Some(at)
    }

    /// A buffer whose memory is partly that of `piece` of `lent`, if a device may write one of them.
    pub fn overlapping(&self, lent: &Lent, piece: Piece) -> Option<Lent> {
        let end = |piece: &Piece| piece.memory.start.as_u64() + piece.memory.bytes;
        let mut cursor = self.by_memory.lower_bound(Bound::Included(&piece.stretch()));
        while let Some(record) =
            cursor.get().filter(|record| record.piece.memory.start.as_u64() < end(&piece))
        {
            let is_written = lent.access.write || record.lent.access.write;
            if is_written && end(&record.piece) > piece.memory.start.as_u64() {
                return Some(record.lent);
            }
            cursor.move_next();
        }
        None
    }

    /// The first piece that `claim` has at `from` or behind it: where, and the buffer that it is of.
    pub fn next(&self, claim: u64, from: Iova) -> Option<(Iova, Lent)> {
        let record = self.by_claim.lower_bound(Bound::Included(&(claim, from))).get()?;
        (record.claim == claim).then(|| (record.iova(), record.lent))
    }

    /// Says what was seen of the buffer that `claim` has at `iova`. Returns the buffer, and what was said before.
    pub fn set_synced(
        &self,
        claim: u64,
        iova: Iova,
        synced: Option<Synced>,
    ) -> Option<(Lent, Option<Synced>)> {
        let record = self.by_claim.find(&(claim, iova)).get()?;
        Some((record.lent, record.synced.replace(synced)))
    }
}
