//! Devices that are lent to one test at a time.

use alloc::{format, string::String};
use core::ops::{Deref, DerefMut};

use drivers::lock::Lock;
use harness::Failure;
use iommu::PciAddress;

use super::{FaultLimits, Machine, Parts};

/// A device for one test at a time.
pub(super) struct Slot<T> {
    pub(super) function: PciAddress,
    device: Lock<Place<T>>,
}

enum Place<T> {
    /// Nobody has it.
    Here(T),
    Lent,
    /// Why it could not be opened. It may be tried again.
    Failed(String),
}

/// A device lent to a test; it goes back when dropped.
pub struct Lent<'a, T> {
    device: Result<T, String>,
    slot: &'a Slot<T>,
    /// Limits that hold meanwhile.
    _limits: Option<FaultLimits<'a>>,
}

impl<T> Slot<T> {
    pub(super) fn open(
        parts: &Parts,
        function: PciAddress,
        open: impl FnOnce(&Parts, PciAddress) -> Result<T, String>,
    ) -> Self {
        let place = Place::from(open(parts, function));
        Self { function, device: Lock::new(parts.host.clone(), place) }
    }

    pub(super) fn lend(&self) -> Result<Lent<'_, T>, Failure> {
        let lent = self.take()?;
        match &lent.device {
            Ok(_) => Ok(lent),
            Err(error) => Err(Failure::new(error)),
        }
    }

    /// The device or what is left of it, to open it anew.
    pub(super) fn take(&self) -> Result<Lent<'_, T>, Failure> {
        let device = match core::mem::replace(&mut *self.device.lock(), Place::Lent) {
            Place::Here(device) => Ok(device),
            Place::Failed(error) => Err(error),
            Place::Lent => return Err(Failure::new("another test has the device")),
        };
        Ok(Lent { device, slot: self, _limits: None })
    }
}

impl<T> From<Result<T, String>> for Place<T> {
    fn from(device: Result<T, String>) -> Self {
        match device {
            Ok(device) => Self::Here(device),
            Err(error) => Self::Failed(error),
        }
    }
}

impl<'a, T> Lent<'a, T> {
    /// The same, with other limits for as long as it is lent.
    pub(super) fn under(self, limits: FaultLimits<'a>) -> Self {
        let mut lent = self;
        lent._limits = Some(limits);
        lent
    }

    /// Drops what is left of the device, takes its function back and has `open` open it anew. If that fails, this can
    /// be tried again ([`Machine::restart`]).
    pub(crate) fn reopen(
        mut self,
        machine: &Machine,
        open: impl FnOnce(&Parts, PciAddress) -> Result<T, String>,
    ) -> Result<(), Failure> {
        let function = self.slot.function;
        // Its driver ends before the function is taken back.
        self.device = Err(String::new());
        let released = machine.release(function).map_err(|error| format!("{function}: {error}"));
        self.device = released.and_then(|()| open(machine, function));
        self.device.as_ref().map(drop).map_err(Failure::new)
    }
}

impl<T> Deref for Lent<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        match &self.device {
            Ok(device) => device,
            Err(error) => unreachable!("lent without a device: {error}"),
        }
    }
}

impl<T> DerefMut for Lent<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        match &mut self.device {
            Ok(device) => device,
            Err(error) => unreachable!("lent without a device: {error}"),
        }
    }
}

impl<T> Drop for Lent<'_, T> {
    fn drop(&mut self) {
        let device = core::mem::replace(&mut self.device, Err(String::new()));
        *self.slot.device.lock() = Place::from(device);
    }
}
