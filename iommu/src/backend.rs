//! The seam to a vendor's remapping hardware.
//!
//! [`Domain`](crate::domain::Domain) and [`Group`](crate::group::Group) are written against these traits alone and
//! compiled for their implementation; the one there is is [`vtd`](crate::vtd).

use alloc::sync::Arc;

use mm::{
    PhysAddr,
    table::{Flushed, Format, Stale},
};

use crate::{
    Iova, Platform, SourceId,
    ats::DeviceTlb,
    dma::{Access, DmaError, NotShareable, SharedTable, Silent, Stuck, Unflushed},
    stale_ranges::StaleRanges,
    walk::Path,
};

/// Units, by index.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct UnitSet(u64);

impl UnitSet {
    /// Units that the subsystem can hold.
    pub const MAX_UNITS: usize = 64;

    /// These units and unit `unit`.
    pub const fn with(self, unit: usize) -> Self {
        Self(self.0 | 1 << unit)
    }

    /// The units whose bits are set.
    #[inline]
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Those that are in both sets.
    #[inline]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The lowest index.
    #[inline]
    pub const fn first(self) -> Option<usize> {
        if self.0 == 0 { None } else { Some(self.0.trailing_zeros() as usize) }
    }

    /// The indices.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..Self::MAX_UNITS).filter(move |unit| self.0 >> unit & 1 != 0)
    }
}

/// The page tables that the hardware walks for a domain.
pub(crate) trait Formats {
    /// Their layout.
    type Format: Format;

    /// The format that all of `units` walk, if there is one.
    fn format(&self, units: UnitSet) -> Option<Self::Format>;

    /// The format of `table` for all of `units`, if they walk it.
    fn shared_format(&self, units: UnitSet, table: &SharedTable) -> Result<Self::Format, NotShareable>;

    /// The permissions of a leaf.
    fn access(&self, access: Access) -> <Self::Format as Format>::Access;

    /// What the permissions of a leaf allow.
    fn rights(&self, access: <Self::Format as Format>::Access) -> Access;

    /// Highest IOVA that a table of `format` translates and all of `units` let a device use.
    fn last_iova(&self, units: UnitSet, format: Self::Format) -> u64;
}

/// What the front asks of the hardware.
pub(crate) trait Backend: Formats + Send + Sync + 'static {
    /// The host kernel.
    type Platform: Platform;
    /// What the hardware knows a domain by: its ids and where its translations may be cached.
    type Tags: Send + Sync;

    /// The host kernel.
    fn platform(&self) -> &Arc<Self::Platform>;

    /// Fails if one of `units` is known not to answer: nothing new is mapped behind it.
    fn check(&self, units: UnitSet) -> Result<(), Stuck>;

    /// The tags of a new domain whose table has its root at `root`.
    fn new_tags(&self, root: PhysAddr, format: Self::Format) -> Self::Tags;

    /// Whether `unit` can serve the TLBs of devices, and invalidate them.
    fn serves_device_tlbs(&self, unit: usize) -> bool;

    /// Makes the requests of `source` translate through the domain. The source reached nothing before. With
    /// `device_tlb` it may keep translations in a TLB of its own; it is then the only source of its domain.
    fn attach(
        &self,
        tags: &Self::Tags,
        unit: usize,
        source: SourceId,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<(), DmaError>;

    /// Makes the requests of `source` reach nothing. When it returns `Ok`, no unit can translate for them any more, nor
    /// lets them through translated.
    fn block(&self, tags: &Self::Tags, unit: usize, source: SourceId) -> Result<(), Stuck>;

    /// Takes the interrupts of `source` from their owner. When it returns `Ok`, none comes any more.
    fn mute(&self, unit: usize, source: SourceId) -> Result<(), Stuck>;

    /// Says whether what `source`, which is blocked, tries to do is recorded as faults. The hardware may be unable to
    /// keep silent; that is no error.
    fn set_reporting(&self, unit: usize, source: SourceId, reports: bool) -> Result<(), DmaError>;

    /// Where the tables lead `source` at this moment.
    fn path(&self, unit: usize, source: SourceId) -> Path;

    /// Whether no source is attached, and nothing in any unit is tagged as the domain's.
    fn is_unused(&self, tags: &Self::Tags) -> bool;

    /// Fails if a device of the domain did not empty its TLB when it was told to: nothing new is mapped for it, and
    /// nothing that it may reach comes back.
    fn check_devices(&self, tags: &Self::Tags) -> Result<(), Silent>;

    /// Makes newly mapped leaves visible: nothing at all on most hardware.
    fn publish(&self, tags: &Self::Tags, first: Iova, bytes: u64) -> Result<(), Unflushed>;

    /// Removes what `stale` speaks of from every cache that may hold it, for whoever has other caches to empty besides.
    fn forget(&self, tags: &Self::Tags, stale: &Stale) -> Result<(), Unflushed>;

    /// Removes `stale` from every cache that may hold it. This and the next are the only places where a [`Flushed`]
    /// comes from.
    fn flush(&self, tags: &Self::Tags, stale: Stale) -> Result<Flushed, Unflushed>;

    /// As [`flush`](Self::flush), of several ranges at once: one submission to each unit, and one wait.
    fn flush_ranges(
        &self,
        tags: &Self::Tags,
        stale: StaleRanges,
    ) -> Result<impl Iterator<Item = Flushed>, Unflushed>;
}
