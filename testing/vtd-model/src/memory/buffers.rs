//! Memory that is lent to devices: the model's own, and the host program's heap.

use std::{
    collections::{BTreeMap, HashMap},
    ptr::NonNull,
    sync::Mutex,
};

use super::Region;
use crate::random::Random;

const PAGE_BYTES: usize = 4096;

/// A large, mostly untouched run of physical memory that test buffers are cut from.
#[derive(Debug)]
pub(crate) struct Buffers {
    region: Region,
    /// First page of each buffer.
    held: Mutex<BTreeMap<u32, Held>>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    pages: u32,
    /// In the hands of a device rather than of the CPU.
    lent: bool,
}

impl Buffers {
    pub fn new(base: u64, bytes: usize) -> Self {
        Self { region: Region::new(base, bytes), held: Mutex::default() }
    }

    /// Physical address of `pages` pages at a random place, aligned to `align_pages` pages, a power of two.
    pub fn allocate(&self, pages: u32, align_pages: u32, random: &mut Random) -> Option<u64> {
        const ATTEMPTS: u32 = 64;
        let total = (self.region.bytes() / PAGE_BYTES) as u32;
        let places = total.checked_sub(pages)? / align_pages + 1;
        let mut held = self.held.lock().unwrap();
        for _ in 0..ATTEMPTS {
            let first = random.below(u64::from(places)) as u32 * align_pages;
            if is_free(&held, first, pages) {
                held.insert(first, Held { pages, lent: false });
                return Some(self.region.base() + u64::from(first) * PAGE_BYTES as u64);
            }
        }
        None
    }

    pub fn free(&self, physical: u64) {
        let page = self.page(physical).expect("a buffer of this machine");
        self.held.lock().unwrap().remove(&page).expect("a buffer that is held");
    }

    /// Marks the buffer at `physical` as lent to a device, or as given back.
    pub fn set_lent(&self, physical: u64, lent: bool) {
        let page = self.page(physical).expect("a buffer of this machine");
        self.held.lock().unwrap().get_mut(&page).expect("a buffer that is held").lent = lent;
    }

    /// Whether the byte at `physical` is in a buffer that a device may reach at the moment.
    pub fn is_lent(&self, physical: u64) -> bool {
        let Some(page) = self.page(physical) else { return false };
        let held = self.held.lock().unwrap();
        held.range(..=page).next_back().is_some_and(|(&first, held)| held.lent && page - first < held.pages)
    }

    pub fn pointer(&self, physical: u64, bytes: usize) -> Option<NonNull<u8>> {
        Some(self.region.pointer(self.region.offset(physical, bytes)?))
    }

    pub fn physical(&self, pointer: *const u8, bytes: usize) -> Option<u64> {
        let physical = self.region.base() + self.region.offset_of(pointer)? as u64;
        self.region.offset(physical, bytes).map(|_| physical)
    }

    fn page(&self, physical: u64) -> Option<u32> {
        Some((self.region.offset(physical, 1)? / PAGE_BYTES) as u32)
    }
}

fn is_free(held: &BTreeMap<u32, Held>, first: u32, pages: u32) -> bool {
    held.range(..first + pages).next_back().is_none_or(|(&start, held)| start + held.pages <= first)
}

/// Physical addresses for memory of the host program, made up when it is first shared.
///
/// A frame is never given to other memory, so that a stale address is always recognised.
#[derive(Debug)]
pub(crate) struct Foreign {
    base: u64,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Frames {
    by_page: HashMap<usize, u64>,
    /// Page of the host program behind each frame.
    pages: Vec<usize>,
}

impl Foreign {
    pub fn new(base: u64) -> Self {
        Self { base, frames: Mutex::default() }
    }

    pub fn physical(&self, first: NonNull<u8>, bytes: usize) -> u64 {
        let address = first.as_ptr().expose_provenance();
        let first_page = address / PAGE_BYTES;
        let count = (address % PAGE_BYTES + bytes.max(1)).div_ceil(PAGE_BYTES);
        let mut frames = self.frames.lock().unwrap();
        let known = frames.by_page.get(&first_page).copied().filter(|&frame| {
            (0..count).all(|i| frames.by_page.get(&(first_page + i)) == Some(&(frame + i as u64)))
        });
        let frame = known.unwrap_or_else(|| {
            let frame = frames.pages.len() as u64;
            for i in 0..count {
                frames.pages.push(first_page + i);
                frames.by_page.insert(first_page + i, frame + i as u64);
            }
            frame
        });
        self.base + frame * PAGE_BYTES as u64 + (address % PAGE_BYTES) as u64
    }

    pub fn pointer(&self, physical: u64) -> Option<NonNull<u8>> {
        let offset = physical.checked_sub(self.base)?;
        let page = *self.frames.lock().unwrap().pages.get(usize::try_from(offset).ok()? / PAGE_BYTES)?;
        let address = page * PAGE_BYTES + offset as usize % PAGE_BYTES;
        NonNull::new(std::ptr::with_exposed_provenance_mut(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_do_not_overlap_and_come_back() {
        let buffers = Buffers::new(0x10_0000_0000, 64 * PAGE_BYTES);
        let mut random = Random::new(9);
        let mut got = Vec::new();
        while let Some(start) = buffers.allocate(4, 4, &mut random) {
            assert!(start.is_multiple_of(4 * 4096) && !got.contains(&start));
            got.push(start);
        }
        assert!(got.len() > 8);
        got.into_iter().for_each(|start| buffers.free(start));
        assert!(buffers.allocate(64, 64, &mut random).is_some());
    }

    #[test]
    fn only_lent_buffers_may_be_reached() {
        let buffers = Buffers::new(0x10_0000_0000, 64 * PAGE_BYTES);
        let start = buffers.allocate(2, 1, &mut Random::new(9)).unwrap();
        assert!(!buffers.is_lent(start));
        buffers.set_lent(start, true);
        assert!(buffers.is_lent(start + 8191) && !buffers.is_lent(start + 8192));
    }

    #[test]
    fn heap_memory_gets_frames_that_lead_back_to_it() {
        let foreign = Foreign::new(0x40_0000_0000);
        let memory = vec![7_u8; 3 * PAGE_BYTES];
        let first = NonNull::from(&memory[0]);
        let physical = foreign.physical(first, memory.len());
        assert_eq!(physical % 4096, first.as_ptr().addr() as u64 % 4096);
        assert_eq!(foreign.physical(first, memory.len()), physical);
        assert_eq!(foreign.pointer(physical + 5000).unwrap().as_ptr().addr(), first.as_ptr().addr() + 5000);
    }
}
