//! Machines on which no unit isolates anything.

use alloc::sync::Arc;

use super::{Control, Trust};
use crate::{
    PciAddress, Platform,
    arc::{Room, TryArc},
    checks::{Checks, Frame},
    direct::{DirectSpace, NoFaults},
    dma::{DmaDevice, DmaError, reaper::Reaper},
    dump::Visitor,
    group::ClaimError,
};

/// A machine without a unit, isolation asked for: no device is handed out.
pub(super) struct NoUnit;

impl Control for NoUnit {
    fn claim(&self, _function: PciAddress, _trust: Trust) -> Result<DmaDevice, ClaimError> {
        Err(ClaimError::NoUnit)
    }
}

/// `iommu=off`.
pub(super) struct Unprotected<P: Platform> {
    pub platform: Arc<P>,
    pub reaper: Arc<Reaper<P>>,
    /// With `iommu=debug`.
    pub checks: Option<Arc<Checks<P>>>,
}

impl<P: Platform> Control for Unprotected<P> {
    fn claim(&self, function: PciAddress, _trust: Trust) -> Result<DmaDevice, ClaimError> {
        let room = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        let faults = TryArc::try_new(NoFaults).ok_or(DmaError::OutOfMemory)?;
        let space = DirectSpace::new(self.platform.clone(), self.reaper.clone(), ());
        let space = TryArc::try_new(space).ok_or(DmaError::OutOfMemory)?;
        let frame = Frame::new(self.checks.as_ref())?;
        Ok(DmaDevice::new(room, function, frame.around(function, space.into()), faults.into()))
    }

    fn reap(&self) {
        self.reaper.reap();
        self.checks.iter().for_each(|checks| checks.look());
    }

    fn next_reap_ns(&self) -> u64 {
        self.checks.as_ref().map_or(u64::MAX, |checks| checks.due_ns())
    }

    fn visit(&self, visitor: &mut dyn Visitor) {
        self.checks.iter().for_each(|checks| checks.visit(visitor));
    }

    fn live_mappings(&self) -> usize {
        self.reaper.live()
    }
}
