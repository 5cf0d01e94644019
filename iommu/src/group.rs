//! A group: the smallest set of functions that can be isolated from the others, and who may use it.
//!
//! A group is blocked until a driver claims one of its functions; only its reserved memory is reachable before. All
//! its functions translate through one domain, because the hardware cannot tell them apart.

mod claim;
mod error;
#[cfg(all(test, loom))]
mod interleavings;
mod layout;
mod retire;
mod revoke;

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use mm::{PhysAddr, PhysRange, table::Format};

use crate::{
    PciAddress, Platform, SourceId,
    arc::{Room, TryArc},
    backend::{Backend, UnitSet},
    budget::Budget,
    dma::{DmaError, DomainError, SharedTable, Stuck, reaper::Reaper},
    domain::{Domain, Kind, Making},
    dump::GroupStanding,
    fault::Fault,
    options::Quarantine,
    platform::{LockClass, Work},
    policy::{History, Limits, Verdict, judge},
    registers::Registers,
    scratch::Scratch,
    sync::{IrqLock, IrqLockGuard},
    walk::Steps,
};
pub(crate) use claim::{Claimed, Home};
pub use error::{ClaimError, ReleaseError};
pub(crate) use layout::GroupLayout;
pub(crate) use revoke::stop_bus_master;

/// One group.
pub(crate) struct Group<B: Backend> {
    layout: GroupLayout,
    /// Faults of its sources so far. Written under the lock of the record.
    faults: AtomicU64,
    record: IrqLock<Record>,
    state: IrqLock<State<B>>,
}

/// What the group's faults come to. Kept where interrupts may look.
struct Record {
    history: History,
    /// The verdict was quarantine, after so many faults; from here on they are only counted.
    condemned: Option<u64>,
    /// What may be logged of them.
    lines: Budget,
}

struct State<B: Backend> {
    domain: Option<TryArc<Domain<B>>>,
    /// Claimed functions, and whom to tell what becomes of them.
    claimed: Vec<Claim>,
    /// Somebody attaches or detaches right now, without the lock: both wait for hardware.
    changing: bool,
    /// How often the group was taken back from all who had it, its devices made quiet.
    term: u64,
    /// The domain that the group was taken out of, while its devices may not be quiet. `Some` in quarantine only.
    revoked: Option<TryArc<Domain<B>>>,
    quarantined: bool,
    /// What its drivers were told as it began to be taken back. `Some` until that is done.
    leaving: Option<Incident>,
    /// Nobody is given interrupts of it. Set before those that were given out are taken back, for as long as it is in
    /// quarantine.
    muted: bool,
    /// Its functions are gone, or belong to another group: nobody gets it any more.
    retired: bool,
    /// What the group is attached to instead of a domain. `Some` in quarantine only.
    scratch: Option<Scratch<B>>,
}

impl<B: Backend> State<B> {
    /// See [`Group::begin`].
    fn begin(&mut self, function: PciAddress) -> Result<Option<TryArc<Domain<B>>>, ClaimError> {
        if self.retired {
            return Err(ClaimError::Unknown { function });
        }
        if self.changing {
            return Err(ClaimError::Busy { function });
        }
        self.changing = true;
        Ok(self.domain.clone())
    }
}

struct Claim {
    function: PciAddress,
    listener: Option<Listener>,
}

/// What happens to a device, for its driver.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Incident {
    /// A request of the device's group was blocked. Which of its functions sent it, the unit cannot always tell.
    Fault(Fault),
    /// The device was put in quarantine: it reaches nothing, and nothing is mapped for it any more.
    Quarantined,
    /// Somebody takes the device back ([`Iommu::release`](crate::Iommu::release)): it reaches nothing, and nothing is
    /// mapped for it any more. When it is quiet its memory comes back, and it may be given to somebody else. Of a
    /// device in quarantine, which reached nothing before, this is not told.
    Released,
    /// The device is gone, or about to go: it reaches nothing, nothing is mapped for it any more, and its memory is
    /// about to come back.
    Removed,
}

/// A driver's callback. It is called in the thread that does [`Work::Faults`] or that takes the device away, without a
/// lock held.
pub(crate) type Listener = Arc<dyn Fn(Incident) + Send + Sync>;

