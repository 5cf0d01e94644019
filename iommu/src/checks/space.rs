//! The space of a claim, with the checks around it.

use alloc::sync::Arc;
use core::{ptr::NonNull, sync::atomic::Ordering};

use super::{Checks, Lent, Misuse, Origin, records::Synced};
use crate::{
    Iova, PciAddress, Platform,
    arc::{Room, TryArc},
    dma::{
        Access, DmaError, RawBuffer,
        reaper::Abandoned,
        segment::{List, Segment},
        shared_bytes::copy_out,
        space::{Batch, MapRequest, NotMapped, Owed, Placed, Placement, Space, Way},
    },
};

/// A space that is checked, for one claim of a function.
pub(crate) struct CheckedSpace<P: Platform> {
    checks: Arc<Checks<P>>,
    inner: TryArc<dyn Space>,
    function: PciAddress,
    claim: u64,
}

/// Room for the checks around a space, if there are to be any.
pub(crate) struct Frame<P: Platform>(Option<Parts<P>>);

struct Parts<P: Platform> {
    checks: Arc<Checks<P>>,
    room: Room<CheckedSpace<P>>,
}

impl<P: Platform> Frame<P> {
    /// Room for what `checks`, if there are any, put around a space.
    pub fn new(checks: Option<&Arc<Checks<P>>>) -> Result<Self, DmaError> {
        let Some(checks) = checks else { return Ok(Self(None)) };
        let room = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        Ok(Self(Some(Parts { checks: checks.clone(), room })))
    }

    /// Puts the checks around the space of `function`.
    pub fn around(self, function: PciAddress, inner: TryArc<dyn Space>) -> TryArc<dyn Space> {
        let Some(Parts { checks, room }) = self.0 else { return inner };
        let claim = checks.next_claim.fetch_add(1, Ordering::Relaxed);
        room.fill(CheckedSpace { checks, inner, function, claim }).into()
    }
}

impl<P: Platform> CheckedSpace<P> {
    /// Reports memory that no device may have.
    fn look_at(&self, first: NonNull<u8>, bytes: usize, origin: Origin) {
        let platform = &*self.checks.platform;
        if bytes > 0 && platform.physical(first, bytes).is_none() {
            let (function, kind) = (self.function, platform.unshareable(first, bytes));
            let address = first.as_ptr().addr();
            self.checks.report(Misuse::NotForDevices { function, kind, address, bytes, origin });
        }
    }

    fn enter(&self, first: NonNull<u8>, bytes: usize, iova: Iova, access: Access, origin: Origin) {
        let Some(memory) = self.checks.platform.physical(first, bytes) else { return };
        let (function, bytes) = (self.function, bytes as u64);
        self.checks.enter(self.claim, Lent { function, iova, memory, bytes, access, origin });
    }

    fn enter_segment(&self, segment: &Segment, access: Access, origin: Origin) {
        let RawBuffer { first, bytes, .. } = segment.buffer;
        self.enter(first, bytes, segment.iova, access, origin);
    }

    /// Before the buffer can be anybody else's.
    fn leave(&self, segment: &Segment) {
        self.checks.leave(self.claim, segment.iova, segment.buffer.bytes as u64);
    }

    fn set_synced(&self, segment: &Segment, synced: Option<Synced>) -> Option<(Lent, Option<Synced>)> {
        let state = self.checks.state.lock(&*self.checks.platform);
        state.records.set_synced(self.claim, segment.iova, synced)
    }
}

impl<P: Platform> Space for CheckedSpace<P> {
    fn map(&self, request: &MapRequest) -> Result<Placed, NotMapped> {
        let &MapRequest { first, bytes, access, origin, .. } = request;
        self.look_at(first, bytes, origin);
        let placed = self.inner.map(request)?;
        self.enter(first, bytes, placed.iova, access, origin);
        Ok(placed)
    }

    fn unmap(&self, segment: &Segment, access: Access) -> Result<(), DmaError> {
        self.leave(segment);
        self.inner.unmap(segment, access)
    }

    fn unmap_all(&self, batch: &dyn Batch, access: Access) -> Result<(), DmaError> {
        (0..batch.len()).for_each(|index| self.leave(batch.segment(index)));
        self.inner.unmap_all(batch, access)
    }

    fn retire(&self, segment: &Segment) -> Result<Owed, DmaError> {
        self.inner.retire(segment)
    }

    fn is_pending(&self, owed: Owed) -> bool {
        self.inner.is_pending(owed)
    }

    fn redeem(&self, segment: &Segment, access: Access, owed: Owed) -> Result<(), DmaError> {
        self.leave(segment);
        self.inner.redeem(segment, access, owed)
    }

    fn map_list(
        &self,
        list: &mut List,
        access: Access,
        placement: Placement,
        origin: Origin,
    ) -> Result<(), NotMapped> {
        for Segment { buffer, .. } in &list.segments {
            self.look_at(buffer.first, buffer.bytes, origin);
        }
        self.inner.map_list(list, access, placement, origin)?;
        list.segments.iter().for_each(|segment| self.enter_segment(segment, access, origin));
        Ok(())
    }

    fn reserve(&self, list: &mut List, bytes: u64, placement: Placement) -> Result<(), DmaError> {
        self.inner.reserve(list, bytes, placement)
    }

    fn link(
        &self,
        list: &mut List,
        access: Access,
        placement: Placement,
        origin: Origin,
    ) -> Result<(), NotMapped> {
        if let Some(Segment { buffer, .. }) = list.segments.last() {
            self.look_at(buffer.first, buffer.bytes, origin);
        }
        self.inner.link(list, access, placement, origin)?;
        if let Some(segment) = list.segments.last() {
            self.enter_segment(segment, access, origin);
        }
        Ok(())
    }

    fn sync(&self, list: &List) {
        self.inner.sync(list);
    }

    fn unmap_list(&self, list: &List, access: Access) -> Result<(), DmaError> {
        list.segments.iter().for_each(|segment| self.leave(segment));
        self.inner.unmap_list(list, access)
    }

    fn copy_ends(&self, segment: &Segment, way: Way) {
        self.inner.copy_ends(segment, way);
    }

    fn to_cpu(&self, segment: &Segment, access: Access, origin: Origin) {
        self.inner.to_cpu(segment, access, origin);
        if access.write && !access.read {
            let digest = digest(&segment.buffer);
            let _first = self.set_synced(segment, Some(Synced { digest, origin }));
        }
    }

    fn to_device(&self, segment: &Segment) {
        if let Some((lent, Some(Synced { digest: before, origin: synced }))) = self.set_synced(segment, None)
            && digest(&segment.buffer) != before
        {
            self.checks.report(Misuse::WrittenWhileSynced { lent, synced });
        }
        self.inner.to_device(segment);
    }

    fn let_go(&self) {
        self.checks.depart(self.claim);
    }

    fn abandon(&self, abandoned: Abandoned) {
        // It unmaps by this space too, before leaks are looked for.
        self.inner.abandon(abandoned);
    }
}

/// A number that changes when a byte of the buffer does (FNV-1a).
fn digest(buffer: &RawBuffer) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let mut block = [0; 256];
    let mut digest = OFFSET_BASIS;
    for offset in (0..buffer.bytes).step_by(block.len()) {
        let bytes = block.len().min(buffer.bytes - offset);
        // SAFETY: the mapping owns the buffer, which nothing borrows; a device may write at the same time.
        unsafe { copy_out(buffer.first.add(offset), &mut block[..bytes]) };
        for &byte in &block[..bytes] {
            digest = (digest ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    digest
}
