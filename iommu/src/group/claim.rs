//! Giving a group's functions to somebody.
//!
//! There is one way for all kinds of domains: blocked, if anything was reachable; then the domain has all that it
//! needs; then the sources are attached.

use core::mem;

use super::{Claim, ClaimError, DomainMaker, Group, stop_bus_master};
use crate::{
    PciAddress,
    arc::TryArc,
    ats::{self, DeviceTlb},
    backend::Backend,
    dma::{DmaError, Stuck},
    domain::{Domain, Kind},
};

/// The domain that whoever claims a function wants it in.
pub(crate) enum Home<'a, B: Backend> {
    /// One of the group's own, made for it if it has none. With the TLB the function, which is all of the group, may
    /// use it.
    Own(Option<DeviceTlb>),
    /// The same, with all of RAM in it.
    Identity,
    /// This one, after each endpoint of the group was made quiet.
    Assigned(&'a TryArc<Domain<B>>, &'a mut dyn FnMut(PciAddress) -> bool),
}

/// A claimed function.
pub(crate) struct Claimed<B: Backend> {
    /// What it translates through.
    pub domain: TryArc<Domain<B>>,
    /// The group's [term](Group::term) in which it is claimed.
    pub term: u64,
}

/// Where a group is after somebody wanted it elsewhere, and where it is for them.
type Moved<B> = (Option<TryArc<Domain<B>>>, Result<TryArc<Domain<B>>, ClaimError>);

impl<B: Backend> Group<B> {
    /// Gives `function` to somebody, with all of the group in the domain that is its `home`.
    pub fn claim(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
        home: Home<'_, B>,
    ) -> Result<Claimed<B>, ClaimError> {
        maker.backend.check(self.layout.units()).map_err(DmaError::from)?;
        let platform = &**maker.backend.platform();
        let before = self.begin(maker, function)?;
        let (domain, result) = match (self.admit(platform, function, &home), home) {
            (Err(error), _) => (before, Err(error)),
            (Ok(_), Home::Own(device_tlb)) => {
                let domain = self.at_home(maker, before, device_tlb);
                (domain.as_ref().ok().cloned(), domain.map_err(ClaimError::from))
            }
            (Ok(_), Home::Identity) => self.trusted(maker, before),
            (Ok(is_reset), Home::Assigned(domain, reset)) => {
                self.moved(maker, before, domain, &mut |function| is_reset || reset(function))
            }
        };
        let mut state = self.end(maker);
        let left = mem::replace(&mut state.domain, domain);
        let claimed = result.map(|domain| {
            // Room was made in `admit`.
            state.claimed.push(Claim { function, listener: None });
            Claimed { domain, term: state.term }
        });
        drop(state);
        // The domain that it was in goes after the lock.
        drop(left);
        claimed
    }

    /// Checks that `function` may be claimed, and makes room for the claim. Returns whether nobody has had the group
    /// since its last reset.
    fn admit(
        &self,
        platform: &B::Platform,
        function: PciAddress,
        home: &Home<'_, B>,
    ) -> Result<bool, ClaimError> {
        let mut state = self.state.lock(platform);
        if state.quarantined {
            return Err(ClaimError::Quarantined { function });
        }
        if state.claimed.iter().any(|claim| claim.function == function) {
            return Err(ClaimError::Claimed { function });
        }
        if let Some(domain) = state.domain.as_ref().filter(|_| !state.claimed.is_empty()) {
            let is_there = match home {
                Home::Own(_) => domain.kind() == Kind::Own && !domain.is_identity(),
                Home::Identity => domain.is_identity(),
                Home::Assigned(wanted, _) => TryArc::ptr_eq(domain, wanted),
            };
            if !is_there {
                return Err(ClaimError::Elsewhere { function, domain: domain.number() });
            }
        }
        state.claimed.try_reserve(1).map_err(|_| DmaError::OutOfMemory)?;
        // A group that nobody has now was released by whoever had it last, which resets it. Before the first of them
        // firmware had it.
        Ok(state.term > 0)
    }

