//! What of a function's registers may be mapped for somebody who is not trusted.
//!
//! A page of a BAR can be mapped or not. Two kinds of pages cannot: those that a table of MSI-X or its pending bits
//! touch, as who drives the function from outside the kernel gets its interrupts by asking for them; and those that are
//! not the BAR's alone, as another function's registers may be beside it.
//!
//! What is behind a BAR are registers, or a memory of the device's own ([`Contents`]). That it is prefetchable does not
//! say which: virtio devices have their registers in such a BAR, and so have network controllers. Memory is what
//! display controllers have there.

use core::fmt;

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::{
    bar::BarError,
    capability::id,
    config::{Config, ConfigSpace},
    device::Device,
    function::Class,
};
use crate::virtio;

/// Most pieces of a BAR: two tables leave three.
const PIECES_MAX: usize = 3;

/// The pages of a BAR that may be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lendable {
    /// The whole BAR, in whole pages.
    pub range: PhysRange,
    /// What is there.
    pub contents: Contents,
    pieces: [Option<(u64, u64)>; PIECES_MAX],
}

/// What is behind a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contents {
    /// Registers: each access has to reach the device as it is, and in order. A reset is what they forget by.
    Registers,
    /// Memory of a display controller: writes may be combined. It outlives a reset.
    Memory,
}

/// Why nothing of a BAR may be mapped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LendError {
    /// It is not usable at all.
    Bar(BarError),
    /// It is not whole pages: there may be something else in them.
    PartOfPage {
        /// Index of the register.
        index: u8,
        /// Where it is.
        base: u64,
        /// Its length.
        bytes: u64,
    },
    /// It is longer than what is mapped.
    TooLong {
        /// Index of the register.
        index: u8,
        /// Its length.
        bytes: u64,
    },
}

impl fmt::Display for LendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Bar(error) => error.fmt(f),
            Self::PartOfPage { index, base, bytes } => {
                write!(f, "BAR {index}, {bytes:#x} bytes at {base:#x}, is not whole pages")
            }
            Self::TooLong { index, bytes } => write!(f, "BAR {index} has {bytes:#x} bytes"),
        }
    }
}

impl core::error::Error for LendError {}

impl From<BarError> for LendError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

/// Longest BAR of which anything is mapped.
pub const LENDABLE_BYTES_MAX: u64 = 16 << 20;

impl Lendable {
    /// What of BAR `index` of `device` may be mapped.
    ///
    /// # Errors
    /// See [`LendError`].
    pub fn of(device: &Device, index: u8) -> Result<Self, LendError> {
        let bar = device.bar(index)?;
        let (start, _) = bar.memory()?;
        if !start.as_u64().is_multiple_of(PAGE_BYTES) || !bar.bytes.is_multiple_of(PAGE_BYTES) {
            return Err(LendError::PartOfPage { index, base: bar.base, bytes: bar.bytes });
        }
        if bar.bytes > LENDABLE_BYTES_MAX {
            return Err(LendError::TooLong { index, bytes: bar.bytes });
        }
        let tables = msix_pages(device.config(), index);
        let has_tables = tables != [None; 2];
        let contents = if !has_tables && bar.kind.is_prefetchable() && is_display(device) {
            Contents::Memory
        } else {
            Contents::Registers
        };
        Ok(Self { range: PhysRange::new(start, bar.bytes), contents, pieces: without(bar.bytes, tables) })
    }

    /// The pages that may be mapped, as runs: where each begins in the BAR, and in memory.
    pub fn pieces(&self) -> impl Iterator<Item = (u64, PhysRange)> {
        let start = self.range.start.as_u64();
        let run = move |(first, end): (u64, u64)| {
            (first, PhysRange::new(PhysAddr::new(start + first), end - first))
        };
        self.pieces.into_iter().flatten().map(run)
    }
}

/// Whether it is a display controller that has memory behind its prefetchable BARs. Virtio devices have registers
/// there.
fn is_display(device: &Device) -> bool {
    device.class().base == Class::DISPLAY && device.id().vendor != virtio::VENDOR
}

/// The pages of BAR `index`, by first and end, that the tables of the function's MSI-X are in.
fn msix_pages<C: ConfigSpace + ?Sized>(config: Config<'_, C>, index: u8) -> [Option<(u64, u64)>; 2] {
    const CONTROL: u16 = 2;
    const TABLE: u16 = 4;
    const PENDING: u16 = 8;
    const BYTES: u16 = 12;
    const TABLE_SIZE: u16 = 0x7ff;
    const BAR: u32 = 0x7;
    let Some(capability) = config.find(id::MSIX, BYTES) else { return [None; 2] };
    let entries = u64::from(config.read16(capability + CONTROL) & TABLE_SIZE) + 1;
    let pages = |register: u16, bytes: u64| {
        let place = config.read32(capability + register);
        let first = u64::from(place & !BAR);
        let end = (first + bytes).next_multiple_of(PAGE_BYTES);
        (place & BAR == index.into()).then_some((first & !(PAGE_BYTES - 1), end))
    };
    // 16 bytes an entry, and a bit each, in words of 64.
    [pages(TABLE, 16 * entries), pages(PENDING, entries.div_ceil(64) * 8)]
}

