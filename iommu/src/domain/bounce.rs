//! Pages that stand in for the ends of buffers which are not whole pages.
//!
//! A slot is a page, and never leaves its domain. What was copied to it goes with its buffer, so that what is left in
//! it from one use to the next is what the domain's own devices have written beside one. Slots are made sixteen at a
//! time when there is none, and kept.

use alloc::{sync::Arc, vec::Vec};
use core::{mem, ptr::NonNull, slice};

use mm::{PAGE_BYTES, PhysAddr};

use crate::{
    Platform,
    dma::{
        DmaBuffer, DmaError, PageBuffer, RawBuffer,
        segment::{Cut, Ends, Segment, Slot},
        shared_bytes::{copy_in, copy_out},
        space::Way,
    },
    platform::LockClass,
    sync::IrqLock,
};

const PAGE: usize = PAGE_BYTES as usize;

/// Slots that are made at a time.
const RUN_SLOTS: usize = 16;

/// Most slots of a domain: 4 MiB, for as many buffers under way as the deepest queues of a device have.
pub(super) const MAX_SLOTS: usize = 1024;

/// The slots of one domain.
pub(super) struct Bounce<P: Platform> {
    platform: Arc<P>,
    slots: IrqLock<Slots>,
}

/// Room for all that there may ever be is reserved with the first of them.
#[derive(Default)]
struct Slots {
    runs: Vec<RawBuffer>,
    free: Vec<Slot>,
}

/// One end of a buffer.
struct End {
    in_buffer: NonNull<u8>,
    /// Where its bytes lie in the page that stands in for it.
    in_slot: NonNull<u8>,
    bytes: usize,
}

impl<P: Platform> Bounce<P> {
    /// No slots yet.
    pub fn new(platform: Arc<P>) -> Self {
        Self { platform, slots: IrqLock::new(LockClass::Bounce, Slots::default()) }
    }

    /// Slots for the ends of a buffer that lies like `cut`.
    pub fn take(&self, cut: &Cut) -> Result<Ends, DmaError> {
        let head = if cut.head > 0 { Some(self.take_slot()?) } else { None };
        let tail = match cut.tail > 0 {
            true => match self.take_slot() {
                Ok(slot) => Some(slot),
                Err(error) => {
                    self.free(Ends { head, tail: None });
                    return Err(error);
                }
            },
            false => None,
        };
        Ok(Ends { head, tail })
    }

    /// Takes the slots of a segment back, which no device can reach: with nothing of its buffer in them.
    pub fn give(&self, segment: &Segment) {
        for End { in_slot, bytes, .. } in self.ends(segment) {
            // SAFETY: the part lies in the slot, which is the segment's and nobody's else.
            unsafe { in_slot.write_bytes(0, bytes) };
        }
        self.free(segment.ends);
    }

    fn free(&self, ends: Ends) {
        let mut slots = self.slots.lock(&*self.platform);
        slots.free.extend(ends.head.into_iter().chain(ends.tail));
    }

    /// Physical address of the page of `slot`.
    pub fn physical(&self, slot: Slot) -> Result<PhysAddr, DmaError> {
        let first = self.page(slot);
        let address = first.as_ptr().addr();
        self.platform.physical(first, PAGE).ok_or(DmaError::NotMappable { address, bytes: PAGE })
    }

    /// Copies the ends of a buffer.
    ///
    /// # Safety
    /// The CPU side owns what lies at the ends of the segment's buffer: they are never what a device reaches.
    pub unsafe fn copy(&self, segment: &Segment, way: Way) {
        for End { in_buffer, in_slot, bytes } in self.ends(segment) {
            // SAFETY: the ends of the buffer are the caller's, and the slot is the segment's. A device may use the slot
            // at the same time, hence the volatile copies.
            unsafe {
                match way {
                    Way::In => copy_in(slice::from_raw_parts(in_buffer.as_ptr(), bytes), in_slot),
                    Way::Out => copy_out(in_slot, slice::from_raw_parts_mut(in_buffer.as_ptr(), bytes)),
                }
            }
        }
    }

    /// The ends of a segment that slots stand in for.
    fn ends(&self, segment: &Segment) -> impl Iterator<Item = End> {
        let Segment { buffer: RawBuffer { first, bytes, .. }, ends, .. } = segment;
        let cut = Cut::of(*first, *bytes);
        let end = |slot: Option<Slot>, at: usize, bytes: usize, offset: usize| {
            let page = self.page(slot?);
            // SAFETY: the cut lies inside the buffer, and a page holds its part.
            Some(unsafe { End { in_buffer: first.add(at), in_slot: page.add(offset), bytes } })
        };
        let head = end(ends.head, 0, cut.head, cut.offset);
        let tail = end(ends.tail, cut.head + cut.middle, cut.tail, 0);
        head.into_iter().chain(tail)
    }

    /// Gives all memory back.
    ///
    /// # Safety
    /// No device can reach a slot, and none is used after this.
    pub unsafe fn destroy(&mut self) {
        let slots = mem::take(&mut *self.slots.lock(&*self.platform));
        // SAFETY: each run came from a buffer of pages, and is out of every device's reach.
        slots.runs.into_iter().for_each(|run| drop(unsafe { PageBuffer::from_raw(run) }));
    }

    fn take_slot(&self) -> Result<Slot, DmaError> {
        loop {
            let mut slots = self.slots.lock(&*self.platform);
            if let Some(slot) = slots.free.pop() {
                return Ok(slot);
            }
            let runs = slots.runs.len();
            drop(slots);
            if runs * RUN_SLOTS >= MAX_SLOTS {
                return Err(DmaError::NoBounceSlot);
            }
            self.grow(runs == 0)?;
        }
    }

    /// Makes more slots.
    #[cold]
    fn grow(&self, is_first: bool) -> Result<(), DmaError> {
        let mut room = Slots::default();
        if is_first {
            room.runs.try_reserve_exact(MAX_SLOTS / RUN_SLOTS).map_err(|_| DmaError::OutOfMemory)?;
            room.free.try_reserve_exact(MAX_SLOTS).map_err(|_| DmaError::OutOfMemory)?;
        }
        let run = PageBuffer::zeroed(RUN_SLOTS).ok_or(DmaError::OutOfMemory)?;
        let mut slots = self.slots.lock(&*self.platform);
        if slots.runs.capacity() == 0 {
            mem::swap(&mut *slots, &mut room);
        }
        let first = slots.runs.len() * RUN_SLOTS;
        if first < MAX_SLOTS {
            slots.runs.push(run.into_raw());
            slots.free.extend((first..first + RUN_SLOTS).filter_map(Slot::new));
        }
        drop(slots);
        Ok(())
    }

    /// The page of a slot.
    fn page(&self, slot: Slot) -> NonNull<u8> {
        let index = slot.index();
        let first = self.slots.lock(&*self.platform).runs[index / RUN_SLOTS].first;
        // SAFETY: a run has that many pages.
        unsafe { first.add(index % RUN_SLOTS * PAGE) }
    }
}