    /// `domain`, or a new one of the group's own to which all its sources are attached.
    pub(super) fn at_home(
        &self,
        maker: &DomainMaker<B>,
        domain: Option<TryArc<Domain<B>>>,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<TryArc<Domain<B>>, DmaError> {
        if let Some(domain) = domain {
            return Ok(domain);
        }
        let domain = maker.make(self.layout.units(), Kind::Own)?;
        domain.enter(self.layout.units(), &self.layout.reserved)?;
        if device_tlb.is_some() {
            // What the TLB has kept, of firmware's or of a driver before, must not come to life with the entry.
            let platform = &**maker.backend.platform();
            self.layout.functions.iter().for_each(|&function| ats::disable(platform, function));
        }
        self.attach(&domain, device_tlb)?;
        Ok(domain)
    }

    /// `before`, or a new domain of the group's own, with all of RAM in it. Returns where the group is then, and the
    /// domain.
    ///
    /// What is in `before`, which nobody uses, is the group's reserved memory. It is left for a new one, so that what
    /// cannot be mapped leaves nothing behind.
    fn trusted(&self, maker: &DomainMaker<B>, before: Option<TryArc<Domain<B>>>) -> Moved<B> {
        if let Some(before) = before.as_ref().filter(|before| before.is_identity()) {
            return (Some(before.clone()), Ok(before.clone()));
        }
        let made = maker.make(self.layout.units(), Kind::Own).and_then(|domain| {
            domain.enter(self.layout.units(), &self.layout.reserved)?;
            domain.become_identity(&maker.memory)?;
            Ok(domain)
        });
        let domain = match made {
            Ok(domain) => domain,
            Err(error) => return (before, Err(error.into())),
        };
        if let Some(before) = &before
            && let Err(stuck) = self.leave_reserved(maker, before)
        {
            return (Some(before.clone()), Err(DmaError::from(stuck).into()));
        }
        match self.attach(&domain, None) {
            Ok(()) => (Some(domain.clone()), Ok(domain)),
            Err(error) => (before.and_then(|_| self.reserved_only(maker)), Err(error.into())),
        }
    }

    /// Takes the group from `before`, which nobody uses, to `domain`. Returns where it is then, and `domain` if it is
    /// there.
    ///
    /// Nobody has claimed the group: `before` has its reserved memory alone, or it is in `domain` already, with another
    /// of its functions.
    fn moved(
        &self,
        maker: &DomainMaker<B>,
        before: Option<TryArc<Domain<B>>>,
        domain: &TryArc<Domain<B>>,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Moved<B> {
        if let Some(before) = &before {
            if TryArc::ptr_eq(before, domain) {
                return (Some(domain.clone()), Ok(domain.clone()));
            }
            if let Err(stuck) = self.leave_reserved(maker, before) {
                return (Some(before.clone()), Err(DmaError::from(stuck).into()));
            }
        }
        match self.settled(maker, domain, reset) {
            Ok(()) => (Some(domain.clone()), Ok(domain.clone())),
            Err(error) => (before.and_then(|_| self.reserved_only(maker)), Err(error)),
        }
    }

    /// Blocks the group, in which nobody has a function, where its reserved memory is all that it reaches. Its devices
    /// are stopped: what they would try meanwhile would be blocked.
    fn leave_reserved(&self, maker: &DomainMaker<B>, domain: &TryArc<Domain<B>>) -> Result<(), Stuck> {
        let platform = &**maker.backend.platform();
        self.layout.endpoints.iter().for_each(|&function| stop_bus_master(platform, function));
        self.block_sources(self.layout.sources.len(), |unit, source| domain.block(unit, source))
    }

    /// Attaches the group, which is blocked, to `domain` once its endpoints are quiet.
    fn settled(
        &self,
        maker: &DomainMaker<B>,
        domain: &TryArc<Domain<B>>,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ClaimError> {
        let platform = &**maker.backend.platform();
        for &function in &self.layout.endpoints {
            stop_bus_master(platform, function);
            if !reset(function) {
                return Err(ClaimError::NotQuiet { function });
            }
        }
        domain.enter(self.layout.units(), &self.layout.reserved)?;
        self.attach(domain, None).map_err(|error| {
            domain.leave(&self.layout.reserved);
            error.into()
        })
    }

    /// Attaches all the group's sources to `domain`, or none.
    fn attach(&self, domain: &TryArc<Domain<B>>, device_tlb: Option<DeviceTlb>) -> Result<(), DmaError> {
        for (done, &(source, unit)) in self.layout.sources.iter().enumerate() {
            if let Err(error) = domain.attach(unit, source, device_tlb) {
                self.block_sources(done, |unit, source| domain.block(unit, source))?;
                return Err(error);
            }
        }
        Ok(())
    }
}
