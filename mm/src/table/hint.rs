//! Where the last walk went: the table of level 2 that it came to, so that the next walk nearby can start there.
//!
//! A hint is only set by a thread that has pinned a table below the one it points to, and is forgotten before a
//! departure is counted. So whoever reads the count of departures, follows a hint, pins what it leads to, and finds the
//! count unchanged, has come to the right place.

use super::format::level_shift;
use crate::machine::{AtomicU64, Ordering};
use crate::{PAGE_SHIFT, PhysAddr};

/// Bits of the word that say which table of level 2 it is: its first input, without the bits that are always 0. That is
/// enough for five levels, whose inputs have 57 bits, and one bit more. The table's frame number stands above.
const PLACE_BITS: u32 = 28;
const PLACE: u64 = (1 << PLACE_BITS) - 1;

/// No hint. No input has this place: its bit 57 is 0, or the same as bit 56.
const NONE: u64 = 1 << (PLACE_BITS - 1);

/// The hint: place and frame in one word, so that they belong together.
pub struct Hint(AtomicU64);

impl Hint {
    pub fn new() -> Self {
        Self(AtomicU64::new(NONE))
    }

    /// The table of level 2 that translates `input`, which is one that the tree covers, if it is the one that the hint
    /// is for.
    #[inline]
    pub fn get(&self, input: u64) -> Option<PhysAddr> {
        table_in(self.0.load(Ordering::Acquire), input)
    }

    /// Notes `table`, of level 2, which translates `input` and below which the caller has pinned a table.
    pub fn set(&self, input: u64, table: PhysAddr) {
        if let Some(word) = word_of(input, table) {
            self.0.store(word, Ordering::Release);
        }
    }

    /// Forgets the hint.
    pub fn clear(&self) {
        self.0.store(NONE, Ordering::Release);
    }
}

/// What `raw` says of `input`.
#[inline]
fn table_in(raw: u64, input: u64) -> Option<PhysAddr> {
    let is_here = (raw ^ input >> level_shift(3)) & PLACE == 0;
    is_here.then_some(PhysAddr::new(raw >> PLACE_BITS << PAGE_SHIFT))
}

/// The word for `table`. Beyond 256 TiB there is no room for the frame number; such tables do without.
fn word_of(input: u64, table: PhysAddr) -> Option<u64> {
    let frame = table.as_u64() >> PAGE_SHIFT;
    (frame >> (u64::BITS - PLACE_BITS) == 0).then_some(frame << PLACE_BITS | input >> level_shift(3) & PLACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_is_for_its_gigabyte() {
        let (page, high) = (PhysAddr::new(0x5000), u64::MAX << 47);
        for input in [0, 1 << 30, 1 << 46, (1 << 57) - 1, high] {
            assert_eq!(table_in(NONE, input), None, "{input:#x}");
            let word = word_of(input, page).unwrap();
            // All that five levels translate.
            for bit in 0..level_shift(3) + PLACE_BITS - 1 {
                let found = table_in(word, input ^ 1 << bit);
                assert_eq!(found, (bit < level_shift(3)).then_some(page), "{input:#x}, bit {bit}");
            }
        }
    }

    #[test]
    fn tables_without_room_for_their_frame_number_do_without() {
        let last = PhysAddr::new((1 << 48) - 0x1000);
        assert_eq!(word_of(0, PhysAddr::new(1 << 48)), None);
        assert_eq!(table_in(word_of(0, last).unwrap(), 0), Some(last));
    }
}
