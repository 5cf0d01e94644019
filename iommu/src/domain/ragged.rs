//! Buffers that are not whole pages, and lists of buffers.

use core::slice;

use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use super::Domain;
use crate::{
    Iova,
    backend::Backend,
    dma::{
        Access, DmaError, RawBuffer,
        segment::{Cut, Ends, Extent, List, Place, Segment},
        space::{MapRequest, NotMapped, Placed, Placement, Way, is_whole_pages, physical},
    },
};

impl<B: Backend> Domain<B> {
    /// Maps a buffer whose ends are bounced.
    #[cold]
    #[inline(never)]
    pub(super) fn map_ragged(&self, request: &MapRequest) -> Result<Placed, NotMapped> {
        let memory = physical(&**self.backend.platform(), request.first, request.bytes)?;
        self.admit()?;
        self.reaper.reserve()?;
        self.place_ragged(request, memory).inspect_err(|_| self.reaper.release())
    }

    fn place_ragged(&self, request: &MapRequest, memory: PhysRange) -> Result<Placed, NotMapped> {
        let cut = Cut::of(request.first, request.bytes);
        let placement = match request.placement {
            Placement::At { iova, last } => Placement::At { iova: page_of(iova, &cut)?, last },
            anywhere => anywhere,
        };
        let buffer = RawBuffer { first: request.first, bytes: request.bytes, cookie: 0 };
        let mut segment = Segment { iova: Iova::new(0), buffer, ends: Ends::NONE };
        let (mut ranges, mut count) = ([memory; List::RANGES], 0);
        let stood_in = self.stand_in(&mut segment, memory, &mut |range| {
            ranges[count] = range;
            count += 1;
        });
        let mapped = stood_in.map_err(NotMapped::from).and_then(|()| {
            let bytes = Extent::of(&segment.buffer).bytes;
            let iova = self.allocate(placement, bytes)?;
            self.map_at(iova, &ranges[..count], bytes, request.access)
        });
        match mapped {
            Ok(page) => Ok(Placed { iova: Iova::new(page.as_u64() + cut.offset as u64), ends: segment.ends }),
            Err(error) => {
                self.give_unexposed(&mut segment, error);
                Err(error)
            }
        }
    }

    /// Maps a list into one range.
    pub(super) fn place_list(
        &self,
        list: &mut List,
        access: Access,
        placement: Placement,
    ) -> Result<(), NotMapped> {
        let List { segments, ranges, place } = list;
        ranges.clear();
        let mapped = self.stand_in_all(segments, ranges).map_err(NotMapped::from).and_then(|bytes| {
            let iova = self.allocate(placement, bytes)?;
            self.map_at(iova, ranges, bytes, access)?;
            Ok(Place { first: iova, reserved_bytes: bytes, mapped_bytes: bytes })
        });
        match mapped {
            Ok(mapped) => {
                *place = Some(mapped);
                let first = mapped.first;
                let mut page = first.as_u64();
                for segment in segments {
                    let extent = Extent::of(&segment.buffer);
                    segment.iova = Iova::new(page + extent.offset);
                    page += extent.bytes;
                }
                Ok(())
            }
            Err(error) => {
                segments.iter_mut().for_each(|segment| self.give_unexposed(segment, error));
                Err(error)
            }
        }
    }

    /// Maps the last buffer of a list behind the others.
    pub(super) fn link_last(&self, list: &mut List, access: Access) -> Result<(), NotMapped> {
        let List { segments, ranges, place } = list;
        let (Some(segment), Some(place)) = (segments.last_mut(), place) else { return Ok(()) };
        let Extent { offset, bytes } = Extent::of(&segment.buffer);
        let page = place.next(bytes)?;
        let linked = if is_whole_pages(segment.buffer.first, segment.buffer.bytes) {
            let memory = physical(&**self.backend.platform(), segment.buffer.first, segment.buffer.bytes)?;
            self.write_leaves(page, &[memory], bytes, access)
        } else {
            ranges.clear();
            let stood_in = self.stand_in_all(slice::from_mut(segment), ranges).map_err(NotMapped::from);
            stood_in.and_then(|_| self.write_leaves(page, ranges, bytes, access))
        };
        if let Ok(()) | Err(NotMapped::Exposed(_)) = linked {
            // What a unit may still translate is not forgotten: the range stays pinned with it.
            place.mapped_bytes += bytes;
        }
        match linked {
            Ok(()) => {
                segment.iova = Iova::new(page.as_u64() + offset);
                Ok(())
            }
            Err(error) => {
                self.give_unexposed(segment, error);
                Err(error)
            }
        }
    }

