//! The structure that describes a reserved memory region.

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::{
    Scopes,
    read::{u16_at, u64_at},
};

/// Reserved Memory Region Reporting: memory that firmware lets some functions use, and that they must keep.
#[derive(Clone, Debug)]
pub struct Rmrr<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// PCI segment group.
    pub segment: u16,
    /// First byte, as firmware wrote it.
    pub first: u64,
    /// Last byte, inclusive, as firmware wrote it.
    pub last: u64,
    /// The functions that use the region.
    pub scopes: Scopes<'a>,
    pub(super) reserved: u16,
}

impl<'a> Rmrr<'a> {
    pub(super) fn parse(bytes: &'a [u8], offset: usize, scopes: Scopes<'a>) -> Option<Self> {
        Some(Self {
            offset,
            segment: u16_at(bytes, 6)?,
            first: u64_at(bytes, 8)?,
            last: u64_at(bytes, 16)?,
            scopes,
            reserved: u16_at(bytes, 4)?,
        })
    }

    /// Whether the last byte is before the first.
    #[must_use]
    pub const fn is_reversed(&self) -> bool {
        self.last < self.first
    }

    /// Whether the region is whole pages, as it has to be.
    #[must_use]
    pub const fn is_aligned(&self) -> bool {
        self.first.is_multiple_of(PAGE_BYTES) && self.last % PAGE_BYTES == PAGE_BYTES - 1
    }

    /// The pages that the region touches: those that a device needs mapped for it. `None` if the region is reversed or
    /// reaches beyond 52 bits.
    ///
    /// A region that is not whole pages grows to whole ones: translation cannot grant less than a page, and a device
    /// that loses part of its region can stop the machine.
    #[must_use]
    pub fn pages(&self) -> Option<PhysRange> {
        if self.is_reversed() {
            return None;
        }
        let start = PhysAddr::checked(self.first - self.first % PAGE_BYTES)?;
        let last = PhysAddr::checked(self.last | (PAGE_BYTES - 1))?;
        Some(PhysRange::new(start, last.as_u64() - start.as_u64() + 1))
    }
}
