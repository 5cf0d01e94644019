//! Ranges of addresses that are free.

use alloc::{collections::TryReserveError, vec::Vec};

/// Free ranges: sorted, apart, and not adjoining.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ranges(Vec<Range>);

/// A range with both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Range {
    first: u64,
    last: u64,
}

impl Ranges {
    /// Nothing is free.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The free ranges, each with its first and last address.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|range| (range.first, range.last))
    }

    /// Makes the addresses from `first` to `last` free, whether or not they were.
    ///
    /// # Errors
    /// No memory; nothing has changed.
    pub fn add(&mut self, first: u64, last: u64) -> Result<(), TryReserveError> {
        if last < first {
            return Ok(());
        }
        self.0.try_reserve(1)?;
        let touches =
            |range: &Range| range.first <= last.saturating_add(1) && first <= range.last.saturating_add(1);
        let mut merged = Range { first, last };
        self.0.retain(|range| {
            if touches(range) {
                merged = Range { first: merged.first.min(range.first), last: merged.last.max(range.last) };
            }
            !touches(range)
        });
        let at = self.0.partition_point(|range| range.first < merged.first);
        self.0.insert(at, merged);
        Ok(())
    }

    /// Makes the addresses from `first` to `last` not free, whether or not they were.
    ///
    /// # Errors
    /// No memory; nothing has changed.
    pub fn remove(&mut self, first: u64, last: u64) -> Result<(), TryReserveError> {
        if last < first {
            return Ok(());
        }
        self.0.try_reserve(1)?;
        let mut index = 0;
        while let Some(&range) = self.0.get(index) {
            if range.last < first || last < range.first {
                index += 1;
                continue;
            }
            self.0.remove(index);
            // At most one range has something left on both sides, so that there is room.
            if let Some(above) = last.checked_add(1).filter(|&above| above <= range.last) {
                self.0.insert(index, Range { first: above, last: range.last });
            }
            if let Some(below) = first.checked_sub(1).filter(|&below| below >= range.first) {
                self.0.insert(index, Range { first: range.first, last: below });
                index += 1;
            }
            if range.last >= last {
                break;
            }
        }
        Ok(())
    }

    /// Takes the lowest free `bytes` bytes that start at a multiple of `align`, a power of two. `None` if there are
    /// none, or no memory.
    pub fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        debug_assert!(align.is_power_of_two());
        let fit = |range: &Range| {
            let first = range.first.checked_next_multiple_of(align)?;
            let last = first.checked_add(bytes.checked_sub(1)?)?;
            (last <= range.last).then_some((first, last))
        };
        let (first, last) = self.0.iter().find_map(fit)?;
        self.remove(first, last).ok()?;
        Some(first)
    }
}
