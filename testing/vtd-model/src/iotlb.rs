//! The IOTLB: translations by domain and page.

use std::collections::BTreeMap;

/// A translation of one page of 4 KiB, 2 MiB or 1 GiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// Physical address of the page.
    pub physical: u64,
    /// log2 of the size of the page.
    pub page_shift: u32,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
    /// The address is the device's own, not translated.
    pub pass_through: bool,
}

/// A stage of translation. Requests pass through one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Stage {
    First,
    Second,
}

/// What is cached of page tables is tagged with: a domain, and whether it is the first stage's, where PASID 0 belongs
/// to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Tag {
    pub stage: Stage,
    pub domain: u16,
}

impl Tag {
    pub const fn second(domain: u16) -> Self {
        Self { stage: Stage::Second, domain }
    }
}

/// What the IOTLB says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Lookup {
    Hit(Translation),
    /// Caching mode: remembered as not present.
    NotPresent,
}

/// Sizes of pages, as shifts.
const SHIFTS: [u32; 3] = [12, 21, 30];

/// Which translations an invalidation is about; pages are numbers of 4 KiB pages, both included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum IotlbScope {
    Global,
    Domain(Tag),
    Pages {
        tag: Tag,
        first: u64,
        last: u64,
        /// Paging structures may stay (IH).
        leaves_only: bool,
    },
}

#[derive(Debug, Default)]
struct DomainEntries {
    /// By number of the page of that size.
    pages: [BTreeMap<u64, Translation>; 3],
    not_present: BTreeMap<u64, ()>,
}

#[derive(Debug, Default)]
pub(crate) struct Iotlb {
    domains: BTreeMap<Tag, DomainEntries>,
}

/// Entries of one size that a domain may fill before the oldest addresses go.
const CAPACITY: usize = 1 << 16;

impl Iotlb {
    pub fn lookup(&self, tag: Tag, address: u64) -> Option<Lookup> {
        let entries = self.domains.get(&tag)?;
        for (size, shift) in SHIFTS.iter().enumerate() {
            if let Some(&translation) = entries.pages[size].get(&(address >> shift)) {
                return Some(Lookup::Hit(translation));
            }
        }
        entries.not_present.contains_key(&(address >> 12)).then_some(Lookup::NotPresent)
    }

    pub fn insert(&mut self, tag: Tag, address: u64, translation: Translation) {
        let entries = self.domains.entry(tag).or_default();
        let size = SHIFTS.iter().position(|&s| s == translation.page_shift).expect("a page size");
        let pages = &mut entries.pages[size];
        pages.insert(address >> translation.page_shift, translation);
        if pages.len() > CAPACITY {
            pages.pop_first();
        }
    }

    pub fn insert_not_present(&mut self, tag: Tag, address: u64) {
        let entries = self.domains.entry(tag).or_default();
        entries.not_present.insert(address >> 12, ());
        if entries.not_present.len() > CAPACITY {
            entries.not_present.pop_first();
        }
    }

    /// Forgets what `lookup` found for the address.
    pub fn drop_entry(&mut self, tag: Tag, address: u64) {
        let Some(entries) = self.domains.get_mut(&tag) else { return };
        for (size, shift) in SHIFTS.iter().enumerate() {
            entries.pages[size].remove(&(address >> shift));
        }
        entries.not_present.remove(&(address >> 12));
    }

    /// Invalidates; gives some of the addresses that were dropped.
    pub fn invalidate(&mut self, scope: IotlbScope) -> Vec<u64> {
        match scope {
            IotlbScope::Global => {
                self.domains.clear();
                Vec::new()
            }
            IotlbScope::Domain(tag) => {
                let dropped = self.domains.remove(&tag);
                dropped.map_or(Vec::new(), |entries| entries.some_addresses())
            }
            IotlbScope::Pages { tag, first, last, .. } => {
                self.domains.get_mut(&tag).map_or(Vec::new(), |entries| entries.invalidate(first, last))
            }
        }
    }

    /// Whether it may hold anything with a tag.
    pub fn has(&self, tag: Tag) -> bool {
        self.domains.contains_key(&tag)
    }

    /// The translations with a tag, each with the address that it is of.
    pub fn entries(&self, tag: Tag) -> Vec<(u64, Translation)> {
        let Some(entries) = self.domains.get(&tag) else { return Vec::new() };
        let sizes = SHIFTS.iter().zip(&entries.pages);
        sizes.flat_map(|(shift, pages)| pages.iter().map(move |(page, t)| (page << shift, *t))).collect()
    }

