//! Taking a group back from its drivers: quarantine, and release.
//!
//! The order is what makes it safe: bus mastering off, blocked, flushed, the devices quiet, and only then their memory
//! back. A release of a group that is not in quarantine begins by putting it there.
//!
//! In quarantine a group reaches its reserved memory. All other addresses are blocked, or lead to a scratch page.

use core::mem;

use super::{Group, Incident, ReleaseError};
use crate::{
    PciAddress, Platform,
    arc::TryArc,
    backend::Backend,
    dma::{DmaError, Stuck},
    domain::Domain,
    group::{ClaimError, DomainMaker},
    options::Quarantine,
    policy::History,
    scratch::Scratch,
};

impl<B: Backend> Group<B> {
    /// Puts the group in quarantine: from here on it reaches its reserved memory and nothing else, whatever its devices
    /// do, and what its drivers, who are told, had mapped stays pinned until [`release`](Self::release).
    pub fn quarantine(&self, maker: &DomainMaker<B>, function: PciAddress) -> Result<(), ReleaseError> {
        let seizure = self.seize(maker, function, None)?;
        drop(self.end(maker));
        if seizure.is_new {
            self.announce(&**maker.backend.platform());
        }
        seizure.result.map_err(ReleaseError::from)
    }

    /// Takes the group back from its drivers: it reaches nothing, then `reset` makes each of its endpoints quiet, then
    /// the memory that was mapped for it comes back and it can be claimed again. Ends quarantine.
    ///
    /// If something fails on the way the group is in quarantine, and its memory stays pinned. With a
    /// [`term`](Self::term) it is taken from those alone who have it since then.
    pub fn release(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
        term: Option<u64>,
        reset: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        self.give_back(maker, function, term, reset, Future::Free)
    }

    /// As [`release`](Self::release), for functions that are gone or about to go. Their drivers are told, and nobody
    /// can claim them any more.
    pub fn remove(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
        quiet: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        self.give_back(maker, function, None, quiet, Future::None)
    }

    fn give_back(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
        term: Option<u64>,
        reset: &mut dyn FnMut(PciAddress) -> bool,
        future: Future,
    ) -> Result<(), ReleaseError> {
        let platform = &**maker.backend.platform();
        let seizure = self.seize(maker, function, term)?;
        let incident = match future {
            Future::None => Some(Incident::Removed),
            Future::Free => seizure.is_new.then_some(Incident::Released),
        };
        if let Some(incident) = incident {
            self.state.lock(platform).leaving = Some(incident);
            self.tell(platform, incident);
        }
        let mut quiet = seizure.result.map_err(ReleaseError::from).and_then(|()| self.quieten(reset));
        quiet = quiet.and_then(|()| Ok(self.leave_scratch_page(maker)?));
        if future == Future::None {
            quiet = quiet.and_then(|()| Ok(self.block_reserved(platform)?));
        }
        quiet = quiet.and_then(|()| Ok(self.report_again(maker, future)?));
        if quiet.is_ok() {
            let mut record = self.record.lock(platform);
            (record.history, record.condemned) = (History::default(), None);
        }
        let mut state = self.end(maker);
        state.leaving = None;
        if let Err(error) = quiet {
            drop(state);
            if seizure.is_new {
                self.announce(platform);
            }
            return Err(error);
        }
        let revoked = state.revoked.take();
        // Before the term: whoever sees that it is over may have its memory back.
        let keeper = revoked.as_ref().and_then(|domain| domain.set_quiet());
        state.quarantined = false;
        state.term += 1;
        state.retired = future == Future::None;
        state.muted = state.retired;
        let claimed = mem::take(&mut state.claimed);
        drop(state);
        drop((claimed, revoked, keeper));
        Ok(())
    }

    /// Begins a change that starts with the group in quarantine: puts it there if it is not. Ended by
    /// [`end`](Self::end).
    fn seize(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
        term: Option<u64>,
    ) -> Result<Seizure, ReleaseError> {
        let platform = &**maker.backend.platform();
        let domain = {
            let mut state = self.state.lock(platform);
            // Who is late has nothing to begin: it would be in the way of who has the group now.
            if term.is_some_and(|term| term != state.term) {
                return Err(ReleaseError::Over { function });
            }
            state.begin(function).map_err(|error| match error {
                ClaimError::Unknown { function } => ReleaseError::Unknown { function },
                _ => ReleaseError::Busy { function },
            })?
        };
        // In quarantine a driver may have turned it on again.
        self.layout.endpoints.iter().for_each(|&function| stop_bus_master(platform, function));
        let is_new = {
            let mut state = self.state.lock(platform);
            state.muted = true;
            !state.quarantined
        };
        let mut result = Ok(());
        if is_new {
            let taken = self.take_back(maker, domain);
            result = taken.result.and(self.mute(maker));
            let mut state = self.state.lock(platform);
            state.quarantined = true;
            let before = mem::replace(&mut state.domain, taken.remaining);
            (state.scratch, state.revoked) = (taken.scratch, taken.revoked);
            // A domain that goes with it gives its tables back.
            drop(state);
            drop(before);
        }
        // A unit that does not answer may go on translating as before, whenever it fell silent.
        Ok(Seizure { is_new, result: result.and(maker.backend.check(self.layout.units())) })
    }

