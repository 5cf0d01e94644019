//! The domain ids of one unit.

use alloc::vec::Vec;

use super::spec::DomainId;

/// Which of a unit's domain ids are in use.
///
/// Id 0 is never given out: with caching mode on, hardware tags with it what it cached of entries that are not
/// present.
#[derive(Debug)]
pub(super) struct DomainIds {
    /// One bit an id, set while it is in use.
    used: Vec<u64>,
    count: usize,
    in_use: usize,
}

impl DomainIds {
    /// Ids below `count`, at most 65536; `None` if there is no memory.
    pub fn new(count: usize) -> Option<Self> {
        let words = count.div_ceil(64);
        let mut used = Vec::new();
        used.try_reserve_exact(words).ok()?;
        used.resize(words, 0);
        if let Some(first) = used.first_mut() {
            *first = 1;
        }
        Some(Self { used, count, in_use: 0 })
    }

    /// A free id, the lowest.
    pub fn allocate(&mut self) -> Option<DomainId> {
        let word = self.used.iter().position(|&word| word != u64::MAX)?;
        let bit = self.used[word].trailing_ones() as usize;
        let id = word * 64 + bit;
        if id >= self.count {
            return None;
        }
        self.used[word] |= 1 << bit;
        self.in_use += 1;
        u16::try_from(id).ok().map(DomainId::new)
    }

    /// Takes back an id that nothing in the unit is tagged with any more.
    pub fn free(&mut self, id: DomainId) {
        let (word, bit) = (usize::from(id.as_u16()) / 64, id.as_u16() % 64);
        debug_assert!(self.used[word] & 1 << bit != 0, "domain id {id} is not in use");
        self.used[word] &= !(1 << bit);
        self.in_use -= 1;
    }

    /// Ids in use.
    pub fn in_use(&self) -> usize {
        self.in_use
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn every_id_but_zero_is_given_out_once() {
        for count in [16, 64, 100, 256, if cfg!(miri) { 4096 } else { 65536 }] {
            let mut ids = DomainIds::new(count).unwrap();
            let given: Vec<u16> = core::iter::from_fn(|| ids.allocate()).map(DomainId::as_u16).collect();
            assert!(given.iter().copied().eq(1..=(count - 1) as u16), "{count} ids");
            assert_eq!(ids.in_use(), count - 1);
        }
    }

    #[test]
    fn a_freed_id_is_given_out_again() {
        let mut ids = DomainIds::new(16).unwrap();
        let given: Vec<DomainId> = core::iter::from_fn(|| ids.allocate()).collect();
        ids.free(given[6]);
        assert_eq!(ids.allocate(), Some(given[6]));
        assert_eq!(ids.allocate(), None);
    }
}