    /// An entry that leads to one of the `bytes` bytes at `physical`: its domain and address.
    pub fn reaches(&self, physical: u64, bytes: u64) -> Option<(u16, u64)> {
        for (tag, entries) in &self.domains {
            for (size, shift) in SHIFTS.iter().enumerate() {
                let found = entries.pages[size].iter().find(|(_, translation)| {
                    let first = translation.physical;
                    !translation.pass_through && first < physical + bytes && physical < first + (1 << shift)
                });
                if let Some((page, _)) = found {
                    return Some((tag.domain, page << shift));
                }
            }
        }
        None
    }
}

impl DomainEntries {
    fn some_addresses(&self) -> Vec<u64> {
        const SOME: usize = 4;
        let all =
            SHIFTS.iter().zip(&self.pages).flat_map(|(shift, pages)| pages.keys().map(move |p| p << shift));
        all.take(SOME).collect()
    }

    /// Entries of larger pages than the request names stay, as hardware may keep them: the mask has to be at least the
    /// size of the page.
    fn invalidate(&mut self, first: u64, last: u64) -> Vec<u64> {
        let mut dropped = Vec::new();
        for (shift, pages) in SHIFTS.iter().zip(&mut self.pages) {
            let scale = shift - 12;
            if last - first + 1 < 1 << scale {
                continue;
            }
            let range = first >> scale..=last >> scale;
            while let Some((&page, _)) = pages.range(range.clone()).next() {
                pages.remove(&page);
                dropped.push(page << shift);
            }
        }
        while let Some((&page, ())) = self.not_present.range(first..=last).next() {
            self.not_present.remove(&page);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(physical: u64, page_shift: u32) -> Translation {
        Translation { physical, page_shift, read: true, write: true, pass_through: false }
    }

    #[test]
    fn entries_stay_until_their_page_is_invalidated() {
        let mut tlb = Iotlb::default();
        tlb.insert(Tag::second(3), 0x5000, page(0x9000, 12));
        let pages = |domain, first, last| IotlbScope::Pages {
            tag: Tag::second(domain),
            first,
            last,
            leaves_only: false,
        };
        tlb.invalidate(pages(3, 6, 9));
        tlb.invalidate(pages(4, 0, 100));
        assert_eq!(tlb.lookup(Tag::second(3), 0x5abc), Some(Lookup::Hit(page(0x9000, 12))));
        tlb.invalidate(pages(3, 5, 5));
        assert_eq!(tlb.lookup(Tag::second(3), 0x5abc), None);
    }

    #[test]
    fn a_superpage_stays_until_an_invalidation_is_of_its_size() {
        let mut tlb = Iotlb::default();
        tlb.insert(Tag::second(3), 0x20_0000, page(0x4000_0000, 21));
        let pages = |first, last| IotlbScope::Pages { tag: Tag::second(3), first, last, leaves_only: true };
        tlb.invalidate(pages(0x3ff, 0x3ff));
        tlb.invalidate(pages(0x200, 0x2ff));
        tlb.invalidate(pages(0x300, 0x3ff));
        assert_eq!(tlb.lookup(Tag::second(3), 0x20_0000), Some(Lookup::Hit(page(0x4000_0000, 21))));
        tlb.invalidate(pages(0x200, 0x3ff));
        assert_eq!(tlb.lookup(Tag::second(3), 0x20_0000), None);
    }

    #[test]
    fn each_stage_has_entries_of_its_own() {
        let mut tlb = Iotlb::default();
        let first = Tag { stage: Stage::First, domain: 3 };
        tlb.insert(first, 0x5000, page(0x9000, 12));
        assert_eq!(tlb.lookup(Tag::second(3), 0x5000), None);
        tlb.invalidate(IotlbScope::Domain(Tag::second(3)));
        assert!(tlb.lookup(first, 0x5000).is_some());
        tlb.invalidate(IotlbScope::Domain(first));
        assert_eq!(tlb.lookup(first, 0x5000), None);
    }

    #[test]
    fn physical_addresses_are_found() {
        let mut tlb = Iotlb::default();
        tlb.insert(Tag::second(3), 0x20_0000, page(0x4000_0000, 21));
        assert_eq!(tlb.reaches(0x401f_f000, 4096), Some((3, 0x20_0000)));
        assert_eq!(tlb.reaches(0x4020_0000, 4096), None);
    }
}
