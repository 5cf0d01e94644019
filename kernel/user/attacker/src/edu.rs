//! An `edu` in the hands of a program that is not trusted: its DMA engine can be aimed at any address, by its
//! registers.

use core::ptr::NonNull;

use abi::{DeviceAccess, Error};
use attacker::{LEFT, REFUSED};
use runtime::Device;

const EDU: Device = Device::new(0);
/// Vendor and device.
const ID: u32 = 0x11e8_1234;
const REGISTERS_BYTES: u64 = 1 << 20;

/// Where memory is shared: addresses that nobody else would choose.
const FROM: u64 = 0x12_3456_7000;
const TO: u64 = 0x65_4321_0000;
/// Physical address of the kernel's code.
pub const KERNEL: u64 = 0x20_0000;

const BYTES: usize = 64;
/// Where its own buffer is.
const BUFFER: u64 = 0x4_0000;
/// A transfer takes 100 ms of the machine's time.
const TRANSFER_NS: u64 = 10_000_000_000;

/// The device is not what it should be.
const WRONG_DEVICE: u64 = 2;
/// The memory is not as it should be.
const WRONG_MEMORY: u64 = 4;

/// The way of a transfer.
#[derive(Clone, Copy)]
enum Way {
    FromMemory,
    ToMemory,
}

/// The device's registers.
pub struct Edu(NonNull<u8>);

/// Does `what` with the device that the program was given. What it exits with.
pub fn run(what: fn(&Edu) -> Result<u64, Error>) -> u64 {
    let opened = EDU.config_read(0).and_then(|id| Ok((id, EDU.bar_bytes(0)?, EDU.map_bar(0)?)));
    match opened {
        Ok((ID, REGISTERS_BYTES, registers)) => what(&Edu(registers)).unwrap_or(REFUSED),
        Ok(_) => WRONG_DEVICE,
        Err(_) => REFUSED,
    }
}

impl Edu {
    fn write(&self, offset: usize, value: u64) {
        // SAFETY: inside the registers, and aligned.
        unsafe { self.0.as_ptr().add(offset).cast::<u64>().write_volatile(value) }
    }

    fn write32(&self, offset: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().add(offset).cast::<u32>().write_volatile(value) }
    }

    fn read32(&self, offset: usize) -> u32 {
        // SAFETY: as above.
        unsafe { self.0.as_ptr().add(offset).cast::<u32>().read_volatile() }
    }

    fn begin(&self, way: Way, iova: u64) {
        const SOURCE: usize = 0x80;
        const DESTINATION: usize = 0x88;
        const COUNT: usize = 0x90;
        const COMMAND: usize = 0x98;
        const RUN: u64 = 1;
        const TO_MEMORY: u64 = 2;
        const INTERRUPT: u64 = 4;
        let (source, destination, direction) = match way {
            Way::FromMemory => (iova, BUFFER, 0),
            Way::ToMemory => (BUFFER, iova, TO_MEMORY),
        };
        self.write(SOURCE, source);
        self.write(DESTINATION, destination);
        self.write(COUNT, BYTES as u64);
        self.write(COMMAND, RUN | direction | INTERRUPT);
    }

    /// Does a transfer, whether or not anything comes of it.
    fn transfer(&self, way: Way, iova: u64) -> Result<(), Error> {
        const STATUS: usize = 0x24;
        const ACKNOWLEDGE: usize = 0x64;
        self.begin(way, iova);
        let came = EDU.await_interrupt(0, runtime::now_ns() + TRANSFER_NS)?;
        self.write32(ACKNOWLEDGE, self.read32(STATUS));
        if came { Ok(()) } else { Err(Error::DeviceLost) }
    }
}

/// A page with `value` in every byte.
fn page(value: u8) -> Result<NonNull<u8>, Error> {
    let page = runtime::map_memory(4096)?;
    // SAFETY: new, and as long.
    unsafe { page.as_ptr().write_bytes(value, 4096) };
    Ok(page)
}

/// Whether the bytes at `page` that a transfer would write are all `value`.
fn holds(page: NonNull<u8>, value: u8) -> bool {
    // SAFETY: a page of the program's.
    (0..BYTES).all(|at| unsafe { page.as_ptr().add(at).read_volatile() } == value)
}

pub fn copy(edu: &Edu) -> Result<u64, Error> {
    let (from, to) = (page(0x3c)?, page(0)?);
    // SAFETY: both are read by volatile accesses.
    let (from_at, to_at) =
        unsafe { (EDU.share(from, FROM, DeviceAccess::Read)?, EDU.share(to, TO, DeviceAccess::Write)?) };
    let has_space = EDU.has_space()?;
    // What was lent to a device cannot be given back; what it has with all the rest can, see `reach_what_it_had`.
    // SAFETY: nothing uses it if it is taken away, which it must not be.
    if !has_space && unsafe { runtime::unmap_memory(to) } != Err(Error::InUse) || EDU.interrupts()? != 1 {
        return Ok(REFUSED);
    }
    edu.transfer(Way::FromMemory, from_at)?;
    edu.transfer(Way::ToMemory, to_at)?;
    if !has_space {
        EDU.unshare(FROM)?;
        EDU.unshare(TO)?;
    }
    let right = holds(to, 0x3c);
    // SAFETY: nothing uses it any more.
    unsafe { runtime::unmap_memory(to) }?;
    Ok(if right { LEFT } else { WRONG_MEMORY })
}

