//! A group: the smallest set of functions that can be isolated from the others, and who may use it.
//!
//! A group is blocked until a driver claims one of its functions; only its reserved memory is reachable before. All
//! its functions translate through one domain, because the hardware cannot tell them apart.

use alloc::{sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering};

use mm::PhysRange;

use crate::{
    PciAddress, SourceId,
    backend::{Backend, UnitSet},
    dma::{DmaError, Stuck, reaper::Reaper},
    domain::Domain,
    sync::IrqLock,
    topology::{self, TopologyError},
};

/// What is known of a group before anything runs.
#[derive(Debug)]
pub(crate) struct GroupLayout {
    /// Its functions.
    pub functions: Vec<PciAddress>,
    /// The ids that requests of its functions carry, each with the index of the unit that sees it.
    pub sources: Vec<(SourceId, usize)>,
    /// Memory that firmware wants its functions to reach at all times: sorted and apart.
    pub reserved: Vec<PhysRange>,
}

impl GroupLayout {
    /// What the topology says of a group. `None` if a part of it is covered by no unit: nothing could block it, so it
    /// is never handed out.
    pub fn of(group: topology::Group<'_>) -> Result<Option<Self>, TopologyError> {
        let (mut functions, mut sources) = (Vec::new(), Vec::new());
        functions.try_reserve_exact(group.functions().len())?;
        functions.extend(group.functions().map(|function| function.address));
        sources.try_reserve_exact(group.sources().len())?;
        for source in group.sources() {
            let Some(unit) = source.unit else { return Ok(None) };
            sources.push((source.id, unit));
        }
        let reserved = merge_overlapping(group.reserved()?);
        Ok(Some(Self { functions, sources, reserved }))
    }

    /// The units that see the group's requests.
    pub fn units(&self) -> UnitSet {
        self.sources.iter().fold(UnitSet::default(), |units, &(_, unit)| units.with(unit))
    }
}

/// Joins regions that overlap or touch; they come sorted by their start.
fn merge_overlapping(mut regions: Vec<PhysRange>) -> Vec<PhysRange> {
    regions.dedup_by(|next, kept| {
        let kept_end = kept.start.as_u64() + kept.bytes;
        let touches = next.start.as_u64() <= kept_end;
        if touches {
            kept.bytes = kept_end.max(next.start.as_u64() + next.bytes) - kept.start.as_u64();
        }
        touches
    });
    regions
}

/// One group.
pub(crate) struct Group<B: Backend> {
    layout: GroupLayout,
    faults: AtomicU64,
    state: IrqLock<State<B>>,
}

struct State<B: Backend> {
    domain: Option<Arc<Domain<B>>>,
    /// Claimed functions.
    claimed: Vec<PciAddress>,
    /// Somebody attaches or detaches right now, without the lock: both wait for hardware.
    changing: bool,
}

/// Why a function could not be claimed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClaimError {
    /// There is no such function, or no unit covers it.
    Unknown {
        /// The function asked for.
        function: PciAddress,
    },
    /// A driver has it already.
    Claimed {
        /// The function asked for.
        function: PciAddress,
    },
    /// Its group is changing hands at this moment.
    Busy {
        /// The function asked for.
        function: PciAddress,
    },
    /// There is no remapping unit, and `iommu=off` was not given.
    NoUnit,
    /// The domain could not be made or attached.
    Domain(DmaError),
}

