//! Virtual functions that a physical one is told to have, or not to have any more.
//!
//! They come like functions that are plugged in: known to the IOMMU and blocked, each in a group of its own as far as its port
//! keeps it apart, before anybody can claim them. They are left to whoever asks for them. They go with the physical function:
//! when that is taken out of its slot, and, as far as they do anything, when it is reset.

use alloc::{collections::TryReserveError, vec::Vec};
use core::fmt;

use iommu::{HotplugError, PciAddress, topology};

use super::{Attempts, Hotplug, Turn};
use crate::{
    pci::{Function, Sriov, SriovError},
    quiet::{Target, quieten},
};

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
    /// Gives `physical` so many virtual functions, and returns them.
    ///
    /// # Errors
    /// See [`VirtualError`]. It has none then, as far as [`Sriov::enable`] and [`Sriov::disable`] can tell.
    pub fn enable_virtual(&self, physical: PciAddress, count: u16) -> Result<Vec<Function>, VirtualError> {
        let turn = self.turn().ok_or(VirtualError::Busy)?;
        let known = self.functions();
        let host = &*self.host;
        let owner = find(&known, physical)?;
        let no_capability = VirtualError::NoCapability { function: physical };
        let sriov = Sriov::open(host, owner).ok_or(no_capability)?;
        let mut found = sriov.enable(count, &known)?;
        self.introduce(&mut found, &turn).inspect_err(|_| {
            if let Err(error) = sriov.disable() {
                log::warn!("pci: {physical}: {error}");
            }
        })?;
        log::info!("pci: {physical} has {count} virtual functions");
        Ok(found)
    }

    /// Takes all virtual functions of `physical` from whoever has them: blocked, off, and only then their memory back.
    ///
    /// # Errors
    /// See [`VirtualError`]. They are blocked, and can be turned off again.
    pub fn disable_virtual(&self, physical: PciAddress) -> Result<(), VirtualError> {
        let turn = self.turn().ok_or(VirtualError::Busy)?;
        let known = self.functions();
        let owner = find(&known, physical)?;
        let no_capability = VirtualError::NoCapability { function: physical };
        let sriov = Sriov::open(&*self.host, owner).ok_or(no_capability)?;
        let mut functions = Vec::new();
        self.virtual_functions(physical, &mut functions)?;
        let mut off = Attempts::new();
        let mut is_quiet = |function: PciAddress| {
            let target = Target { function, bridge: owner.parent, group: &functions };
            functions.contains(&function) && off.succeed(|| sriov.disable().is_ok())
                || quieten(&self.host, target).is_ok()
        };
        self.take_out(&functions, &mut is_quiet, &turn)?;
        // Nobody may have had them, so that nobody asked; or each was made quiet by itself, and they are still on.
        if !off.has_succeeded {
            sriov.disable()?;
        }
        Ok(())
    }

    /// Adds the virtual functions of `physical` to `list`.
    pub(super) fn virtual_functions(
        &self,
        physical: PciAddress,
        list: &mut Vec<PciAddress>,
    ) -> Result<(), TryReserveError> {
        let known = self.functions();
        for function in known.iter().filter(|function| function.physical == Some(physical)) {
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

fn find(known: &[Function], function: PciAddress) -> Result<&Function, VirtualError> {
    known.iter().find(|known| known.address == function).ok_or(VirtualError::Unknown { function })
}
