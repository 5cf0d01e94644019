//! Buffers that are not whole pages.

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::{Domain, bounce::Way};
use crate::{
    Iova,
    backend::Backend,
    dma::{
        Access, DmaError, RawBuffer,
        segment::{Cut, Segment},
        space::{MapRequest, NotMapped, Placed, Placement, physical},
    },
};

impl<B: Backend> Domain<B> {
    /// Maps a buffer whose ends are bounced.
    #[cold]
    #[inline(never)]
    pub(super) fn map_ragged(&self, request: &MapRequest) -> Result<Placed, NotMapped> {
        let memory = physical(&**self.backend.platform(), request)?;
        self.admit()?;
        self.reaper.reserve()?;
        self.place_ragged(request, memory).inspect_err(|_| self.reaper.release())
    }

    fn place_ragged(&self, request: &MapRequest, memory: PhysRange) -> Result<Placed, NotMapped> {
        let cut = Cut::of(request.first, request.bytes);
        let placement = match request.placement {
            Placement::At(iova) => Placement::At(page_of(iova, &cut)?),
            below => below,
        };
        let ends = self.bounce.take(&cut)?;
        let buffer = RawBuffer { first: request.first, bytes: request.bytes, cookie: 0 };
        let segment = Segment { iova: Iova::new(cut.offset as u64), buffer, ends };
        // What the device does not write keeps what it was, and nothing of what the slot held comes back with it.
        // SAFETY: the buffer is the caller's until it is mapped.
        unsafe { self.bounce.copy(&segment, Way::In) };
        let mapped = self.ranges(&segment, memory).map_err(NotMapped::from).and_then(|(ranges, count)| {
            let iova = self.allocate(placement, cut.mapped_bytes())?;
            self.map_at(iova, &ranges[..count], cut.mapped_bytes(), request.access)
        });
        match mapped {
            Ok(iova) => Ok(Placed { iova: Iova::new(iova.as_u64() + cut.offset as u64), ends }),
            Err(error) => {
                if let NotMapped::Untouched(_) = error {
                    self.bounce.give(ends);
                }
                Err(error)
            }
        }
    }

    /// The physical memory of a segment whose buffer lies in `memory`: at most a slot, whole pages, a slot.
    fn ranges(&self, segment: &Segment, memory: PhysRange) -> Result<([PhysRange; 3], usize), DmaError> {
        let cut = Cut::of(segment.buffer.first, segment.buffer.bytes);
        let (mut ranges, mut count) = ([memory; 3], 0);
        let mut push = |range| {
            ranges[count] = range;
            count += 1;
        };
        if let Some(slot) = segment.ends.head {
            push(PhysRange::new(self.bounce.physical(slot)?, PAGE_BYTES));
        }
        if cut.middle > 0 {
            push(PhysRange::new(PhysAddr::new(memory.start.as_u64() + cut.head as u64), cut.middle as u64));
        }
        if let Some(slot) = segment.ends.tail {
            push(PhysRange::new(self.bounce.physical(slot)?, PAGE_BYTES));
        }
        Ok((ranges, count))
    }

    /// What was written to the slots of a segment that is not mapped any more goes to its buffer, and the slots are free.
    #[cold]
    #[inline(never)]
    pub(super) fn settle(&self, segment: &Segment, access: Access) {
        if access.write {
            // SAFETY: the buffer is not mapped any more.
            unsafe { self.bounce.copy(segment, Way::Out) };
        }
        self.bounce.give(segment.ends);
    }
}

/// The page that a buffer which lies like `cut` starts in when its first byte is to be at `iova`.
fn page_of(iova: Iova, cut: &Cut) -> Result<Iova, DmaError> {
    match iova.as_u64().checked_sub(cut.offset as u64) {
        Some(page) if page.is_multiple_of(PAGE_BYTES) => Ok(Iova::new(page)),
        _ => Err(DmaError::IovaTaken { iova }),
    }
}
