//! Table memory for tests: physical addresses that are not pointers, a walker that sees only what was written back,
//! and complaints about pages that are freed twice, used after they were freed, or freed dirty.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::vec::Vec;

use crate::PhysAddr;
use crate::table::{TABLE_ENTRIES, Table, TableMemory};

use crate::table::atomic::Ordering;

/// Physical address of the first page. Nothing like a pointer on the host.
pub const BASE: u64 = 0x12_3456_7000;

/// An arena of table pages, as memory that the walker in hardware does not snoop.
pub struct Arena {
    pages: *mut Table,
    capacity: usize,
    state: Mutex<State>,
}

struct State {
    free: Vec<usize>,
    used: BTreeSet<usize>,
    /// What has been written back, page by page.
    written: Vec<[u64; TABLE_ENTRIES]>,
    /// Allocations that still succeed.
    budget: usize,
    write_backs: usize,
}

// SAFETY: the pages are atomics, and the rest is under a lock.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub fn new(capacity: usize) -> Self {
        // SAFETY: the layout is not empty.
        let pages = unsafe { alloc_zeroed(Self::layout(capacity)) }.cast();
        let state = State {
            free: (0..capacity).rev().collect(),
            used: BTreeSet::new(),
            written: std::vec![[!0; TABLE_ENTRIES]; capacity],
            budget: usize::MAX,
            write_backs: 0,
        };
        Self { pages, capacity, state: Mutex::new(state) }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity * 4096, 4096).unwrap()
    }

    fn index_of(&self, page: PhysAddr) -> usize {
        let offset = page.as_u64().checked_sub(BASE).expect("not a table page");
        assert!(
            offset.is_multiple_of(4096) && offset / 4096 < self.capacity as u64,
            "not a table page: {page}"
        );
        (offset / 4096) as usize
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.state.lock().unwrap().used.len()
    }

    /// Allows `count` more allocations.
    pub fn set_budget(&self, count: usize) {
        self.state.lock().unwrap().budget = count;
    }

    /// Number of calls to write back so far.
    pub fn write_backs(&self) -> usize {
        self.state.lock().unwrap().write_backs
    }

    /// The entry that a walker which does not snoop reads.
    pub fn written_back(&self, page: PhysAddr, index: usize) -> u64 {
        let page = self.index_of(page);
        let state = self.state.lock().unwrap();
        assert!(state.used.contains(&page), "hardware walks a page that was freed");
        state.written[page][index]
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.pages.cast(), Self::layout(self.capacity)) };
    }
}

// SAFETY: a page is zeroed at the start and checked to be zero when freed; `used` keeps one owner for each.
unsafe impl TableMemory for Arena {
    fn allocate(&self) -> Option<PhysAddr> {
        let mut state = self.state.lock().unwrap();
        state.budget = state.budget.checked_sub(1)?;
        let page = state.free.pop()?;
        state.used.insert(page);
        // What memory held before: present garbage. A table that is linked without a write-back shows it.
        state.written[page] = [0x7fff_f007; TABLE_ENTRIES];
        Some(PhysAddr::new(BASE + page as u64 * 4096))
    }

    unsafe fn free(&self, page: PhysAddr) {
        let index = self.index_of(page);
        // SAFETY: the page is within the arena.
        let dirty =
            unsafe { &*self.pages.add(index) }.iter().position(|entry| entry.load(Ordering::Relaxed) != 0);
        assert_eq!(dirty, None, "a table page is freed with an entry in it");
        let mut state = self.state.lock().unwrap();
        assert!(state.used.remove(&index), "a table page is freed twice");
        state.free.push(index);
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        let index = self.index_of(page);
        assert!(self.state.lock().unwrap().used.contains(&index), "a table page is used after it was freed");
        // SAFETY: within the arena, and nothing but atomics is ever made of it.
        unsafe { &*self.pages.add(index) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        let start = self.pages.cast::<u8>();
        let offset = first.addr() - start.addr();
        assert!(bytes > 0 && offset + bytes <= self.capacity * 4096, "write-back of something else");
        let mut state = self.state.lock().unwrap();
        state.write_backs += 1;
        for line in offset / 64..(offset + bytes).div_ceil(64) {
            for entry in line * 8..line * 8 + 8 {
                let (page, index) = (entry / TABLE_ENTRIES, entry % TABLE_ENTRIES);
                // SAFETY: `page` is within the arena.
                let value = unsafe { &*self.pages.add(page) }[index].load(Ordering::Relaxed);
                state.written[page][index] = value;
            }
        }
    }
}
