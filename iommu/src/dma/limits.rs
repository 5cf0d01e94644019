//! What a device can send and describe.

use core::sync::atomic::{AtomicU64, Ordering};

use super::space::Placement;
use crate::Iova;

/// Limits of one entry of a device's own lists.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SegmentLimits {
    /// Longest run of addresses in bytes.
    pub max_bytes: u64,
    /// A power of two of at least 4 KiB that no run crosses a multiple of; 0 for none.
    pub boundary: u64,
}

impl SegmentLimits {
    /// Any run will do.
    pub const NONE: Self = Self { max_bytes: u64::MAX, boundary: 0 };

    /// Longest run from `iova` on.
    pub(super) fn longest_from(self, iova: Iova) -> u64 {
        match self.boundary.checked_sub(1) {
            Some(mask) => self.max_bytes.min(self.boundary - (iova.as_u64() & mask)),
            None => self.max_bytes,
        }
    }
}

/// The limits of one device, as they are at the moment.
pub(super) struct Limits {
    /// Highest address that the device can send.
    last: AtomicU64,
    boundary: AtomicU64,
    max_bytes: AtomicU64,
}

impl Limits {
    pub fn none() -> Self {
        Self {
            last: AtomicU64::new(u64::MAX),
            boundary: AtomicU64::new(0),
            max_bytes: AtomicU64::new(u64::MAX),
        }
    }

    pub fn set_last(&self, last: u64) {
        self.last.store(last, Ordering::Relaxed);
    }

    pub fn set_segment(&self, limits: SegmentLimits) {
        self.max_bytes.store(limits.max_bytes, Ordering::Relaxed);
        self.boundary.store(limits.boundary, Ordering::Relaxed);
    }

    pub fn segment(&self) -> SegmentLimits {
        SegmentLimits {
            max_bytes: self.max_bytes.load(Ordering::Relaxed),
            boundary: self.boundary.load(Ordering::Relaxed),
        }
    }

    /// Where a range may lie that is cut into segments.
    pub fn anywhere(&self) -> Placement {
        Placement::Below(self.last.load(Ordering::Relaxed))
    }

    /// Where a range may lie that is one segment.
    #[inline]
    pub fn whole(&self) -> Placement {
        let last = self.last.load(Ordering::Relaxed);
        match self.boundary.load(Ordering::Relaxed) {
            0 => Placement::Below(last),
            boundary => Placement::Within { last, boundary },
        }
    }

    /// That a range lies exactly at `iova`.
    pub fn at(&self, iova: Iova) -> Placement {
        Placement::At { iova, last: self.last.load(Ordering::Relaxed) }
    }

    /// Longest run that fits between two boundaries.
    #[inline]
    pub fn longest(&self) -> u64 {
        self.max_bytes.load(Ordering::Relaxed)
    }
}
