//! Table memory that checks what is done with it: physical addresses that are not pointers, a second copy that holds
//! only what was written back, and complaints about pages that are freed twice, used after they were freed, or freed
//! with an entry in them.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mm::PhysAddr;
use mm::table::{TABLE_ENTRIES, Table, TableMemory};

use super::random::Random;

/// Physical address of the first page. Nothing like a pointer on the host.
const BASE: u64 = 0x12_3456_7000;

/// What memory held before it was a table: present, and leading nowhere. A table that is linked before it is written
/// back shows it to the walker.
const GARBAGE: u64 = 0x7fff_f007;

type Watcher = Arc<dyn Fn(&Arena) + Send + Sync>;
type Hold = Box<dyn FnOnce(&Arena) + Send>;

pub struct Arena {
    pages: *mut Table,
    capacity: usize,
    // Boxed slices are indexed in place, where a `Vec` is borrowed whole each time, which takes Miri long.
    used: Box<[AtomicBool]>,
    written: Box<[Table]>,
    free: Mutex<Vec<usize>>,
    /// Allocations that still succeed.
    budget: AtomicUsize,
    allocations: AtomicUsize,
    is_watched: AtomicBool,
    watcher: Mutex<Option<Watcher>>,
    /// Cache lines leave the cache of their own accord, too.
    evictions: Mutex<Option<Random>>,
    evicts: AtomicBool,
    held: Mutex<Option<Hold>>,
    holds_in: AtomicUsize,
    delayed: Mutex<Option<Hold>>,
    delays_in: AtomicUsize,
}

