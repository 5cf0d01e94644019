//! The format of second-stage page tables: what a domain's IOVAs lead to.

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{Entry, Format, LeafSizes, level_bytes},
};

/// R: reads are allowed.
const READ: u64 = 1 << 0;
/// W: writes are allowed. An entry with neither R nor W is not present.
const WRITE: u64 = 1 << 1;
/// PS: a leaf at level 2 or 3. Ignored at level 1, reserved above 3.
const PAGE_SIZE: u64 = 1 << 7;
/// A and D, which hardware sets only where the PASID entry enables it (SSADE).
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// SNP, in a leaf: accesses snoop the CPU's caches even if the request says that they need not. Reserved unless
/// ECAP.SC is set.
const SNOOP: u64 = 1 << 11;
/// Bits 51:12. Those from the host address width up are reserved.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What a device may do with a page: read it, write it, or both.
///
/// There is no value for neither: such an entry would not be present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SecondStageAccess {
    /// The device reads. To the CPU: to the device.
    Read,
    /// The device writes. Whether it may also do a read of length zero is CAP.ZLR.
    Write,
    /// The device reads and writes.
    ReadWrite,
}

impl SecondStageAccess {
    const fn bits(self) -> u64 {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::ReadWrite => READ | WRITE,
        }
    }
}

/// Second-stage tables as one unit, or all units that share a domain, walk them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SecondStageFormat {
    levels: u8,
    leaf_sizes: LeafSizes,
    output_bits: u8,
    is_coherent: bool,
    /// SNP, or nothing: what is in every leaf.
    common: u64,
    /// Bits that no input has.
    beyond: u64,
    /// Bits that no address of a page has: those, and the ones below a page.
    no_page: u64,
}

impl SecondStageFormat {
    /// A table of 3, 4 or 5 `levels` (CAP.SAGAW) with leaves of `leaf_sizes` (CAP.SSLPS; 4 KiB always), for
    /// `output_bits` bits of physical address (the host address width of the DMAR table).
    ///
    /// `is_coherent`: the walk snoops the CPU's caches (ECAP.C). `snoops`: so does every access through the table,
    /// which needs ECAP.SC.
    ///
    /// `None` if a number is none that the architecture knows.
    #[must_use]
    pub const fn new(
        levels: u8,
        leaf_sizes: LeafSizes,
        output_bits: u8,
        is_coherent: bool,
        snoops: bool,
    ) -> Option<Self> {
        if levels >= 3 && levels <= 5 && output_bits >= 32 && output_bits <= 52 {
            let common = if snoops { SNOOP } else { 0 };
            let beyond = !(level_bytes(levels + 1) - 1);
            Some(Self {
                levels,
                leaf_sizes,
                output_bits,
                is_coherent,
                common,
                beyond,
                no_page: beyond | (PAGE_BYTES - 1),
            })
        } else {
            None
        }
    }
}

impl Format for SecondStageFormat {
    type Access = SecondStageAccess;

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

    #[inline]
    fn is_coherent(&self) -> bool {
        self.is_coherent
    }

    #[inline]
    fn encode_table(&self, table: PhysAddr) -> u64 {
        table.as_u64() | READ | WRITE
    }

    #[inline]
    fn encode_leaf(&self, level: u8, output: PhysAddr, access: SecondStageAccess) -> u64 {
        let size = if level > 1 { PAGE_SIZE } else { 0 };
        output.as_u64() | access.bits() | size | self.common
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry<SecondStageAccess> {
        let access = match raw & (READ | WRITE) {
            0 => return Entry::Empty,
            READ => SecondStageAccess::Read,
            WRITE => SecondStageAccess::Write,
            _ => SecondStageAccess::ReadWrite,
        };
        let address = PhysAddr::new(raw & ADDRESS);
        if level == 1 || (level <= 3 && raw & PAGE_SIZE != 0) {
            Entry::Leaf(address, access)
        } else {
            Entry::Table(address)
        }
    }

    /// An entry of ours above level 1 is 0, or has one of the permission bits and, if it is a leaf, PS. So what is in its
    /// low byte, read as a signed number, is positive for a table.
    #[inline]
    fn decode_table(&self, _level: u8, raw: u64) -> Option<PhysAddr> {
        const { assert!(PAGE_SIZE == 1 << 7 && READ < PAGE_SIZE && WRITE < PAGE_SIZE) };
        (raw as i8 > 0).then_some(PhysAddr::new(raw & ADDRESS))
    }

    #[inline]
    fn hardware_bits(&self) -> u64 {
        ACCESSED | DIRTY
    }

    #[inline]
    fn has_page(&self, input: u64) -> bool {
        input & self.no_page == 0
    }

    #[inline]
    fn covers(&self, first: u64, last: u64) -> bool {
        first <= last && last & self.beyond == 0
    }
}

// Second-stage paging entries, all levels.
const _: () = {
    assert!(READ == 0x1 && WRITE == 0x2 && PAGE_SIZE == 0x80);
    assert!(ACCESSED == 0x100 && DIRTY == 0x200 && SNOOP == 0x800);
    assert!(ADDRESS == ((1 << 52) - 1) & !0xfff);
};

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESSES: [SecondStageAccess; 3] =
        [SecondStageAccess::Read, SecondStageAccess::Write, SecondStageAccess::ReadWrite];

