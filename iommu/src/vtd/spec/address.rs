//! Identifiers and addresses that several structures share.

use core::fmt;

use mm::{PAGE_SHIFT, PhysAddr};

/// A domain id: the tag of one domain's entries in the caches of one unit. Its width is what CAP.ND says.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DomainId(u16);

impl DomainId {
    /// The domain id `raw`. That the unit has it is for the allocator of ids to see to.
    #[must_use]
    pub const fn new(raw: u16) -> Self {
        Self(raw)
    }

    /// The id as a number.
    #[must_use]
    pub const fn as_u16(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// The number of the page that starts at `address`, for a field in bits 63:12.
///
/// # Panics
/// If `address` is not page-aligned: a table that is not would be a bug of ours.
pub(super) const fn frame(address: PhysAddr) -> u64 {
    assert!(address.is_aligned(mm::PAGE_BYTES), "table not page-aligned");
    address.as_u64() >> PAGE_SHIFT
}

/// The address of page number `frame`; bits beyond 52 are cut off, as hardware has none.
pub(super) const fn frame_address(frame: u64) -> PhysAddr {
    PhysAddr::new((frame << PAGE_SHIFT) & (PhysAddr::LIMIT - 1))
}
