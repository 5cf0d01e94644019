//! Why a buffer could not be mapped, or could not be given back.

use core::fmt;

use mm::PhysRange;

use crate::{
    Iova, SourceId,
    reach::{TableError, Unreachable},
};

/// Why a mapping could not be made, or not be undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DmaError {
    /// The memory is not contiguous in physical memory, or must not be shared with a device.
    NotMappable {
        /// Address of the first byte.
        address: usize,
        /// Length in bytes.
        bytes: usize,
    },
    /// No free IOVA range of this length at or below the device's mask.
    NoIova {
        /// Length asked for, in pages.
        pages: u64,
        /// Highest address that the device can send.
        last: u64,
    },
    /// Something is mapped in the range asked for.
    IovaTaken {
        /// First address asked for.
        iova: Iova,
    },
    /// Some of the range asked for is never mapped for a driver: a write there is an interrupt (0xFEEx_xxxx), or it is
    /// memory that firmware reserves for the device (RMRR).
    IovaReserved {
        /// First address asked for.
        iova: Iova,
    },
    /// Some of the range asked for lies beyond what the device can send, or its units translate.
    IovaBeyond {
        /// First address asked for.
        iova: Iova,
        /// Last address that can be used.
        last: u64,
    },
    /// The address asked for has another offset in its page than the buffer.
    IovaUnaligned {
        /// The address.
        iova: Iova,
    },
    /// The memory lies beyond the addresses that a page-table entry can name (host address width of the DMAR table).
    OutOfRange {
        /// The memory, as whole pages.
        memory: PhysRange,
    },
    /// What memory there is for a table, the units do not reach.
    Unreachable(Unreachable),
    /// The unit has no domain id left, or the domain spans too many units.
    OutOfDomainIds {
        /// Index of the unit.
        unit: usize,
    },
    /// The units that see the device's requests have no page-table format in common.
    NoCommonFormat,
    /// The domain's table is its owner's ([`SharedDomain`](super::SharedDomain)): nobody else maps in it.
    SharedTable,
    /// No memory for a buffer, for table pages or for bookkeeping.
    OutOfMemory,
    /// The buffer is longer than what the device can describe as one: see
    /// [`DmaDevice::set_segment_limits`](super::DmaDevice::set_segment_limits).
    TooLong {
        /// Its length in bytes.
        bytes: usize,
        /// The limit in bytes.
        limit: u64,
    },
    /// A piece takes more pages than are left of its [`Reservation`](super::Reservation).
    BeyondReservation {
        /// Length of its pages in bytes.
        bytes: u64,
        /// What is left, in bytes.
        left_bytes: u64,
    },
    /// What is shared by two domains is whole pages, and this is not: a copy would stand in for its ends.
    NotWholePages {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Too many buffers of the domain that are not whole pages are mapped at the same time: there is no page left to
    /// stand in for their ends.
    NoBounceSlot,
    /// A count of elements, or a length in bytes, that is zero or does not fit into the address space.
    BadLength {
        /// Elements, or bytes, asked for.
        count: usize,
    },
    /// The range is not mapped the way its mapping says: a bug in this crate, caught before memory was reused.
    NotMapped {
        /// First address of the range.
        iova: Iova,
    },
    /// The device was taken away from its driver, or is in quarantine. Nothing new is mapped; what is mapped comes back
    /// to the system, not to the driver, when the device is known to be quiet.
    Revoked,
    /// A device was taken out of the domain and is not known to be quiet yet: what the domain has mapped may still be
    /// on its way. As with [`Revoked`](Self::Revoked) it comes back to the system; but a retired mapping that is polled
    /// waits until then ([`Retired::poll`](super::Retired::poll)). Nothing new is mapped meanwhile, as it could not
    /// come back.
    Restless,
    /// Memory that firmware reserves for a device (RMRR) is for that device alone: its domain has no room for another
    /// group, or others are there already.
    ReservedForOne,
    /// The remapping unit does not answer. Nothing can be mapped or given back behind it.
    Stuck(Stuck),
    /// The device did not empty its TLB. Nothing can be mapped for it, nor given back by it, until its group is
    /// released.
    Silent(Silent),
}

/// A device did not invalidate its TLB in the time that devices have for that.
///
/// It is stopped, and its group reaches nothing any more. The buffer of an unmapping that failed with this stays pinned
/// for ever; what is still mapped comes back when the group is released.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Silent {
    /// The device, as the unit sees it.
    pub source: SourceId,
}

/// Who did not confirm to have forgotten a translation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unflushed {
    /// A unit.
    Unit(Stuck),
    /// A device with a TLB. Every unit did.
    Device(Silent),
}

/// A remapping unit did not complete an invalidation within its deadline, or is known not to answer.
///
/// What it might still translate stays pinned for ever: buffers, IOVAs and table pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stuck {
    /// Index of the unit.
    pub unit: usize,
}

