//! The format of page tables: what a domain's IOVAs lead to.
//!
//! Tables of the second stage have a format of their own, those of the first stage the CPU's. As far as the engine
//! sees, both differ in a few bits only, which are values of the format.

use mm::{
    PAGE_BYTES, PhysAddr,
    table::{Entry, Format, LeafSizes, level_bytes},
};

use super::mode::TableStage;

/// Second stage, R: reads are allowed. First stage, P, with which they are.
const READ: u64 = 1 << 0;
/// W, and R/W: writes are allowed. An entry of the second stage with neither R nor W is not present.
const WRITE: u64 = 1 << 1;
/// PS: a leaf at level 2 or 3. Ignored at level 1 of the second stage and 0 in that of the first, reserved above 3.
const PAGE_SIZE: u64 = 1 << 7;
/// Second stage, A and D, which hardware sets only where the PASID entry enables it (SSADE).
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
/// First stage, U/S: for requests of users too. Those without a PASID are.
const USER: u64 = 1 << 2;
/// First stage, A and D. Hardware sets them, unless they are: in our entries they are, so that it writes to no table.
/// Of EA, bit 10, it takes no notice: EAFE (bit 135) is 0 in our PASID entries. It has to be, because in links `mm` has
/// a use of its own for that bit.
const FIRST_ACCESSED: u64 = 1 << 5;
const FIRST_DIRTY: u64 = 1 << 6;
/// Second stage, SNP, in a leaf: accesses snoop the CPU's caches even if the request says that they need not. Reserved
/// unless ECAP.SC is set.
const SNOOP: u64 = 1 << 11;
/// Bits 51:12. Those from the host address width up are reserved.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits of the addresses that a first-stage table of 4 levels translates here: the lower half of the canonical ones.
pub(super) const FIRST_STAGE_BITS: u8 = 47;

/// What a device may do with a page: read it, write it, or both.
///
/// There is no value for neither: such an entry would not be present. Where the first stage translates, what a device
/// may write it may read as well: that stage has no entry for writes alone, and an entry says
/// [`ReadWrite`](Self::ReadWrite).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableAccess {
    /// The device reads. To the CPU: to the device.
    Read,
    /// The device writes. Whether it may also do a read of length zero is CAP.ZLR.
    Write,
    /// The device reads and writes.
    ReadWrite,
}

impl TableAccess {
    const fn bits(self) -> u64 {
        match self {
            Self::Read => READ,
            Self::Write => WRITE,
            Self::ReadWrite => READ | WRITE,
        }
    }
}

/// Tables as one unit, or all units that share a domain, walk them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableFormat {
    levels: u8,
    leaf_sizes: LeafSizes,
    output_bits: u8,
    is_coherent: bool,
    /// What is in every entry that leads to a table.
    link: u64,
    /// What is in every leaf: SNP or nothing; of the first stage all but PS and R/W.
    common: u64,
    /// A and D.
    hardware_bits: u64,
    /// Bits that no input has.
    beyond: u64,
    /// Bits that no address of a page has: those, and the ones below a page.
    no_page: u64,
}

impl TableFormat {
    /// A second-stage table of 3, 4 or 5 `levels` (CAP.SAGAW) with leaves of `leaf_sizes` (CAP.SSLPS; 4 KiB always),
    /// for `output_bits` bits of physical address (the host address width of the DMAR table).
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
        if levels < 3 || levels > 5 || output_bits < 32 || output_bits > 52 {
            return None;
        }
        let beyond = !(level_bytes(levels + 1) - 1);
        Some(Self {
            levels,
            leaf_sizes,
            output_bits,
            is_coherent,
            link: READ | WRITE,
            common: if snoops { SNOOP } else { 0 },
            hardware_bits: ACCESSED | DIRTY,
            beyond,
            no_page: beyond | (PAGE_BYTES - 1),
        })
    }

    /// A first-stage table of 4 levels, else as [`new`](Self::new). It translates the lower half of the canonical
    /// addresses.
    #[must_use]
    pub const fn first_stage(leaf_sizes: LeafSizes, output_bits: u8, is_coherent: bool) -> Option<Self> {
        const LEVELS: u8 = 4;
        if output_bits < 32 || output_bits > 52 {
            return None;
        }
        let beyond = !((1 << FIRST_STAGE_BITS) - 1);
        Some(Self {
            levels: LEVELS,
            leaf_sizes,
            output_bits,
            is_coherent,
            link: READ | WRITE | USER | FIRST_ACCESSED,
            common: READ | USER | FIRST_ACCESSED | FIRST_DIRTY,
            hardware_bits: FIRST_ACCESSED | FIRST_DIRTY,
            beyond,
            no_page: beyond | (PAGE_BYTES - 1),
        })
    }

    /// The stage.
    #[must_use]
    pub const fn stage(&self) -> TableStage {
        if self.link & USER == 0 { TableStage::Second } else { TableStage::First }
    }

    /// The last address that a table translates.
    #[must_use]
    pub const fn last_input(&self) -> u64 {
        !self.beyond
    }
}

