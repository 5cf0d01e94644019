//! QEMU's `edu` device: a DMA engine that can be aimed at any address, ten times a second.
//!
//! It makes a good attacker. It copies between its own 4 KiB buffer, which the CPU cannot see, and any IOVA; it says
//! nothing about whether the IOMMU let it. A transfer takes 100 ms from its start and reads or writes memory only at
//! the end of them.
//!
//! The driver has no memory of its own for the device: what that can reach is up to who has claimed it, if anybody has.

mod error;
mod registers;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, sync::Arc};

use iommu::{DmaDevice, Iova, PciAddress};

pub use self::error::EduError;
use self::registers::{Registers, STATUS_COMPUTING, command};
use crate::{
    host::{Event, Host, Interrupt},
    pci::{Device, Function, Id, Msi},
};

/// The device's id.
pub const ID: Id = Id { vendor: 0x1234, device: 0x11e8 };

/// Length of the device's buffer.
pub const BUFFER_BYTES: usize = 4096;

/// Longest transfer. QEMU 7.2 aborts on one that touches the last byte of the buffer.
pub const TRANSFER_LIMIT_BYTES: usize = BUFFER_BYTES - 1;

/// Where the buffer is in the device's own address space.
const BUFFER: u64 = 0x4_0000;

/// What the identification register reads, version aside.
const IDENTIFICATION: u32 = 0x00ed;

/// How long anything but a transfer may take.
const DEADLINE_NS: u64 = 1_000_000_000;

/// How long a transfer may take: 100 ms, and room for a busy host.
const TRANSFER_DEADLINE_NS: u64 = 10_000_000_000;

/// What the interrupt status reads for the end of a transfer.
pub const INTERRUPT_TRANSFER: u32 = 0x100;

/// An `edu` device in use.
///
/// Dropping it takes bus mastering away, which ends what the device could do to memory, unless it was taken back
/// before.
pub struct Edu {
    host: Arc<dyn Host>,
    device: Device,
    registers: Registers,
    /// `None`: the end of a transfer is polled for.
    interrupt: Option<EduInterrupt>,
    /// A transfer was started and its end not yet awaited.
    started: bool,
}

struct EduInterrupt {
    arrived: Arc<dyn Event>,
    msi: Msi,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The device reads memory into its buffer.
    FromMemory,
    /// The device writes its buffer to memory.
    ToMemory,
}

