//! What each group of functions should be able to reach.

use std::collections::BTreeMap;

/// A run of addresses that are mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapped {
    pub bytes: u64,
    /// `None`: memory of the driver's own choice.
    pub physical: Option<u64>,
    pub read: bool,
    pub write: bool,
    /// Dropped and not yet reaped: it may be gone or not.
    pub fading: bool,
}

/// One group's address space.
#[derive(Debug, Default)]
pub struct Oracle {
    ranges: BTreeMap<u64, Mapped>,
}

/// What the oracle says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    Nothing,
    Mapped(Mapped, u64),
}

impl Oracle {
    /// Adds a range; the address of one that it overlaps, if there is one.
    pub fn insert(&mut self, first: u64, mapped: Mapped) -> Result<(), u64> {
        let last = first + (mapped.bytes - 1);
        if let Some((&start, before)) = self.ranges.range(..=last).next_back()
            && start + (before.bytes - 1) >= first
        {
            return Err(start);
        }
        self.ranges.insert(first, mapped);
        Ok(())
    }

    pub fn remove(&mut self, first: u64) {
        self.ranges.remove(&first);
    }

    pub fn fade(&mut self, first: u64) {
        if let Some(mapped) = self.ranges.get_mut(&first) {
            mapped.fading = true;
        }
    }

    /// The ranges that faded are gone.
    pub fn forget_faded(&mut self) {
        self.ranges.retain(|_, mapped| !mapped.fading);
    }

    pub fn expected(&self, address: u64) -> Expected {
        match self.ranges.range(..=address).next_back() {
            Some((&first, mapped)) if address - first < mapped.bytes => {
                Expected::Mapped(*mapped, address - first)
            }
            _ => Expected::Nothing,
        }
    }

    pub fn ranges(&self) -> impl Iterator<Item = (u64, Mapped)> {
        self.ranges.iter().map(|(&first, &mapped)| (first, mapped))
    }

    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// The first address of the `index`th range.
    pub fn nth(&self, index: usize) -> Option<(u64, Mapped)> {
        self.ranges().nth(index)
    }
}
