//! Devices that use physical addresses: all of them with `iommu=off`, those in an identity domain with
//! `iommu=passthrough`.
//!
//! The first exists to measure what isolation costs and to boot a machine without a unit; it is never a fallback. The
//! second gives up the isolation of memory, and keeps that of interrupts, the faults, and the way back.

use alloc::sync::Arc;

use crate::{
    Incident, Iova, Platform,
    checks::Origin,
    dma::{
        Access, DmaError, FaultCounts, RawBuffer,
        reaper::{Abandoned, Reaper},
        segment::{Ends, Extent, List, Place, Segment},
        space::{Batch, MapRequest, NotMapped, Owed, Placed, Placement, Space, Way, physical},
        tenure::Tenure,
    },
};

/// Whether anything is lent to a device, and comes back.
pub(crate) trait Gate: Send + Sync {
    /// Fails when nothing is lent any more.
    fn admit(&self) -> Result<(), DmaError>;

    /// Fails while nothing comes back.
    fn admit_return(&self) -> Result<(), DmaError>;

    /// Last address that the device reaches.
    fn last(&self) -> u64;
}

/// Without a unit nothing is ever taken from a driver.
impl Gate for () {
    fn admit(&self) -> Result<(), DmaError> {
        Ok(())
    }

    fn admit_return(&self) -> Result<(), DmaError> {
        Ok(())
    }

    fn last(&self) -> u64 {
        u64::MAX
    }
}

/// A space in which an IOVA is a physical address.
pub(crate) struct DirectSpace<P: Platform, G> {
    platform: Arc<P>,
    reaper: Arc<Reaper<P>>,
    gate: G,
}

impl<P: Platform, G: Gate> DirectSpace<P, G> {
    pub fn new(platform: Arc<P>, reaper: Arc<Reaper<P>>, gate: G) -> Self {
        Self { platform, reaper, gate }
    }

    /// Where memory lies for a device, if that is where it may lie.
    fn place(&self, memory: mm::PhysRange, placement: Placement) -> Result<Iova, DmaError> {
        let iova = Iova::new(memory.start.as_u64());
        let reached = self.gate.last();
        let last = iova.as_u64() + (memory.bytes - 1);
        let no_iova = |limit| DmaError::NoIova { pages: memory.bytes.div_ceil(mm::PAGE_BYTES), last: limit };
        match placement {
            Placement::Below(limit) | Placement::Within { last: limit, .. } if last > limit.min(reached) => {
                Err(no_iova(limit.min(reached)))
            }
            Placement::Within { last: limit, boundary } if iova.as_u64() / boundary != last / boundary => {
                Err(no_iova(limit))
            }
            Placement::At { iova: wanted, .. } if wanted != iova => Err(DmaError::IovaTaken { iova: wanted }),
            Placement::At { last: limit, .. } if last > limit.min(reached) => {
                Err(DmaError::IovaBeyond { iova, last: limit.min(reached) })
            }
            _ => Ok(iova),
        }
    }
}

impl<P: Platform, G: Gate> Space for DirectSpace<P, G> {
    fn map(&self, request: &MapRequest) -> Result<Placed, NotMapped> {
        self.gate.admit()?;
        let memory = physical(&*self.platform, request.first, request.bytes)?;
        let iova = self.place(memory, request.placement)?;
        self.reaper.reserve()?;
        // Nothing is kept from the device, so the buffer is used as it lies.
        Ok(Placed { iova, ends: Ends::NONE })
    }

    fn unmap(&self, _segment: &Segment, _access: Access) -> Result<(), DmaError> {
        self.gate.admit_return()?;
        self.reaper.release();
        Ok(())
    }

    fn unmap_all(&self, batch: &dyn Batch, _access: Access) -> Result<(), DmaError> {
        self.gate.admit_return()?;
        (0..batch.len()).for_each(|_| self.reaper.release());
        Ok(())
    }

    fn retire(&self, _segment: &Segment) -> Result<Owed, DmaError> {
        self.gate.admit_return()?;
        Ok(Owed(0))
    }

    fn is_pending(&self, _owed: Owed) -> bool {
        false
    }

    fn redeem(&self, segment: &Segment, access: Access, _owed: Owed) -> Result<(), DmaError> {
        self.unmap(segment, access)
    }

    fn map_list(
        &self,
        list: &mut List,
        _access: Access,
        placement: Placement,
        _origin: Origin,
    ) -> Result<(), NotMapped> {
        for segment in &mut list.segments {
            let memory = physical(&*self.platform, segment.buffer.first, segment.buffer.bytes)?;
            segment.iova = self.place(memory, placement)?;
        }
        Ok(self.reserve(list, 0, placement)?)
    }

    fn reserve(&self, list: &mut List, bytes: u64, _placement: Placement) -> Result<(), DmaError> {
        self.gate.admit()?;
        self.reaper.reserve()?;
        list.place = Some(Place::reserved(Iova::new(0), bytes));
        Ok(())
    }

    fn link(
        &self,
        list: &mut List,
        _access: Access,
        placement: Placement,
        _origin: Origin,
    ) -> Result<(), NotMapped> {
        self.gate.admit()?;
        let (Some(segment), Some(all)) = (list.segments.last_mut(), &mut list.place) else { return Ok(()) };
        let RawBuffer { first, bytes, .. } = segment.buffer;
        let pages_bytes = Extent::of(&segment.buffer).bytes;
        all.next(pages_bytes)?;
        segment.iova = self.place(physical(&*self.platform, first, bytes)?, placement)?;
        all.mapped_bytes += pages_bytes;
        Ok(())
    }

    fn sync(&self, _list: &List) {}

    fn unmap_list(&self, _list: &List, _access: Access) -> Result<(), DmaError> {
        self.gate.admit_return()?;
        self.reaper.release();
        Ok(())
    }

    fn copy_ends(&self, _segment: &Segment, _way: Way) {}

    fn abandon(&self, abandoned: Abandoned) {
        self.reaper.abandon(abandoned);
    }
}

/// Without a unit no fault is ever seen.
pub(crate) struct NoFaults;

impl Tenure for NoFaults {
    fn faults(&self) -> FaultCounts {
        FaultCounts::default()
    }

    fn listen(&self, _listener: Arc<dyn Fn(Incident) + Send + Sync>) {}
}
