//! The devices that the process was given.

use core::ptr::NonNull;

use abi::{Call, DeviceAccess, Error};

use super::call;

/// One of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device(u64);

impl Device {
    /// The device with this number, which may not be there: then every call says so.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The dword at `offset` of its configuration space.
    ///
    /// # Errors
    /// There is no such offset, or no such device.
    pub fn config_read(self, offset: u16) -> Result<u32, Error> {
        // SAFETY: takes nothing away.
        unsafe { call(Call::ConfigRead, [self.0, offset.into(), 0, 0, 0]) }.map(|dword| dword as u32)
    }

    /// How long BAR `index` is.
    ///
    /// # Errors
    /// Nothing of it can be mapped.
    pub fn bar_bytes(self, index: u8) -> Result<u64, Error> {
        // SAFETY: takes nothing away.
        unsafe { call(Call::BarBytes, [self.0, index.into(), 0, 0, 0]) }
    }

    /// Where the registers of BAR `index` are from now on. The pages with tables of MSI-X are not there.
    ///
    /// # Errors
    /// They cannot be mapped, or are already.
    pub fn map_bar(self, index: u8) -> Result<NonNull<u8>, Error> {
        // SAFETY: takes nothing away.
        let address = unsafe { call(Call::MapBar, [self.0, index.into(), 0, 0, 0]) }?;
        NonNull::new(address as *mut u8).ok_or(Error::NotLendable)
    }

    /// Lets it reach the memory at `memory`, from [`map_memory`](super::map_memory), at `iova`.
    ///
    /// # Errors
    /// It is no such memory, or the IOVA cannot be used.
    ///
    /// # Safety
    /// The memory is accessed in ways that a device may interfere with, until it is shared no more.
    pub unsafe fn share(self, memory: NonNull<u8>, iova: u64, way: DeviceAccess) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { call(Call::Share, [self.0, memory.as_ptr() as u64, iova, way as u64, 0]) }.map(|_| ())
    }

    /// Takes from it what it reaches at `iova`.
    ///
    /// # Errors
    /// That is nothing.
    pub fn unshare(self, iova: u64) -> Result<(), Error> {
        // SAFETY: takes nothing from the program.
        unsafe { call(Call::Unshare, [self.0, iova, 0, 0, 0]) }.map(|_| ())
    }

    /// How many interrupts it has for the program.
    ///
    /// # Errors
    /// There is no such device.
    pub fn interrupts(self) -> Result<u64, Error> {
        // SAFETY: takes nothing away.
        unsafe { call(Call::Interrupts, [self.0, 0, 0, 0, 0]) }
    }

    /// Waits until it has raised interrupt `number`, or until `deadline_ns`. Whether it did.
    ///
    /// # Errors
    /// There is no such interrupt.
    pub fn await_interrupt(self, number: u64, deadline_ns: u64) -> Result<bool, Error> {
        // SAFETY: takes nothing away.
        unsafe { call(Call::AwaitInterrupt, [self.0, number, deadline_ns, 0, 0]) }.map(|came| came != 0)
    }
}
