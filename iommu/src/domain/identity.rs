//! All of RAM one to one: what a group reaches that is trusted (`iommu=passthrough`, or claimed as such).
//!
//! It is a domain like any other, with second-stage tables of the largest leaves that the units have, and not the
//! translation type that passes requests through. So units without that type serve it, memory that is not RAM
//! (registers of other devices) stays out of reach, reserved memory is the group's own as always, and it is taken back
//! by the way that there is: context entries not present, flushed under the domain's id. It costs a table page for each
//! GiB where leaves of 2 MiB are the largest.

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::{Domain, Ordering};
use crate::{
    Iova,
    arc::TryArc,
    backend::Backend,
    direct::Gate,
    dma::{Access, DmaError, space::NotMapped},
};

impl<B: Backend> Domain<B> {
    /// Maps `memory` one to one, but for the reserved memory in it, which is mapped. It is for good: a domain of a
    /// group's own ends with its owner.
    pub fn become_identity(&self, memory: &[PhysRange]) -> Result<(), DmaError> {
        for &region in memory {
            let mut first = region.start.as_u64();
            let end = first.saturating_add(region.bytes).min(self.last.saturating_add(1));
            while first < end {
                let (gap_end, next) = self.until_reserved(first, end);
                if first < gap_end {
                    self.map_identity(PhysRange::new(PhysAddr::new(first), gap_end - first))?;
                }
                first = next;
            }
        }
        self.is_identity.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether all of RAM is mapped.
    pub fn is_identity(&self) -> bool {
        self.is_identity.load(Ordering::Acquire)
    }

    /// The end of what is not reserved from `first` on, and where to go on after that.
    fn until_reserved(&self, first: u64, end: u64) -> (u64, u64) {
        let members = self.members.lock(&**self.backend.platform());
        let regions = members
            .reserved
            .iter()
            .map(|region| (region.start.as_u64(), region.start.as_u64().saturating_add(region.bytes)));
        let next = regions.filter(|&(start, stop)| stop > first && start < end).min();
        next.map_or((end, end), |(start, stop)| (start.max(first), stop.min(end)))
    }

    fn map_identity(&self, region: PhysRange) -> Result<(), DmaError> {
        let access = Access { read: true, write: true };
        debug_assert!(region.bytes.is_multiple_of(PAGE_BYTES));
        match self.map_leaves(Iova::new(region.start.as_u64()), &[region], region.bytes, access) {
            Ok(()) => Ok(()),
            Err(NotMapped::Untouched(error)) => Err(error),
            Err(NotMapped::Exposed(unflushed)) => Err(unflushed.into()),
        }
    }
}

/// What is lent in an identity domain is reached anyway; what matters is when it comes back.
impl<B: Backend> Gate for TryArc<Domain<B>> {
    fn admit(&self) -> Result<(), DmaError> {
        Domain::admit(self)
    }

    fn admit_return(&self) -> Result<(), DmaError> {
        Domain::admit_return(self)
    }

    fn last(&self) -> u64 {
        self.last
    }
}
