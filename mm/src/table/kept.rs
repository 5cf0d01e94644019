//! Which emptied tables stay in the tree.
//!
//! A table that was just emptied is likely to be used again: a driver that maps and unmaps one buffer at a time would
//! otherwise allocate, link, unlink, flush and free a table for each. The last emptied table of each slot stays; the
//! table that was in the slot before is taken out if it is still empty. So no more than [`KEPT_TABLES`] empty tables
//! are kept.
//!
//! A slot is only a note. The table in it may be in use again, or gone; what decides is its live count.

use super::format::{level_bytes, level_shift};
use crate::machine::{AtomicU64, KEPT_TABLES, Ordering};

/// A place in the tree where a table may be: its first input address and its level.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place(u64);

impl Place {
    /// The place of the table of `level` on the way to `input`.
    #[inline]
    pub const fn new(input: u64, level: u8) -> Self {
        Self(input & !(level_bytes(level + 1) - 1) | level as u64)
    }

    #[inline]
    pub const fn level(self) -> u8 {
        (self.0 & 7) as u8
    }

    /// First input address of the table.
    #[inline]
    pub const fn first(self) -> u64 {
        self.0 & !7
    }

    /// Last input address (inclusive) of the table.
    #[inline]
    pub const fn last(self) -> u64 {
        self.first() | (level_bytes(self.level() + 1) - 1)
    }
}

/// The notes. 0 is none: no table has level 0.
///
/// That no empty table goes unnoted rests on the order of four accesses. Who empties a table first brings its count to
/// 0, then looks at the slot. Who displaces a note first changes the slot, then looks at the count. As all four are
/// sequentially consistent, one of the two sees what the other did.
pub struct Kept {
    slots: [AtomicU64; KEPT_TABLES],
}

impl Kept {
    pub fn new() -> Self {
        Self { slots: core::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Whether there is a note of the table at `place`, which the caller has just emptied: it stays.
    #[inline]
    pub fn has(&self, place: Place) -> bool {
        self.slot(place).load(Ordering::SeqCst) == place.0
    }

    #[inline]
    fn slot(&self, place: Place) -> &AtomicU64 {
        &self.slots[(place.first() >> level_shift(place.level() + 1)) as usize % KEPT_TABLES]
    }

    /// Notes the table at `place`, which the caller has just emptied. Returns the table that has to go for it.
    pub fn offer(&self, place: Place) -> Option<Place> {
        let before = self.slot(place).swap(place.0, Ordering::SeqCst);
        (before != 0 && before != place.0).then_some(Place(before))
    }
}