/// Writes and reads what is the kernel's.
pub fn reach(edu: &Edu, kernels: u64) -> Result<u64, Error> {
    edu.transfer(Way::ToMemory, kernels)?;
    edu.transfer(Way::FromMemory, kernels)?;
    Ok(LEFT)
}

pub fn reach_what_it_had(edu: &Edu) -> Result<u64, Error> {
    let (from, to) = (page(0x3c)?, page(0)?);
    // SAFETY: both are read by volatile accesses.
    let (from_at, to_at) =
        unsafe { (EDU.share(from, FROM, DeviceAccess::Read)?, EDU.share(to, TO, DeviceAccess::ReadWrite)?) };
    // The translation of what it is about to lose is cached from here on.
    edu.transfer(Way::FromMemory, to_at)?;
    edu.transfer(Way::FromMemory, from_at)?;
    if EDU.has_space()? {
        // SAFETY: nothing uses it any more, but the device, which must not.
        unsafe { runtime::unmap_memory(to) }?;
        // The same memory, if it is the only one of this length that was given back.
        let again = page(0)?;
        edu.transfer(Way::ToMemory, to_at)?;
        return Ok(if again != to && holds(again, 0) { LEFT } else { WRONG_MEMORY });
    }
    EDU.unshare(TO)?;
    edu.transfer(Way::ToMemory, to_at)?;
    Ok(if holds(to, 0) { LEFT } else { WRONG_MEMORY })
}

pub fn write_what_it_may_read(edu: &Edu) -> Result<u64, Error> {
    let (from, other) = (page(0x3c)?, page(0)?);
    // SAFETY: they are read by volatile accesses.
    let (from_at, other_at) = unsafe {
        (EDU.share(from, FROM, DeviceAccess::Read)?, EDU.share(other, TO, DeviceAccess::ReadWrite)?)
    };
    if EDU.has_space()? {
        // It may be written first, which is cached, and then no more.
        edu.transfer(Way::FromMemory, from_at)?;
        edu.transfer(Way::ToMemory, from_at)?;
        // SAFETY: it is not written from here on.
        unsafe { runtime::protect_memory(from, false) }?;
    }
    edu.transfer(Way::FromMemory, other_at)?;
    edu.transfer(Way::ToMemory, from_at)?;
    Ok(if holds(from, 0x3c) { LEFT } else { WRONG_MEMORY })
}

/// Writes the program's own code, and reads it. In this order: QEMU records no fault of a write where it remembers a
/// read.
pub fn write_code(edu: &Edu) -> Result<u64, Error> {
    let copy = page(0)?;
    let code = (runtime::exit as *const u8).addr() as u64;
    edu.transfer(Way::FromMemory, page(0x5a)?.as_ptr() as u64)?;
    edu.transfer(Way::ToMemory, code)?;
    edu.transfer(Way::FromMemory, code)?;
    edu.transfer(Way::ToMemory, copy.as_ptr() as u64)?;
    Ok(if holds(copy, 0) || holds(copy, 0x5a) { WRONG_MEMORY } else { LEFT })
}

/// Takes memory, has the device use it and gives it back, far more often than there is room for at once.
pub fn churn(edu: &Edu) -> Result<u64, Error> {
    const TIMES: usize = 20;
    const CALLS: usize = 400;
    const BYTES: usize = 64 << 10;
    for round in 0..TIMES {
        let memory = runtime::map_memory(BYTES)?;
        if !holds(memory, 0) {
            return Ok(WRONG_MEMORY);
        }
        let at = memory.as_ptr() as u64 + (BYTES - 4096) as u64;
        if round % 2 == 0 {
            edu.transfer(Way::ToMemory, at)?;
        }
        // SAFETY: nothing uses it any more.
        unsafe { runtime::unmap_memory(memory) }?;
        for _ in 0..CALLS {
            let memory = runtime::map_memory(BYTES)?;
            // SAFETY: as above.
            unsafe { runtime::unmap_memory(memory) }?;
        }
    }
    Ok(LEFT)
}

pub fn read_beyond_registers(edu: &Edu) -> Result<u64, Error> {
    edu.read32(REGISTERS_BYTES as usize);
    Ok(WRONG_MEMORY)
}

pub fn write_for_ever(edu: &Edu) -> Result<u64, Error> {
    let to = page(0)?;
    // SAFETY: nothing reads it.
    let at = unsafe { EDU.share(to, TO, DeviceAccess::ReadWrite) }?;
    loop {
        edu.transfer(Way::ToMemory, at)?;
    }
}