impl<B: Backend> Group<B> {
    pub fn new(layout: GroupLayout) -> Self {
        let state = State {
            domain: None,
            claimed: Vec::new(),
            changing: false,
            term: 0,
            revoked: None,
            quarantined: false,
            leaving: None,
            muted: false,
            retired: false,
            scratch: None,
        };
        let record = Record { history: History::default(), condemned: None, lines: Budget::ONE_SOURCE };
        Self {
            layout,
            faults: AtomicU64::new(0),
            record: IrqLock::new(LockClass::GroupRecord, record),
            state: IrqLock::new(LockClass::Group, state),
        }
    }

    pub fn layout(&self) -> &GroupLayout {
        &self.layout
    }

    /// Faults of the group's sources so far.
    #[inline]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// How the group stands.
    pub fn standing(&self, platform: &B::Platform) -> GroupStanding {
        let (quarantined, on_scratch_page, claims) = {
            let state = self.state.lock(platform);
            (state.quarantined, state.scratch.is_some(), state.claimed.len())
        };
        let condemned_at = self.record.lock(platform).condemned;
        match (quarantined, claims) {
            (true, _) => GroupStanding::Quarantined { on_scratch_page, condemned_at },
            (false, 0) => GroupStanding::Free,
            (false, _) => GroupStanding::Claimed,
        }
    }

    /// Enters one fault, and says what to do about it; `None` if that was said before. Callable in an interrupt.
    pub fn enter_fault(&self, platform: &B::Platform, limits: Limits) -> Option<Verdict> {
        let now_ns = platform.now_ns();
        let mut record = self.record.lock(platform);
        let faults = self.faults.fetch_add(1, Ordering::Relaxed) + 1;
        if record.condemned.is_some() {
            return None;
        }
        let (history, verdict) = judge(record.history, limits, now_ns);
        record.history = history;
        record.condemned = (verdict == Verdict::Quarantine).then_some(faults);
        Some(verdict)
    }

    /// Whether a fault of the group may be logged: see [`Budget::take`].
    pub fn take_line(&self, platform: &B::Platform) -> Option<u64> {
        let now_ns = platform.now_ns();
        self.record.lock(platform).lines.take(now_ns)
    }

    /// Whether the group is to be put in quarantine and is not yet.
    pub fn awaits_quarantine(&self, platform: &B::Platform) -> bool {
        let quarantined = self.state.lock(platform).quarantined;
        !quarantined && self.record.lock(platform).condemned.is_some()
    }

    /// Whether nobody is given interrupts of the group.
    pub fn is_muted(&self, platform: &B::Platform) -> bool {
        self.state.lock(platform).muted
    }

    /// Tells the drivers of the group's functions what happened.
    pub fn tell(&self, platform: &B::Platform, incident: Incident) {
        let listener = |index: usize| self.state.lock(platform).claimed.get(index)?.listener.clone();
        let claims = self.state.lock(platform).claimed.len();
        (0..claims).filter_map(listener).for_each(|listener| listener(incident));
    }

    /// How often the group was taken back, its devices quiet.
    pub fn term(&self, platform: &B::Platform) -> u64 {
        self.state.lock(platform).term
    }

    /// Makes `listener` the one that is told what happens to `function`, if it is claimed since `term`. That it is in
    /// quarantine already, or was taken back, it is told at once.
    pub fn listen(&self, platform: &B::Platform, term: u64, function: PciAddress, listener: Listener) {
        let mut state = self.state.lock(platform);
        let (before, told) = if state.term == term {
            let claim = state.claimed.iter_mut().find(|claim| claim.function == function);
            let before = claim.and_then(|claim| claim.listener.replace(listener.clone()));
            (before, state.leaving.or(state.quarantined.then_some(Incident::Quarantined)))
        } else {
            (None, Some(if state.retired { Incident::Removed } else { Incident::Released }))
        };
        drop(state);
        drop(before);
        if let Some(incident) = told {
            listener(incident);
        }
    }

    /// The domain that the group translates through, if it is not blocked.
    pub fn domain(&self, platform: &B::Platform) -> Option<TryArc<Domain<B>>> {
        self.state.lock(platform).domain.clone()
    }

