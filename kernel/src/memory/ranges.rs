//! A small set of physical ranges.

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

/// Enough for a memory map of the largest size that is read, and the holes cut into it.
const CAPACITY: usize = crate::boot_info::REGIONS_MAX + 8;

/// Disjoint, page-aligned ranges.
pub struct RangeSet {
    ranges: [PhysRange; CAPACITY],
    len: usize,
}

impl RangeSet {
    /// No ranges.
    pub const fn new() -> Self {
        Self { ranges: [PhysRange { start: PhysAddr::new(0), bytes: 0 }; CAPACITY], len: 0 }
    }

    /// The ranges, in no particular order.
    pub fn as_slice(&self) -> &[PhysRange] {
        &self.ranges[..self.len]
    }

    /// Adds the whole pages of `start..end`, without those that are in the set already. Lost if the set is full.
    pub fn add(&mut self, start: u64, end: u64) {
        let start = start.next_multiple_of(PAGE_BYTES);
        let end = end & !(PAGE_BYTES - 1);
        let overlap =
            self.as_slice().iter().find(|range| range.start.as_u64() < end && start < range_end(range));
        match overlap.copied() {
            Some(range) => {
                self.add(start, end.min(range.start.as_u64()));
                self.add(start.max(range_end(&range)), end);
            }
            None => self.push(start, end),
        }
    }

    /// Takes every page that `start..end` touches out. What is cut off a range is lost if the set is full.
    pub fn remove(&mut self, start: u64, end: u64) {
        let start = start & !(PAGE_BYTES - 1);
        let end = end.next_multiple_of(PAGE_BYTES);
        let mut index = 0;
        while index < self.len {
            let range = self.ranges[index];
            let (first, last) = (range.start.as_u64(), range_end(&range));
            if first >= end || start >= last {
                index += 1;
                continue;
            }
            self.len -= 1;
            self.ranges[index] = self.ranges[self.len];
            self.push(first, start.min(last));
            self.push(end.max(first), last);
        }
    }

    /// Whether all of `range` lies within one of the ranges: wherever it ends, beyond the address space too.
    #[inline]
    pub fn contains(&self, range: PhysRange) -> bool {
        let holds = |outer: &PhysRange| {
            let offset = range.start.as_u64().wrapping_sub(outer.start.as_u64());
            offset < outer.bytes && range.bytes <= outer.bytes - offset
        };
        // The first is the largest (see `keep_largest`): no loop for it.
        self.len > 0 && holds(&self.ranges[0]) || self.as_slice().iter().skip(1).any(holds)
    }

    /// Whether any byte of `range` is in the set.
    pub fn overlaps(&self, range: PhysRange) -> bool {
        let end = range.start.as_u64() + range.bytes;
        self.as_slice()
            .iter()
            .any(|other| other.start.as_u64() < end && range.start.as_u64() < range_end(other))
    }

    /// Drops all but the `count` largest ranges. They are looked through from the largest down then, in which most of
    /// what is looked for lies.
    pub fn keep_largest(&mut self, count: usize) {
        self.ranges[..self.len].sort_unstable_by_key(|range| core::cmp::Reverse(range.bytes));
        self.len = self.len.min(count);
    }

    /// Bytes in all ranges.
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().map(|range| range.bytes).sum()
    }

    fn push(&mut self, start: u64, end: u64) {
        if start < end && self.len < CAPACITY {
            self.ranges[self.len] = PhysRange::new(PhysAddr::new(start), end - start);
            self.len += 1;
        }
    }
}

fn range_end(range: &PhysRange) -> u64 {
    range.start.as_u64() + range.bytes
}
