//! The paging-structure caches: upper-level entries by domain.

use std::collections::BTreeMap;

use crate::iotlb::{IotlbScope, Tag};

/// What the walker remembers of an entry that points to a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CachedTable {
    /// The table one level further down; `None` if caching mode remembers the entry as not present.
    pub table: Option<u64>,
    pub read: bool,
    pub write: bool,
}

/// Bits of address below what an entry of `level` resolves.
pub(crate) fn level_shift(level: u8) -> u32 {
    12 + 9 * (u32::from(level) - 1)
}

#[derive(Debug, Default)]
pub(crate) struct PagingCache {
    /// By tag, level of the entry (2 to 5), and the address above what the entry spans.
    entries: BTreeMap<(Tag, u8, u64), CachedTable>,
}

const CAPACITY: usize = 1 << 14;

impl PagingCache {
    pub fn get(&self, tag: Tag, level: u8, address: u64) -> Option<CachedTable> {
        self.entries.get(&(tag, level, address >> level_shift(level))).copied()
    }

    pub fn insert(&mut self, tag: Tag, level: u8, address: u64, table: CachedTable) {
        self.entries.insert((tag, level, address >> level_shift(level)), table);
        if self.entries.len() > CAPACITY {
            self.entries.pop_first();
        }
    }

    pub fn remove(&mut self, tag: Tag, level: u8, address: u64) {
        self.entries.remove(&(tag, level, address >> level_shift(level)));
    }

    pub fn invalidate(&mut self, scope: IotlbScope) {
        match scope {
            IotlbScope::Global => self.entries.clear(),
            IotlbScope::Domain(tag) => self.entries.retain(|key, _| key.0 != tag),
            IotlbScope::Pages { leaves_only: true, .. } => {}
            IotlbScope::Pages { tag, first, last, leaves_only: false } => {
                for level in 2..=5_u8 {
                    let scale = level_shift(level) - 12;
                    let range = (tag, level, first >> scale)..=(tag, level, last >> scale);
                    while let Some((&key, _)) = self.entries.range(range.clone()).next() {
                        self.entries.remove(&key);
                    }
                }
            }
        }
    }

    /// The domain of an entry that leads to the table page at `physical`.
    pub fn reaches(&self, physical: u64) -> Option<(u16, u8)> {
        let found = self.entries.iter().find(|(_, cached)| cached.table == Some(physical));
        found.map(|(&(tag, level, _), _)| (tag.domain, level))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leaf_hint_keeps_them() {
        let mut cache = PagingCache::default();
        let table = CachedTable { table: Some(0x7000), read: true, write: true };
        cache.insert(Tag::second(1), 2, 0x40_0000, table);
        let pages =
            |leaves_only| IotlbScope::Pages { tag: Tag::second(1), first: 0x400, last: 0x400, leaves_only };
        cache.invalidate(pages(true));
        assert_eq!(cache.get(Tag::second(1), 2, 0x5f_ffff), Some(table));
        assert_eq!(cache.get(Tag::second(1), 2, 0x60_0000), None);
        assert_eq!(cache.reaches(0x7000), Some((1, 2)));
        cache.invalidate(pages(false));
        assert_eq!(cache.get(Tag::second(1), 2, 0x40_0000), None);
    }
}
