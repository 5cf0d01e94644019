//! Virtual functions that a physical one is told to have, or not to have any more.
//!
//! They come like functions that are plugged in: known to the IOMMU and blocked, each in a group of its own as far as
//! its port keeps it apart, before anybody can claim them. They are left to whoever asks for them. They go with the
//! physical function: when that is taken out of its slot, and, as far as they do anything, when it is reset.
//!
//! Whoever has a physical function can do that to those who have its virtual ones, and more: so it is given to nobody
//! as long as they are on. Its driver in the kernel turns them on, or else it is claimed here; an NVMe controller is
//! also asked to let its virtual functions work.

use alloc::{collections::TryReserveError, vec::Vec};
use core::fmt;

use iommu::{ClaimError, DmaDevice, HotplugError, PciAddress, ReleaseError, topology};

use super::{Attempts, BUSY_DEADLINE_NS, Hotplug, Turn};
use crate::{
    nvme::{self, NvmeError, Primary},
    pci::{Function, Sriov, SriovError},
    quiet::{Target, quieten},
};

/// Most physical functions that are claimed here at a time.
pub(super) const OWNED_MAX: usize = 16;

/// A physical function that has virtual ones, and no other driver.
pub(super) struct Owned {
    dma: DmaDevice,
    /// What its virtual functions need of it.
    primary: Option<Primary>,
    /// It is being given its virtual functions, by somebody who has what they need of it.
    is_starting: bool,
}

/// Why a function does not have the virtual functions that it was to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VirtualError {
    /// There is no such function.
    Unknown {
        /// Where.
        function: PciAddress,
    },
    /// It has no SR-IOV capability, or is virtual itself.
    NoCapability {
        /// The function.
        function: PciAddress,
    },
    /// It does not do what it is told.
    Sriov(SriovError),
    /// Somebody has it, who would rule over those that have its virtual functions.
    Claim(ClaimError),
    /// It does not let its virtual functions work.
    Nvme(NvmeError),
    /// So many others have virtual functions that there is no room to keep it.
    TooMany,
    /// The IOMMU does not take them, or cannot take them back.
    Iommu(HotplugError),
    /// Others are changing which functions there are, all the time.
    Busy,
    /// No memory for a list.
    OutOfMemory,
}

impl fmt::Display for VirtualError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { function } => write!(f, "there is no function {function}"),
            Self::NoCapability { function } => write!(f, "{function} has no virtual functions"),
            Self::Sriov(error) => error.fmt(f),
            Self::Claim(error) => error.fmt(f),
            Self::Nvme(error) => error.fmt(f),
            Self::TooMany => write!(f, "{OWNED_MAX} functions have virtual ones already"),
            Self::Iommu(error) => error.fmt(f),
            Self::Busy => f.write_str("others are changing which functions there are"),
            Self::OutOfMemory => f.write_str("no memory for virtual functions"),
        }
    }
}

impl core::error::Error for VirtualError {}

impl From<SriovError> for VirtualError {
    fn from(error: SriovError) -> Self {
        Self::Sriov(error)
    }
}

impl From<NvmeError> for VirtualError {
    fn from(error: NvmeError) -> Self {
        Self::Nvme(error)
    }
}

impl From<HotplugError> for VirtualError {
    fn from(error: HotplugError) -> Self {
        Self::Iommu(error)
    }
}

impl From<TryReserveError> for VirtualError {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

impl Hotplug {
    /// Gives `physical`, which nobody has, so many virtual functions, and returns them. It is the kernel's until they
    /// are gone.
    ///
    /// # Errors
    /// See [`VirtualError`]. It has none then, as far as [`Sriov::enable`] and [`Sriov::disable`] can tell.
    pub fn enable_virtual(&self, physical: PciAddress, count: u16) -> Result<Vec<Function>, VirtualError> {
        let function = &self.known(physical)?;
        if self.sriov(function)?.is_on() {
            // Which is refused.
            return self.turn_on(physical, count);
        }
        let dma = self.iommu.claim(physical).map_err(VirtualError::Claim)?;
        // Kept first: whoever sees the function go takes this away too.
        if let Some(owned) = self.keep(Owned { dma: dma.clone(), primary: None, is_starting: true }) {
            self.give_back(owned);
            return Err(VirtualError::TooMany);
        }
        self.start_owned(dma, function, count).inspect_err(|_| self.end_owned(physical))
    }

