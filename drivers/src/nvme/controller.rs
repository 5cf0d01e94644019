//! The controller: reset, admin queue, Identify.

use alloc::sync::Arc;

use iommu::{DmaDevice, FromDevice, PageBuffer, dma::Direction};
use nvme_spec::{
    Command, IDENTIFY_BYTES, Identity,
    registers::{CONFIGURATION_ON, Capabilities, ControllerStatus, SHUT_DOWN, admin_attributes},
};

use super::{
    error::NvmeError,
    memory::Queues,
    queue::{Finished, QueuePair},
    registers::{Doorbells, Registers},
};
use crate::{
    host::{Event, Host},
    mmio::Mmio,
    pci::{Device, Function, Msix, MsixError},
    quiet::is_taken_back,
};

/// Entries of the admin queues, if the controller has room for as many.
const ADMIN_ENTRIES: u16 = 32;
/// Least entries of a queue, which is full with one of them free.
const LEAST_ENTRIES: u32 = 2;
/// Queue and MSI-X entry of the admin queue.
const ADMIN: u16 = 0;

/// Least time that a controller is given to become ready or quiet.
pub(super) const READY_DEADLINE_NS: u64 = 1_000_000_000;
/// How long an admin command may take, and a shutdown.
pub(super) const COMMAND_DEADLINE_NS: u64 = 5_000_000_000;

/// An NVMe controller with its admin queue.
///
/// Dropping it turns it off, and gives its queues back once it is quiet.
pub struct Controller {
    host: Arc<dyn Host>,
    dma: DmaDevice,
    device: Device,
    bar: Mmio,
    registers: Registers,
    capabilities: Capabilities,
    pub(super) doorbells: Doorbells,
    finished: Arc<dyn Event>,
    /// `None` once the controller could not be made quiet or ready again.
    pub(super) admin: Option<QueuePair<Queues, ()>>,
    msix: Msix,
}

/// Whether `device`, an NVMe controller, has memory of its own (a controller memory buffer, a persistent memory
/// region), which outlives its reset. One that does not answer may have some.
///
/// # Errors
/// Its registers cannot be reached.
pub fn has_memory(device: &Device) -> Result<bool, NvmeError> {
    let registers = Registers::at(&device.map_bar(0)?)?;
    let capabilities = Capabilities(registers.capabilities.read());
    Ok(capabilities.has_memory() || registers.memory_size.read() != 0)
}

