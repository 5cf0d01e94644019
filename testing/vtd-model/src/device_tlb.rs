//! A device's own TLB, filled by its translation requests and emptied only by device-TLB invalidations.

use std::collections::BTreeMap;

use crate::iotlb::Translation;

#[derive(Debug, Default)]
pub(crate) struct DeviceTlb {
    /// By number of the 4 KiB page: devices may cut what they got into pieces.
    pages: BTreeMap<u64, Translation>,
}

/// The addresses that a device-TLB invalidation covers, first and last 4 KiB page.
pub(crate) fn invalidated_pages(address: u64, size: bool) -> (u64, u64) {
    let page = address >> 12;
    if !size {
        return (page, page);
    }
    // n consecutive ones from bit 12 up stand for 2^(n + 1) pages.
    let pages_log2 = page.trailing_ones() + 1;
    if pages_log2 >= 52 {
        return (0, u64::MAX >> 12);
    }
    let mask = (1 << pages_log2) - 1;
    (page & !mask, page | mask)
}

impl DeviceTlb {
    pub fn get(&self, address: u64) -> Option<Translation> {
        self.pages.get(&(address >> 12)).copied()
    }

    pub fn insert(&mut self, address: u64, translation: Translation) {
        const CAPACITY: usize = 4096;
        let inside = address & ((1 << translation.page_shift) - 1) & !0xfff;
        let piece = Translation { physical: translation.physical + inside, page_shift: 12, ..translation };
        self.pages.insert(address >> 12, piece);
        if self.pages.len() > CAPACITY {
            self.pages.pop_first();
        }
    }

    pub fn remove(&mut self, address: u64) {
        self.pages.remove(&(address >> 12));
    }

    pub fn clear(&mut self) {
        self.pages.clear();
    }

    /// Invalidates the pages; gives some of the addresses that were dropped.
    pub fn invalidate(&mut self, first: u64, last: u64) -> Vec<u64> {
        let mut dropped = Vec::new();
        while let Some((&page, _)) = self.pages.range(first..=last).next() {
            self.pages.remove(&page);
            dropped.push(page << 12);
        }
        dropped
    }

    /// The translations, each with the address that it is of.
    pub fn entries(&self) -> impl Iterator<Item = (u64, Translation)> {
        self.pages.iter().map(|(page, translation)| (page << 12, *translation))
    }

    /// An address that leads to one of the `bytes` bytes at `physical`.
    pub fn reaches(&self, physical: u64, bytes: u64) -> Option<u64> {
        let found = self.pages.iter().find(|(_, translation)| {
            !translation.pass_through && (physical..physical + bytes).contains(&translation.physical)
        });
        found.map(|(page, _)| page << 12)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_an_invalidation() {
        assert_eq!(invalidated_pages(0x5000, false), (5, 5));
        assert_eq!(invalidated_pages(0x4000, true), (4, 5));
        assert_eq!(invalidated_pages(0x4000 | 0x1000, true), (4, 7));
        assert_eq!(invalidated_pages(0x20_0000 | 0xf_f000, true), (0x200, 0x3ff));
        assert_eq!(invalidated_pages(0x7fff_ffff_ffff_f000, true), (0, u64::MAX >> 12));
    }
}
