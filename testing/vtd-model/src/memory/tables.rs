//! Table pages, and the CPU cache between them and a walker that does not snoop it.
//!
//! Each page exists twice: as the CPU sees it, and as it stands in memory. A store reaches memory when its line is
//! written back, or when the cache happens to evict it.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use mm::table::{TABLE_ENTRIES, Table};

use super::Region;
use crate::{
    complaints::{Complaints, Rule},
    random::Random,
};

const PAGE_BYTES: usize = 4096;
const LINE_BYTES: usize = 64;
const LINE_WORDS: usize = LINE_BYTES / 8;
/// Lines that are on their way to memory at a time.
const LINES_AT_ONCE: usize = 64;

#[derive(Debug)]
pub(crate) struct TablePages {
    /// What the CPU stores and loads.
    cpu: Region,
    /// What stands in memory.
    written: Region,
    /// One bit a line, one word a page: the line has not reached memory since the page was given out.
    unwritten: Vec<AtomicU64>,
    /// Held while a line goes to memory, by the number of the line: caches are coherent, so what one CPU has written
    /// back is not overwritten by what another one saw before.
    in_transit: [Mutex<()>; LINES_AT_ONCE],
    /// When each page was last given out, as a running number.
    numbers: Vec<AtomicU64>,
    newest: AtomicU64,
    state: Mutex<State>,
    complaints: Arc<Complaints>,
}

#[derive(Debug)]
struct State {
    free: Vec<u32>,
    /// Pages given out, in no order.
    live: Vec<u32>,
    /// Where a page stands in `live`.
    position: Vec<Option<u32>>,
    /// Pages from here to the end are given out in contiguous runs.
    contiguous_floor: u32,
    /// Allocations that still succeed, if a shortage is simulated.
    remaining: Option<u64>,
    /// Allocations that a shortage refused.
    refused: u64,
}

impl TablePages {
    pub fn new(base: u64, pages: usize, random: &mut Random, complaints: Arc<Complaints>) -> Self {
        let split = pages as u32 / 2;
        // Page 0 is the trap that stale entries lead to. The order is shuffled so that neighbours are rare.
        let mut free: Vec<u32> = (1..split).collect();
        for i in (1..free.len()).rev() {
            free.swap(i, random.index(i + 1));
        }
        Self {
            cpu: Region::new(base, pages * PAGE_BYTES),
            written: Region::new(base, pages * PAGE_BYTES),
            unwritten: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            numbers: (0..pages).map(|_| AtomicU64::new(0)).collect(),
            newest: AtomicU64::new(0),
            in_transit: [const { Mutex::new(()) }; LINES_AT_ONCE],
            state: Mutex::new(State {
                free,
                live: Vec::new(),
                position: vec![None; pages],
                contiguous_floor: pages as u32,
                remaining: None,
                refused: 0,
            }),
            complaints,
        }
    }

    /// Physical address of the trap: a page whose every entry leads back to it.
    pub fn trap(&self) -> u64 {
        self.cpu.base()
    }

    pub fn contains(&self, physical: u64) -> bool {
        self.cpu.offset(physical, 1).is_some()
    }

    pub fn contains_pointer(&self, pointer: *const u8) -> bool {
        self.cpu.offset_of(pointer).is_some()
    }

    /// The word at `physical`, as the CPU sees it or as it stands in memory.
    pub fn word(&self, physical: u64, snoop: bool) -> Option<u64> {
        let offset = self.cpu.offset(physical, 8)?;
        if self.numbers[offset / PAGE_BYTES].load(Ordering::Relaxed) == 0 {
            // Never given out, and so never touched: the host need not commit it.
            return Some(self.poisoned());
        }
        let region = if snoop { &self.cpu } else { &self.written };
        Some(region.word(offset).load(Ordering::Acquire))
    }

    /// All words of the page at `physical`, as [`word`](Self::word) gives them one by one; `None` if it was never given
    /// out.
    pub fn page_words(&self, physical: u64, snoop: bool) -> Option<&Table> {
        let page = self.page(physical)? as usize;
        if self.numbers[page].load(Ordering::Relaxed) == 0 {
            return None;
        }
        let region = if snoop { &self.cpu } else { &self.written };
        // SAFETY: a page of the region, aligned; every access to it is atomic.
        Some(unsafe { region.pointer(page * PAGE_BYTES).cast::<Table>().as_ref() })
    }