impl fmt::Display for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "remapping unit {} does not answer", self.unit)
    }
}

impl core::error::Error for Stuck {}

impl fmt::Display for Silent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device {} does not invalidate its TLB", self.source)
    }
}

impl core::error::Error for Silent {}

impl From<Stuck> for Unflushed {
    fn from(stuck: Stuck) -> Self {
        Self::Unit(stuck)
    }
}

impl From<TableError> for DmaError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::OutOfMemory => Self::OutOfMemory,
            TableError::Unreachable(table) => Self::Unreachable(table),
        }
    }
}

impl From<Unflushed> for DmaError {
    fn from(unflushed: Unflushed) -> Self {
        match unflushed {
            Unflushed::Unit(stuck) => Self::Stuck(stuck),
            Unflushed::Device(silent) => Self::Silent(silent),
        }
    }
}

impl fmt::Display for DmaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NotMappable { address, bytes } => {
                write!(f, "{bytes} bytes at {address:#x} cannot be shared with a device")
            }
            Self::NoIova { pages, last } => write!(f, "no free IOVA range of {pages} pages up to {last:#x}"),
            Self::IovaTaken { iova } => write!(f, "IOVA {iova} is not free"),
            Self::IovaReserved { iova } => write!(f, "IOVA {iova} is reserved"),
            Self::IovaBeyond { iova, last } => {
                write!(f, "IOVA {iova} and what follows are not all within the last one, {last:#x}")
            }
            Self::IovaUnaligned { iova } => write!(f, "IOVA {iova} is not where the buffer's page begins"),
            Self::OutOfRange { memory: PhysRange { start, bytes } } => {
                write!(f, "{bytes:#x} bytes of memory at {start} are beyond what page tables can name")
            }
            Self::Unreachable(table) => table.fmt(f),
            Self::OutOfDomainIds { unit } => write!(f, "no free domain id in remapping unit {unit}"),
            Self::NoCommonFormat => {
                f.write_str("the device's remapping units walk no common page-table format")
            }
            Self::SharedTable => f.write_str("the domain's page table is shared, and its owner's alone"),
            Self::OutOfMemory => f.write_str("out of memory"),
            Self::TooLong { bytes, limit } => {
                write!(f, "{bytes} bytes are more than the device's limit of {limit}")
            }
            Self::BeyondReservation { bytes, left_bytes } => {
                write!(f, "{bytes} bytes do not fit into the {left_bytes} that are left of the reservation")
            }
            Self::NotWholePages { bytes } => {
                write!(f, "{bytes} bytes are not whole pages, which can be shared")
            }
            Self::NoBounceSlot => f.write_str("too many buffers that are not whole pages"),
            Self::BadLength { count } => write!(f, "{count} is not a valid length"),
            Self::NotMapped { iova } => write!(f, "{iova} is not mapped as recorded"),
            Self::Revoked => f.write_str("the device was taken away from its driver"),
            Self::Restless => f.write_str("a device that was taken out of the domain may not be quiet"),
            Self::ReservedForOne => f.write_str("a domain with reserved memory is for one group alone"),
            Self::Stuck(stuck) => stuck.fmt(f),
            Self::Silent(silent) => silent.fmt(f),
        }
    }
}

impl core::error::Error for DmaError {}

impl DmaError {
    /// Whether what was not given back can be later: the reaper tries again.
    pub(crate) const fn passes(self) -> bool {
        matches!(self, Self::Revoked | Self::Restless)
    }
}

impl From<Stuck> for DmaError {
    fn from(stuck: Stuck) -> Self {
        Self::Stuck(stuck)
    }
}

/// A buffer that could not be mapped, and why.
///
/// # Examples
/// ```no_run
/// use iommu::{DmaDevice, PageBuffer, Rejected, ToDevice};
///
/// /// Keeps a buffer that cannot be mapped just now for later.
/// fn try_map(device: &DmaDevice, buffer: PageBuffer, later: &mut Vec<PageBuffer>) {
///     if let Err(Rejected { error, buffer }) = device.dma_map(buffer, ToDevice) {
///         log::warn!("{error}");
///         later.extend(buffer);
///     }
/// }
/// ```
#[derive(Debug)]
pub struct Rejected<B> {
    /// Why.
    pub error: DmaError,
    /// The buffer as it was. `None` only if the unit, or the device's TLB, stopped answering in just that moment, with
    /// a part of the buffer mapped: then it stays pinned for ever.
    pub buffer: Option<B>,
}

impl<B> From<Rejected<B>> for DmaError {
    fn from(rejected: Rejected<B>) -> Self {
        rejected.error
    }
}

impl<B> fmt::Display for Rejected<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<B: fmt::Debug> core::error::Error for Rejected<B> {}
