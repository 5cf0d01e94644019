//! What several changes of one table left stale, for one flush.
//!
//! A token is one range. One that brings along a table which was emptied elsewhere, and stayed until another took its
//! place, is from end to end of both: what is flushed holds all that changed, upper levels too, and is not the least that
//! would do. It takes one or two invalidations, wide ones, or the whole domain. That is once for each table that is taken
//! out; for less, every mapping's token would have to carry two ranges.

use core::array;

use mm::table::{Format, PageTable, Stale, TableMemory};

use crate::Iova;

/// Ranges that are kept apart. More would seldom be named one by one: each takes a page-selective invalidation or two, of
/// which a plan has as many.
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
    pub fn add<F: Format, M: TableMemory>(&mut self, table: &PageTable<F, M>, stale: Stale) {
        let first = stale.first();
        let at = self.tokens().take_while(|held| held.first() <= first).count();
        // Most often it begins where another one ends, and is no range of its own.
        if let Some(Some(below)) = at.checked_sub(1).map(|below| &mut self.tokens[below])
            && below.last().saturating_add(1) >= first
        {
            drop(table.merge(below, stale));
            if self.gap_behind(at - 1) == Some(0) {
                self.join(table, at - 1);
            }
            return;
        }
        self.tokens[self.count] = Some(stale);
        self.count += 1;
        self.tokens[at..self.count].rotate_right(1);
        if self.gap_behind(at) == Some(0) {
            self.join(table, at);
        } else if self.count > MAX_RANGES
            && let Some((_, index)) = self.narrowest_gap()
        {
            self.join(table, index);
        }
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

impl IntoIterator for StaleRanges {
    type Item = Stale;
    type IntoIter = core::iter::Flatten<array::IntoIter<Option<Stale>, { MAX_RANGES + 1 }>>;

    fn into_iter(self) -> Self::IntoIter {
        self.tokens.into_iter().flatten()
    }
}