    /// A store by hardware, which the caches do not hide from anybody.
    pub fn store32(&self, physical: u64, value: u32) -> bool {
        let Some(offset) = self.cpu.offset(physical, 4) else { return false };
        self.written.dword(offset).store(value, Ordering::Release);
        self.cpu.dword(offset).store(value, Ordering::Release);
        true
    }

    pub fn allocate(&self) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        state.admit()?;
        let page = state.free.pop()?;
        state.give_out(page);
        drop(state);
        self.zero(page);
        Some(self.address(page))
    }

    pub fn allocate_contiguous(&self, pages: usize) -> Option<u64> {
        let mut state = self.state.lock().unwrap();
        state.admit()?;
        let pages = u32::try_from(pages).ok()?;
        let align = pages.checked_next_power_of_two()?;
        let first_number = (self.cpu.base() / PAGE_BYTES as u64) as u32 & (align - 1);
        // The address is to be aligned, not the index.
        let below = state.contiguous_floor.checked_sub(pages)?;
        let first = below.checked_sub(below.wrapping_add(first_number) & (align - 1))?;
        if first < self.unwritten.len() as u32 / 2 {
            return None;
        }
        state.contiguous_floor = first;
        (first..first + pages).for_each(|page| state.give_out(page));
        drop(state);
        (first..first + pages).for_each(|page| self.zero(page));
        Some(self.address(first))
    }

    /// Where the pages are that another allocator may give out: all but the trap.
    pub fn range(&self) -> (u64, usize) {
        (self.address(1), self.unwritten.len() - 1)
    }

    /// Gives out `pages` pages from `physical` on, which another allocator has chosen.
    pub fn take(&self, physical: u64, pages: usize) {
        for at in (physical..).step_by(PAGE_BYTES).take(pages) {
            let Some(page) = self.page(at) else {
                self.complaints.add(Rule::BadFree, format!("{at:#x} is not a table page"));
                return;
            };
            let mut state = self.state.lock().unwrap();
            if state.position[page as usize].is_some() {
                self.complaints.add(Rule::BadFree, format!("table page {at:#x} given out twice"));
                return;
            }
            state.free.retain(|&free| free != page);
            state.give_out(page);
            drop(state);
            self.zero(page);
        }
    }

    /// Takes a page back and poisons it; whatever still points at it leads into the trap.
    pub fn free(&self, physical: u64) {
        let Some(page) = self.page(physical) else {
            self.complaints.add(Rule::BadFree, format!("{physical:#x} is not a table page"));
            return;
        };
        let mut state = self.state.lock().unwrap();
        if !state.take_back(page) {
            self.complaints.add(Rule::BadFree, format!("table page {physical:#x} freed twice"));
            return;
        }
        self.poison(page);
        // Not on top of the list: a page used at once again would hide a stale pointer to it.
        let length = state.free.len();
        state.free.push(page);
        state.free.swap(length / 2, length);
    }

    pub fn table(&self, physical: u64) -> &Table {
        let page = self.page(physical).unwrap_or_else(|| {
            self.complaints.add(Rule::BadFree, format!("{physical:#x} is not a table page"));
            0
        });
        if self.state.lock().unwrap().position[page as usize].is_none() {
            self.complaints.add(Rule::BadFree, format!("table page {physical:#x} used while it is free"));
        }
        let first = self.cpu.pointer(page as usize * PAGE_BYTES).cast::<Table>();
        // SAFETY: a page of the region, aligned; every access to it is atomic.
        unsafe { first.as_ref() }
    }

    /// Writes the lines of `bytes` bytes from `first` back.
    pub fn write_back(&self, first: *const u8, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let (Some(start), Some(last)) =
            (self.cpu.offset_of(first), self.cpu.offset_of(first.wrapping_add(bytes - 1)))
        else {
            self.complaints.add(Rule::BadFree, "write-back of memory that is no table page");
            return;
        };
        (start / LINE_BYTES..=last / LINE_BYTES).for_each(|line| self.write_line(line));
    }

    /// Writes some lines back that nobody asked for, as a cache does when it needs room.
    pub fn evict(&self, random: &mut Random) {
        const PAGES: usize = 4;
        for _ in 0..PAGES {
            let page = {
                let state = self.state.lock().unwrap();
                if state.live.is_empty() {
                    return;
                }
                state.live[random.index(state.live.len())]
            };
            let lines = PAGE_BYTES / LINE_BYTES;
            let first = page as usize * lines;
            if random.once_in(2) {
                (first..first + lines).for_each(|line| self.write_line(line));
            } else {
                self.write_line(first + random.index(lines));
            }
        }
    }

    /// Whether lines of the page at `physical` have not reached memory since it was given out.
    pub fn has_unwritten_lines(&self, physical: u64) -> bool {
        self.page(physical).is_some_and(|page| self.unwritten[page as usize].load(Ordering::Relaxed) != 0)
    }

    /// The running number under which the page was given out, if it is a table page.
    pub fn age(&self, physical: u64) -> Option<u64> {
        self.page(physical).map(|page| self.numbers[page as usize].load(Ordering::Relaxed))
    }

    /// The highest such number so far.
    pub fn newest(&self) -> u64 {
        self.newest.load(Ordering::Relaxed)
    }

    pub fn is_live(&self, physical: u64) -> bool {
        self.page(physical).is_some_and(|page| self.state.lock().unwrap().position[page as usize].is_some())
    }

    /// Pages given out at the moment.
    pub fn live_pages(&self) -> usize {
        self.state.lock().unwrap().live.len()
    }

    /// Lets `remaining` more allocations succeed and then none; `None` ends the shortage.
    pub fn set_shortage(&self, remaining: Option<u64>) {
        self.state.lock().unwrap().remaining = remaining;
    }

    /// Allocations that a shortage has refused so far.
    pub fn refused(&self) -> u64 {
        self.state.lock().unwrap().refused
    }

    fn write_line(&self, line: usize) {
        let _in_transit = self.in_transit[line % LINES_AT_ONCE].lock().unwrap();
        for word in 0..LINE_WORDS {
            let offset = line * LINE_BYTES + word * 8;
            let value = self.cpu.word(offset).load(Ordering::Acquire);
            self.written.word(offset).store(value, Ordering::Release);
        }
        let (page, bit) = (line * LINE_BYTES / PAGE_BYTES, line % (PAGE_BYTES / LINE_BYTES));
        self.unwritten[page].fetch_and(!(1 << bit), Ordering::Relaxed);
    }

    /// Zeroes the page as the CPU sees it; memory keeps what stood there.
    fn zero(&self, page: u32) {
        if self.numbers[page as usize].load(Ordering::Relaxed) == 0 {
            self.poison(page);
        }
        self.unwritten[page as usize].store(!0, Ordering::Relaxed);
        let number = self.newest.fetch_add(1, Ordering::Relaxed) + 1;
        self.numbers[page as usize].store(number, Ordering::Relaxed);
        self.words(page).for_each(|offset| self.cpu.word(offset).store(0, Ordering::Release));
    }

    /// What stands in every entry of a free page: read, write, and back to the trap.
    fn poisoned(&self) -> u64 {
        const READ_WRITE: u64 = 3;
        self.trap() | READ_WRITE
    }

    fn poison(&self, page: u32) {
        self.words(page).for_each(|offset| {
            self.cpu.word(offset).store(self.poisoned(), Ordering::Release);
            self.written.word(offset).store(self.poisoned(), Ordering::Release);
        });
    }

    fn words(&self, page: u32) -> impl Iterator<Item = usize> + use<> {
        let first = page as usize * PAGE_BYTES;
        (0..TABLE_ENTRIES).map(move |index| first + index * 8)
    }

    fn address(&self, page: u32) -> u64 {
        self.cpu.base() + u64::from(page) * PAGE_BYTES as u64
    }

    fn page(&self, physical: u64) -> Option<u32> {
        let offset = self.cpu.offset(physical, PAGE_BYTES)?;
        offset.is_multiple_of(PAGE_BYTES).then_some((offset / PAGE_BYTES) as u32)
    }
}

