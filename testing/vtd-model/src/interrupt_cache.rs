//! The interrupt-entry cache: remapping entries by index.

use std::collections::BTreeMap;

use crate::entries::InterruptEntry;

/// Which interrupt entries an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InterruptScope {
    Global,
    /// The entries from `first` to `last`, both included.
    Entries {
        first: u32,
        last: u32,
    },
}

impl InterruptScope {
    pub fn covers(self, index: u32) -> bool {
        match self {
            Self::Global => true,
            Self::Entries { first, last } => (first..=last).contains(&index),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct InterruptCache {
    entries: BTreeMap<u32, InterruptEntry>,
}

impl InterruptCache {
    pub fn get(&self, index: u32) -> Option<InterruptEntry> {
        self.entries.get(&index).copied()
    }

    pub fn insert(&mut self, index: u32, entry: InterruptEntry) {
        self.entries.insert(index, entry);
    }

    pub fn remove(&mut self, index: u32) {
        self.entries.remove(&index);
    }

    pub fn invalidate(&mut self, scope: InterruptScope) {
        self.entries.retain(|&index, _| !scope.covers(index));
    }
}
