//! The PASID cache: PASID entries by source id. Only the PASID of requests that have none is ever asked for.

use std::collections::BTreeMap;

use crate::{reason::Reason, scalable_entries::PasidEntry};

/// What the cache holds of one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CachedPasid {
    Present(PasidEntry),
    /// Caching mode: the entry was not present, or faulty.
    Faulting(Reason, bool),
}

/// Which PASID entries an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PasidScope {
    Global,
    Domain(u16),
    /// One PASID of a domain.
    Pasid {
        domain: u16,
        pasid: u32,
    },
}

impl PasidScope {
    /// Whether it covers the entry of a PASID that belongs to `domain`.
    pub fn covers(self, domain: u16, of: u64) -> bool {
        match self {
            Self::Global => true,
            Self::Domain(wanted) => domain == wanted,
            Self::Pasid { domain: wanted, pasid } => domain == wanted && u64::from(pasid) == of,
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct PasidCache {
    /// With the PASID that requests without one have.
    entries: BTreeMap<u16, (u64, CachedPasid)>,
}

impl PasidCache {
    pub fn get(&self, source: u16) -> Option<CachedPasid> {
        self.entries.get(&source).map(|&(_, cached)| cached)
    }

    pub fn insert(&mut self, source: u16, pasid: u64, cached: CachedPasid) {
        self.entries.insert(source, (pasid, cached));
    }

    pub fn remove(&mut self, source: u16) {
        self.entries.remove(&source);
    }

    /// What was not present belongs to no domain: any invalidation reaches it.
    pub fn invalidate(&mut self, scope: PasidScope) {
        self.entries.retain(|_, (pasid, cached)| match cached {
            CachedPasid::Present(entry) => !scope.covers(entry.domain(), *pasid),
            CachedPasid::Faulting(..) => false,
        });
    }

    /// Sources whose entry carries the domain.
    pub fn sources_of(&self, domain: u16) -> impl Iterator<Item = u16> {
        let same =
            move |cached: &CachedPasid| matches!(cached, CachedPasid::Present(e) if e.domain() == domain);
        self.entries.iter().filter(move |(_, (_, cached))| same(cached)).map(|(&source, _)| source)
    }

    /// A source whose entry leads to the table page at `physical`.
    pub fn reaches(&self, physical: u64) -> Option<u16> {
        let found = self.entries.iter().find(
            |(_, (_, cached))| matches!(cached, CachedPasid::Present(entry) if entry.table() == physical),
        );
        found.map(|(&source, _)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_stay_until_their_domain_is_invalidated() {
        let mut cache = PasidCache::default();
        cache.insert(0x10, 0, CachedPasid::Present(PasidEntry([1, 3, 0, 0, 0, 0, 0, 0])));
        for scope in [PasidScope::Domain(4), PasidScope::Pasid { domain: 3, pasid: 1 }] {
            cache.invalidate(scope);
            assert_eq!(cache.sources_of(3).collect::<Vec<_>>(), [0x10]);
        }
        cache.invalidate(PasidScope::Domain(3));
        assert_eq!(cache.get(0x10), None);
    }
}
