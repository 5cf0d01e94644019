//! Addresses at which something else than memory answers.
//!
//! A request for such an address need not come to a remapping unit: a switch, a bridge or a device of several functions
//! may pass it on to whoever decodes it. So none of them is an IOVA. And none is memory that firmware could reserve for
//! a device: whoever writes to configuration space, an I/O APIC or a remapping unit has more than a device may have.

use alloc::vec::Vec;

use mm::{PAGE_BYTES, PhysRange};

use crate::iova::INTERRUPT_RANGE;

/// Ranges of whole pages, as first and last address: sorted, and apart. None of them has to do with the
/// [`INTERRUPT_RANGE`], of which everybody knows.
#[derive(Default, Debug)]
pub(crate) struct Registers(Vec<(u64, u64)>);

impl Registers {
    /// Of all that is in `ranges` something. `None` without memory.
    pub fn new(ranges: impl Iterator<Item = PhysRange> + Clone) -> Option<Self> {
        let mut list: Vec<(u64, u64)> = Vec::new();
        // One may be cut in two.
        list.try_reserve_exact(2 * ranges.clone().count()).ok()?;
        for PhysRange { start, bytes } in ranges.filter(|range| range.bytes > 0) {
            let first = start.as_u64() & !(PAGE_BYTES - 1);
            let last = start.as_u64().saturating_add(bytes - 1) | (PAGE_BYTES - 1);
            let below = (first, last.min(*INTERRUPT_RANGE.start() - 1));
            let above = (first.max(*INTERRUPT_RANGE.end() + 1), last);
            list.extend([below, above].into_iter().filter(|(first, last)| first < last));
        }
        list.sort_unstable();
        list.dedup_by(|next, kept| {
            let joins = next.0 <= kept.1.saturating_add(1);
            if joins {
                kept.1 = kept.1.max(next.1);
            }
            joins
        });
        Some(Self(list))
    }

    /// Those up to address `last`, the last byte of a page.
    pub fn below(&self, last: u64) -> impl Iterator<Item = (u64, u64)> {
        let those = self.0.iter().take_while(move |&&(first, _)| first <= last);
        those.map(move |&(first, end)| (first, end.min(last)))
    }

    /// Whether any is in `first..=last`.
    pub fn meet(&self, first: u64, last: u64) -> bool {
        let next = self.0.partition_point(|&(_, end)| end < first);
        self.0.get(next).is_some_and(|&(start, _)| start <= last)
    }

    /// The same of memory.
    pub fn meet_range(&self, PhysRange { start, bytes }: PhysRange) -> bool {
        bytes > 0 && self.meet(start.as_u64(), start.as_u64().saturating_add(bytes - 1))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use mm::PhysAddr;

    use super::*;

    /// A range by its first and last address.
    const fn range(first: u64, last: u64) -> PhysRange {
        PhysRange::new(PhysAddr::new(first), last - first + 1)
    }

    #[test]
    fn ranges_are_whole_pages_sorted_and_apart_and_leave_interrupts_alone() {
        let ranges = [
            range(0xfec0_0000, 0xfec0_0000),
            range(0x9000_0800, 0x9000_17ff),
            range(0x9000_2000, 0x9000_2fff),
            range(0x8000_0000, 0x8000_0fff),
            range(0x8000_0000, 0x8000_3fff),
            range(0xfed0_0000, 0xfeff_ffff),
            PhysRange::new(PhysAddr::new(0x7000_0000), 0),
        ];
        let registers = Registers::new(ranges.into_iter()).unwrap();
        let all = [
            (0x8000_0000, 0x8000_3fff),
            (0x9000_0000, 0x9000_2fff),
            (0xfec0_0000, 0xfec0_0fff),
            (0xfed0_0000, 0xfedf_ffff),
            (0xfef0_0000, 0xfeff_ffff),
        ];
        assert_eq!(registers.0, all);
        assert!(registers.below(u64::MAX).eq(all));
        assert!(registers.below(0x9000_0fff).eq([all[0], (0x9000_0000, 0x9000_0fff)]));
        for (first, last, meets) in [
            (0x7fff_f000, 0x7fff_ffff, false),
            (0x7fff_f000, 0x8000_0000, true),
            (0x8000_3fff, 0x8000_4fff, true),
            (0x8000_4000, 0x8fff_ffff, false),
            (0, u64::MAX, true),
            (0xff00_0000, u64::MAX, false),
        ] {
            assert_eq!(registers.meet(first, last), meets, "{first:#x}");
        }
        assert!(!Registers::default().meet(0, u64::MAX));
        assert!(!registers.meet_range(ranges[6]));
    }
}
