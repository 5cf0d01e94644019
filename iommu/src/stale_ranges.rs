//! What several changes of one table left stale, for one flush.
//!
//! A token is one range. One that brings along a table which was emptied elsewhere, and stayed until another took its
//! place, is from end to end of both: what is flushed holds all that changed, upper levels too, and is not the least
//! that would do. It takes one or two invalidations, wide ones, or the whole domain. That is once for each table that
//! is taken out; for less, every mapping's token would have to carry two ranges.

use core::array;

use mm::table::{Format, PageTable, Stale, TableMemory};

use crate::Iova;

/// Ranges that are kept apart. More would seldom be named one by one: each takes a page-selective invalidation or two,
/// of which a plan has as many.
const MAX_RANGES: usize = 8;

/// Tokens of one table, whose ranges are in ascending order and neither overlap nor touch. When there are too many, the
/// two with the narrowest gap between them become one.
pub(crate) struct StaleRanges {
    /// The first `count` are there. One more than are kept: the one that was just added.
    tokens: [Option<Stale>; MAX_RANGES + 1],
    count: usize,
}

impl StaleRanges {
    /// Nothing is stale.
    pub const fn new() -> Self {
        Self { tokens: [const { None }; MAX_RANGES + 1], count: 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The token, if there is exactly one: nothing is left then.
    pub fn take_only(&mut self) -> Option<Stale> {
        if self.count != 1 {
            return None;
        }
        self.count = 0;
        self.tokens[0].take()
    }

    /// Whether table pages wait in one of the tokens.
    pub fn holds_tables(&self) -> bool {
        self.tokens().any(Stale::holds_tables)
    }

    /// Whether nothing but leaves changed.
    pub fn only_leaves(&self) -> bool {
        self.tokens().all(Stale::only_leaves)
    }

    /// The ranges, both ends inclusive.
    pub fn ranges(&self) -> impl Iterator<Item = (Iova, Iova)> + Clone {
        self.tokens().map(|stale| (Iova::new(stale.first()), Iova::new(stale.last())))
    }

    /// Adds `stale`, which is of `table` like the others.
    #[inline]
    pub fn add<F: Format, M: TableMemory>(&mut self, table: &PageTable<F, M>, stale: Stale) {
        if self.count == 0 {
            self.tokens[0] = Some(stale);
            self.count = 1;
        } else {
            self.add_to_others(table, stale);
        }
    }

    #[inline(never)]
    fn add_to_others<F: Format, M: TableMemory>(&mut self, table: &PageTable<F, M>, stale: Stale) {
        // Most often there is one, and what comes next touches it.
        if let [Some(only)] = &mut self.tokens[..self.count]
            && touch(only, &stale)
        {
            drop(table.merge(only, stale));
            return;
        }
        let is_below = |held: &Option<Stale>| matches!(held, Some(held) if held.first() <= stale.first());
        let at = self.tokens[..self.count].iter().rposition(is_below).map_or(0, |below| below + 1);
        let index = match at.checked_sub(1) {
            Some(below) if self.touches(below, &stale) => below,
            _ => at,
        };
        // Of several, too, it most often touches one, and is no range of its own.
        if self.touches(index, &stale)
            && let Some(Some(held)) = self.tokens.get_mut(index)
        {
            drop(table.merge(held, stale));
        } else {
            self.tokens[self.count] = Some(stale);
            self.count += 1;
            self.tokens[index..self.count].rotate_right(1);
        }
        self.join_what_touches(table, index);
        if self.count > MAX_RANGES
            && let Some((_, index)) = self.narrowest_gap()
        {
            self.join(table, index);
        }
    }

    /// Whether `stale` and the token at `index`, if there is one, overlap or adjoin.
    fn touches(&self, index: usize, stale: &Stale) -> bool {
        matches!(self.tokens.get(index), Some(Some(held)) if touch(held, stale))
    }

    fn tokens(&self) -> impl Iterator<Item = &Stale> + Clone {
        self.tokens[..self.count].iter().flatten()
    }

    /// The bytes between the token at `index` and the one behind it, if there are both.
    fn gap_behind(&self, index: usize) -> Option<u64> {
        let (Some(low), Some(high)) = (self.tokens[index].as_ref(), self.tokens.get(index + 1)?) else {
            return None;
        };
        // One behind the last byte of the address space there is nothing.
        Some(high.first().saturating_sub(low.last().saturating_add(1)))
    }

    /// The bytes between the two neighbours that are closest, and the index of the lower one.
    fn narrowest_gap(&self) -> Option<(u64, usize)> {
        (0..self.count).filter_map(|index| Some((self.gap_behind(index)?, index))).min()
    }

    /// Makes one of the token at `index` and all behind it that touch it: one that brings a table along may reach over
    /// many.
    fn join_what_touches<F: Format, M: TableMemory>(&mut self, table: &PageTable<F, M>, index: usize) {
        while self.gap_behind(index) == Some(0) {
            self.join(table, index);
        }
    }

    /// Makes one of the tokens at `index` and behind it.
    fn join<F: Format, M: TableMemory>(&mut self, table: &PageTable<F, M>, index: usize) {
        self.tokens[index + 1..self.count].rotate_left(1);
        self.count -= 1;
        if let (Some(other), [.., Some(stale)]) = (self.tokens[self.count].take(), &mut self.tokens[..=index])
        {
            // Both are of this table, so they merge.
            drop(table.merge(stale, other));
        }
    }
}

/// Whether the ranges of two tokens overlap or adjoin.
#[inline]
fn touch(held: &Stale, stale: &Stale) -> bool {
    held.first() <= stale.last().saturating_add(1) && stale.first() <= held.last().saturating_add(1)
}

impl IntoIterator for StaleRanges {
    type Item = Stale;
    type IntoIter = core::iter::Flatten<array::IntoIter<Option<Stale>, { MAX_RANGES + 1 }>>;

    fn into_iter(self) -> Self::IntoIter {
        self.tokens.into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use mm::{PAGE_BYTES, PhysAddr, PhysRange, table::LeafSizes};

    use super::*;
    use crate::vtd::{TableAccess, TableFormat, testing::FakeMemory};

    /// Numbers of the first and last page of each range after the unmaps of `unmapped`, each a first page and a count.
    fn ranges(unmapped: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let memory = FakeMemory::new();
        let format = TableFormat::new(4, LeafSizes::SIZE_4K, 46, true, false).unwrap();
        let table = PageTable::new(format, &memory).unwrap();
        let all = PhysRange { start: PhysAddr::new(1 << 32), bytes: 64 * PAGE_BYTES };
        // SAFETY: no hardware walks the table.
        let _ = unsafe { table.map(0, &[all], TableAccess::Read) }.unwrap();
        let mut stale = StaleRanges::new();
        for &(first, count) in unmapped {
            // SAFETY: as above.
            let token = unsafe { table.unmap(first * PAGE_BYTES, count * PAGE_BYTES) }.unwrap();
            stale.add(&table, token);
        }
        let page = |address: Iova| address.as_u64() / PAGE_BYTES;
        let ranges = stale.ranges().map(|(first, last)| (page(first), page(last))).collect();
        stale.into_iter().for_each(drop);
        ranges
    }

    #[test]
    fn ranges_stay_apart_until_they_touch() {
        assert_eq!(ranges(&[(8, 1), (4, 1), (6, 1)]), [(4, 4), (6, 6), (8, 8)]);
        assert_eq!(ranges(&[(8, 1), (4, 1), (6, 1), (5, 1)]), [(4, 6), (8, 8)]);
        assert_eq!(ranges(&[(8, 1), (6, 1), (7, 1)]), [(6, 8)]);
    }

    #[test]
    fn a_range_over_many_takes_all_of_them() {
        assert_eq!(ranges(&[(4, 1), (8, 1), (12, 1), (40, 1), (2, 20)]), [(2, 21), (40, 40)]);
        assert_eq!(ranges(&[(1, 1), (4, 1), (8, 1), (12, 1), (40, 1), (2, 20)]), [(1, 21), (40, 40)]);
    }

    #[test]
    fn one_too_many_closes_the_narrowest_gap() {
        let apart: Vec<_> = (0..MAX_RANGES as u64).map(|at| (6 * at, 1)).collect();
        assert_eq!(ranges(&apart).len(), MAX_RANGES);
        let found = ranges(&[&*apart, &[(8, 1)]].concat());
        assert_eq!(found.len(), MAX_RANGES);
        assert!(found.contains(&(6, 8)), "{found:?}");
    }
}
