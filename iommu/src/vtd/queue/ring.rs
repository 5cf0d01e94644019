//! The memory of the queue.

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

/// 64-bit words of a descriptor of 128 bits.
const NARROW_WORDS: usize = 2;

/// A ring of descriptors, addressed by position: the count of descriptors before.
pub(super) struct Ring {
    first: PhysAddr,
    order: u8,
    /// 64-bit words of an entry: 2, or 4 in scalable mode.
    entry_words: usize,
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
        let entry_words = if wide { 2 * NARROW_WORDS } else { NARROW_WORDS };
        let entries = ((PAGE_BYTES as usize) << order) / (entry_words * size_of::<u64>());
        Ok(Self { first, order, entry_words, entries, coherent })
    }

    pub fn address(&self) -> QueueAddress {
        QueueAddress::at(self.first, self.order, self.entry_words != NARROW_WORDS)
    }

    fn entry_bytes(&self) -> usize {
        self.entry_words * size_of::<u64>()
    }

    pub fn entries(&self) -> usize {
        self.entries
    }

    fn index(&self, position: u64) -> usize {
        position as usize & (self.entries - 1)
    }

    /// What head and tail registers say for `position`: after the last entry comes the first, never the ring's size.
    pub fn units(&self, position: u64) -> u16 {
        let units = self.index(position) * (self.entry_bytes() / ENTRY_BYTES);
        // At most 2^7 pages of 256 units.
        units as u16
    }

    /// The position at or below `tail` that the head register means by `units`, if it can mean one.
    pub fn position_below(&self, units: u16, tail: u64) -> Option<u64> {
        let stride = self.entry_bytes() / ENTRY_BYTES;
        let (units, entries) = (usize::from(units), self.entries());
        if !units.is_multiple_of(stride) || units / stride >= entries {
            return None;
        }
        let behind = (self.index(tail) + entries - units / stride) % entries;
        tail.checked_sub(behind as u64)
    }

    #[inline]
    pub fn write<P: Platform>(&self, platform: &P, position: u64, descriptor: RawDescriptor) {
        self.with_words(platform, position, |words| {
            use core::sync::atomic::Ordering::Relaxed;
            words[0].store(descriptor.low(), Relaxed);
            words[1].store(descriptor.high(), Relaxed);
            words[NARROW_WORDS..].iter().for_each(|word| word.store(0, Relaxed));
            if !self.coherent {
                platform.tables().write_back(words.as_ptr().cast(), size_of_val(words));
            }
        });
    }

    pub fn read<P: Platform>(&self, platform: &P, position: u64) -> RawDescriptor {
        self.with_words(platform, position, |words| {
            use core::sync::atomic::Ordering::Relaxed;
            RawDescriptor::from_halves(words[0].load(Relaxed), words[1].load(Relaxed))
        })
    }

    fn with_words<P: Platform, T>(
        &self,
        platform: &P,
        position: u64,
        access: impl FnOnce(&[core::sync::atomic::AtomicU64]) -> T,
    ) -> T {
        let word = self.index(position) * self.entry_words;
        let words_a_page = PAGE_BYTES as usize / size_of::<u64>();
        let page = PhysAddr::new(self.first.as_u64() + (word / words_a_page) as u64 * PAGE_BYTES);
        // SAFETY: the page is one of those that `allocate_contiguous` returned for this ring, which are never freed.
        let table: &Table = unsafe { platform.tables().table(page) };
        let first = word % words_a_page;
        access(&table[first..first + self.entry_words])
    }
}
