//! Which ranges are handed out, as far as somebody must know.
//!
//! What [`free`](super::IovaSpace::free) gives back follows from the address and the length, so in general nobody
//! writes down what is handed out. There are two exceptions. A range at a fixed place can look like the first pages of
//! a larger block and not be one: it is always written down. A space that checks its caller writes down all.

use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink, UnsafeRef, intrusive_adapter};
use mm::table::TableMemory;

use super::holes::Run;
use crate::slab::{Slab, Slot};

/// A range that is handed out.
struct Record {
    link: RBTreeLink,
    run: Run,
    pages: u64,
}

intrusive_adapter!(ByFirst = UnsafeRef<Record>: Record { link => RBTreeLink });

impl KeyAdapter<'_> for ByFirst {
    type Key = u64;

    fn get_key(&self, record: &Record) -> u64 {
        record.run.first
    }
}

/// Ranges that are handed out, by address.
pub(super) struct Ledger {
    records: RBTree<ByFirst>,
    slots: Slab<Record>,
}

// SAFETY: all records belong to this structure; no reference to one of them leaves it.
unsafe impl Send for Ledger {}

/// Why there is nothing to strike out.
pub(super) enum NoEntry {
    /// Nothing begins at the address.
    Unknown,
    /// What begins there was handed out for this many pages.
    Pages(u64),
}

impl Ledger {
    /// # Safety
    /// As for [`Slab::new`].
    pub unsafe fn new() -> Self {
        // SAFETY: records are used by the tree only, and `release` empties it first.
        Self { records: RBTree::new(ByFirst::new()), slots: unsafe { Slab::new() } }
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Sets memory for one entry aside.
    #[must_use]
    pub fn prepare<M: TableMemory>(&mut self, tables: &M) -> bool {
        self.slots.reserve(tables, 1)
    }

    /// Gives up what [`prepare`](Self::prepare) set aside.
    pub fn cancel(&mut self) {
        self.slots.unreserve(1);
    }

    /// Writes down that `run` was handed out for `pages` pages, after [`prepare`](Self::prepare).
    pub fn enter(&mut self, run: Run, pages: u64) {
        let record = Record { link: RBTreeLink::new(), run, pages };
        let record = self.slots.take_reserved(record).map(Slot::into_ref);
        debug_assert!(record.is_some(), "no record set aside");
        if let Some(record) = record {
            self.records.insert(record);
        }
    }

    /// Strikes out the range at page `first`, handed out for `pages` pages: the pages that it really takes up.
    pub fn strike<M: TableMemory>(&mut self, tables: &M, first: u64, pages: u64) -> Result<Run, NoEntry> {
        let mut cursor = self.records.find_mut(&first);
        let run = match cursor.get() {
            None => return Err(NoEntry::Unknown),
            Some(record) if record.pages != pages => return Err(NoEntry::Pages(record.pages)),
            Some(record) => record.run,
        };
        if let Some(record) = cursor.remove() {
            // SAFETY: the record has just left its only tree.
            self.slots.put(tables, unsafe { Slot::from_ref(record) });
        }
        Ok(run)
    }

    /// Pages of memory that hold records.
    pub fn memory_pages(&self) -> usize {
        self.slots.pages()
    }

    pub fn trim<M: TableMemory>(&mut self, tables: &M) {
        self.slots.trim(tables);
    }

    pub fn release<M: TableMemory>(&mut self, tables: &M) {
        self.records.fast_clear();
        self.slots.release(tables);
    }
}
