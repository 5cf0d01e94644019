//! The controller: reset, admin queue, Identify.

use alloc::sync::Arc;

use iommu::{DmaDevice, FromDevice, Iova, PageBuffer};

use super::{
    command::{Command, Status},
    error::NvmeError,
    identify::{IDENTIFY_BYTES, Identity},
    memory::Queues,
    queue::{Finished, QueuePair},
    registers::{CONFIGURATION_ON, Capabilities, ControllerStatus, Doorbells, Registers, admin_attributes},
};
use crate::{
    host::{Event, Host},
    pci::{Device, Msix, MsixError},
};

/// Entries of the admin queues; a controller has room for at least 2.
const ADMIN_ENTRIES: u16 = 32;
/// Queue and MSI-X entry of the admin queue.
const ADMIN: u16 = 0;

/// Least time that a controller is given to become ready or quiet.
const READY_DEADLINE_NS: u64 = 1_000_000_000;
/// How long an admin command may take.
const COMMAND_DEADLINE_NS: u64 = 5_000_000_000;

/// An NVMe controller with its admin queue.
///
/// Dropping it turns it off, and gives its queues back once it is quiet.
pub struct Controller {
    host: Arc<dyn Host>,
    dma: DmaDevice,
    device: Device,
    registers: Registers,
    capabilities: Capabilities,
    doorbells: Doorbells,
    finished: Arc<dyn Event>,
    /// `None` once the controller could not be made quiet or ready again.
    admin: Option<QueuePair<Queues, ()>>,
    _msix: Msix,
}

impl Controller {
    /// Takes `dma`'s function, an NVMe controller, into use.
    ///
    /// # Errors
    /// It is none, or something it needs is not to be had. It is left without bus mastering.
    pub fn open(host: &Arc<dyn Host>, dma: DmaDevice) -> Result<Self, NvmeError> {
        let device = Device::open(host.clone(), dma.function()).ok_or(NvmeError::Absent)?;
        let bar = device.map_bar(0)?;
        let registers = Registers::at(&bar)?;
        let capabilities = Capabilities(registers.capabilities.read());
        if capabilities.0 == u64::MAX || !capabilities.has_nvm_commands() || !capabilities.has_4k_pages() {
            return Err(NvmeError::Unsupported { capabilities: capabilities.0 });
        }
        let doorbells = Doorbells::at(&bar, capabilities, ADMIN)?;
        let finished = host.event();
        let mut msix = Msix::open(&device)?;
        let interrupt = host.allocate_interrupt(dma.function(), finished.clone()).map_err(MsixError::from)?;
        msix.set(ADMIN, interrupt)?;
        let mut controller = Self {
            host: host.clone(),
            dma,
            device,
            registers,
            capabilities,
            doorbells,
            finished,
            admin: None,
            _msix: msix,
        };
        controller.turn_off()?;
        let entries = capabilities.queue_limit().min(ADMIN_ENTRIES.into()) as u16;
        let queues = Queues::new(&controller.dma, entries)?;
        controller.turn_on(QueuePair::new(ADMIN, queues, entries).map_err(|_| NvmeError::OutOfMemory)?)?;
        Ok(controller)
    }

    /// The device's DMA handle.
    #[must_use]
    pub fn dma(&self) -> &DmaDevice {
        &self.dma
    }