impl Controller {
    /// Takes `function`, whose DMA handle is `dma`, an NVMe controller, into use.
    ///
    /// # Errors
    /// It is none, or something it needs is not to be had. It is left without bus mastering.
    pub fn open(host: &Arc<dyn Host>, dma: DmaDevice, function: &Function) -> Result<Self, NvmeError> {
        let device = Device::open(host.clone(), function).ok_or(NvmeError::Absent)?.held_by(&dma);
        let bar = device.map_bar(0)?;
        let registers = Registers::at(&bar)?;
        let capabilities = Capabilities(registers.capabilities.read());
        let is_usable = capabilities.0 != u64::MAX
            && capabilities.has_nvm_commands()
            && capabilities.has_4k_pages()
            && capabilities.queue_limit() >= LEAST_ENTRIES;
        if !is_usable {
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
            bar,
            registers,
            capabilities,
            doorbells,
            finished,
            admin: None,
            msix,
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

    /// Most entries that a queue may have: 2 to 65,536.
    pub(super) fn queue_limit(&self) -> u32 {
        self.capabilities.queue_limit()
    }

    /// Number of MSI-X entries.
    pub(super) fn interrupts(&self) -> u16 {
        self.msix.entries()
    }

    /// The doorbells of queue pair `queue`.
    ///
    /// # Errors
    /// They are outside the registers.
    pub(super) fn doorbells(&self, queue: u16) -> Result<Doorbells, NvmeError> {
        Ok(Doorbells::at(&self.bar, self.capabilities, queue)?)
    }

    /// A vector for MSI-X entry `entry` that signals `event`, on CPU number `cpu` if that can be.
    ///
    /// # Errors
    /// There is no such entry, or no vector.
    pub(super) fn add_interrupt(
        &mut self,
        entry: u16,
        event: Arc<dyn Event>,
        cpu: usize,
    ) -> Result<(), NvmeError> {
        let interrupt = self.host.allocate_interrupt(self.dma.function(), event).map_err(MsixError::from)?;
        self.msix.set(entry, interrupt)?;
        if let Err(error) = self.msix.retarget(entry, cpu) {
            log::info!("nvme {}: queue {entry}: {error}", self.device.function());
        }
        Ok(())
    }

    /// Asks the controller who it is.
    ///
    /// # Errors
    /// The command failed, or the IOMMU blocked it.
    pub fn identify(&mut self) -> Result<Identity, NvmeError> {
        let page = self.identify_with(Command::identify_controller)?;
        page.first_chunk::<IDENTIFY_BYTES>().map(Identity::decode).ok_or(NvmeError::OutOfMemory)
    }

    /// Has the controller fill a page by the command that `command` makes of the page's address.
    pub(super) fn identify_with(
        &mut self,
        command: impl FnOnce(u64) -> Command,
    ) -> Result<PageBuffer, NvmeError> {
        let buffer = PageBuffer::zeroed(1).ok_or(NvmeError::OutOfMemory)?;
        self.execute_with(buffer, FromDevice, command)
    }

    /// Does the admin command that `command` makes of the address of `buffer`, which the controller reaches in
    /// `direction` meanwhile.
    pub(super) fn execute_with<D: Direction>(
        &mut self,
        buffer: PageBuffer,
        direction: D,
        command: impl FnOnce(u64) -> Command,
    ) -> Result<PageBuffer, NvmeError> {
        let mapping = self.dma.dma_map(buffer, direction).map_err(|rejected| rejected.error)?;
        let faults = self.dma.fault_count();
        let outcome = self.execute(command(mapping.iova().as_u64()));
        if let Err(error @ NvmeError::NotReady { wanted: false, .. }) = outcome {
            // It may still write to the page: that stays mapped.
            core::mem::forget(mapping);
            return Err(error);
        }
        let page = mapping.unmap()?;
        let status = outcome?.status;
        // A controller reports success for what the IOMMU blocked.
        if self.dma.fault_count() != faults {
            return Err(NvmeError::Blocked);
        }
        if status.is_success() { Ok(page) } else { Err(NvmeError::Status(status)) }
    }

    /// Does one admin command. If the controller does not answer, or answers nonsense, it is reset.
    pub(super) fn execute(&mut self, command: Command) -> Result<Finished<()>, NvmeError> {
        self.execute_by(command, self.deadline_ns(COMMAND_DEADLINE_NS))
    }

    /// The same, with what is left until `deadline_ns`.
    pub(super) fn execute_by(
        &mut self,
        command: Command,
        deadline_ns: u64,
    ) -> Result<Finished<()>, NvmeError> {
        let finished = self.ask(command, deadline_ns);
        if let Err(error) = finished
            && error != NvmeError::Gone
        {
            self.reset_after(error)?;
        }
        finished
    }

    /// Has the controller do one admin command until `deadline_ns`. After an error it may still have it, and has to be
    /// turned off.
    pub(super) fn ask(&mut self, command: Command, deadline_ns: u64) -> Result<Finished<()>, NvmeError> {
        if self.host.now_ns() >= deadline_ns {
            return Err(NvmeError::TimedOut);
        }
        if self.device.was_taken_back() {
            return Err(NvmeError::Gone);
        }
        let admin = self.admin.as_mut().ok_or(NvmeError::Gone)?;
        // One at a time, so there is room.
        admin.submit(command, ()).map_err(|()| NvmeError::Gone)?;
        self.doorbells.submission_tail.write(admin.tail().into());
        self.await_completion(deadline_ns)
    }

    /// The time in `ns` nanoseconds.
    pub(super) fn deadline_ns(&self, ns: u64) -> u64 {
        self.host.now_ns().saturating_add(ns)
    }

    pub(super) fn await_completion(&mut self, deadline_ns: u64) -> Result<Finished<()>, NvmeError> {
        let admin = self.admin.as_mut().ok_or(NvmeError::Gone)?;
        loop {
            if self.device.was_taken_back() {
                return Err(NvmeError::Gone);
            }
            if let Some(finished) = admin.take_finished()? {
                self.doorbells.completion_head.write(admin.head().into());
                return Ok(finished);
            }
            // In every round: a controller that goes on interrupting for nothing has no more time than a silent one.
            if self.host.now_ns() >= deadline_ns {
                return Err(NvmeError::TimedOut);
            }
            self.finished.wait(deadline_ns);
        }
    }

    /// Resets the controller after `error`.
    pub(super) fn reset_after(&mut self, error: NvmeError) -> Result<(), NvmeError> {
        log::warn!("nvme {}: {error}; resetting it", self.device.function());
        self.restart()
    }

    /// Turns the controller off and on again: commands that it has not finished, and I/O queues, are gone.
    pub(super) fn restart(&mut self) -> Result<(), NvmeError> {
        self.turn_off()?;
        let Some(mut admin) = self.admin.take() else {
            return Err(NvmeError::Gone);
        };
        admin.restart();
        self.turn_on(admin)
    }

    /// Whether the controller works, and for this driver: it is on, not broken, and answers.
    pub(super) fn is_running(&self) -> bool {
        let raw = self.registers.status.read();
        let status = ControllerStatus::from_bits_retain(raw);
        !self.device.was_taken_back()
            && raw != u32::MAX
            && status.contains(ControllerStatus::READY)
            && !status.contains(ControllerStatus::FATAL)
    }

    /// Has the controller write to its medium what it holds back, and waits for that.
    pub(super) fn shut_down(&self) {
        self.registers.configuration.write(CONFIGURATION_ON | SHUT_DOWN);
        let deadline_ns = self.deadline_ns(COMMAND_DEADLINE_NS);
        loop {
            let raw = self.registers.status.read();
            if ControllerStatus::from_bits_retain(raw).contains(ControllerStatus::SHUT_DOWN) {
                return;
            }
            if self.host.now_ns() >= deadline_ns {
                return log::warn!("nvme {}: not shut down in time: status {raw:#x}", self.device.function());
            }
            self.host.relax();
        }
    }

    /// Takes bus mastering away.
    pub(super) fn disconnect(&self) {
        self.device.disable_bus_master();
    }

    /// Makes the controller quiet: when this returns `Ok`, it touches no memory. Otherwise its queues stay pinned.
    pub(super) fn turn_off(&mut self) -> Result<(), NvmeError> {
        if is_taken_back(&*self.host, &self.dma) {
            return Ok(());
        }
        self.registers.configuration.write(0);
        let quiet = self.await_ready(false);
        if quiet.is_err() {
            // Whoever took it away in the middle of that has made it quiet.
            if is_taken_back(&*self.host, &self.dma) {
                return Ok(());
            }
            self.device.disable_bus_master();
            core::mem::forget(self.admin.take());
        }
        quiet
    }

    /// Turns off a controller in quarantine. It reaches nothing, and what was mapped for it stays where it is until its
    /// release, so that its queues can be let go of whether it becomes quiet by itself or not.
    pub(super) fn cut_off(&mut self) -> Result<(), NvmeError> {
        let mut quiet = Ok(());
        if !self.device.was_taken_back() {
            self.registers.configuration.write(0);
            quiet = self.await_ready(false);
        }
        drop(self.admin.take());
        quiet
    }

    /// Gives the controller, which is off, its admin queue and turns it on, unless it is another driver's by now.
    fn turn_on(&mut self, admin: QueuePair<Queues, ()>) -> Result<(), NvmeError> {
        if self.device.was_taken_back() {
            return Err(NvmeError::Gone);
        }
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
        let deadline_ns = self.deadline_ns(allowed_ns);
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
