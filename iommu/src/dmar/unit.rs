//! The structure that describes a remapping unit.

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::{
    Scopes,
    read::{u8_at, u16_at, u64_at},
};

/// DMA Remapping Hardware Unit Definition: one unit and the functions that it serves.
#[derive(Clone, Debug)]
pub struct Drhd<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// The unit serves every function of its segment that no other unit names.
    pub include_pci_all: bool,
    /// PCI segment group.
    pub segment: u16,
    /// Physical address of the registers, as firmware wrote it; see [`registers`](Self::registers).
    pub base: u64,
    /// The functions named, and the interrupt controllers and timers.
    pub scopes: Scopes<'a>,
    pub(super) flags: u8,
    pub(super) size: u8,
}

impl<'a> Drhd<'a> {
    /// Flags: INCLUDE_PCI_ALL.
    const INCLUDE_PCI_ALL: u8 = 1 << 0;
    /// Size: log2 of the number of register pages.
    const SIZE_PAGES_LG2: u8 = 0xf;

    pub(super) fn parse(bytes: &'a [u8], offset: usize, scopes: Scopes<'a>) -> Option<Self> {
        let flags = u8_at(bytes, 4)?;
        Some(Self {
            offset,
            include_pci_all: flags & Self::INCLUDE_PCI_ALL != 0,
            segment: u16_at(bytes, 6)?,
            base: u64_at(bytes, 8)?,
            scopes,
            flags,
            size: u8_at(bytes, 5)?,
        })
    }

    /// Size of the register set in bytes, as firmware says: a power of two, at least a page. The capability registers
    /// may tell of registers beyond it.
    #[must_use]
    pub const fn register_bytes(&self) -> u64 {
        PAGE_BYTES << (self.size & Self::SIZE_PAGES_LG2)
    }

    /// Where the registers are, or `None` if no unit can be there: base 0, not page-aligned or beyond 52 bits (all ones
    /// among them).
    #[must_use]
    pub fn registers(&self) -> Option<PhysRange> {
        let start = PhysAddr::checked(self.base)?;
        let last = start.checked_add(self.register_bytes() - 1);
        (self.base != 0 && start.is_aligned(PAGE_BYTES) && last.is_some())
            .then_some(PhysRange::new(start, self.register_bytes()))
    }

    pub(super) const fn reserved_bits(&self) -> (u8, u8) {
        (self.flags & !Self::INCLUDE_PCI_ALL, self.size & !Self::SIZE_PAGES_LG2)
    }
}
