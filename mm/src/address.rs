//! Physical addresses and ranges.

use core::fmt;

/// log2 of the size of a page in bytes.
pub const PAGE_SHIFT: u32 = 12;

/// Size of a page, and of a page-table page, in bytes.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;

/// A physical address as the memory controller sees it: at most 52 bits.
///
/// It is a number, not a pointer: reaching the memory behind it takes a
/// [`TableMemory`](crate::table::TableMemory) or the host kernel's own mapping.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(transparent)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// One past the highest address that the architecture can express.
    pub const LIMIT: u64 = 1 << 52;

    /// The address `raw`.
    ///
    /// # Panics
    /// If `raw` does not fit into 52 bits. Use [`PhysAddr::checked`] for numbers that come from firmware or a device.
    #[must_use]
    #[inline]
    pub const fn new(raw: u64) -> Self {
        assert!(raw < Self::LIMIT, "physical address beyond 52 bits");
        Self(raw)
    }

    /// The address `raw`, or `None` if it does not fit into 52 bits.
    #[must_use]
    #[inline]
    pub const fn checked(raw: u64) -> Option<Self> {
        if raw < Self::LIMIT { Some(Self(raw)) } else { None }
    }

    /// The address as a number.
    #[must_use]
    #[inline]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Whether the address is a multiple of `bytes`, a power of two.
    #[must_use]
    #[inline]
    pub const fn is_aligned(self, bytes: u64) -> bool {
        self.0 & (bytes - 1) == 0
    }

    /// The address `bytes` further up, or `None` beyond 52 bits.
    #[must_use]
    #[inline]
    pub const fn checked_add(self, bytes: u64) -> Option<Self> {
        match self.0.checked_add(bytes) {
            Some(sum) => Self::checked(sum),
            None => None,
        }
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A run of physical memory: `start` and a length in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct PhysRange {
    /// First byte.
    pub start: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
}

impl PhysRange {
    /// The run of `bytes` bytes from `start`.
    #[must_use]
    #[inline]
    pub const fn new(start: PhysAddr, bytes: u64) -> Self {
        Self { start, bytes }
    }
}