    /// Gets slots for the ends of all `segments` that have some, and says what memory they are. Returns the length of
    /// their pages.
    fn stand_in_all(
        &self,
        segments: &mut [Segment],
        ranges: &mut alloc::vec::Vec<PhysRange>,
    ) -> Result<u64, DmaError> {
        let mut sum = 0_u64;
        for segment in segments {
            let RawBuffer { first, bytes, .. } = segment.buffer;
            let memory = physical(&**self.backend.platform(), first, bytes)?;
            // The list has room for that many.
            let mapped = if is_whole_pages(first, bytes) {
                ranges.push(memory);
                memory.bytes
            } else {
                self.stand_in(segment, memory, &mut |range| ranges.push(range))?;
                Extent::of(&segment.buffer).bytes
            };
            sum = sum.checked_add(mapped).ok_or(DmaError::BadLength { count: bytes })?;
        }
        Ok(sum)
    }

    /// Gets slots for the ends of a segment, not whole pages, whose buffer lies in `memory`, fills them, and says what
    /// memory the device is to reach instead: at most a slot, whole pages, a slot.
    #[cold]
    fn stand_in(
        &self,
        segment: &mut Segment,
        memory: PhysRange,
        push: &mut dyn FnMut(PhysRange),
    ) -> Result<(), DmaError> {
        let cut = Cut::of(segment.buffer.first, segment.buffer.bytes);
        if cut.head > 0 || cut.tail > 0 {
            segment.ends = self.bounce.take(&cut)?;
            // What the device does not write keeps what it was, and nothing of what the slot held comes back with it.
            // SAFETY: the buffer is the caller's until it is mapped.
            unsafe { self.bounce.copy(segment, Way::In) };
        }
        if let Some(slot) = segment.ends.head {
            push(PhysRange::new(self.bounce.physical(slot)?, PAGE_BYTES));
        }
        if cut.middle > 0 {
            push(PhysRange::new(PhysAddr::new(memory.start.as_u64() + cut.head as u64), cut.middle as u64));
        }
        if let Some(slot) = segment.ends.tail {
            push(PhysRange::new(self.bounce.physical(slot)?, PAGE_BYTES));
        }
        Ok(())
    }

    /// Takes the slots of a buffer back that could not be mapped, unless a device may have seen them.
    fn give_unexposed(&self, segment: &mut Segment, error: NotMapped) {
        if let NotMapped::Untouched(_) = error {
            self.bounce.give(segment);
        }
        segment.ends = Ends::NONE;
    }

    /// What was written to the slots of a segment that is not mapped any more goes to its buffer, and the slots are
    /// free.
    #[cold]
    #[inline(never)]
    pub(super) fn settle(&self, segment: &Segment, access: Access) {
        if access.write {
            // SAFETY: the buffer is not mapped any more.
            unsafe { self.bounce.copy(segment, Way::Out) };
        }
        self.bounce.give(segment);
    }
}

/// The page that a buffer which lies like `cut` starts in when its first byte is to be at `iova`.
fn page_of(iova: Iova, cut: &Cut) -> Result<Iova, DmaError> {
    match iova.as_u64().checked_sub(cut.offset as u64) {
        Some(page) if page.is_multiple_of(PAGE_BYTES) => Ok(Iova::new(page)),
        _ => Err(DmaError::IovaUnaligned { iova }),
    }
}
