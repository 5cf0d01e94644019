//! The format of x86-64 paging, 4-level and 5-level: the CPU's own tables, and VT-d's first stage.
//!
//! Walkers set A and D in entries that do not have them, each in its own way and at its own time. In entries of ours
//! they are set from the start, so that neither a CPU nor a device ever writes to a table.

use super::format::{Entry, Format, LeafSizes, level_shift};
use crate::PhysAddr;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
/// PS in an entry of level 2 or 3. At level 1 the bit is PAT.
const PAGE_SIZE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;

/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

bitflags::bitflags! {
    /// Permissions and memory type of an x86 leaf. Without any of them it is readable by the supervisor only.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct X86Access: u64 {
        /// R/W: may be written.
        const WRITE = WRITABLE;
        /// U/S: may be accessed from user mode, and by requests of a device without supervisor privilege.
        const USER = USER;
        /// PWT.
        const WRITE_THROUGH = WRITE_THROUGH;
        /// PCD.
        const CACHE_DISABLE = CACHE_DISABLE;
        /// G: survives a change of CR3.
        const GLOBAL = GLOBAL;
        /// XD: may not be executed. Reserved unless EFER.NXE is set.
        const NO_EXECUTE = NO_EXECUTE;
    }
}

/// What the processor at hand does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct X86Format {
    levels: u8,
    leaf_sizes: LeafSizes,
    output_bits: u8,
    /// Number of high bits of an input that repeat the highest one that is translated.
    unused_bits: u8,
    /// Whoever walks the table snoops the CPU's caches.
    is_coherent: bool,
}

impl X86Format {
    /// 4 or 5 `levels` (CR4.LA57), with leaves of `leaf_sizes` (CPUID.80000001H:EDX.Page1GB says whether 1 GiB is among
    /// them) and MAXPHYADDR `output_bits`. `None` if a number is none that the architecture knows.
    #[must_use]
    pub const fn new(levels: u8, leaf_sizes: LeafSizes, output_bits: u8) -> Option<Self> {
        if matches!(levels, 4 | 5) && output_bits >= 32 && output_bits <= 52 {
            let unused_bits = 64 - level_shift(levels + 1) as u8;
            Some(Self { levels, leaf_sizes, output_bits, unused_bits, is_coherent: true })
        } else {
            None
        }
    }

    /// The same for tables that are walked by others than CPUs too, which do not snoop (VT-d's ECAP.SMPWCS says whether
    /// a unit does): what is changed is written back.
    #[must_use]
    pub const fn written_back(self) -> Self {
        Self { is_coherent: false, ..self }
    }
}

impl Format for X86Format {
    type Access = X86Access;

    #[inline]
    fn levels(&self) -> u8 {
        self.levels
    }

    #[inline]
    fn leaf_sizes(&self) -> LeafSizes {
        self.leaf_sizes
    }

    #[inline]
    fn output_bits(&self) -> u8 {
        self.output_bits
    }

    /// The MMU snoops.
    #[inline]
    fn is_coherent(&self) -> bool {
        self.is_coherent
    }

    #[inline]
    fn encode_table(&self, table: PhysAddr) -> u64 {
        table.as_u64() | PRESENT | WRITABLE | USER | ACCESSED
    }

    #[inline]
    fn encode_leaf(&self, level: u8, output: PhysAddr, access: X86Access) -> u64 {
        let size = if level > 1 { PAGE_SIZE } else { 0 };
        // In what was never writable D is not set: it would say something else to a CPU with CET.
        let dirty = if access.contains(X86Access::WRITE) { DIRTY } else { 0 };
        output.as_u64() | PRESENT | ACCESSED | size | dirty | access.bits()
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry<X86Access> {
        if raw & PRESENT == 0 {
            Entry::Empty
        } else if level == 1 || raw & PAGE_SIZE != 0 {
            Entry::Leaf(PhysAddr::new(raw & ADDRESS), X86Access::from_bits_truncate(raw))
        } else {
            Entry::Table(PhysAddr::new(raw & ADDRESS))
        }
    }

    /// An entry of ours above level 1 is 0, or has one of the permission bits and, if it is a leaf, PS. So what is in
    /// its low byte, read as a signed number, is positive for a table.
    #[inline]
    fn decode_table(&self, _level: u8, raw: u64) -> Option<PhysAddr> {
        const { assert!(PAGE_SIZE == 1 << 7 && PRESENT < PAGE_SIZE) };
        (raw as i8 > 0).then_some(PhysAddr::new(raw & ADDRESS))
    }

    #[inline]
    fn hardware_bits(&self) -> u64 {
        ACCESSED | DIRTY
    }

    /// Both halves of the canonical addresses.
    #[inline]
    fn covers(&self, first: u64, last: u64) -> bool {
        let unused = self.unused_bits;
        let is_canonical = |input: u64| ((input << unused).cast_signed() >> unused).cast_unsigned() == input;
        first <= last && is_canonical(first) && is_canonical(last) && first >> 63 == last >> 63
    }
}

// The bits of Intel's SDM, volume 3, "4-level paging and 5-level paging", formats of CR3 and paging-structure entries.
const _: () = {
    assert!(PRESENT == 0x1 && WRITABLE == 0x2 && USER == 0x4);
    assert!(WRITE_THROUGH == 0x8 && CACHE_DISABLE == 0x10);
    assert!(ACCESSED == 0x20 && DIRTY == 0x40 && PAGE_SIZE == 0x80 && GLOBAL == 0x100);
    assert!(NO_EXECUTE == 0x8000_0000_0000_0000);
    assert!(ADDRESS == ((1 << 52) - 1) & !0xfff);
};