    /// Makes a group that nobody has reach not even its reserved memory. Its caller is the only one that changes the
    /// group.
    pub(super) fn block_reserved(&self, platform: &B::Platform) -> Result<(), Stuck> {
        let Some(domain) = self.domain(platform) else { return Ok(()) };
        let sources = self.layout.sources.len();
        self.block_sources(sources, |unit, source| domain.block(unit, source))?;
        let _unused = self.state.lock(platform).domain.take();
        Ok(())
    }

    /// Tells that the group went into quarantine.
    fn announce(&self, platform: &B::Platform) {
        let on_scratch_page = self.state.lock(platform).scratch.is_some();
        let reach = if on_scratch_page { "a scratch page and nothing else" } else { "nothing" };
        log::error!("{:?} are in quarantine: they reach {reach}", self.layout.functions);
        self.tell(platform, Incident::Quarantined);
    }

    fn quieten(&self, reset: &mut dyn FnMut(PciAddress) -> bool) -> Result<(), ReleaseError> {
        match self.layout.endpoints.iter().find(|function| !reset(**function)) {
            Some(&function) => Err(ReleaseError::NotQuiet { function }),
            None => Ok(()),
        }
    }

    /// Lets no interrupt of the group through any more. Drivers give their interrupts back, or lose them.
    fn mute(&self, maker: &DomainMaker<B>) -> Result<(), Stuck> {
        let muted = self.layout.sources.iter().map(|&(source, unit)| maker.backend.mute(unit, source));
        muted.fold(Ok(()), Result::and)
    }

    /// Makes the group reach its reserved memory and nothing else that matters. Its caller is the only one that changes
    /// the group.
    fn take_back(&self, maker: &DomainMaker<B>, domain: Option<TryArc<Domain<B>>>) -> Taken<B> {
        let platform = &**maker.backend.platform();
        let is_reserved_only = self.state.lock(platform).claimed.is_empty();
        let Some(domain) = domain else { return self.isolate(maker, None) };
        if is_reserved_only && maker.quarantine == Quarantine::Basic {
            return match self.reattached(maker, &domain, false) {
                Ok(remaining) => Taken { remaining, ..Taken::nothing() },
                Err(stuck) => Taken { remaining: Some(domain), result: Err(stuck), ..Taken::nothing() },
            };
        }
        if !is_reserved_only {
            domain.begin_revoking();
        }
        let sources = self.layout.sources.len();
        if let Err(stuck) = self.block_sources(sources, |unit, source| domain.block(unit, source)) {
            return Taken { revoked: Some(domain), result: Err(stuck), ..Taken::nothing() };
        }
        domain.leave(&self.layout.reserved);
        self.isolate(maker, Some(domain).filter(|_| !is_reserved_only))
    }

    /// What the group, which is blocked, reaches in quarantine: after `revoked`, the domain that drivers used.
    fn isolate(&self, maker: &DomainMaker<B>, revoked: Option<TryArc<Domain<B>>>) -> Taken<B> {
        self.set_reporting(maker, false);
        if maker.quarantine == Quarantine::ScratchPage {
            match self.on_scratch_page(maker) {
                Ok(scratch) => return Taken { scratch: Some(scratch), revoked, ..Taken::nothing() },
                Err(error) => {
                    log::error!(
                        "no scratch page for {:?}, which are blocked: {error}",
                        self.layout.functions
                    );
                }
            }
        }
        let remaining = if self.layout.reserved.is_empty() { None } else { self.reserved_only(maker) };
        Taken { remaining, revoked, ..Taken::nothing() }
    }

    /// A scratch page to which the group's sources are attached. One that cannot be, while others are, stays blocked:
    /// they may have the page on their way already, so that it goes when they are quiet and not before.
    fn on_scratch_page(&self, maker: &DomainMaker<B>) -> Result<Scratch<B>, DmaError> {
        let scratch = Scratch::new(maker.backend.clone(), self.layout.units(), &self.layout.reserved)?;
        let (mut is_used, mut result) = (false, Ok(()));
        for &(source, unit) in &self.layout.sources {
            match scratch.attach(unit, source) {
                Ok(()) => is_used = true,
                Err(error) => {
                    log::error!("{source} gets no scratch page: {error}");
                    result = result.and(Err(error));
                }
            }
        }
        if is_used { Ok(scratch) } else { result.map(|()| scratch) }
    }

