//! A buffer as it lies in an address space.
//!
//! A page is the least that a table can grant, so the ends of a buffer that are not whole pages are *bounced*: a page
//! of the subsystem's own stands in for them, and what the device may see of the buffer's own pages is whole pages of
//! it.
//!
//! ```text
//!   memory   |....====|========|========|===.....|      = buffer   . what lies beside it
//!                |        |        |       |
//!   IOVAs    |    ====|========|========|===     |
//!               slot   the buffer's own    slot
//! ```

use alloc::vec::Vec;
use core::{num::NonZeroU32, ptr::NonNull};

use mm::{PAGE_BYTES, PhysRange};

use super::{DmaError, RawBuffer};
use crate::Iova;

const PAGE: usize = PAGE_BYTES as usize;

/// A buffer in the hands of a device.
#[derive(Debug)]
pub(crate) struct Segment {
    /// Where the device finds the first byte.
    pub iova: Iova,
    /// The memory.
    pub buffer: RawBuffer,
    /// What stands in for its ends.
    pub ends: Ends,
}

impl Segment {
    /// The pages that it takes in the address space: where they start, and their length in bytes.
    #[inline]
    pub fn pages(&self) -> (Iova, u64) {
        let offset = self.iova.as_u64() & (PAGE_BYTES - 1);
        let bytes = (offset + self.buffer.bytes as u64).next_multiple_of(PAGE_BYTES);
        (Iova::new(self.iova.as_u64() - offset), bytes)
    }
}

/// Buffers that lie one after the other in one range of addresses.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// The buffers.
    pub segments: Vec<Segment>,
    /// Room for their physical memory, while they are mapped: at most [`Self::RANGES`] each.
    pub ranges: Vec<PhysRange>,
    /// Where they lie in the address space, while they are mapped or a range is reserved for them.
    pub place: Option<Place>,
}

/// A range of addresses, and how much of it is mapped from its first page on. Lengths are in bytes of whole pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place {
    pub first: Iova,
    pub reserved_bytes: u64,
    pub mapped_bytes: u64,
}

impl Place {
    /// A range with nothing in it.
    pub fn reserved(first: Iova, bytes: u64) -> Self {
        Self { first, reserved_bytes: bytes, mapped_bytes: 0 }
    }

    /// Where `bytes` more bytes are mapped, if they fit.
    pub fn next(&self, bytes: u64) -> Result<Iova, DmaError> {
        let left_bytes = self.reserved_bytes - self.mapped_bytes;
        if bytes > left_bytes {
            return Err(DmaError::BeyondReservation { bytes, left_bytes });
        }
        Ok(Iova::new(self.first.as_u64() + self.mapped_bytes))
    }
}

impl List {
    /// Runs of pages that a buffer is at most: an end, whole pages, an end.
    pub const RANGES: usize = 3;

    /// Makes room for `count` more buffers.
    #[inline]
    pub fn reserve(&mut self, count: usize) -> Result<(), DmaError> {
        let (len, room) = (self.segments.len(), self.segments.capacity());
        let has_room = count <= room - len && self.ranges.capacity() / Self::RANGES >= len + count;
        if has_room { Ok(()) } else { self.grow(count) }
    }

    #[cold]
    fn grow(&mut self, count: usize) -> Result<(), DmaError> {
        let all = self.segments.len().checked_add(count).and_then(|all| all.checked_mul(Self::RANGES));
        let missing = all.ok_or(DmaError::OutOfMemory)?.saturating_sub(self.ranges.len());
        self.segments.try_reserve(count).map_err(|_| DmaError::OutOfMemory)?;
        self.ranges.try_reserve(missing).map_err(|_| DmaError::OutOfMemory)
    }
}

/// The pages that a buffer takes in an address space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extent {
    /// Where its first byte lies in the first of them.
    pub offset: u64,
    /// Their length.
    pub bytes: u64,
}

