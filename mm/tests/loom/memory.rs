//! Table memory that finds out when a page is used that is free: its entries hold poison, which must still be there
//! when the page is allocated, and at the end.

use std::sync::Mutex;

use loom::sync::atomic::{AtomicU64, Ordering};

use crate::PhysAddr;
use crate::table::{Table, TableMemory};

const POISON: u64 = 0xdead_dead_dead_d007;
const PAGES: usize = 10;

pub struct Memory {
    pages: [Table; PAGES],
    free: Mutex<Vec<usize>>,
    freed: Mutex<Vec<usize>>,
}

impl Memory {
    pub fn new() -> Self {
        Self {
            pages: core::array::from_fn(|_| core::array::from_fn(|_| AtomicU64::new(POISON))),
            free: Mutex::new((0..PAGES).rev().collect()),
            freed: Mutex::new(Vec::new()),
        }
    }

    fn index(page: PhysAddr) -> usize {
        (page.as_u64() / 4096) as usize - 1
    }

    /// Whether `page` was given back at some time.
    pub fn was_freed(&self, page: PhysAddr) -> bool {
        self.freed.lock().unwrap().contains(&Self::index(page))
    }

    /// Sees that `used` pages are in use, and that the others were left alone.
    pub fn check(&self, used: usize) {
        let free = self.free.lock().unwrap().clone();
        assert_eq!(PAGES - free.len(), used, "pages in use");
        for page in free {
            let entries = self.pages[page].iter();
            assert!(
                entries.map(|entry| entry.load(Ordering::SeqCst)).all(|raw| raw == POISON),
                "written after free"
            );
        }
    }
}

// SAFETY: a page has one owner while it is not in `free`.
unsafe impl TableMemory for Memory {
    fn allocate(&self) -> Option<PhysAddr> {
        let page = self.free.lock().unwrap().pop()?;
        for entry in &self.pages[page] {
            assert_eq!(entry.swap(0, Ordering::AcqRel), POISON, "written after free");
        }
        Some(PhysAddr::new((page as u64 + 1) * 4096))
    }

    unsafe fn free(&self, page: PhysAddr) {
        let page = Self::index(page);
        for entry in &self.pages[page] {
            assert_eq!(entry.swap(POISON, Ordering::AcqRel), 0, "freed with an entry in it");
        }
        let mut free = self.free.lock().unwrap();
        assert!(!free.contains(&page), "freed twice");
        free.push(page);
        self.freed.lock().unwrap().push(page);
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        let page = Self::index(page);
        assert!(!self.free.lock().unwrap().contains(&page), "used after free");
        &self.pages[page]
    }

    fn write_back(&self, _: *const u8, _: usize) {}
}
