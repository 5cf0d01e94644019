//! A domain by itself: what is mapped in it is what the devices that are assigned to it reach.

use alloc::sync::Arc;
use core::fmt;

use super::{
    Direction, DmaBuffer, DmaError, Mapping, NotShareable, Rejected,
    space::{Placement, Space},
};
use crate::{Iova, arc::TryArc, subsystem::Control};

/// A domain that was created for devices which come and go. Clones are the same domain.
///
/// Its devices are in the hands of one owner, who lays out its address space: groups of functions, also behind
/// different units, are assigned to it ([`Iommu::assign`](crate::Iommu::assign)) and taken out
/// ([`Iommu::release`](crate::Iommu::release)). A group that is taken out, in whatever way, reaches nothing of it from
/// then on; until it is known to be quiet nothing that the domain has mapped comes back, and nothing more is mapped
/// there ([`DmaError::Restless`]).
///
/// Dropping the handle changes nothing: the domain stays until it is [destroyed](Self::destroy).
#[derive(Clone)]
pub struct DmaDomain {
    control: Arc<dyn Control>,
    number: u64,
    space: TryArc<dyn Space>,
}

impl DmaDomain {
    pub(crate) fn new(control: Arc<dyn Control>, number: u64, space: TryArc<dyn Space>) -> Self {
        Self { control, number, space }
    }

    /// Its number: the same that [`DomainReport`](crate::dump::DomainReport) shows.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether it is one of those that `control` rules over.
    pub(crate) fn is_under(&self, control: &Arc<dyn Control>) -> bool {
        core::ptr::addr_eq(Arc::as_ptr(&self.control), Arc::as_ptr(control))
    }

    pub(super) fn space(&self) -> &TryArc<dyn Space> {
        &self.space
    }

    /// Lends `buffer` to all devices of the domain, whether there are any yet or not: as
    /// [`DmaDevice::dma_map`](super::DmaDevice::dma_map), at any address that the domain's units translate.
    ///
    /// # Errors
    /// Those of [`DmaDevice::dma_map`](super::DmaDevice::dma_map).
    #[track_caller]
    pub fn dma_map<B: DmaBuffer, D: Direction>(
        &self,
        buffer: B,
        _direction: D,
    ) -> Result<Mapping<B, D>, Rejected<B>> {
        Mapping::new(&self.space, buffer, Placement::Below(u64::MAX), u64::MAX)
    }

    /// The same at an address of the caller's choice.
    ///
    /// # Errors
    /// Those of [`DmaDevice::dma_map_at`](super::DmaDevice::dma_map_at).
    #[track_caller]
    pub fn dma_map_at<B: DmaBuffer, D: Direction>(
        &self,
        buffer: B,
        _direction: D,
        iova: Iova,
    ) -> Result<Mapping<B, D>, Rejected<B>> {
        Mapping::new(&self.space, buffer, Placement::At { iova, last: u64::MAX }, u64::MAX)
    }

    /// Ends the domain, to which no group may be attached. Nothing more is mapped in it; what is mapped comes back as
    /// always, and its tables go with the last of that. One over a shared table
    /// [may have groups](super::SharedDomain::destroy).
    ///
    /// # Errors
    /// [`DomainError::InUse`], [`DomainError::Unknown`] if it has ended already.
    pub fn destroy(&self) -> Result<(), DomainError> {
        self.control.destroy_domain(self.number)
    }
}

impl fmt::Debug for DmaDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DmaDomain").field(&self.number).finish()
    }
}

/// Why a domain was not made, or not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainError {
    /// No remapping unit isolates devices.
    NoUnit,
    /// There is no such function, or no unit covers it.
    UnknownFunction {
        /// The function.
        function: crate::PciAddress,
    },
    /// It was asked for without functions, so that nobody knows which units are to walk it.
    NoFunctions,
    /// There is no such domain, or not any more.
    Unknown {
        /// Its number.
        number: u64,
    },
    /// Groups are attached to it.
    InUse {
        /// Its number.
        number: u64,
        /// How many.
        groups: usize,
    },
    /// Its units do not walk the table that it is to share.
    NotShareable(NotShareable),
    /// It could not be made.
    Dma(DmaError),
}

impl fmt::Display for DomainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoUnit => f.write_str("no remapping unit isolates devices"),
            Self::UnknownFunction { function } => {
                write!(f, "{function} is not a function that a remapping unit covers")
            }
            Self::NoFunctions => f.write_str("a domain is made for functions, and none were named"),
            Self::Unknown { number } => write!(f, "there is no domain {number}"),
            Self::InUse { number, groups } => write!(f, "{groups} groups are in domain {number}"),
            Self::NotShareable(why) => why.fmt(f),
            Self::Dma(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DomainError {}

impl From<DmaError> for DomainError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}
