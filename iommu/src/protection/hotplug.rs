//! Functions that come and go while the machine runs.
//!
//! Nothing of what a function was allowed reaches the next one at its address: a group that goes is blocked, flushed
//! and without interrupts. What a unit with caching mode notes of an empty place in the meantime, that nobody there may
//! do anything, it forgets when the next one is attached.

use alloc::vec::Vec;
use core::{
    fmt,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{MAX_LOGGED_WARNINGS, Protection, layout::Layout, reserved, stop_bus_masters};
use crate::{
    PciAddress, Platform,
    arc::TryArc,
    backend::Backend,
    dma::Stuck,
    dmar::Dmar,
    group::{Group, ReleaseError},
    topology::{Function, Topology, TopologyError},
    vtd::Vtd,
};

/// Why functions were not added or taken out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HotplugError {
    /// Others are being added or taken out at this moment.
    Busy,
    /// The functions do not fit together, or there is no memory for them.
    Topology(TopologyError),
    /// Isolation groups would change that somebody has, or that are in quarantine: release them first.
    InUse {
        /// The first function of such a group.
        function: PciAddress,
    },
    /// A group could not be taken back from its drivers, and all functions stay known. It is in quarantine, unless it
    /// was changing hands ([`Busy`](ReleaseError::Busy)). Of several it is one that was, or the first.
    Release(ReleaseError),
    /// A unit does not answer. Nothing was added.
    Stuck(Stuck),
}

impl fmt::Display for HotplugError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("other functions come or go at this moment"),
            Self::Topology(error) => error.fmt(f),
            Self::InUse { function } => write!(f, "the group of {function} would change, and is in use"),
            Self::Release(error) => error.fmt(f),
            Self::Stuck(stuck) => stuck.fmt(f),
        }
    }
}

impl core::error::Error for HotplugError {}

impl From<TopologyError> for HotplugError {
    fn from(error: TopologyError) -> Self {
        Self::Topology(error)
    }
}

impl From<ReleaseError> for HotplugError {
    fn from(error: ReleaseError) -> Self {
        Self::Release(error)
    }
}

impl From<Stuck> for HotplugError {
    fn from(stuck: Stuck) -> Self {
        Self::Stuck(stuck)
    }
}

impl<P: Platform> Protection<P> {
    /// Takes new functions in: blocked but for their reserved memory, like those that were there at the start.
    pub(super) fn add(&self, new: &[Function]) -> Result<(), HotplugError> {
        let shared = &*self.shared;
        let _turn = Turn::take(&shared.changing)?;
        let before = shared.layout();
        let mut functions = copy(before.topology.functions().iter(), new.len())?;
        functions.extend_from_slice(new);
        let next = self.next_layout(&before, &functions)?;
        let is_new = |function: &Function| new.iter().any(|new| new.address == function.address);
        stop_bus_masters(&*shared.platform, &next.topology, is_new);
        let ended = self.retire(&before, &next)?;
        for group in next.not_in(&before) {
            shared.backend.check(group.layout().units()).inspect_err(|_| self.revive(&ended))?;
        }
        self.map_reserved(next.not_in(&before));
        shared.replace_layout(next);
        Ok(())
    }

    /// Takes functions out that are gone, or that are about to go, with all that their groups have.
    pub(super) fn remove(
        &self,
        gone: &[PciAddress],
        quiet: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), HotplugError> {
        let shared = &*self.shared;
        let _turn = Turn::take(&shared.changing)?;
        let before = shared.layout();
        self.remove_groups(&before, gone, quiet)?;
        let stays = |function: &&Function| !gone.contains(&function.address);
        let functions = copy(before.topology.functions().iter().filter(stays), 0)?;
        let next = self.next_layout(&before, &functions)?;
        self.retire(&before, &next)?;
        self.map_reserved(next.not_in(&before));
        shared.replace_layout(next);
        Ok(())
    }

    /// Takes back the groups of `gone`: all of them, whatever becomes of the first. Each is out of its drivers' hands,
    /// or nobody will come to take it.
    fn remove_groups(
        &self,
        before: &Layout<P>,
        gone: &[PciAddress],
        quiet: &mut dyn FnMut(PciAddress) -> bool,
    ) -> Result<(), ReleaseError> {
        let mut result = Ok(());
        for group in before.groups().filter(|group| !group.is_retired(&self.shared.platform)) {
            let is_in = |function: &&PciAddress| group.layout().functions.contains(function);
            let Some(&function) = gone.iter().find(is_in) else { continue };
            result = match group.remove(&self.maker, function, quiet) {
                // Its drivers have it still: who asks is to try again at once.
                busy @ Err(ReleaseError::Busy { .. }) => busy,
                removed => result.and(removed),
            };
        }
        result
    }

    fn next_layout(
        &self,
        before: &Layout<P>,
        functions: &[Function],
    ) -> Result<TryArc<Layout<P>>, TopologyError> {
        // It could be read when everything started.
        let dmar = Dmar::parse(&self.shared.dmar).ok();
        let mut topology = Topology::build(functions, dmar.as_ref())?;
        reserved::judge(&*self.shared.platform, &self.maker.registers, &mut topology)?;
        let known = before.topology.problems();
        for problem in
            topology.problems().iter().filter(|problem| !known.contains(problem)).take(MAX_LOGGED_WARNINGS)
        {
            log::warn!("{problem}");
        }
        before.next(&self.shared.platform, topology)
    }

    /// Ends the groups that are not in the next layout, which nobody may have: all of them or none. Returns them.
    fn retire<'a>(&self, before: &'a Layout<P>, next: &'a Layout<P>) -> Result<Ended<'a, P>, HotplugError> {
        let mut ended = Vec::new();
        ended.try_reserve_exact(before.not_in(next).count()).map_err(TopologyError::from)?;
        for group in before.not_in(next).filter(|group| !group.is_retired(&self.shared.platform)) {
            group.retire(&self.maker).inspect_err(|_| self.revive(&ended))?;
            ended.push(group);
        }
        Ok(ended)
    }

    fn revive(&self, groups: &Ended<'_, P>) {
        groups.iter().for_each(|group| group.revive(&self.maker));
    }
}

/// Groups whose functions are about to belong to others.
type Ended<'a, P> = Vec<&'a TryArc<Group<Vtd<P>>>>;

/// A list of functions with room for `more`.
fn copy<'a>(
    functions: impl Iterator<Item = &'a Function> + Clone,
    more: usize,
) -> Result<Vec<Function>, TopologyError> {
    let mut list = Vec::new();
    list.try_reserve_exact(functions.clone().count() + more)?;
    list.extend(functions);
    Ok(list)
}

/// Being the only one that changes which groups there are.
struct Turn<'a>(&'a AtomicBool);

impl<'a> Turn<'a> {
    fn take(changing: &'a AtomicBool) -> Result<Self, HotplugError> {
        if changing.swap(true, Ordering::Acquire) { Err(HotplugError::Busy) } else { Ok(Self(changing)) }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}
