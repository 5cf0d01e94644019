//! `iommu=off`: devices use physical addresses and reach all of memory.
//!
//! It exists to measure what isolation costs and to boot a machine without a unit; it is never a fallback.

use alloc::sync::Arc;

use crate::{
    Incident, Iova, Platform,
    dma::{
        Access, DmaError,
        device::{FaultCount, FaultCounts},
        reaper::{Abandoned, Reaper},
        segment::{Ends, Segment},
        space::{MapRequest, NotMapped, Placed, Placement, Space, physical},
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
        let memory = physical(&*self.platform, request)?;
        let iova = Iova::new(memory.start.as_u64());
        let last = iova.as_u64() + (memory.bytes - 1);
        match request.placement {
            Placement::Below(limit) if last > limit => {
                return Err(
                    DmaError::NoIova { pages: memory.bytes.div_ceil(mm::PAGE_BYTES), last: limit }.into()
                );
            }
            Placement::At(wanted) if wanted != iova => {
                return Err(DmaError::IovaTaken { iova: wanted }.into());
            }
            _ => self.reaper.reserve()?,
        }
        // Nothing is kept from the device, so the buffer is used as it lies.
        Ok(Placed { iova, ends: Ends::NONE })
    }

    fn unmap(&self, _segment: &Segment, _access: Access) -> Result<(), DmaError> {
        self.reaper.release();
        Ok(())
    }

    fn abandon(&self, abandoned: Abandoned) {
        self.reaper.abandon(abandoned);
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
