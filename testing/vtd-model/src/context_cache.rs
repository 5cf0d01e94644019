//! The context cache: context entries by source id.

use std::collections::BTreeMap;

use crate::{entries::ContextEntry, reason::Reason, scalable_entries::ScalableContext};

/// A context entry of either mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Context {
    Legacy(ContextEntry),
    Scalable(ScalableContext),
}

/// What the cache holds of one source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CachedContext {
    Present(Context),
    /// Caching mode: the entry was not present, or faulty. Tagged with domain 0.
    Faulting(Reason, bool),
}

impl CachedContext {
    /// The domain that it is tagged with; in scalable mode with none.
    fn domain(self) -> Option<u16> {
        match self {
            Self::Present(Context::Legacy(entry)) => Some(entry.domain()),
            Self::Present(Context::Scalable(_)) => None,
            Self::Faulting(..) => Some(0),
        }
    }
}

/// Which context entries an invalidation is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ContextScope {
    Global,
    Domain(u16),
    /// Sources that equal `source` outside the function bits that `function_mask` hides.
    Device {
        domain: u16,
        source: u16,
        function_mask: u8,
    },
}

impl ContextScope {
    /// Whether it covers the entry of `source`, tagged with `domain` or with none.
    pub fn covers(self, source: u16, domain: Option<u16>) -> bool {
        match self {
            Self::Global => true,
            Self::Domain(wanted) => domain == Some(wanted),
            Self::Device { domain: wanted, source: first, function_mask } => {
                let ignored = [0_u16, 4, 6, 7][usize::from(function_mask & 3)];
                domain.is_none_or(|domain| domain == wanted) && source & !ignored == first & !ignored
            }
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct ContextCache {
    entries: BTreeMap<u16, CachedContext>,
}

impl ContextCache {
    pub fn get(&self, source: u16) -> Option<CachedContext> {
        self.entries.get(&source).copied()
    }

    pub fn insert(&mut self, source: u16, context: CachedContext) {
        self.entries.insert(source, context);
    }

    pub fn remove(&mut self, source: u16) {
        self.entries.remove(&source);
    }

    pub fn invalidate(&mut self, scope: ContextScope) {
        self.entries.retain(|&source, context| !scope.covers(source, context.domain()));
    }

    /// Sources whose entry carries the domain.
    pub fn sources_of(&self, domain: u16) -> impl Iterator<Item = u16> {
        let same = move |context: &CachedContext| {
            matches!(context, CachedContext::Present(_)) && context.domain() == Some(domain)
        };
        self.entries.iter().filter(move |(_, context)| same(context)).map(|(&source, _)| source)
    }

    /// A source whose entry leads to the table page at `physical`.
    pub fn reaches(&self, physical: u64) -> Option<u16> {
        let found = self.entries.iter().find(|(_, context)| match context {
            CachedContext::Present(Context::Legacy(entry)) => entry.table() == physical,
            CachedContext::Present(Context::Scalable(entry)) => entry.directory() == physical,
            CachedContext::Faulting(..) => false,
        });
        found.map(|(&source, _)| source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(domain: u16) -> CachedContext {
        CachedContext::Present(Context::Legacy(ContextEntry { low: 1, high: u64::from(domain) << 8 }))
    }

    #[test]
    fn a_device_invalidation_needs_the_old_domain() {
        let mut cache = ContextCache::default();
        cache.insert(0x10, entry(3));
        let device = |domain| ContextScope::Device { domain, source: 0x10, function_mask: 0 };
        cache.invalidate(device(4));
        assert!(cache.get(0x10).is_some());
        cache.invalidate(device(3));
        assert!(cache.get(0x10).is_none());
    }

    #[test]
    fn not_present_entries_are_under_domain_0() {
        let mut cache = ContextCache::default();
        cache.insert(0x10, CachedContext::Faulting(Reason::ContextNotPresent, false));
        cache.invalidate(ContextScope::Domain(3));
        assert!(cache.get(0x10).is_some());
        cache.invalidate(ContextScope::Device { domain: 0, source: 0x10, function_mask: 0 });
        assert!(cache.get(0x10).is_none());
    }

    #[test]
    fn function_masks() {
        let covers = |mask, source| {
            ContextScope::Device { domain: 1, source: 0x10, function_mask: mask }.covers(source, Some(1))
        };
        assert!(covers(0, 0x10) && !covers(0, 0x14));
        assert!(covers(1, 0x14) && !covers(1, 0x12));
        assert!(covers(2, 0x16) && !covers(2, 0x11));
        assert!(covers(3, 0x17) && !covers(3, 0x18));
    }
}
