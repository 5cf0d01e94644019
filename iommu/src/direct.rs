//! `iommu=off`: devices use physical addresses and reach all of memory.
//!
//! It exists to measure what isolation costs and to boot a machine without a unit; it is never a fallback.

use alloc::sync::Arc;

use crate::{
    Incident, Iova, Platform,
    checks::Origin,
    dma::{
        Access, DmaError, RawBuffer,
        device::{FaultCount, FaultCounts},
        reaper::{Abandoned, Reaper},
        segment::{Cut, Ends, List, Place, Segment},
        space::{Batch, MapRequest, NotMapped, Owed, Placed, Placement, Space, Way, physical},
    },
};

/// The space of every device when there is no isolation: an IOVA is a physical address.
pub(crate) struct DirectSpace<P: Platform> {
    platform: Arc<P>,
    reaper: Arc<Reaper<P>>,
}

impl<P: Platform> DirectSpace<P> {
    pub fn new(platform: Arc<P>, reaper: Arc<Reaper<P>>) -> Self {
        Self { platform, reaper }
    }
}

impl<P: Platform> Space for DirectSpace<P> {
    fn map(&self, request: &MapRequest) -> Result<Placed, NotMapped> {
        let memory = physical(&*self.platform, request.first, request.bytes)?;
        let iova = place(memory, request.placement)?;
        self.reaper.reserve()?;
        // Nothing is kept from the device, so the buffer is used as it lies.
        Ok(Placed { iova, ends: Ends::NONE })
    }

    fn unmap(&self, _segment: &Segment, _access: Access) -> Result<(), DmaError> {
        self.reaper.release();
        Ok(())
    }

    fn unmap_all(&self, batch: &dyn Batch, _access: Access) -> Result<(), DmaError> {
        (0..batch.len()).for_each(|_| self.reaper.release());
        Ok(())
    }

    fn retire(&self, _segment: &Segment) -> Result<Owed, DmaError> {
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
            segment.iova = place(memory, placement)?;
        }
        Ok(self.reserve(list, 0, placement)?)
    }

    fn reserve(&self, list: &mut List, bytes: u64, _placement: Placement) -> Result<(), DmaError> {
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
        let (Some(segment), Some(all)) = (list.segments.last_mut(), &mut list.place) else { return Ok(()) };
        let RawBuffer { first, bytes, .. } = segment.buffer;
        let pages_bytes = Cut::of(first, bytes).mapped_bytes();
        all.next(pages_bytes)?;
        segment.iova = place(physical(&*self.platform, first, bytes)?, placement)?;
        all.mapped_bytes += pages_bytes;
        Ok(())
    }

    fn sync(&self, _list: &List) {}

    fn unmap_list(&self, _list: &List, _access: Access) -> Result<(), DmaError> {
        self.reaper.release();
        Ok(())
    }

    fn copy_ends(&self, _segment: &Segment, _way: Way) {}

    fn abandon(&self, abandoned: Abandoned) {
        self.reaper.abandon(abandoned);
    }
}

/// Where memory lies for a device, if that is where it may lie.
fn place(memory: mm::PhysRange, placement: Placement) -> Result<Iova, DmaError> {
    let iova = Iova::new(memory.start.as_u64());
    let last = iova.as_u64() + (memory.bytes - 1);
    let no_iova = |limit| DmaError::NoIova { pages: memory.bytes.div_ceil(mm::PAGE_BYTES), last: limit };
    match placement {
        Placement::Below(limit) | Placement::Within { last: limit, .. } if last > limit => {
            Err(no_iova(limit))
        }
        Placement::Within { last: limit, boundary } if iova.as_u64() / boundary != last / boundary => {
            Err(no_iova(limit))
        }
        Placement::At { iova: wanted, .. } if wanted != iova => Err(DmaError::IovaTaken { iova: wanted }),
        Placement::At { last: limit, .. } if last > limit => Err(DmaError::IovaBeyond { iova, last: limit }),
        _ => Ok(iova),
    }
}

/// Without a unit no fault is ever seen.
pub(crate) struct NoFaults;

impl FaultCount for NoFaults {
    fn faults(&self) -> FaultCounts {
        FaultCounts::default()
    }

    fn listen(&self, _listener: Arc<dyn Fn(Incident) + Send + Sync>) {}
}