    /// Gives a physical function that is kept here its virtual ones. After an error it may have them, and is kept.
    fn start_owned(
        &self,
        dma: DmaDevice,
        physical: &Function,
        count: u16,
    ) -> Result<Vec<Function>, VirtualError> {
        let mut primary = self.prepare(dma, physical)?;
        let found = self.turn_on(physical.address, count)?;
        let works = primary.as_mut().map_or(Ok(()), |primary| primary.bring_online(count));
        self.settle(physical.address, primary)?;
        works?;
        Ok(found)
    }

    /// Takes what a physical function has of its virtual ones after [`start_owned`](Self::start_owned) has failed, and
    /// makes it anybody's again. It stays as it is if that fails, and can be asked for again.
    fn end_owned(&self, physical: PciAddress) {
        // It is kept for nobody any more, if it still is.
        let _ = self.settle(physical, None);
        if let Err(error) = self.disable_virtual(physical) {
            log::warn!("pci: {physical}: {error}");
        }
    }

    /// As [`enable_virtual`](Self::enable_virtual), by the driver of the physical function: `owner` is its handle. It
    /// cannot give the function back before they are off: a reset would end them, so that it never counts as
    /// [quiet](quieten).
    ///
    /// # Errors
    /// As there.
    pub fn enable_virtual_of(&self, owner: &DmaDevice, count: u16) -> Result<Vec<Function>, VirtualError> {
        self.turn_on(owner.function(), count)
    }

    fn prepare(&self, dma: DmaDevice, physical: &Function) -> Result<Option<Primary>, VirtualError> {
        let is_nvme = physical.class == nvme::CLASS;
        Ok(if is_nvme { Some(Primary::open(&self.host, dma, physical)?) } else { None })
    }

    fn turn_on(&self, physical: PciAddress, count: u16) -> Result<Vec<Function>, VirtualError> {
        let turn = self.turn().ok_or(VirtualError::Busy)?;
        let known = self.functions()?;
        let owner = self.known(physical)?;
        let sriov = self.sriov(&owner)?;
        let mut found = sriov.enable(count, &known)?;
        self.introduce(&mut found, &turn).inspect_err(|_| {
            if let Err(error) = sriov.disable() {
                log::warn!("pci: {physical}: {error}");
            }
        })?;
        log::info!("pci: {physical} has {count} virtual functions");
        Ok(found)
    }

    fn known(&self, function: PciAddress) -> Result<Function, VirtualError> {
        self.function(function).ok_or(VirtualError::Unknown { function })
    }

    fn sriov<'a>(&'a self, physical: &'a Function) -> Result<Sriov<'a>, VirtualError> {
        let no_capability = VirtualError::NoCapability { function: physical.address };
        Sriov::open(&*self.host, physical).ok_or(no_capability)
    }

    /// Takes all virtual functions of `physical` from whoever has them: blocked, off, and only then their memory back.
    ///
    /// # Errors
    /// See [`VirtualError`]. They are blocked, and can be turned off again.
    pub fn disable_virtual(&self, physical: PciAddress) -> Result<(), VirtualError> {
        let functions = self.turn_off(physical)?;
        functions.into_iter().for_each(|function| self.drivers.unbind(function, true));
        if let Some(owned) = self.take_owned(physical) {
            self.give_back(owned);
        }
        Ok(())
    }