/// What is left of `0..bytes` without `holes`.
fn without(bytes: u64, mut holes: [Option<(u64, u64)>; 2]) -> [Option<(u64, u64)>; PIECES_MAX] {
    holes.sort_unstable();
    let mut pieces = [None; PIECES_MAX];
    let mut next = 0;
    for (piece, hole) in pieces.iter_mut().zip(holes.into_iter().flatten().chain([(bytes, bytes)])) {
        let (first, end) = (hole.0.min(bytes), hole.1.min(bytes));
        *piece = (next < first).then_some((next, first));
        next = end.max(next);
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{doubles::Bench, pci::fake::FakeFunction};

    const BASE: u32 = 0xfc00_0000;
    /// Another one is there already.
    const INDEX: u8 = 2;

    /// A function with a BAR of `bytes` bytes at [`BASE`] and its MSI-X capability, if any: entries, table and pending
    /// bits.
    fn lendable(bytes: u32, msix: Option<(u32, u32, u32)>) -> Result<Lendable, LendError> {
        let mut function = FakeFunction::new(0x11e8_1234, 0x00ff_0000, 0).with(0x34, 0x40);
        function = function.with(0x18, BASE).writable(0x18, !(bytes - 1));
        if let Some((entries, table, pending)) = msix {
            let control = (entries - 1) << 16;
            function = function.with(0x40, 0x11 | control).with(0x44, table).with(0x48, pending);
        }
        let bench = Bench::new(function);
        let device = bench.device();
        Lendable::of(&device, INDEX)
    }

    /// First byte and end of each piece where the tables are in this BAR.
    fn pieces(bytes: u32, msix: Option<(u32, u32, u32)>) -> std::vec::Vec<(u64, u64)> {
        let here = u32::from(INDEX);
        let msix = msix.map(|(entries, table, pending)| (entries, table | here, pending | here));
        let lendable = lendable(bytes, msix).unwrap();
        assert_eq!(lendable.range, PhysRange::new(PhysAddr::new(BASE.into()), bytes.into()));
        let bounds = |(at, range): (u64, PhysRange)| {
            assert_eq!(range.start.as_u64(), u64::from(BASE) + at);
            (at, at + range.bytes)
        };
        lendable.pieces().map(bounds).collect()
    }

    #[test]
    fn a_bar_without_tables_is_one_piece() {
        assert_eq!(pieces(0x4000, None), [(0, 0x4000)]);
        let elsewhere = lendable(0x4000, Some((8, 0x2001, 0x3001))).unwrap();
        assert_eq!(elsewhere.pieces().count(), 1);
    }

    #[test]
    fn pages_with_tables_are_left_out() {
        // As of QEMU's NVMe controller.
        assert_eq!(pieces(0x4000, Some((65, 0x2000, 0x3000))), [(0, 0x2000)]);
        assert_eq!(
            pieces(0x8000, Some((1, 0x2800, 0x5008))),
            [(0, 0x2000), (0x3000, 0x5000), (0x6000, 0x8000)]
        );
        assert_eq!(
            pieces(0x8000, Some((1, 0x5008, 0x2800))),
            [(0, 0x2000), (0x3000, 0x5000), (0x6000, 0x8000)]
        );
        // Both in one page, at the start.
        assert_eq!(pieces(0x4000, Some((4, 0, 0x800))), [(0x1000, 0x4000)]);
    }

    #[test]
    fn a_table_takes_every_page_that_it_touches() {
        // The last of 257 entries is the first of the next page.
        assert_eq!(pieces(0x8000, Some((256, 0x1000, 0x7000))), [(0, 0x1000), (0x2000, 0x7000)]);
        assert_eq!(pieces(0x8000, Some((257, 0x1000, 0x7000))), [(0, 0x1000), (0x3000, 0x7000)]);
        // The most that there can be, eight pages, beyond the end.
        assert_eq!(pieces(0x4000, Some((0x800, 0x1000, 0x1000))), [(0, 0x1000)]);
        assert_eq!(pieces(0x4000, Some((0x800, 0xffff_fff8, 0xffff_fff8))), [(0, 0x4000)]);
    }

    /// What is behind a BAR of a function with these ids, class and BAR flags, whose MSI-X tables are at `tables`, if
    /// it has any.
    fn contents(id: u32, class: u32, flags: u32, tables: Option<u32>) -> Contents {
        let mut function = FakeFunction::new(id, class, 0).with(0x34, 0x40);
        function = function.with(0x18, BASE | flags).writable(0x18, !0x3fff);
        if let Some(tables) = tables {
            function = function.with(0x40, 0x11).with(0x44, tables).with(0x48, tables);
        }
        let bench = Bench::new(function);
        let device = bench.device();
        Lendable::of(&device, INDEX).unwrap().contents
    }

    #[test]
    fn memory_is_what_a_display_controller_has_behind_a_prefetchable_bar() {
        const BOCHS: u32 = 0x1111_1234;
        const VIRTIO_GPU: u32 = 0x1050_1af4;
        const DISPLAY: u32 = 0x0380_0000;
        const NETWORK: u32 = 0x0200_0000;
        const PREFETCHABLE: u32 = 8;
        assert_eq!(contents(BOCHS, DISPLAY, PREFETCHABLE, None), Contents::Memory);
        assert_eq!(contents(BOCHS, DISPLAY, PREFETCHABLE, Some(1)), Contents::Memory);
        assert_eq!(contents(BOCHS, DISPLAY, 0, None), Contents::Registers);
        assert_eq!(contents(BOCHS, DISPLAY, PREFETCHABLE, Some(u32::from(INDEX))), Contents::Registers);
        assert_eq!(contents(BOCHS, NETWORK, PREFETCHABLE, None), Contents::Registers);
        assert_eq!(contents(VIRTIO_GPU, DISPLAY, PREFETCHABLE, None), Contents::Registers);
    }

    #[test]
    fn what_is_not_whole_pages_is_not_lent() {
        for bytes in [0x10, 0x800] {
            assert!(
                matches!(lendable(bytes, None), Err(LendError::PartOfPage { index: INDEX, .. })),
                "{bytes:#x}"
            );
        }
        assert!(matches!(lendable(0x200_0000, None), Err(LendError::TooLong { .. })));
    }
}
