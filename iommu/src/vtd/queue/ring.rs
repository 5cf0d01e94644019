//! The memory of the queue.

use core::sync::atomic::{AtomicU64, Ordering};

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{Table, TableMemory},
};

use crate::{
    Platform,
    reach::{HostWidth, TableError, TableKind},
    vtd::spec::{QueueAddress, RawDescriptor},
};

/// Bytes of a descriptor of 128 bits, and the unit in which head and tail count.
pub(super) const ENTRY_BYTES: usize = 16;

/// 64-bit words of such a unit.
const UNIT_WORDS: usize = 2;

/// How many of them a page holds.
const UNITS_A_PAGE: usize = PAGE_BYTES as usize / ENTRY_BYTES;

/// What the CPU writes back at a time.
const LINE_BYTES: usize = 64;

/// Two descriptors, of 256 bits too, fit into a line.
const _: () = assert!(2 * (2 * ENTRY_BYTES) <= LINE_BYTES);

/// A ring of descriptors, addressed by position: the count of descriptors before.
pub(super) struct Ring {
    first: PhysAddr,
    order: u8,
    /// Entries of 256 bits (scalable mode) instead of 128.
    is_wide: bool,
    /// Number of entries, a power of two.
    entries: usize,
    /// Whether the unit snoops the CPU's caches.
    coherent: bool,
}

impl Ring {
    /// A ring of 2^`order` pages.
    pub fn new<P: Platform>(
        platform: &P,
        width: HostWidth,
        order: u8,
        wide: bool,
        coherent: bool,
    ) -> Result<Self, TableError> {
        let first = width.run(platform, TableKind::Queue, 1 << order)?;
        let entries = (UNITS_A_PAGE << order) >> u32::from(wide);
        Ok(Self { first, order, is_wide: wide, entries, coherent })
    }

    pub fn address(&self) -> QueueAddress {
        QueueAddress::at(self.first, self.order, self.is_wide)
    }

    /// Units of 128 bits in an entry.
    #[inline]
    fn stride(&self) -> usize {
        1 << u32::from(self.is_wide)
    }

    #[inline]
    pub fn entries(&self) -> usize {
        self.entries
    }

    #[inline]
    fn index(&self, position: u64) -> usize {
        position as usize & (self.entries - 1)
    }

    /// What head and tail registers say for `position`: after the last entry comes the first, never the ring's size.
    #[inline]
    pub fn units(&self, position: u64) -> u16 {
        let units = self.index(position) * self.stride();
        // At most 2^7 pages of 256 units.
        units as u16
    }

    /// The position at or below `tail` that the head register means by `units`, if it can mean one.
    pub fn position_below(&self, units: u16, tail: u64) -> Option<u64> {
        let stride = self.stride();
        let (units, entries) = (usize::from(units), self.entries());
        if !units.is_multiple_of(stride) || units / stride >= entries {
            return None;
        }
        let behind = (self.index(tail) + entries - units / stride) % entries;
        tail.checked_sub(behind as u64)
    }

    #[inline(always)]
    pub fn write<P: Platform>(&self, platform: &P, position: u64, descriptor: RawDescriptor) {
        let (page, at) = self.entry(platform, position);
        self.store(&page[at..], descriptor);
        self.write_back(platform, &page[at]);
    }

    /// Writes two descriptors, one behind the other.
    #[inline(always)]
    pub fn write_pair<P: Platform>(&self, platform: &P, position: u64, pair: [RawDescriptor; 2]) {
        let [first, second] = pair;
        if position.is_multiple_of(2) {
            // Aligned to its size as a descriptor is, and no longer than a line.
            let (page, at) = self.entry(platform, position);
            self.store(&page[at..], first);
            self.store(&page[at + self.stride()..], second);
            self.write_back(platform, &page[at]);
        } else {
            self.write(platform, position, first);
            self.write(platform, position + 1, second);
        }
    }

    /// Writes a descriptor to the first of `units`.
    #[inline(always)]
    fn store(&self, units: &[[AtomicU64; UNIT_WORDS]], descriptor: RawDescriptor) {
        let [low, high] = &units[0];
        low.store(descriptor.low(), Ordering::Relaxed);
        high.store(descriptor.high(), Ordering::Relaxed);
        if self.is_wide {
            units[1].iter().for_each(|word| word.store(0, Ordering::Relaxed));
        }
    }

    /// Writes back the line that `unit` lies in.
    #[inline(always)]
    fn write_back<P: Platform>(&self, platform: &P, unit: &[AtomicU64; UNIT_WORDS]) {
        if !self.coherent {
            platform.tables().write_back_entry(&unit[0]);
        }
    }

    pub fn read<P: Platform>(&self, platform: &P, position: u64) -> RawDescriptor {
        let (page, at) = self.entry(platform, position);
        let [low, high] = &page[at];
        RawDescriptor::from_halves(low.load(Ordering::Relaxed), high.load(Ordering::Relaxed))
    }

    /// The page that the entry for `position` lies in, in units of 128 bits, and the entry's first unit.
    #[inline(always)]
    fn entry<'a, P: Platform>(
        &self,
        platform: &'a P,
        position: u64,
    ) -> (&'a [[AtomicU64; UNIT_WORDS]], usize) {
        let unit = self.index(position) * self.stride();
        let page = PhysAddr::new(self.first.as_u64() + (unit / UNITS_A_PAGE) as u64 * PAGE_BYTES);
        // SAFETY: the page is one of those that `allocate_contiguous` returned for this ring, which are never freed.
        let table: &Table = unsafe { platform.tables().table(page) };
        let (units, _) = table.as_chunks();
        (units, unit % UNITS_A_PAGE)
    }
}