    fn turn_off(&self, physical: PciAddress) -> Result<Vec<PciAddress>, VirtualError> {
        let turn = self.turn().ok_or(VirtualError::Busy)?;
        if self.with_owned(physical, |owned| owned.is_starting) == Some(true) {
            return Err(VirtualError::Busy);
        }
        let owner = self.known(physical)?;
        let sriov = self.sriov(&owner)?;
        let mut functions = Vec::new();
        self.virtual_functions(physical, &mut functions)?;
        let mut off = Attempts::new();
        let mut is_quiet = |function: PciAddress| {
            let quieten = |function: &Function| {
                quieten(&self.host, Target { function, bridge: owner.parent, group: &functions }).is_ok()
            };
            functions.contains(&function) && off.succeed(|| sriov.disable().is_ok())
                || self.function(function).is_some_and(|found| quieten(&found))
        };
        self.take_out(&functions, &mut is_quiet, &turn)?;
        // Nobody may have had them, so that nobody asked; or each was made quiet by itself, and they are still on.
        if !off.has_succeeded {
            sriov.disable()?;
        }
        Ok(functions)
    }

    /// Ends what is here of drivers of functions that have gone.
    pub(super) fn end_drivers(&self, gone: &[PciAddress]) {
        for &function in gone {
            drop(self.take_owned(function));
            self.drivers.unbind(function, true);
        }
    }

    /// Keeps `owned` for as long as its virtual functions are on. It comes back if there is no room.
    fn keep(&self, owned: Owned) -> Option<Owned> {
        let mut list = self.owned.lock();
        match list.iter_mut().find(|place| place.is_none()) {
            Some(place) => place.replace(owned),
            None => Some(owned),
        }
    }

    fn take_owned(&self, physical: PciAddress) -> Option<Owned> {
        let mut list = self.owned.lock();
        let is_it =
            |place: &&mut Option<Owned>| place.as_ref().is_some_and(|it| it.dma.function() == physical);
        list.iter_mut().find(is_it).and_then(Option::take)
    }

    fn with_owned<T>(&self, physical: PciAddress, act: impl FnOnce(&mut Owned) -> T) -> Option<T> {
        let mut list = self.owned.lock();
        list.iter_mut().flatten().find(|owned| owned.dma.function() == physical).map(act)
    }

    /// A kept function has been given its virtual ones, for which `primary` is kept with it. It may have gone
    /// meanwhile.
    fn settle(&self, physical: PciAddress, primary: Option<Primary>) -> Result<(), VirtualError> {
        let mut primary = primary;
        let settled = self.with_owned(physical, |owned| {
            owned.is_starting = false;
            // Not dropped under the lock.
            if primary.is_some() {
                owned.primary = primary.take();
            }
        });
        settled.ok_or(VirtualError::Unknown { function: physical })
    }

    /// Makes a physical function anybody's again.
    fn give_back(&self, owned: Owned) {
        let Owned { dma, primary, .. } = owned;
        drop(primary);
        let function = dma.function();
        let host = &self.host;
        let Ok(group) = self.iommu.group(function) else {
            return log::warn!("pci: no memory to give {function} back");
        };
        let deadline_ns = host.now_ns().saturating_add(BUSY_DEADLINE_NS);
        loop {
            match dma.release(|member| self.is_quiet(&group, member)) {
                Ok(()) | Err(ReleaseError::Over { .. }) => return,
                Err(ReleaseError::Busy { .. }) if host.now_ns() < deadline_ns => host.relax(),
                Err(error) => return log::warn!("pci: {function}: {error}"),
            }
        }
    }

    /// Adds the virtual functions of `physical` to `list`.
    pub(super) fn virtual_functions(
        &self,
        physical: PciAddress,
        list: &mut Vec<PciAddress>,
    ) -> Result<(), TryReserveError> {
        for function in self.each().filter(|function| function.physical == Some(physical)) {
            list.try_reserve(1)?;
            list.push(function.address);
        }
        Ok(())
    }

    /// Makes the IOMMU and everybody else know `found`.
    fn introduce(&self, found: &mut [Function], turn: &Turn<'_>) -> Result<(), VirtualError> {
        found.iter_mut().for_each(|function| function.enable_isolation(&*self.host));
        let mut list: Vec<topology::Function> = Vec::new();
        list.try_reserve_exact(found.len())?;
        list.extend(found.iter().map(Function::topology));
        let room = self.room(found.len(), turn)?;
        self.iommu.functions_appeared(&list)?;
        self.enter(found, room, turn);
        Ok(())
    }
}

#[cfg(test)]
#[path = "virtual_tests.rs"]
mod tests;