impl Extent {
    /// Of `buffer`.
    #[inline]
    pub fn of(buffer: &RawBuffer) -> Self {
        let offset = buffer.first.as_ptr().addr() as u64 % PAGE_BYTES;
        Self { offset, bytes: (offset + buffer.bytes as u64).next_multiple_of(PAGE_BYTES) }
    }
}

/// A page that stands in for an end of a buffer, by number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(NonZeroU32);

impl Slot {
    /// The slot of page `index`.
    pub fn new(index: usize) -> Option<Self> {
        NonZeroU32::new(u32::try_from(index).ok()?.checked_add(1)?).map(Self)
    }

    /// Index of its page.
    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// What stands in for the ends of a buffer. One that fits into a single page has a head only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ends {
    pub head: Option<Slot>,
    pub tail: Option<Slot>,
}

impl Ends {
    /// A buffer of whole pages.
    pub const NONE: Self = Self { head: None, tail: None };
}

/// How a buffer lies on pages: lengths in bytes of what comes before the first whole page, of the whole pages, and of
/// what comes after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Cut {
    pub head: usize,
    pub middle: usize,
    pub tail: usize,
    /// Where the first byte lies in its page.
    pub offset: usize,
}

impl Cut {
    /// How the `bytes` bytes at `first` lie.
    pub fn of(first: NonNull<u8>, bytes: usize) -> Self {
        let offset = first.as_ptr().addr() % PAGE;
        let to_page = (PAGE - offset) % PAGE;
        if bytes < to_page || (offset == 0 && bytes < PAGE) {
            return Self { head: bytes, middle: 0, tail: 0, offset };
        }
        let tail = (bytes - to_page) % PAGE;
        Self { head: to_page, middle: bytes - to_page - tail, tail, offset }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_covers_its_buffer_and_leaves_whole_pages_in_the_middle() {
        let interesting = [0, 1, 2, PAGE / 2, PAGE - 1];
        for offset in interesting {
            for bytes in
                (0..4).flat_map(|pages| interesting.map(|rest| pages * PAGE + rest)).filter(|&b| b > 0)
            {
                let first =
                    NonNull::without_provenance(core::num::NonZeroUsize::new(PAGE * 7 + offset).unwrap());
                let Cut { head, middle, tail, offset: at } = Cut::of(first, bytes);
                assert_eq!((head + middle + tail, at), (bytes, offset), "{bytes} at {offset}");
                assert!(middle.is_multiple_of(PAGE) && head < PAGE && tail < PAGE, "{bytes} at {offset}");
                assert!(middle == 0 || (offset + head).is_multiple_of(PAGE), "{bytes} at {offset}");
                let touched = (offset + bytes).div_ceil(PAGE);
                let mapped = usize::from(head > 0) + middle / PAGE + usize::from(tail > 0);
                assert_eq!(mapped, touched, "{bytes} at {offset}");
                let extent = Extent::of(&RawBuffer { first, bytes, cookie: 0 });
                assert_eq!((extent.offset, extent.bytes), (offset as u64, (touched * PAGE) as u64));
            }
        }
    }
    #[test]
    fn a_list_with_room_for_what_was_announced_asks_for_no_more() {
        const BUFFERS: usize = 16;
        let mut list = List::default();
        list.reserve(BUFFERS).expect("memory");
        let room = (list.segments.capacity(), list.ranges.capacity());
        for _ in 0..BUFFERS {
            list.reserve(1).expect("memory");
            let buffer = RawBuffer { first: NonNull::dangling(), bytes: 1, cookie: 0 };
            list.segments.push(Segment { iova: Iova::new(0), buffer, ends: Ends::NONE });
            // As they are while a single buffer is linked.
            list.ranges.clear();
            list.ranges.extend([PhysRange::new(mm::PhysAddr::new(0), 1); List::RANGES]);
        }
        assert_eq!((list.segments.capacity(), list.ranges.capacity()), room);
        list.reserve(1).expect("memory");
        assert!(list.ranges.capacity() >= (BUFFERS + 1) * List::RANGES);
    }
}