impl State {
    /// Counts one allocation against a simulated shortage.
    fn admit(&mut self) -> Option<()> {
        if let Some(remaining) = &mut self.remaining {
            match remaining.checked_sub(1) {
                Some(left) => *remaining = left,
                None => {
                    self.refused += 1;
                    return None;
                }
            }
        }
        Some(())
    }

    fn give_out(&mut self, page: u32) {
        self.position[page as usize] = Some(self.live.len() as u32);
        self.live.push(page);
    }

    fn take_back(&mut self, page: u32) -> bool {
        let Some(position) = self.position[page as usize].take() else { return false };
        self.live.swap_remove(position as usize);
        if let Some(&moved) = self.live.get(position as usize) {
            self.position[moved as usize] = Some(position);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages() -> TablePages {
        TablePages::new(0x1_2340_0000, 64, &mut Random::new(3), Arc::default())
    }

    #[test]
    fn memory_sees_what_was_written_back_and_nothing_else() {
        let pages = pages();
        let page = pages.allocate().unwrap();
        let table = pages.table(page);
        table[8].store(5, Ordering::Relaxed);
        assert_eq!(pages.word(page + 64, true), Some(5));
        assert_eq!(pages.word(page + 64, false), Some(pages.trap() | 3));
        pages.write_back((&raw const table[8]).cast(), 8);
        assert_eq!(pages.word(page + 64, false), Some(5));
        assert_eq!(pages.word(page + 128, false), Some(pages.trap() | 3));
        assert!(pages.has_unwritten_lines(page));
        pages.write_back(table.as_ptr().cast(), PAGE_BYTES);
        assert!(!pages.has_unwritten_lines(page));
    }

    #[test]
    fn eviction_writes_back_unasked() {
        let pages = pages();
        let page = pages.allocate().unwrap();
        let mut random = Random::new(1);
        (0..1000).for_each(|_| pages.evict(&mut random));
        assert!(!pages.has_unwritten_lines(page));
    }

    #[test]
    fn contiguous_runs_are_aligned_and_apart() {
        let pages = pages();
        let four = pages.allocate_contiguous(3).unwrap();
        let two = pages.allocate_contiguous(2).unwrap();
        assert!(four.is_multiple_of(4 * 4096) && two.is_multiple_of(2 * 4096));
        assert!(two + 2 * 4096 <= four || four + 3 * 4096 <= two);
        assert_eq!(pages.allocate_contiguous(64), None);
    }

    #[test]
    fn another_allocator_may_choose() {
        let pages = pages();
        let (first, count) = pages.range();
        assert_eq!((first, count), (0x1_2340_1000, 63));
        pages.take(first, 3);
        assert!(pages.is_live(first + 0x2000) && !pages.is_live(first + 0x3000));
        assert_eq!(pages.word(first, true), Some(0));
        let others: Vec<u64> = core::iter::from_fn(|| pages.allocate()).collect();
        assert!(others.iter().all(|&page| page >= first + 0x3000));
        assert!(pages.complaints.is_empty());
        pages.take(first + 0x2000, 1);
        pages.take(first + 63 * 0x1000, 1);
        assert_eq!(pages.complaints.take().len(), 2);
    }

    #[test]
    fn double_frees_are_told() {
        let pages = pages();
        let page = pages.allocate().unwrap();
        pages.free(page);
        assert!(pages.complaints.is_empty());
        pages.free(page);
        assert_eq!(pages.complaints.take()[0].rule, Rule::BadFree);
        assert_eq!(pages.live_pages(), 0);
    }

    #[test]
    fn a_freed_page_leads_into_the_trap() {
        let pages = pages();
        let page = pages.allocate().unwrap();
        pages.free(page);
        assert_eq!(pages.word(page, true), Some(pages.trap() | 3));
        assert_eq!(pages.word(pages.trap(), true), Some(pages.trap() | 3));
    }

    #[test]
    fn physical_addresses_are_not_pointers() {
        let pages = pages();
        let page = pages.allocate().unwrap();
        assert_ne!(pages.table(page).as_ptr().addr() as u64, page);
    }

    #[test]
    fn a_shortage_refuses() {
        let pages = pages();
        pages.set_shortage(Some(1));
        assert!(pages.allocate().is_some());
        assert!(pages.allocate().is_none());
        assert_eq!(pages.refused(), 1);
        pages.set_shortage(None);
        assert!(pages.allocate().is_some());
    }
}