    fn format(snoops: bool) -> SecondStageFormat {
        SecondStageFormat::new(4, LeafSizes::all(), 46, false, snoops).unwrap()
    }

    #[test]
    fn known_entries() {
        let page = PhysAddr::new(0x1234_4000_0000);
        assert_eq!(format(false).encode_table(page), 0x1234_4000_0003);
        assert_eq!(format(false).encode_leaf(1, page, SecondStageAccess::Read), 0x1234_4000_0001);
        assert_eq!(format(true).encode_leaf(1, page, SecondStageAccess::Write), 0x1234_4000_0802);
        assert_eq!(format(true).encode_leaf(2, page, SecondStageAccess::ReadWrite), 0x1234_4000_0883);
        assert_eq!(format(false).encode_leaf(3, page, SecondStageAccess::Read), 0x1234_4000_0081);
    }

    #[test]
    fn leaves_come_back() {
        for snoops in [false, true] {
            for level in 1..=3 {
                for access in ACCESSES {
                    let output = PhysAddr::new(0x3fff_c000_0000);
                    let raw = format(snoops).encode_leaf(level, output, access);
                    assert_eq!(format(snoops).decode(level, raw), Entry::Leaf(output, access));
                    assert!(level == 1 || format(snoops).decode_table(level, raw).is_none());
                    // What hardware and nobody sets makes no difference.
                    let raw = raw | ACCESSED | DIRTY | 1 << 10 | 0x3ff << 52 | 1 << 63;
                    assert_eq!(format(snoops).decode(level, raw), Entry::Leaf(output, access));
                }
            }
        }
    }

    #[test]
    fn tables_come_back_with_any_count() {
        let page = PhysAddr::new(0x3fff_ffff_f000);
        for level in 2..=5 {
            for count in [0, 1, 0x200, 0x3ff] {
                let raw = format(true).encode_table(page) | count << 52;
                assert_eq!(format(true).decode(level, raw), Entry::Table(page));
                assert_eq!(format(true).decode_table(level, raw), Some(page));
            }
        }
    }

    #[test]
    fn neither_read_nor_write_is_empty() {
        for level in 1..=5 {
            assert_eq!(format(true).decode(level, 0), Entry::Empty);
            assert_eq!(format(true).decode_table(level, 0), None);
            assert_eq!(format(true).decode(level, ADDRESS | SNOOP | 1 << 52 | 1 << 53), Entry::Empty);
        }
    }

    #[test]
    fn inputs_end_where_the_levels_do() {
        for (levels, bits) in [(3, 39), (4, 48), (5, 57)] {
            let format = SecondStageFormat::new(levels, LeafSizes::all(), 46, false, false).unwrap();
            let last = (1 << bits) - 1;
            assert!(format.covers(0, last) && format.covers(last, last));
            assert!(
                !format.covers(0, last + 1) && !format.covers(u64::MAX, u64::MAX) && !format.covers(1, 0)
            );
        }
    }

    #[test]
    fn unknown_shapes_are_refused() {
        for (levels, bits) in [(2, 46), (6, 46), (4, 31), (4, 53)] {
            assert_eq!(SecondStageFormat::new(levels, LeafSizes::all(), bits, true, true), None);
        }
    }
}
