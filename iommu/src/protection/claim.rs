//! Handing functions out.

use alloc::sync::Arc;

use super::{Layout, Protection, Shared};
use crate::{
    Incident, PciAddress, Platform,
    arc::{Room, TryArc},
    ats::{self, DeviceTlb},
    backend::Backend,
    checks::Frame,
    direct::DirectSpace,
    dma::{DmaDevice, DmaError, FaultCounts, space::Space, tenure::Tenure},
    group::{ClaimError, Claimed, DomainMaker, Group, Home, ReleaseError},
    options::ReservedPolicy,
    subsystem::Trust,
    topology::Ats,
    vtd::Vtd,
};

impl<P: Platform> Protection<P> {
    /// Gives `function` to a driver, in a domain of its group's own.
    pub(super) fn claim_own(&self, function: PciAddress, trust: Trust) -> Result<DmaDevice, ClaimError> {
        let shared = &self.shared;
        let group = shared.group(function).ok_or(ClaimError::Unknown { function })?;
        let device_tlb = match trust {
            Trust::Translations => shared.device_tlb(&group, function),
            Trust::Nothing | Trust::Memory => None,
        };
        let home = match trust {
            // Who may send any address needs none translated.
            Trust::Nothing | Trust::Memory if self.options.passthrough => Home::Identity,
            Trust::Memory => Home::Identity,
            Trust::Nothing | Trust::Translations => Home::Own(device_tlb),
        };
        let device = self.claim_as(&group, function, home)?;
        // Only now may the device ask for translations. Firmware may have left ATS on.
        match device_tlb {
            Some(_) => ats::enable(&*shared.platform, function),
            None => self.disable_ats(function),
        }
        Ok(device)
    }

    /// Gives `function` to the owner of the domain with this number.
    pub(super) fn assign_to(
        &self,
        function: PciAddress,
        domain: u64,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<DmaDevice, ClaimError> {
        let group = self.shared.group(function).ok_or(ClaimError::Unknown { function })?;
        if group.layout().is_firmwares && self.options.rmrr == ReservedPolicy::Strict {
            return Err(ClaimError::Reserved { function });
        }
        let domain = self.created(domain).ok_or(ClaimError::NoDomain { domain })?;
        let device = self.claim_as(&group, function, Home::Assigned(&domain, reset))?;
        self.disable_ats(function);
        Ok(device)
    }

    fn claim_as(
        &self,
        group: &TryArc<Group<Vtd<P>>>,
        function: PciAddress,
        home: Home<'_, Vtd<P>>,
    ) -> Result<DmaDevice, ClaimError> {
        // What can be refused comes first: once the function is claimed nothing fails any more.
        let room = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        let room_for_tenure = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        let room_for_space = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        let frame = Frame::new(self.checks.as_ref())?;
        let Claimed { domain, term } = group.claim(&self.maker, function, home)?;
        let space: TryArc<dyn Space> = if domain.is_identity() {
            let (platform, reaper) = (self.shared.platform.clone(), self.maker.reaper.clone());
            room_for_space.fill(DirectSpace::new(platform, reaper, domain)).into()
        } else {
            domain.into()
        };
        let (shared, maker) = (self.shared.clone(), self.maker.clone());
        let tenure =
            room_for_tenure.fill(GroupTenure { shared, maker, group: group.clone(), function, term });
        Ok(DmaDevice::new(room, function, frame.around(function, space), tenure.into()))
    }

    fn disable_ats(&self, function: PciAddress) {
        if self.shared.layout().topology.ats(function) != Ats::Required {
            ats::disable(&*self.shared.platform, function);
        }
    }
}

impl<P: Platform> Shared<P> {
    /// The TLB that `function`, which its owner trusts, may use.
    fn device_tlb(&self, group: &Group<Vtd<P>>, function: PciAddress) -> Option<DeviceTlb> {
        let unit = group.layout().lone_function_unit()?;
        let Layout { topology, .. } = &*self.layout();
        if topology.ats(function) != Ats::Allowed || !self.backend.serves_device_tlbs(unit) {
            return None;
        }
        ats::find(&*self.platform, function, topology.physical(function))
    }
}

/// A claimed function: it is its driver's in the `term` of its group in which it was claimed. Faults are those of the
/// group, because its unit cannot tell them apart.
struct GroupTenure<P: Platform> {
    shared: Arc<Shared<P>>,
    maker: Arc<DomainMaker<Vtd<P>>>,
    group: TryArc<Group<Vtd<P>>>,
    function: PciAddress,
    term: u64,
}

impl<P: Platform> Tenure for GroupTenure<P> {
    fn faults(&self) -> FaultCounts {
        // A unit is drained under a lock: what others read of it was counted before.
        let mut unattributed = 0;
        let mut last_unit = None;
        for &(_, unit) in &self.group.layout().sources {
            if last_unit.replace(unit) != Some(unit) {
                self.shared.backend.drain_faults(unit, |fault| self.shared.enter(unit, fault));
                unattributed += self.shared.backend.lost_faults(unit);
            }
        }
        FaultCounts { own: self.group.faults(), unattributed }
    }

    fn is_over(&self) -> bool {
        self.group.term(&self.shared.platform) != self.term
    }

    fn release(
        &self,
        function: PciAddress,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        match self.group.release(&self.maker, function, Some(self.term), reset) {
            // The function is gone, and another may be in its place.
            Err(ReleaseError::Unknown { function }) => Err(ReleaseError::Over { function }),
            result => result,
        }
    }

    fn listen(&self, listener: Arc<dyn Fn(Incident) + Send + Sync>) {
        self.group.listen(&self.shared.platform, self.term, self.function, listener);
    }
}