    /// The entries for `input` of the tables at `root`, if those are of the group's scratch page.
    pub fn scratch_steps(
        &self,
        platform: &B::Platform,
        root: PhysAddr,
        input: u64,
    ) -> Option<Steps<<B::Format as Format>::Access>> {
        let state = self.state.lock(platform);
        state.scratch.as_ref().filter(|scratch| scratch.root() == root).map(|scratch| scratch.steps(input))
    }

    /// Maps the group's reserved memory, before translation is turned on.
    pub fn map_reserved(&self, maker: &DomainMaker<B>) -> Result<(), ClaimError> {
        let Some(&function) = self.layout.functions.first() else { return Ok(()) };
        if self.layout.reserved.is_empty() {
            return Ok(());
        }
        let before = self.begin(maker, function)?;
        let result = self.at_home(maker, before, None);
        self.end(maker).domain = result.as_ref().ok().cloned();
        Ok(result.map(drop)?)
    }

    /// Makes the caller the only one that changes the group, until [`end`](Self::end), without holding its lock while
    /// hardware works. Returns the domain that the group is attached to.
    fn begin(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
    ) -> Result<Option<TryArc<Domain<B>>>, ClaimError> {
        self.state.lock(&**maker.backend.platform()).begin(function)
    }

    /// Ends what [`begin`](Self::begin) began. The result says what the caller has changed.
    fn end<'a>(&'a self, maker: &'a DomainMaker<B>) -> IrqLockGuard<'a, State<B>, B::Platform> {
        let platform = &**maker.backend.platform();
        let mut state = self.state.lock(platform);
        state.changing = false;
        if self.record.lock(platform).condemned.is_some() {
            // A quarantine that found the group changing hands has to be tried again.
            platform.wake(Work::Faults);
        }
        state
    }

    /// Condemns the group to quarantine if a device of it did not empty its TLB.
    pub fn condemn_if_silent(&self, platform: &B::Platform) {
        if self.domain(platform).is_some_and(|domain| domain.is_silent()) {
            let mut record = self.record.lock(platform);
            record.condemned = record.condemned.or(Some(self.faults()));
        }
    }

    /// Blocks the first `count` sources, by `block`, those behind other units too when one does not answer.
    fn block_sources(
        &self,
        count: usize,
        block: impl Fn(usize, SourceId) -> Result<(), Stuck>,
    ) -> Result<(), Stuck> {
        let blocked = self.layout.sources[..count].iter().map(|&(source, unit)| block(unit, source));
        blocked.fold(Ok(()), Result::and)
    }
}

/// What making a domain takes.
pub(crate) struct DomainMaker<B: Backend> {
    pub backend: Arc<B>,
    pub reaper: Arc<Reaper<B::Platform>>,
    /// What groups in quarantine reach.
    quarantine: Quarantine,
    /// RAM, for groups that are trusted with it.
    memory: Vec<PhysRange>,
    /// What answers at addresses of its own.
    pub registers: Arc<Registers>,
    next_number: AtomicU64,
}

impl<B: Backend> DomainMaker<B> {
    pub fn new(
        backend: Arc<B>,
        reaper: Arc<Reaper<B::Platform>>,
        quarantine: Quarantine,
        memory: Vec<PhysRange>,
        registers: Registers,
    ) -> Self {
        let (registers, next_number) = (Arc::new(registers), AtomicU64::new(1));
        Self { backend, reaper, quarantine, memory, registers, next_number }
    }

    /// An empty domain that all of `units` can walk.
    pub fn make(&self, units: UnitSet, kind: Kind) -> Result<TryArc<Domain<B>>, DmaError> {
        let room = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        Domain::new(self.making(units), kind).map(|domain| room.fill(domain))
    }

    /// A domain in which all of `units` walk `table`.
    pub fn share(&self, units: UnitSet, table: SharedTable) -> Result<TryArc<Domain<B>>, DomainError> {
        let room = Room::try_new().ok_or(DmaError::OutOfMemory)?;
        Domain::sharing(self.making(units), table).map(|domain| room.fill(domain))
    }

    fn making(&self, units: UnitSet) -> Making<B> {
        Making {
            number: self.next_number.fetch_add(1, Ordering::Relaxed),
            backend: self.backend.clone(),
            reaper: self.reaper.clone(),
            units,
            registers: self.registers.clone(),
        }
    }
}