impl core::fmt::Display for ClaimError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Unknown { function } => {
                write!(f, "{function} is not a function that a remapping unit covers")
            }
            Self::Claimed { function } => write!(f, "{function} has a driver already"),
            Self::Busy { function } => write!(f, "the group of {function} is changing hands"),
            Self::NoUnit => f.write_str("no remapping unit isolates devices, and iommu=off was not given"),
            Self::Domain(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for ClaimError {}

impl From<DmaError> for ClaimError {
    fn from(error: DmaError) -> Self {
        Self::Domain(error)
    }
}

impl<B: Backend> Group<B> {
    pub fn new(layout: GroupLayout) -> Self {
        let state = State { domain: None, claimed: Vec::new(), changing: false };
        Self { layout, faults: AtomicU64::new(0), state: IrqLock::new(state) }
    }

    pub fn layout(&self) -> &GroupLayout {
        &self.layout
    }

    /// Faults of the group's sources so far.
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// Counts one fault. Callable in an interrupt.
    pub fn count_fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    /// The domain that the group translates through, if it is not blocked.
    pub fn domain(&self, backend: &B) -> Option<Arc<Domain<B>>> {
        self.state.lock(&**backend.platform()).domain.clone()
    }

    /// Maps the group's reserved memory, before translation is turned on.
    pub fn map_reserved(&self, maker: &DomainMaker<B>) -> Result<(), ClaimError> {
        if self.layout.reserved.is_empty() {
            return Ok(());
        }
        let Some(&function) = self.layout.functions.first() else { return Ok(()) };
        self.change(maker, function, false).map(drop)
    }

    /// Gives `function` to a driver: attaches the group to a domain of its own if it has none yet.
    pub fn claim(&self, maker: &DomainMaker<B>, function: PciAddress) -> Result<Arc<Domain<B>>, ClaimError> {
        maker.backend.check(self.layout.units()).map_err(DmaError::from)?;
        self.change(maker, function, true)
    }

    /// Attaches the group, and records a claim if `claims` says so, as the only one that changes the group, without
    /// holding its lock while hardware works.
    fn change(
        &self,
        maker: &DomainMaker<B>,
        function: PciAddress,
        claims: bool,
    ) -> Result<Arc<Domain<B>>, ClaimError> {
        let platform = &**maker.backend.platform();
        let domain = {
            let mut state = self.state.lock(platform);
            if state.changing {
                return Err(ClaimError::Busy { function });
            }
            if state.claimed.contains(&function) {
                return Err(ClaimError::Claimed { function });
            }
            // Room first: recording the claim below cannot fail.
            state.claimed.try_reserve(1).map_err(|_| DmaError::OutOfMemory)?;
            state.changing = true;
            state.domain.clone()
        };
        let result = self.attached(maker, domain);
        let mut state = self.state.lock(platform);
        state.changing = false;
        if let Ok(domain) = &result {
            state.domain = Some(domain.clone());
            if claims {
                state.claimed.push(function);
            }
        }
        Ok(result?)
    }

    /// `domain`, or a new one to which all the group's sources are attached.
    fn attached(
        &self,
        maker: &DomainMaker<B>,
        domain: Option<Arc<Domain<B>>>,
    ) -> Result<Arc<Domain<B>>, DmaError> {
        if let Some(domain) = domain {
            return Ok(domain);
        }
        let domain = Arc::new(maker.make(self.layout.units(), &self.layout.reserved)?);
        for (done, &(source, unit)) in self.layout.sources.iter().enumerate() {
            if let Err(error) = domain.attach(unit, source) {
                self.block_sources(&domain, done)?;
                return Err(error);
            }
        }
        Ok(domain)
    }

    /// Blocks the first `count` sources again, those behind other units too when one does not answer.
    fn block_sources(&self, domain: &Domain<B>, count: usize) -> Result<(), Stuck> {
        let blocked = self.layout.sources[..count].iter().map(|&(source, unit)| domain.block(unit, source));
        blocked.fold(Ok(()), Result::and)
    }
}

/// What making a domain takes.
pub(crate) struct DomainMaker<B: Backend> {
    pub backend: Arc<B>,
    pub reaper: Arc<Reaper<B::Platform>>,
    next_number: AtomicU64,
}

impl<B: Backend> DomainMaker<B> {
    pub fn new(backend: Arc<B>, reaper: Arc<Reaper<B::Platform>>) -> Self {
        Self { backend, reaper, next_number: AtomicU64::new(1) }
    }

    fn make(&self, units: UnitSet, reserved: &[PhysRange]) -> Result<Domain<B>, DmaError> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        Domain::new(number, self.backend.clone(), self.reaper.clone(), units, reserved)
    }
}

#[cfg(test)]
mod tests {
    use mm::PhysAddr;
    use std::{vec, vec::Vec};

    use super::*;

    #[test]
    fn overlapping_regions_become_one() {
        let regions = |list: &[(u64, u64)]| -> Vec<PhysRange> {
            list.iter().map(|&(start, bytes)| PhysRange::new(PhysAddr::new(start), bytes)).collect()
        };
        let cases = [
            (vec![], vec![]),
            (vec![(0x1000, 0x1000), (0x3000, 0x1000)], vec![(0x1000, 0x1000), (0x3000, 0x1000)]),
            (vec![(0x1000, 0x1000), (0x2000, 0x1000)], vec![(0x1000, 0x2000)]),
            (vec![(0x1000, 0x5000), (0x2000, 0x1000), (0x5000, 0x3000)], vec![(0x1000, 0x7000)]),
        ];
        for (given, expected) in cases {
            assert_eq!(merge_overlapping(regions(&given)), regions(&expected), "{given:x?}");
        }
    }
}