    /// Version: major in bits 31:16, minor in 15:8.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.registers.version.read()
    }

    /// Asks the controller who it is.
    ///
    /// # Errors
    /// The command failed, or the IOMMU blocked it.
    pub fn identify(&mut self) -> Result<Identity, NvmeError> {
        let buffer = PageBuffer::zeroed(1).ok_or(NvmeError::OutOfMemory)?;
        let mapping = self.dma.dma_map(buffer, FromDevice).map_err(|rejected| rejected.error)?;
        let faults = self.dma.fault_count();
        let outcome = self.execute(Command::identify_controller(mapping.iova()));
        if let Err(error @ NvmeError::NotReady { wanted: false, .. }) = outcome {
            // It may still write to the page: that stays mapped.
            core::mem::forget(mapping);
            return Err(error);
        }
        let page = mapping.unmap()?;
        let status = outcome?;
        // A controller reports success for what the IOMMU blocked.
        if self.dma.fault_count() != faults {
            return Err(NvmeError::Blocked);
        }
        if !status.is_success() {
            return Err(NvmeError::Status(status));
        }
        page.first_chunk::<IDENTIFY_BYTES>().map(Identity::decode).ok_or(NvmeError::OutOfMemory)
    }

    /// Has the controller write its Identify page, 4 KiB, to `iova`, an address of the caller's choice at the start of
    /// a page, and returns what it says about that: usually success, whatever the IOMMU made of it.
    ///
    /// It is safe because what the controller can reach is up to the IOMMU; it exists to show that, in tests and in
    /// the shell.
    ///
    /// # Errors
    /// The controller did not answer.
    pub fn write_at(&mut self, iova: Iova) -> Result<Status, NvmeError> {
        self.execute(Command::identify_controller(iova))
    }

    /// As [`write_at`](Self::write_at), but has the controller read 8 bytes from `iova`: its clock. Bits 47:0 come back
    /// by [`timestamp_to`](Self::timestamp_to), a little later than they were.
    ///
    /// # Errors
    /// The controller did not answer.
    pub fn read_at(&mut self, iova: Iova) -> Result<Status, NvmeError> {
        self.execute(Command::set_timestamp(iova))
    }

    /// Has the controller write its clock, 8 bytes, to `iova`.
    ///
    /// # Errors
    /// The controller did not answer.
    pub fn timestamp_to(&mut self, iova: Iova) -> Result<Status, NvmeError> {
        self.execute(Command::get_timestamp(iova))
    }

    /// Keeps the admin queue full of commands that write 4 KiB to `iova`, until `count` were sent or the controller does not
    /// answer any more, which is no error here. Returns how many it has finished. See [`write_at`](Self::write_at).
    ///
    /// # Errors
    /// It broke the protocol of its queue, or could not be reset after that or its silence.
    pub fn flood(&mut self, iova: Iova, count: usize) -> Result<usize, NvmeError> {
        let (mut sent, mut done) = (0, 0);
        while done < count {
            let admin = self.admin.as_mut().ok_or(NvmeError::Gone)?;
            while sent < count && admin.submit(Command::identify_controller(iova), ()).is_ok() {
                sent += 1;
            }
            self.doorbells.submission_tail.write(admin.tail().into());
            match self.await_completion() {
                Ok(_) => done += 1,
                Err(error) => {
                    self.reset_after(error)?;
                    return if error == NvmeError::TimedOut { Ok(done) } else { Err(error) };
                }
            }
        }
        Ok(done)
    }

    /// Does one admin command. If the controller does not answer, or answers nonsense, it is reset.
    fn execute(&mut self, command: Command) -> Result<Status, NvmeError> {
        let admin = self.admin.as_mut().ok_or(NvmeError::Gone)?;
        // One at a time, so there is room.
        admin.submit(command, ()).map_err(|()| NvmeError::Gone)?;
        self.doorbells.submission_tail.write(admin.tail().into());
        match self.await_completion() {
            Ok(finished) => Ok(finished.status),
            Err(error) => {
                self.reset_after(error)?;
                Err(error)
            }
        }
    }

    fn await_completion(&mut self) -> Result<Finished<()>, NvmeError> {
        let admin = self.admin.as_mut().ok_or(NvmeError::Gone)?;
        let deadline_ns = self.host.now_ns().saturating_add(COMMAND_DEADLINE_NS);
        loop {
            if let Some(finished) = admin.take_finished()? {
                self.doorbells.completion_head.write(admin.head().into());
                return Ok(finished);
            }
            if !self.finished.wait(deadline_ns) && self.host.now_ns() >= deadline_ns {
                return Err(NvmeError::TimedOut);
            }
        }
    }

    /// Turns the controller off and on again: commands that it has not finished are gone.
    fn reset_after(&mut self, error: NvmeError) -> Result<(), NvmeError> {
        log::warn!("nvme {}: {error}; resetting it", self.device.function());
        self.turn_off()?;
        let Some(mut admin) = self.admin.take() else {
            return Err(NvmeError::Gone);
        };
        admin.restart();
        self.turn_on(admin)
    }

    /// Makes the controller quiet: when this returns `Ok`, it touches no memory. Otherwise its queues stay pinned.
    fn turn_off(&mut self) -> Result<(), NvmeError> {
        self.registers.configuration.write(0);
        let quiet = self.await_ready(false);
        if quiet.is_err() {
            self.device.disable_bus_master();
            core::mem::forget(self.admin.take());
        }
        quiet
    }

    /// Gives the controller, which is off, its admin queue and turns it on.
    fn turn_on(&mut self, admin: QueuePair<Queues, ()>) -> Result<(), NvmeError> {
        let [submission, completion] = admin.memory().addresses();
        self.registers.admin_attributes.write(admin_attributes(admin.size()));
        self.registers.admin_submission.write(submission.as_u64());
        self.registers.admin_completion.write(completion.as_u64());
        self.admin = Some(admin);
        self.device.enable_bus_master();
        self.registers.configuration.write(CONFIGURATION_ON);
        self.await_ready(true)
    }

    fn await_ready(&self, wanted: bool) -> Result<(), NvmeError> {
        let allowed_ns = self.capabilities.ready_ns().max(READY_DEADLINE_NS);
        let deadline_ns = self.host.now_ns().saturating_add(allowed_ns);
        loop {
            let raw = self.registers.status.read();
            let status = ControllerStatus::from_bits_retain(raw);
            let failed = raw == u32::MAX || wanted && status.contains(ControllerStatus::FATAL);
            if !failed && status.contains(ControllerStatus::READY) == wanted {
                return Ok(());
            }
            if failed || self.host.now_ns() >= deadline_ns {
                return Err(NvmeError::NotReady { wanted, status: raw });
            }
            self.host.relax();
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Err(error) = self.turn_off() {
            log::error!("nvme {}: {error}; its queues stay pinned", self.device.function());
        }
        self.device.disable_bus_master();
    }
}

#[cfg(test)]
#[path = "controller_tests.rs"]
mod tests;