impl Format for TableFormat {
    type Access = TableAccess;

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
        table.as_u64() | self.link
    }

    #[inline]
    fn encode_leaf(&self, level: u8, output: PhysAddr, access: TableAccess) -> u64 {
        let size = if level > 1 { PAGE_SIZE } else { 0 };
        output.as_u64() | access.bits() | size | self.common
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry<TableAccess> {
        let access = match raw & (READ | WRITE) {
            0 => return Entry::Empty,
            READ => TableAccess::Read,
            WRITE => TableAccess::Write,
            _ => TableAccess::ReadWrite,
        };
        let address = PhysAddr::new(raw & ADDRESS);
        if level == 1 || (level <= 3 && raw & PAGE_SIZE != 0) {
            Entry::Leaf(address, access)
        } else {
            Entry::Table(address)
        }
    }

    /// An entry of ours above level 1 is 0, or has one of the permission bits and, if it is a leaf, PS. So what is in
    /// its low byte, read as a signed number, is positive for a table.
    #[inline]
    fn decode_table(&self, _level: u8, raw: u64) -> Option<PhysAddr> {
        const { assert!(PAGE_SIZE == 1 << 7 && (READ | WRITE | USER | FIRST_ACCESSED) & PAGE_SIZE == 0) };
        (raw as i8 > 0).then_some(PhysAddr::new(raw & ADDRESS))
    }

    #[inline]
    fn hardware_bits(&self) -> u64 {
        self.hardware_bits
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

// Paging entries of the second stage, of the first, and of both, all levels.
const _: () = {
    assert!(READ == 0x1 && WRITE == 0x2 && PAGE_SIZE == 0x80);
    assert!(ACCESSED == 0x100 && DIRTY == 0x200 && SNOOP == 0x800);
    assert!(USER == 0x4 && FIRST_ACCESSED == 0x20 && FIRST_DIRTY == 0x40);
    assert!(ADDRESS == ((1 << 52) - 1) & !0xfff);
};

#[cfg(test)]
mod tests {
    use super::*;

    const ACCESSES: [TableAccess; 3] = [TableAccess::Read, TableAccess::Write, TableAccess::ReadWrite];

    fn format(snoops: bool) -> TableFormat {
        TableFormat::new(4, LeafSizes::all(), 46, false, snoops).unwrap()
    }

    #[test]
    fn known_entries() {
        let page = PhysAddr::new(0x1234_4000_0000);
        assert_eq!(format(false).encode_table(page), 0x1234_4000_0003);
        assert_eq!(format(false).encode_leaf(1, page, TableAccess::Read), 0x1234_4000_0001);
        assert_eq!(format(true).encode_leaf(1, page, TableAccess::Write), 0x1234_4000_0802);
        assert_eq!(format(true).encode_leaf(2, page, TableAccess::ReadWrite), 0x1234_4000_0883);
        assert_eq!(format(false).encode_leaf(3, page, TableAccess::Read), 0x1234_4000_0081);
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
            let format = TableFormat::new(levels, LeafSizes::all(), 46, false, false).unwrap();
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
            assert_eq!(TableFormat::new(levels, LeafSizes::all(), bits, true, true), None);
        }
    }

    fn first_stage() -> TableFormat {
        TableFormat::first_stage(LeafSizes::all(), 46, true).unwrap()
    }

    #[test]
    fn entries_of_the_first_stage_are_the_cpus() {
        let (format, page) = (first_stage(), PhysAddr::new(0x1234_4000_0000));
        assert_eq!((format.stage(), self::format(true).stage()), (TableStage::First, TableStage::Second));
        assert_eq!(format.encode_table(page), 0x1234_4000_0027);
        assert_eq!(format.encode_leaf(1, page, TableAccess::Read), 0x1234_4000_0065);
        assert_eq!(format.encode_leaf(2, page, TableAccess::Read), 0x1234_4000_00e5);
        for access in [TableAccess::Write, TableAccess::ReadWrite] {
            assert_eq!(format.encode_leaf(1, page, access), 0x1234_4000_0067, "{access:?}");
            assert_eq!(format.encode_leaf(3, page, access), 0x1234_4000_00e7, "{access:?}");
            let found = format.decode(1, format.encode_leaf(1, page, access));
            assert_eq!(found, Entry::Leaf(page, TableAccess::ReadWrite), "{access:?}");
        }
        for level in 2..=4 {
            let raw = format.encode_table(page) | 0x3ff << 52;
            assert_eq!(format.decode(level, raw), Entry::Table(page));
            assert_eq!(format.decode_table(level, raw), Some(page));
        }
        for level in 2..=3 {
            assert_eq!(format.decode_table(level, format.encode_leaf(level, page, TableAccess::Read)), None);
        }
    }

    #[test]
    fn addresses_of_the_first_stage_are_canonical_ones_of_the_lower_half() {
        let (format, last) = (first_stage(), (1 << 47) - 1);
        assert_eq!((format.levels(), format.last_input()), (4, last));
        assert!(format.covers(0, last) && format.covers(last, last) && format.has_page(last - 0xfff));
        assert!(!format.covers(0, last + 1) && !format.has_page(1 << 47) && !format.has_page(u64::MAX << 47));
        assert_eq!(TableFormat::first_stage(LeafSizes::all(), 31, true), None);
        assert_eq!(TableFormat::first_stage(LeafSizes::all(), 53, true), None);
    }
}
