//! The one dynamic call between the API, which knows neither platform nor vendor, and a domain, which is compiled for
//! both.

use core::ptr::NonNull;

use mm::{PAGE_BYTES, PhysRange};

use super::{
    Access, DmaError, Unflushed,
    reaper::Abandoned,
    segment::{Ends, List, Segment},
};
use crate::{Iova, Platform, arc::TryArc, checks::Origin};

/// What [`Space::map`] is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRequest {
    /// First byte of the buffer.
    pub first: NonNull<u8>,
    /// Its length in bytes.
    pub bytes: usize,
    /// What the device may do.
    pub access: Access,
    /// Where the mapping may lie.
    pub placement: Placement,
    /// Where in a driver it is asked for.
    pub origin: Origin,
}

/// Where a mapping may lie.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Placement {
    /// Anywhere up to this address, inclusive: the device's mask.
    Below(u64),
    /// There, and not across a multiple of the boundary, a power of two.
    Within { last: u64, boundary: u64 },
    /// Exactly there, and no byte of it beyond the device's mask.
    At { iova: Iova, last: u64 },
}

/// Where [`Space::map`] put a buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    /// Where the device finds the first byte.
    pub iova: Iova,
    /// What stands in for the buffer's ends.
    pub ends: Ends,
}

/// Why [`Space::map`] failed, and what became of the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NotMapped {
    /// No device ever had access.
    Untouched(DmaError),
    /// A part was mapped and taken back, but a unit or a device does not confirm that: the memory must never be used
    /// again.
    Exposed(Unflushed),
}

impl From<DmaError> for NotMapped {
    fn from(error: DmaError) -> Self {
        Self::Untouched(error)
    }
}

/// An address space that a device uses.
pub(crate) trait Space: Send + Sync {
    /// Maps a buffer and reserves what giving it back will need.
    fn map(&self, request: &MapRequest) -> Result<Placed, NotMapped>;

    /// Undoes [`map`](Self::map); when it returns `Ok`, no unit can translate the range any more, and what a device
    /// with this `access` wrote is in the buffer. After an error that [passes](DmaError::passes) nothing was done, and
    /// the mapping is to be abandoned; after any other error the memory must never be used again.
    fn unmap(&self, segment: &Segment, access: Access) -> Result<(), DmaError>;

    /// Undoes [`map`](Self::map) for all of `batch`, with one flush. Errors are those of [`unmap`](Self::unmap), for
    /// all of them.
    fn unmap_all(&self, batch: &dyn Batch, access: Access) -> Result<(), DmaError>;

    /// Begins to undo [`map`](Self::map), without waiting: the device finds the range until it is flushed, and nobody
    /// else gets it. Errors are those of [`unmap`](Self::unmap).
    fn retire(&self, segment: &Segment) -> Result<Owed, DmaError>;

    /// Whether [`redeem`](Self::redeem) would wait for a flush.
    fn is_pending(&self, owed: Owed) -> bool;

    /// Ends what [`retire`](Self::retire) began, after waiting for the flush. Results are those of
    /// [`unmap`](Self::unmap).
    fn redeem(&self, segment: &Segment, access: Access, owed: Owed) -> Result<(), DmaError>;

    /// Maps all buffers of `list` into one range of addresses, as `origin` asks for. They come without addresses, and
    /// have them if it returns `Ok`.
    fn map_list(
        &self,
        list: &mut List,
        access: Access,
        placement: Placement,
        origin: Origin,
    ) -> Result<(), NotMapped>;

    /// Takes a range of `bytes` bytes, whole pages, for the buffers of an empty `list`, and what giving it back will
    /// need.
    fn reserve(&self, list: &mut List, bytes: u64, placement: Placement) -> Result<(), DmaError>;

    /// Maps the last buffer of `list` behind the others into its range. It comes without an address, and has one if
    /// this returns `Ok`. No unit need see it before [`sync`](Self::sync). The `placement` is that of the range, for a
    /// space in which a buffer lies where its memory does.
    fn link(
        &self,
        list: &mut List,
        access: Access,
        placement: Placement,
        origin: Origin,
    ) -> Result<(), NotMapped>;

    /// Makes all units see what was [linked](Self::link).
    fn sync(&self, list: &List);

    /// Undoes [`map_list`](Self::map_list), or [`reserve`](Self::reserve) and what was linked since, as
    /// [`unmap`](Self::unmap).
    fn unmap_list(&self, list: &List, access: Access) -> Result<(), DmaError>;

    /// Copies between a mapped buffer's ends and what stands in for them.
    fn copy_ends(&self, segment: &Segment, way: Way);

    /// Makes what a device with this `access` wrote ready for the CPU, which has the buffer from now on, as `origin`
    /// asks for.
    fn to_cpu(&self, segment: &Segment, access: Access, origin: Origin) {
        let _ = origin;
        if access.write {
            self.copy_ends(segment, Way::Out);
        }
    }

    /// Makes what the CPU wrote ready for the device, which has the buffer from now on.
    fn to_device(&self, segment: &Segment) {
        self.copy_ends(segment, Way::In);
    }

    /// The driver's last handle of the device is gone.
    fn let_go(&self) {}

    /// Leaves a mapping that was dropped to the reaper. Never waits, never allocates.
    fn abandon(&self, abandoned: Abandoned);
}

/// Live mappings of one space whose types it does not know.
pub(crate) trait Batch {
    /// How many.
    fn len(&self) -> usize;

    /// The one at `index`.
    fn segment(&self, index: usize) -> &Segment;
}

/// Which flush a retired mapping waits for. Flushes of a space are numbered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Owed(pub u64);

/// Which way bytes go between a buffer and what stands in for its ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Way {
    /// From the buffer to what stands in for it.
    In,
    /// Back.
    Out,
}

/// A live mapping without its types.
pub(crate) struct Live {
    pub space: TryArc<dyn Space>,
    pub segment: Segment,
}

impl MapRequest {
    /// Whether the buffer is whole pages.
    #[inline]
    pub fn is_whole_pages(&self) -> bool {
        is_whole_pages(self.first, self.bytes)
    }
}

/// Whether the `bytes` bytes at `first` begin and end with a page.
#[inline]
pub(crate) fn is_whole_pages(first: NonNull<u8>, bytes: usize) -> bool {
    ((first.as_ptr().addr() | bytes) as u64).is_multiple_of(PAGE_BYTES)
}

/// The physical memory of the `bytes` bytes at `first`.
#[inline]
pub(crate) fn physical<P: Platform>(
    platform: &P,
    first: NonNull<u8>,
    bytes: usize,
) -> Result<PhysRange, DmaError> {
    debug_assert!(!platform.in_interrupt(), "nothing is mapped in a hard interrupt");
    if bytes == 0 {
        return Err(DmaError::BadLength { count: 0 });
    }
    let address = first.as_ptr().addr();
    let start = platform.physical(first, bytes).ok_or(DmaError::NotMappable { address, bytes })?;
    Ok(PhysRange::new(start, bytes as u64))
}