/// A transfer between memory and the device's buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Which way.
    pub way: Way,
    /// Address in memory.
    pub iova: Iova,
    /// Offset in the device's buffer.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl Edu {
    /// Takes `dma`'s function, an `edu`, into use, with its interrupt, and lets it master the bus. Once it was taken
    /// back it is left alone.
    ///
    /// # Errors
    /// It is none, or has no usable registers or interrupt.
    pub fn open(host: &Arc<dyn Host>, dma: &DmaDevice, function: &Function) -> Result<Self, EduError> {
        let device = Device::open(host.clone(), function).ok_or(EduError::Absent)?;
        let mut edu = Self::on(host, device.held_by(dma))?;
        edu.use_own_interrupt()?;
        Ok(edu)
    }

    /// As [`open`](Self::open), without an interrupt: for a function that nobody has claimed.
    ///
    /// # Errors
    /// It is none, or has no usable registers.
    pub fn open_polled(host: &Arc<dyn Host>, function: &Function) -> Result<Self, EduError> {
        Self::on(host, Device::open(host.clone(), function).ok_or(EduError::Absent)?)
    }

    fn on(host: &Arc<dyn Host>, device: Device) -> Result<Self, EduError> {
        let registers = Registers::at(&device.map_bar(0)?)?;
        let identification = registers.identification.read();
        if identification & 0xffff != IDENTIFICATION {
            return Err(EduError::NotEdu(identification));
        }
        device.enable_bus_master();
        Ok(Self { host: host.clone(), device, registers, interrupt: None, started: false })
    }

    /// The function.
    #[must_use]
    pub fn function(&self) -> PciAddress {
        self.device.function()
    }

    /// Checks that the device answers: it gives back the complement of what is written.
    ///
    /// # Errors
    /// It does not.
    pub fn check_liveness(&self, value: u32) -> Result<(), EduError> {
        self.registers.liveness.write(value);
        let (got, expected) = (self.registers.liveness.read(), !value);
        if got == expected { Ok(()) } else { Err(EduError::Wrong { got, expected }) }
    }

    /// The factorial of `n`, modulo 2^32, computed by the device.
    ///
    /// # Errors
    /// It did not answer in time.
    pub fn factorial(&mut self, n: u32) -> Result<u32, EduError> {
        self.registers.factorial.write(n);
        let deadline_ns = self.host.now_ns().saturating_add(DEADLINE_NS);
        while self.registers.status.read() & STATUS_COMPUTING != 0 {
            if self.host.now_ns() >= deadline_ns {
                return Err(self.timed_out());
            }
            self.host.relax();
        }
        Ok(self.registers.factorial.read())
    }

    /// Gives the device the interrupt that the host has for it.
    ///
    /// # Errors
    /// There is none: the device is left without.
    pub fn use_own_interrupt(&mut self) -> Result<(), EduError> {
        let arrived = self.host.event();
        let interrupt = self.host.allocate_interrupt(self.function(), arrived.clone())?;
        self.use_interrupt(interrupt, arrived)
    }

    /// Gives the device another interrupt, which signals `arrived`: to attack with, or to watch.
    ///
    /// # Errors
    /// The device cannot send its message, and is left without.
    pub fn use_interrupt(
        &mut self,
        interrupt: Box<dyn Interrupt>,
        arrived: Arc<dyn Event>,
    ) -> Result<(), EduError> {
        // The one before turns MSI off when it goes.
        self.interrupt = None;
        let msi = Msi::enable(&self.device, interrupt)?;
        self.interrupt = Some(EduInterrupt { arrived, msi });
        Ok(())
    }

    /// Sends the device's interrupt to CPU number `cpu` from now on.
    ///
    /// # Errors
    /// See [`Interrupt::retarget`]; a device without an interrupt has none to move.
    pub fn retarget_interrupt(&mut self, cpu: usize) -> Result<(), EduError> {
        let interrupt = self.interrupt.as_mut().ok_or(EduError::NoInterrupt)?;
        Ok(interrupt.msi.retarget(cpu)?)
    }

    /// Whether the device's interrupt arrives within `timeout_ns`, or has arrived since this was last asked.
    pub fn await_interrupt(&self, timeout_ns: u64) -> bool {
        let deadline_ns = self.host.now_ns().saturating_add(timeout_ns);
        self.interrupt.as_ref().is_some_and(|interrupt| interrupt.arrived.wait(deadline_ns))
    }

    /// Makes the device raise its interrupt, whether or not it arrives, and takes back what it raised.
    pub fn send_interrupt(&mut self) {
        const ANY: u32 = 1;
        self.registers.interrupt_raise.write(ANY);
        // Reading waits for the write, and acknowledging makes the next one another interrupt.
        let raised = self.registers.interrupt_status.read();
        self.registers.interrupt_acknowledge.write(raised);
    }

    /// Makes the device raise its interrupt with `value` in its interrupt status, and waits for it.
    ///
    /// # Errors
    /// The interrupt did not arrive in time, or the device was opened without one, or the status lacks `value`.
    pub fn raise_interrupt(&mut self, value: u32) -> Result<(), EduError> {
        self.drain_interrupts();
        self.registers.interrupt_raise.write(value);
        let deadline_ns = self.host.now_ns().saturating_add(DEADLINE_NS);
        let arrived = self.interrupt.as_ref().is_some_and(|interrupt| interrupt.arrived.wait(deadline_ns));
        let got = self.drain_interrupts();
        match (arrived, got & value == value) {
            (true, true) => Ok(()),
            (true, false) => Err(EduError::Wrong { got, expected: value }),
            (false, _) => Err(EduError::NoInterrupt),
        }
    }

    /// Does a transfer and waits for its end. `Ok` says nothing about whether the IOMMU let it happen.
    ///
    /// # Errors
    /// It is not inside the device's buffer, or did not end in time.
    pub fn transfer(&mut self, transfer: Transfer) -> Result<(), EduError> {
        self.start(transfer)?;
        self.finish()
    }

    /// Starts a transfer. The device touches memory about 100 ms later; [`finish`](Self::finish) waits for it.
    ///
    /// # Errors
    /// It is not inside the device's buffer, or another one is running.
    pub fn start(&mut self, transfer: Transfer) -> Result<(), EduError> {
        let Transfer { way, iova, offset, bytes } = transfer;
        if bytes == 0 || offset.checked_add(bytes).is_none_or(|end| end > TRANSFER_LIMIT_BYTES) {
            return Err(EduError::OutsideBuffer { offset, bytes });
        }
        if self.started {
            return Err(EduError::Busy);
        }
        self.drain_interrupts();
        let inside = BUFFER + offset as u64;
        let (source, destination, direction) = match way {
            Way::FromMemory => (iova.as_u64(), inside, 0),
            Way::ToMemory => (inside, iova.as_u64(), command::TO_MEMORY),
        };
        self.registers.source.write(source);
        self.registers.destination.write(destination);
        self.registers.count.write(bytes as u64);
        let interrupt = if self.interrupt.is_some() { command::INTERRUPT } else { 0 };
        self.registers.command.write(command::RUN | interrupt | direction);
        self.started = true;
        Ok(())
    }

    /// Waits for the end of the transfer that was started, if there is one, and for its interrupt.
    ///
    /// # Errors
    /// It did not end in time: the device was stopped from mastering the bus. Or its interrupt is missing.
    pub fn finish(&mut self) -> Result<(), EduError> {
        if !core::mem::take(&mut self.started) {
            return Ok(());
        }
        let deadline_ns = self.host.now_ns().saturating_add(TRANSFER_DEADLINE_NS);
        match &self.interrupt {
            None => self.poll_end(deadline_ns),
            Some(interrupt) => {
                self.await_end(&*interrupt.arrived, deadline_ns)?;
                let (got, expected) = (self.drain_interrupts(), INTERRUPT_TRANSFER);
                if got & expected != 0 { Ok(()) } else { Err(EduError::Wrong { got, expected }) }
            }
        }
    }

    fn await_end(&self, arrived: &dyn Event, deadline_ns: u64) -> Result<(), EduError> {
        // Any interrupt but the one at the end finds the device running. Interrupts without end gain it no time.
        loop {
            match (arrived.wait(deadline_ns), self.is_running()) {
                (true, false) => return Ok(()),
                (true, true) if self.host.now_ns() < deadline_ns => {}
                (_, true) => return Err(self.timed_out()),
                (false, false) => return Err(EduError::NoInterrupt),
            }
        }
    }

    fn poll_end(&self, deadline_ns: u64) -> Result<(), EduError> {
        while self.is_running() {
            if self.host.now_ns() >= deadline_ns {
                return Err(self.timed_out());
            }
            self.host.relax();
        }
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.registers.command.read() & command::RUN != 0
    }

    /// Acknowledges what the device has raised, and returns it. The event is as if nothing had been raised.
    fn drain_interrupts(&self) -> u32 {
        let raised = self.registers.interrupt_status.read();
        self.registers.interrupt_acknowledge.write(raised);
        if let Some(interrupt) = &self.interrupt {
            // A deadline in the past: only clears the event.
            interrupt.arrived.wait(0);
        }
        raised
    }

    fn timed_out(&self) -> EduError {
        self.device.disable_bus_master();
        EduError::TimedOut
    }
}

/// Waits until `device`, an `edu`, has no transfer running. It has no reset, and once its transfer has ended, with bus
/// mastering off, it starts no other.
///
/// # Errors
/// It is none, or its transfer did not end in time.
pub fn await_quiet(device: &Device) -> Result<(), EduError> {
    let (host, device) = (device.host().clone(), device.clone());
    device.disable_bus_master();
    let registers = Registers::at(&device.map_bar(0)?)?;
    let edu = Edu { host: host.clone(), device, registers, interrupt: None, started: true };
    edu.poll_end(host.now_ns().saturating_add(TRANSFER_DEADLINE_NS))
}

impl Drop for Edu {
    fn drop(&mut self) {
        // The device has no reset of its own; without bus mastering its requests go nowhere.
        self.device.disable_bus_master();
    }
}