    /// Blocks the group, whose devices are quiet, if it is on a scratch page, and gives the page back.
    fn leave_scratch_page(&self, maker: &DomainMaker<B>) -> Result<(), Stuck> {
        let platform = &**maker.backend.platform();
        let Some(scratch) = self.state.lock(platform).scratch.take() else { return Ok(()) };
        self.block_sources(self.layout.sources.len(), |unit, source| scratch.block(unit, source))
    }

    /// Lets what the group tries be recorded again, whose devices are quiet. If it has a future, and comes from a
    /// scratch page, beside which its reserved memory was mapped, that is mapped again.
    fn report_again(&self, maker: &DomainMaker<B>, future: Future) -> Result<(), Stuck> {
        let platform = &**maker.backend.platform();
        let reserved = match self.domain(platform) {
            Some(domain) => self.reattached(maker, &domain, true)?,
            None => {
                self.set_reporting(maker, true);
                // A unit that fell silent over it may go on not recording.
                maker.backend.check(self.layout.units())?;
                let none = future == Future::None || self.layout.reserved.is_empty();
                if none { None } else { self.reserved_only(maker) }
            }
        };
        let before = mem::replace(&mut self.state.lock(platform).domain, reserved);
        drop(before);
        Ok(())
    }

    /// Changes whether what the group tries is recorded, while it is attached to `domain`: that is said in its context
    /// entries, which change only while they are not present. Its devices are stopped. Returns `domain`, or if it
    /// cannot be attached again, so that the group is blocked, nothing.
    fn reattached(
        &self,
        maker: &DomainMaker<B>,
        domain: &TryArc<Domain<B>>,
        reports: bool,
    ) -> Result<Option<TryArc<Domain<B>>>, Stuck> {
        let sources = &self.layout.sources;
        self.block_sources(sources.len(), |unit, source| domain.block(unit, source))?;
        self.set_reporting(maker, reports);
        for (done, &(source, unit)) in sources.iter().enumerate() {
            if let Err(error) = domain.attach(unit, source, None) {
                log::error!("reserved memory of {:?}: {error}", self.layout.functions);
                self.block_sources(done, |unit, source| domain.block(unit, source))?;
                return Ok(None);
            }
        }
        Ok(Some(domain.clone()))
    }

    /// A domain with the reserved memory alone, attached. Without memory for one the group stays blocked.
    pub(super) fn reserved_only(&self, maker: &DomainMaker<B>) -> Option<TryArc<Domain<B>>> {
        self.at_home(maker, None, None)
            .inspect_err(|error| log::error!("reserved memory of {:?}: {error}", self.layout.functions))
            .ok()
    }

    /// Whether what the blocked group tries to do is recorded: in quarantine it is no news.
    fn set_reporting(&self, maker: &DomainMaker<B>, reports: bool) {
        for &(source, unit) in &self.layout.sources {
            if let Err(error) = maker.backend.set_reporting(unit, source, reports) {
                log::warn!("faults of {source}: {error}");
            }
        }
    }
}

/// What comes after a release.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Future {
    /// The next claim.
    Free,
    /// Nothing: the group's functions are gone.
    None,
}

/// A group that is in quarantine, in the hands of one thread.
struct Seizure {
    /// It was not before.
    is_new: bool,
    /// Whether it is isolated.
    result: Result<(), Stuck>,
}

/// What is left when a group was taken back.
struct Taken<B: Backend> {
    /// The domain that it is attached to now: its reserved memory.
    remaining: Option<TryArc<Domain<B>>>,
    /// Or its scratch page.
    scratch: Option<Scratch<B>>,
    /// The domain that drivers used.
    revoked: Option<TryArc<Domain<B>>>,
    result: Result<(), Stuck>,
}

impl<B: Backend> Taken<B> {
    fn nothing() -> Self {
        Self { remaining: None, scratch: None, revoked: None, result: Ok(()) }
    }
}

/// Turns bus mastering off. A driver turns it on again after its claim; one that does so in quarantine gains nothing,
/// because the group is blocked, and loses it at the release.
pub(crate) fn stop_bus_master<P: Platform>(platform: &P, function: PciAddress) {
    /// The dword of Command and Status; writing Status bits as 0 leaves them alone.
    const COMMAND: u16 = 0x04;
    const STATUS_BITS: u32 = 0xffff << 16;
    const BUS_MASTER: u32 = 1 << 2;
    platform.change_config(function, COMMAND, BUS_MASTER | STATUS_BITS, 0);
}
