//! Which of a fixed number of things are free: a stack without a lock, for interrupt handlers too.

use alloc::vec::Vec;

use super::super::DmaError;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// The bottom of the stack.
const NONE: u32 = u32::MAX;

/// The free numbers below a limit. Taking one and giving it back takes no memory and never waits.
pub(super) struct FreeList {
    /// Number on top in the low half. The high half counts the changes, so that who was interrupted between a look at
    /// the top and its exchange does not mistake another stack with the same top for the one it saw.
    top: AtomicU64,
    /// For each free number the one below.
    below: Vec<AtomicU32>,
}

impl FreeList {
    /// The numbers `0..count`, all free, the lowest on top.
    pub fn new(count: usize) -> Result<Self, DmaError> {
        let numbers = u32::try_from(count).ok().filter(|&count| count < NONE);
        let numbers = numbers.ok_or(DmaError::BadLength { count })?;
        let mut below = Vec::new();
        below.try_reserve_exact(count).map_err(|_| DmaError::OutOfMemory)?;
        below.extend((1..=numbers).map(|next| AtomicU32::new(if next == numbers { NONE } else { next })));
        Ok(Self { top: AtomicU64::new(if count == 0 { NONE.into() } else { 0 }), below })
    }

    /// A free number, no longer free.
    #[inline]
    pub fn take(&self) -> Option<usize> {
        let mut seen = self.top.load(Ordering::Acquire);
        loop {
            let below = self.below.get(seen as u32 as usize)?.load(Ordering::Relaxed);
            match self.exchange(seen, below) {
                Ok(()) => return Some(seen as u32 as usize),
                Err(now) => seen = now,
            }
        }
    }

    /// Gives `number`, which was taken, back.
    #[inline]
    pub fn give(&self, number: usize) {
        let mut seen = self.top.load(Ordering::Relaxed);
        loop {
            self.below[number].store(seen as u32, Ordering::Relaxed);
            match self.exchange(seen, number as u32) {
                Ok(()) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Puts `number` on top if the stack is still as it was `seen`.
    #[inline]
    fn exchange(&self, seen: u64, number: u32) -> Result<(), u64> {
        let changes = (seen >> u32::BITS).wrapping_add(1) << u32::BITS;
        let new = changes | u64::from(number);
        self.top.compare_exchange_weak(seen, new, Ordering::AcqRel, Ordering::Acquire).map(drop)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{collections::BTreeSet, thread, vec::Vec};

    use super::*;

    #[test]
    fn each_number_is_free_once() {
        let list = FreeList::new(5).expect("memory");
        for _ in 0..3 {
            let taken: Vec<usize> = core::iter::from_fn(|| list.take()).collect();
            assert_eq!(taken.iter().copied().collect::<BTreeSet<_>>(), (0..5).collect());
            assert_eq!((taken.len(), list.take()), (5, None));
            taken.into_iter().for_each(|number| list.give(number));
        }
    }

    #[test]
    fn none_is_a_number_too_few_and_too_many_too_many() {
        assert_eq!(FreeList::new(0).expect("no memory needed").take(), None);
        let count = u32::MAX as usize;
        assert!(matches!(FreeList::new(count), Err(DmaError::BadLength { count: c }) if c == count));
    }

    #[test]
    fn a_top_that_came_back_is_not_the_one_that_was_seen() {
        let list = FreeList::new(2).expect("memory");
        let seen = list.top.load(Ordering::Acquire);
        let taken = (list.take(), list.take());
        assert_eq!(taken, (Some(0), Some(1)));
        list.give(0);
        assert_eq!(list.top.load(Ordering::Acquire) as u32, seen as u32);
        assert!(list.exchange(seen, 1).is_err(), "1 would be free while it is taken");
    }

    #[test]
    fn threads_never_hold_the_same_number() {
        const NUMBERS: usize = 3;
        let list = FreeList::new(NUMBERS).expect("memory");
        let held: Vec<AtomicU32> = (0..NUMBERS).map(|_| AtomicU32::new(0)).collect();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let Some(number) = list.take() else { continue };
                        assert_eq!(held[number].swap(1, Ordering::Relaxed), 0, "{number} is held twice");
                        held[number].store(0, Ordering::Relaxed);
                        list.give(number);
                    }
                });
            }
        });
        assert_eq!(core::iter::from_fn(|| list.take()).count(), NUMBERS);
    }
}

/// `cargo test -p interleavings interleavings`.
#[cfg(all(test, loom))]
mod interleavings {
    use std::{sync::Arc, vec::Vec};

    use super::*;

    /// Two numbers, and a thread that gives back in another order than it took: the top is the same again, what is
    /// below is not.
    #[test]
    fn a_top_that_comes_back_is_not_taken_for_the_one_that_was_seen() {
        loom::model(|| {
            let list = Arc::new(FreeList::new(2).expect("memory"));
            let other = list.clone();
            let thread = loom::thread::spawn(move || {
                let taken: Vec<usize> = (0..2).map_while(|_| other.take()).collect();
                taken.into_iter().for_each(|number| other.give(number));
            });
            let mine = list.take();
            thread.join().expect("the other thread finishes");
            mine.into_iter().for_each(|number| list.give(number));
            let mut all: Vec<usize> = core::iter::from_fn(|| list.take()).collect();
            all.sort_unstable();
            assert_eq!(all, [0, 1]);
        });
    }
}