// SAFETY: the pages are atomics.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub fn new(capacity: usize) -> Self {
        // SAFETY: the layout is not empty.
        let pages = unsafe { alloc_zeroed(Self::layout(capacity)) }.cast();
        Self {
            pages,
            capacity,
            used: (0..capacity).map(|_| AtomicBool::new(false)).collect(),
            written: (0..capacity).map(|_| [const { AtomicU64::new(GARBAGE) }; TABLE_ENTRIES]).collect(),
            free: Mutex::new((0..capacity).rev().collect()),
            budget: AtomicUsize::new(usize::MAX),
            allocations: AtomicUsize::new(0),
            is_watched: AtomicBool::new(false),
            watcher: Mutex::new(None),
            evictions: Mutex::new(None),
            evicts: AtomicBool::new(false),
            held: Mutex::new(None),
            holds_in: AtomicUsize::new(0),
            delayed: Mutex::new(None),
            delays_in: AtomicUsize::new(0),
        }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity * 4096, 4096).unwrap()
    }

    fn index_of(&self, page: PhysAddr) -> usize {
        let offset = page.as_u64().wrapping_sub(BASE);
        assert!(
            offset.is_multiple_of(4096) && offset / 4096 < self.capacity as u64,
            "not a table page: {page}"
        );
        (offset / 4096) as usize
    }

    /// Pages in use.
    pub fn used(&self) -> usize {
        self.used.iter().filter(|used| used.load(Ordering::Relaxed)).count()
    }

    /// Allows `count` more allocations.
    pub fn set_budget(&self, count: usize) {
        self.budget.store(count, Ordering::Relaxed);
    }

    /// Number of allocations so far.
    pub fn allocations(&self) -> usize {
        self.allocations.load(Ordering::Relaxed)
    }

    /// Calls `watcher` after each write-back: whenever a walker that does not snoop may see something new.
    pub fn watch(&self, watcher: impl Fn(&Self) + Send + Sync + 'static) {
        *self.watcher.lock().unwrap() = Some(Arc::new(watcher));
        self.is_watched.store(true, Ordering::Relaxed);
    }

    pub fn unwatch(&self) {
        self.is_watched.store(false, Ordering::Relaxed);
    }

    /// From now on, lines are written back at random moments as well.
    pub fn evict_at_random(&self, seed: u64) {
        *self.evictions.lock().unwrap() = Some(Random::new(seed));
        self.evicts.store(true, Ordering::Relaxed);
    }

    /// Calls `hold` at the `nth` use of a table from now on, in the middle of whatever uses it.
    pub fn hold_use(&self, nth: usize, hold: impl FnOnce(&Self) + Send + 'static) {
        *self.held.lock().unwrap() = Some(Box::new(hold));
        self.holds_in.store(nth, Ordering::Release);
    }

    /// Calls `hold` before the `nth` write-back from now on.
    pub fn delay_write_back(&self, nth: usize, hold: impl FnOnce(&Self) + Send + 'static) {
        *self.delayed.lock().unwrap() = Some(Box::new(hold));
        self.delays_in.store(nth, Ordering::Release);
    }

    /// What a walker in hardware reads: the CPU's view if it snoops, else what was written back.
    pub fn read(&self, page: PhysAddr, index: usize, snoops: bool) -> u64 {
        let page = self.index_of(page);
        assert!(self.used[page].load(Ordering::Relaxed), "the walker reads a page that was freed");
        if snoops {
            self.entry(page, index).load(Ordering::Acquire)
        } else {
            self.written(page, index).load(Ordering::Acquire)
        }
    }

    /// Sets `bits` in an entry, as hardware does with accessed and dirty.
    pub fn set_bits(&self, page: PhysAddr, index: usize, bits: u64) {
        let page = self.index_of(page);
        self.entry(page, index).fetch_or(bits, Ordering::AcqRel);
    }

    fn entry(&self, page: usize, index: usize) -> &AtomicU64 {
        assert!(page < self.capacity && index < TABLE_ENTRIES);
        // Straight to the entry: Miri takes its time over a reference to the whole page.
        // SAFETY: within the arena, and nothing but atomics is ever made of it.
        unsafe { &*self.pages.cast::<AtomicU64>().add(page * TABLE_ENTRIES + index) }
    }

    /// The same entry as it was written back.
    fn written(&self, page: usize, index: usize) -> &AtomicU64 {
        &self.written[page][index]
    }

    fn write_line(&self, line: usize) {
        for entry in line * 8..line * 8 + 8 {
            let (page, index) = (entry / TABLE_ENTRIES, entry % TABLE_ENTRIES);
            self.written(page, index)
                .store(self.entry(page, index).load(Ordering::Acquire), Ordering::Release);
        }
    }

    fn maybe_evict(&self, page: usize) {
        if !self.evicts.load(Ordering::Relaxed) {
            return;
        }
        let mut evictions = self.evictions.lock().unwrap();
        if let Some(random) = &mut *evictions
            && random.below(8) == 0
        {
            self.write_line(page * 64 + random.below(64) as usize);
        }
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
        let budget = self.budget.load(Ordering::Relaxed);
        self.budget.store(budget.checked_sub(1)?, Ordering::Relaxed);
        let page = self.free.lock().unwrap().pop()?;
        self.allocations.fetch_add(1, Ordering::Relaxed);
        self.written[page].iter().for_each(|entry| entry.store(GARBAGE, Ordering::Relaxed));
        assert!(!self.used[page].swap(true, Ordering::Relaxed));
        Some(PhysAddr::new(BASE + page as u64 * 4096))
    }

    unsafe fn free(&self, page: PhysAddr) {
        let page = self.index_of(page);
        assert!(self.used[page].swap(false, Ordering::Relaxed), "a table page is freed twice");
        let dirty = (0..TABLE_ENTRIES).find(|index| self.entry(page, *index).load(Ordering::Relaxed) != 0);
        assert_eq!(dirty, None, "a table page is freed with an entry in it");
        self.free.lock().unwrap().push(page);
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        let page = self.index_of(page);
        assert!(self.used[page].load(Ordering::Relaxed), "a table page is used after it was freed");
        self.maybe_evict(page);
        if self.holds_in.load(Ordering::Acquire) != 0 && self.holds_in.fetch_sub(1, Ordering::AcqRel) == 1 {
            let held = self.held.lock().unwrap().take();
            held.into_iter().for_each(|hold| hold(self));
            assert!(self.used[page].load(Ordering::Relaxed), "a table page is freed while it is read");
        }
        // SAFETY: within the arena, and nothing but atomics is ever made of it.
        unsafe { &*self.pages.add(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        let offset = first.addr() - self.pages.addr();
        assert!(bytes > 0 && offset + bytes <= self.capacity * 4096, "write-back of something else");
        if self.delays_in.load(Ordering::Acquire) != 0 && self.delays_in.fetch_sub(1, Ordering::AcqRel) == 1 {
            let delayed = self.delayed.lock().unwrap().take();
            delayed.into_iter().for_each(|hold| hold(self));
        }
        (offset / 64..(offset + bytes).div_ceil(64)).for_each(|line| self.write_line(line));
        if self.is_watched.load(Ordering::Relaxed) {
            let watcher = self.watcher.lock().unwrap().clone();
            watcher.inspect(|watcher| watcher(self));
        }
    }
}
