//! Where the last walk went: the table of level 2 that it came to, so that the next walk nearby can start there.
//!
//! A hint is only set by a thread that has pinned a table below the one it points to, and is forgotten before a departure
//! is counted. So whoever reads the count of departures, follows a hint, pins what it leads to, and finds the count
//! unchanged, has come to the right place.

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

    /// The table of level 2 that translates `input`, which is one that the tree covers, if it is the one that the hint is for.
    #[inline]
    pub fn get(&self, input: u64) -> Option<PhysAddr> {
        let raw = self.0.load(Ordering::Acquire);
        let is_here = (raw ^ input >> level_shift(3)) & PLACE == 0;
        is_here.then_some(PhysAddr::new(raw >> PLACE_BITS << PAGE_SHIFT))
    }

    /// Notes `table`, of level 2, which translates `input` and below which the caller has pinned a table.
    pub fn set(&self, input: u64, table: PhysAddr) {
        let frame = table.as_u64() >> PAGE_SHIFT;
        // Beyond 256 TiB there is no room for the frame number; such tables do without.
        if frame >> (u64::BITS - PLACE_BITS) == 0 {
            self.0.store(frame << PLACE_BITS | input >> level_shift(3) & PLACE, Ordering::Release);
        }
    }

    /// Forgets the hint.
    pub fn clear(&self) {
        self.0.store(NONE, Ordering::Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const PAGE: PhysAddr = PhysAddr::new(0x5000);

    #[test]
    fn a_hint_is_for_its_gigabyte() {
        let hint = Hint::new();
        let high = u64::MAX << 47;
        for input in [0, 1 << 30, 1 << 46, (1 << 57) - 1, high] {
            assert_eq!(hint.get(input), None, "{input:#x}");
            hint.set(input, PAGE);
            for bit in 0..57 {
                let found = hint.get(input ^ 1 << bit);
                assert_eq!(found, (bit < 30).then_some(PAGE), "{input:#x}, bit {bit}");
            }
            hint.clear();
            assert_eq!(hint.get(input), None, "{input:#x}");
        }
    }

    #[test]
    fn tables_without_room_for_their_frame_number_do_without() {
        let hint = Hint::new();
        let last = PhysAddr::new((1 << 48) - 0x1000);
        hint.set(0, PhysAddr::new(1 << 48));
        assert_eq!(hint.get(0), None);
        hint.set(0, last);
        assert_eq!(hint.get(0), Some(last));
    }
}
