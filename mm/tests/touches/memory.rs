//! Table memory in one piece, so that an address says which entry of which page it is.

use std::sync::Mutex;

use crate::PhysAddr;
use crate::machine::AtomicU64;
use crate::table::{TABLE_ENTRIES, Table, TableMemory};

pub struct Memory {
    pages: Vec<Table>,
    free: Mutex<Vec<usize>>,
}

impl Memory {
    pub fn new(pages: usize) -> Self {
        let page = || core::array::from_fn(|_| AtomicU64::new(0));
        Self { pages: (0..pages).map(|_| page()).collect(), free: Mutex::new((0..pages).rev().collect()) }
    }

    fn index(page: PhysAddr) -> usize {
        (page.as_u64() / 4096) as usize - 1
    }

    fn page(index: usize) -> PhysAddr {
        PhysAddr::new((index as u64 + 1) * 4096)
    }

    /// The page and the index in it of the entry at `address`, if one is there.
    pub fn entry_at(&self, address: usize) -> Option<(PhysAddr, usize)> {
        let entry = address.checked_sub(self.pages.as_ptr().addr())? / size_of::<AtomicU64>();
        let page = entry / TABLE_ENTRIES;
        (page < self.pages.len()).then(|| (Self::page(page), entry % TABLE_ENTRIES))
    }

    pub fn used(&self) -> usize {
        self.pages.len() - self.free.lock().unwrap().len()
    }
}

// SAFETY: a page has one owner while it is not in `free`, and is zero when it gets there.
unsafe impl TableMemory for Memory {
    fn allocate(&self) -> Option<PhysAddr> {
        self.free.lock().unwrap().pop().map(Self::page)
    }

    unsafe fn free(&self, page: PhysAddr) {
        self.free.lock().unwrap().push(Self::index(page));
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        let index = Self::index(page);
        assert!(index < self.pages.len(), "{page} is none of these pages");
        // SAFETY: the page is one of the vector's. By its pointer, as an index would have Miri tag all of them each
        // time.
        unsafe { &*self.pages.as_ptr().add(index) }
    }

    fn write_back(&self, _: *const u8, _: usize) {}
}
