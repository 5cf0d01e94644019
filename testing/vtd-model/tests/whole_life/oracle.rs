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
    pub state: State,
}

/// How far a range is on its way back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    InUse,
    /// Dropped and not yet reaped: it may be gone or not.
    Dropped,
    /// Retired, and its flush may be over or not: the tables do not have it any more, caches may.
    Retired,
    /// Its flush is over. Nobody reaches it, and its addresses are still taken.
    Withheld,
}

/// One group's address space.
#[derive(Debug, Default)]
pub struct Oracle {
    ranges: BTreeMap<u64, Mapped>,
    /// The page that all other addresses lead to, in quarantine.
    pub scratch: Option<u64>,
}

/// What the oracle says of an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    Nothing,
    Mapped(Mapped, u64),
    /// This page, unless the unit does not translate such an address.
    Scratch(u64),
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

    pub fn set_state(&mut self, first: u64, state: State) {
        if let Some(mapped) = self.ranges.get_mut(&first) {
            mapped.state = state;
        }
    }

    /// The ranges that were dropped are gone.
    pub fn forget_dropped(&mut self) {
        self.ranges.retain(|_, mapped| mapped.state != State::Dropped);
    }

    pub fn expected(&self, address: u64) -> Expected {
        match self.ranges.range(..=address).next_back() {
            Some((&first, mapped)) if address - first < mapped.bytes && mapped.state != State::Withheld => {
                Expected::Mapped(*mapped, address - first)
            }
            _ => self.scratch.map_or(Expected::Nothing, Expected::Scratch),
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
