//! The devices that the process was given.

use core::ptr::NonNull;

use abi::{BlockOffer, BlockOutcome, BlockRequest, Call, DeviceAccess, Error};

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

    /// Whether it has the address space of the program: its addresses, and nothing to share.
    ///
    /// # Errors
    /// There is no such device.
    pub fn has_space(self) -> Result<bool, Error> {
        // SAFETY: takes nothing away.
        unsafe { call(Call::HasSpace, [self.0, 0, 0, 0, 0]) }.map(|answer| answer != 0)
    }

    /// Lets it reach the memory at `memory`, from [`map_memory`](super::map_memory), at `iova`, unless it has the
    /// address space of the program. Where it finds the memory then.
    ///
    /// # Errors
    /// It is no such memory, or the IOVA cannot be used.
    ///
    /// # Safety
    /// The memory is accessed in ways that a device may interfere with, until it is shared no more.
    pub unsafe fn share(self, memory: NonNull<u8>, iova: u64, way: DeviceAccess) -> Result<u64, Error> {
        let address = memory.as_ptr() as u64;
        if self.has_space()? {
            return Ok(address);
        }
        // SAFETY: the caller's promise.
        unsafe { call(Call::Share, [self.0, address, iova, way as u64, 0]) }.map(|_| iova)
    }

    /// Takes from it what it reaches at `iova`.
    ///
    /// # Errors
    /// That is nothing, or it has the address space of the program.
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
        self.await_events(1 << number, deadline_ns).map(|came| came != 0)
    }

    /// Waits until one of `events` is there, or until `deadline_ns`. Those that are.
    ///
    /// # Errors
    /// It does not have one of them.
    pub fn await_events(self, events: u64, deadline_ns: u64) -> Result<u64, Error> {
        // SAFETY: takes nothing away.
        unsafe { call(Call::Await, [self.0, events, deadline_ns, 0, 0]) }
    }

    /// Makes a block device of it, or takes requests again after a reset.
    ///
    /// # Errors
    /// There can be no such block device, or it is another already.
    pub fn serve(self, offer: BlockOffer) -> Result<(), Error> {
        let words = offer.encode();
        // SAFETY: the kernel reads the words.
        unsafe { call(Call::Serve, [self.0, words.as_ptr() as u64, 0, 0, 0]) }.map(|_| ())
    }

    /// Takes a request, if there is one, with what is to be written at `data`.
    ///
    /// # Errors
    /// It is not served, or there is not enough memory at `data`.
    ///
    /// # Safety
    /// There is nothing at `data` that is written, for as long as a request may be.
    pub unsafe fn take_request(self, data: NonNull<u8>) -> Result<Option<BlockRequest>, Error> {
        let mut words = [0; BlockRequest::WORDS];
        let arguments = [self.0, words.as_mut_ptr() as u64, data.as_ptr() as u64, 0, 0];
        // SAFETY: the kernel writes the words; the caller's promise for the data.
        let was_one = unsafe { call(Call::TakeRequest, arguments) }? != 0;
        Ok(if was_one { BlockRequest::decode(words) } else { None })
    }

    /// Says how request `id` ended. What it has read is at `data`.
    ///
    /// # Errors
    /// There is no such request, or not as much at `data`.
    pub fn complete_request(
        self,
        id: u64,
        outcome: BlockOutcome,
        code: u16,
        data: NonNull<u8>,
    ) -> Result<(), Error> {
        let arguments = [self.0, id, outcome as u64, code.into(), data.as_ptr() as u64];
        // SAFETY: the kernel reads the data.
        unsafe { call(Call::CompleteRequest, arguments) }.map(|_| ())
    }
}
