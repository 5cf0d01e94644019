//! Memory whose physical addresses are not its virtual ones.

use std::{
    boxed::Box,
    sync::{
        Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    vec::Vec,
};

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{TABLE_ENTRIES, Table, TableMemory},
};

use crate::sync::atomic::AtomicU64 as StepCount;

/// Where the memory starts: beyond 32 bits, so that a truncated address shows.
const FIRST: u64 = 0x12_3456_0000;
const PAGES: usize = 600;

/// Slots of slabs find their page by its alignment.
#[repr(align(4096))]
struct Page(Table);

pub struct FakeMemory {
    /// Only ever indexed page by page: Miri takes its time over a reference to all of them.
    pages: Box<[Page]>,
    next: AtomicUsize,
    limit: AtomicUsize,
    /// What was written back: physical address and length of each run.
    written_back: Mutex<Vec<(u64, usize)>>,
    steps: StepCount,
}

impl FakeMemory {
    pub fn new() -> Self {
        // SAFETY: an atomic of zero bytes is 0.
        let pages = unsafe { Box::new_zeroed_slice(PAGES).assume_init() };
        let (next, limit) = (AtomicUsize::new(0), AtomicUsize::new(PAGES));
        Self { pages, next, limit, written_back: Mutex::new(Vec::new()), steps: StepCount::new(0) }
    }

    /// A moment that another CPU, or the unit, may come first in: `loom` tries it before each access to tables and
    /// registers, which are not its own atomics.
    ///
    /// Hardware orders no more than this: what a CPU stored before it wrote a register (`Release`) is seen by who reads
    /// (`Acquire`) what the unit stored because of it.
    pub fn step(&self, order: Ordering) {
        self.steps.fetch_add(1, order);
    }

    pub fn allocate_run(&self, pages: usize) -> Option<PhysAddr> {
        let first = self.next.load(Ordering::Relaxed).next_multiple_of(pages);
        if first + pages > self.limit.load(Ordering::Relaxed) {
            return None;
        }
        self.next.store(first + pages, Ordering::Relaxed);
        Some(PhysAddr::new(FIRST + first as u64 * PAGE_BYTES))
    }

    /// From now on there is no more memory.
    pub fn exhaust(&self) {
        self.limit.store(0, Ordering::Relaxed);
    }

    /// The 64-bit word at `address`.
    pub fn word(&self, address: u64) -> &AtomicU64 {
        assert!(address.is_multiple_of(8), "unaligned word at {address:#x}");
        let offset = address.checked_sub(FIRST).expect("a virtual address was given to hardware");
        let word = offset as usize / 8;
        &self.pages[word / TABLE_ENTRIES].0[word % TABLE_ENTRIES]
    }

    /// What hardware does for a wait: 32 bits.
    pub fn write32(&self, address: u64, value: u32) {
        let (word, shift) = (self.word(address & !7), (address & 4) * 8);
        let mask = 0xffff_ffff << shift;
        word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| {
            Some(old & !mask | u64::from(value) << shift)
        })
        .unwrap();
    }

    pub fn was_written_back(&self, address: u64, bytes: usize) -> bool {
        let end = address + bytes as u64;
        let holds = |&(first, length): &(u64, usize)| first <= address && end <= first + length as u64;
        self.written_back.lock().unwrap().iter().any(holds)
    }

    pub fn write_backs(&self) -> usize {
        self.written_back.lock().unwrap().len()
    }
}

// SAFETY: pages are handed out once, zeroed, and live as long as the memory.
unsafe impl TableMemory for FakeMemory {
    fn allocate(&self) -> Option<PhysAddr> {
        self.allocate_run(1)
    }

    unsafe fn free(&self, _page: PhysAddr) {}

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        self.step(Ordering::Acquire);
        let offset = page.as_u64().checked_sub(FIRST).expect("not a page of this memory");
        assert!(offset.is_multiple_of(PAGE_BYTES), "{page} is no page");
        &self.pages[(offset / PAGE_BYTES) as usize].0
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        let start = &raw const self.pages[0];
        let offset = first.addr().checked_sub(start.addr()).expect("not in this memory");
        self.written_back.lock().unwrap().push((FIRST + offset as u64, bytes));
    }
}
