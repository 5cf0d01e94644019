//! A virtio device behind PCI: status, features, queues, interrupts.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use iommu::{DmaDevice, Iova};

use super::registers::{Common, Status, WindowError, Windows};
use crate::{
    host::{Event, Host, Interrupt, InterruptError},
    mmio::{Mmio, OutsideWindow, Register, WriteOnly},
    pci::{Device, Function, Msix, MsixError},
    quiet::is_taken_back,
};

/// Modern interface.
const VERSION_1: u64 = 1 << 32;
/// Addresses are translated by the platform's IOMMU.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// Chains may go on in tables of their own ([`Rings::with_indirect`](super::Rings::with_indirect)).
pub const INDIRECT_DESCRIPTORS: u64 = 1 << 28;
/// Each side says at which index it wants to hear of the next chain
/// ([`SplitQueue::with_event_index`](super::SplitQueue::with_event_index)).
pub const EVENT_INDEX: u64 = 1 << 29;

/// How long a device may take for a reset.
const RESET_DEADLINE_NS: u64 = 2_000_000_000;

/// What a vector register reads when the device has no vector for it.
const NO_VECTOR: u16 = 0xffff;

/// A virtio function in its driver's hands.
pub struct Transport {
    dma: DmaDevice,
    device: Device,
    common: Common,
    windows: Windows,
    msix: Msix,
}

/// Where the rings of a queue are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueueAddresses {
    /// Descriptor table.
    pub descriptors: Iova,
    /// Available ring.
    pub available: Iova,
    /// Used ring.
    pub used: Iova,
}

/// The register that tells a device of new chains in one queue.
pub struct Doorbell {
    register: Register<u16, WriteOnly>,
    queue: u16,
}

impl Doorbell {
    /// Tells the device.
    pub fn ring(&self) {
        self.register.write(self.queue);
    }
}

/// Why a virtio device cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransportError {
    /// Nothing answers.
    Absent,
    /// Its register windows are unusable.
    Windows(WindowError),
    /// A structure is too small.
    Outside(OutsideWindow),
    /// It offers no `VIRTIO_F_VERSION_1`.
    NotModern,
    /// It offers no `VIRTIO_F_ACCESS_PLATFORM`: its DMA would go around the IOMMU.
    BypassesIommu,
    /// It did not accept the features.
    FeaturesRefused(u64),
    /// It did not become quiet within the deadline.
    NotQuiet {
        /// What its status register reads.
        status: u8,
    },
    /// It has no such queue.
    NoQueue(u16),
    /// It has no vector for its configuration, or for a queue.
    NoVector(u16),
    /// MSI-X is unusable.
    Msix(MsixError),
    /// It was taken from its driver.
    Gone,
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing answers"),
            Self::Windows(WindowError::Missing(kind)) => {
                write!(f, "no modern interface: structure {kind} is missing")
            }
            Self::Windows(WindowError::Bar(error)) => error.fmt(f),
            Self::Windows(WindowError::Outside(error)) | Self::Outside(error) => error.fmt(f),
            Self::NotModern => f.write_str("VIRTIO_F_VERSION_1 is not offered"),
            Self::BypassesIommu => {
                f.write_str("VIRTIO_F_ACCESS_PLATFORM is not offered: DMA would go around the IOMMU")
            }
            Self::FeaturesRefused(features) => write!(f, "features {features:#x} were refused"),
            Self::NotQuiet { status } => write!(f, "not quiet after a reset: status {status:#x}"),
            Self::NoQueue(queue) => write!(f, "there is no queue {queue}"),
            Self::NoVector(entry) => write!(f, "MSI-X entry {entry} was not accepted"),
            Self::Msix(error) => error.fmt(f),
            Self::Gone => f.write_str("it was taken back"),
        }
    }
}

impl core::error::Error for TransportError {}

impl From<WindowError> for TransportError {
    fn from(error: WindowError) -> Self {
        Self::Windows(error)
    }
}

impl From<OutsideWindow> for TransportError {
    fn from(error: OutsideWindow) -> Self {
        Self::Outside(error)
    }
}

impl From<MsixError> for TransportError {
    fn from(error: MsixError) -> Self {
        Self::Msix(error)
    }
}

impl From<InterruptError> for TransportError {
    fn from(error: InterruptError) -> Self {
        Self::Msix(MsixError::Interrupt(error))
    }
}

/// Makes `device`, a virtio device that no driver uses, quiet. It is left without bus mastering.
///
/// # Errors
/// It has no modern interface, or did not say that it is quiet in time.
pub fn await_quiet(device: &Device) -> Result<(), TransportError> {
    device.disable_bus_master();
    reset(&**device.host(), &Common::at(&Windows::find(device)?.common)?)
}

fn reset(host: &dyn Host, common: &Common) -> Result<(), TransportError> {
    let deadline_ns = host.now_ns().saturating_add(RESET_DEADLINE_NS);
    common.status.write(0);
    loop {
        let status = common.status.read();
        if status == 0 {
            return Ok(());
        }
        if host.now_ns() >= deadline_ns {
            return Err(TransportError::NotQuiet { status });
        }
        host.relax();
    }
}

impl Transport {
    /// Opens `function`, whose DMA handle is `dma`, resets it, and turns MSI-X on with no entry in use. It cannot
    /// master the bus yet.
    ///
    /// # Errors
    /// It is no modern virtio device, its registers are unusable, or it does not become quiet.
    pub fn open(host: &Arc<dyn Host>, dma: &DmaDevice, function: &Function) -> Result<Self, TransportError> {
        let device = Device::open(host.clone(), function).ok_or(TransportError::Absent)?.held_by(dma);
        let windows = Windows::find(&device)?;
        let common = Common::at(&windows.common)?;
        let msix = Msix::open(&device)?;
        let transport = Self { dma: dma.clone(), device, common, windows, msix };
        transport.reset()?;
        Ok(transport)
    }

    /// The PCI function.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Device-specific configuration, if there is any.
    pub fn configuration(&self) -> Option<&Mmio> {
        self.windows.device.as_ref()
    }

    /// A vector for MSI-X entry `entry` that signals `event`.
    ///
    /// # Errors
    /// There is no such entry, or no vector.
    pub fn add_interrupt(&mut self, entry: u16, event: Arc<dyn Event>) -> Result<(), TransportError> {
        let interrupt: Box<dyn Interrupt> =
            self.device.host().allocate_interrupt(self.device.function(), event)?;
        Ok(self.msix.set(entry, interrupt)?)
    }

    /// Number of MSI-X entries.
    pub fn interrupts(&self) -> u16 {
        self.msix.entries()
    }

    /// Sends the interrupt of MSI-X entry `entry` to CPU number `cpu`.
    ///
    /// # Errors
    /// The entry has no interrupt, or there is no way to the CPU: it goes where it went before.
    pub fn send_interrupt_to(&mut self, entry: u16, cpu: usize) -> Result<(), TransportError> {
        Ok(self.msix.retarget(entry, cpu)?)
    }

    /// Makes the device quiet: when this returns it has forgotten its queues and touches no memory.
    ///
    /// # Errors
    /// It did not say so in time. What it was given must stay as it is.
    pub fn reset(&self) -> Result<(), TransportError> {
        let host = &**self.device.host();
        if is_taken_back(host, &self.dma) {
            return Ok(());
        }
        reset(host, &self.common)
    }

    /// Agrees on features: those of `wanted` that the device offers, and the two that are required, and returns them.
    /// Comes after a reset.
    ///
    /// # Errors
    /// A required feature is not offered, or the device refuses the set; or it was taken from its driver.
    pub fn negotiate(&self, wanted: u64) -> Result<u64, TransportError> {
        if self.device.was_taken_back() {
            return Err(TransportError::Gone);
        }
        let status = &self.common.status;
        status.write(Status::ACKNOWLEDGE.bits());
        status.write((Status::ACKNOWLEDGE | Status::DRIVER).bits());
        let offered = self.offered();
        if offered & VERSION_1 == 0 {
            return Err(TransportError::NotModern);
        }
        if offered & ACCESS_PLATFORM == 0 {
            return Err(TransportError::BypassesIommu);
        }
        let features = offered & (wanted | VERSION_1 | ACCESS_PLATFORM);
        for half in 0..2 {
            self.common.driver_feature_select.write(half);
            self.common.driver_feature.write((features >> (32 * half)) as u32);
        }
        status.write((Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK).bits());
        if self.status().contains(Status::FEATURES_OK) {
            Ok(features)
        } else {
            Err(TransportError::FeaturesRefused(features))
        }
    }

    /// Makes MSI-X entry `entry` the one for changes of the configuration and of the status.
    ///
    /// # Errors
    /// The device does not accept it.
    pub fn set_config_vector(&self, entry: u16) -> Result<(), TransportError> {
        self.common.config_vector.write(entry);
        if self.common.config_vector.read() == entry { Ok(()) } else { Err(TransportError::NoVector(entry)) }
    }

    /// How many descriptors queue `queue` may have at most.
    ///
    /// # Errors
    /// There is no such queue.
    pub fn queue_limit(&self, queue: u16) -> Result<u16, TransportError> {
        if queue >= self.common.queues.read() {
            return Err(TransportError::NoQueue(queue));
        }
        self.common.queue_select.write(queue);
        match self.common.queue_size.read() {
            0 => Err(TransportError::NoQueue(queue)),
            limit => Ok(limit),
        }
    }

    /// Tells the device where queue `queue` of `size` descriptors is and which MSI-X entry it uses, and turns it on.
    /// Comes between [`negotiate`](Self::negotiate) and [`start`](Self::start).
    ///
    /// # Errors
    /// There is no such queue, its doorbell is outside the window, or the entry is not accepted.
    pub fn set_queue(
        &self,
        queue: u16,
        size: u16,
        addresses: QueueAddresses,
        entry: u16,
    ) -> Result<Doorbell, TransportError> {
        let common = &self.common;
        if self.queue_limit(queue)? < size {
            return Err(TransportError::NoQueue(queue));
        }
        let doorbell_at =
            u64::from(common.queue_notify_offset.read()) * u64::from(self.windows.notify_multiplier);
        // At most 48 bits.
        let register = self.windows.notify.register(doorbell_at as usize)?;
        common.queue_size.write(size);
        common.queue_vector.write(entry);
        if entry == NO_VECTOR || common.queue_vector.read() != entry {
            return Err(TransportError::NoVector(entry));
        }
        let fields = [
            (&common.queue_descriptors, addresses.descriptors),
            (&common.queue_driver, addresses.available),
            (&common.queue_device, addresses.used),
        ];
        for (halves, iova) in fields {
            halves[0].write(iova.as_u64() as u32);
            halves[1].write((iova.as_u64() >> 32) as u32);
        }
        common.queue_enable.write(1);
        Ok(Doorbell { register, queue })
    }

    /// Lets the device run, unless it is another driver's by now.
    pub fn start(&self) {
        if self.device.was_taken_back() {
            return;
        }
        self.device.enable_bus_master();
        let running = Status::ACKNOWLEDGE | Status::DRIVER | Status::FEATURES_OK | Status::DRIVER_OK;
        self.common.status.write(running.bits());
    }

    /// Whether the device runs, and for this driver: it asks for no reset, was not given up, and still answers.
    pub fn is_running(&self) -> bool {
        let status = self.status();
        !self.device.was_taken_back()
            && status.contains(Status::DRIVER_OK)
            && !status.intersects(Status::NEEDS_RESET | Status::FAILED)
    }

    fn status(&self) -> Status {
        Status::from_bits_retain(self.common.status.read())
    }

    fn offered(&self) -> u64 {
        let mut features = 0;
        for half in 0..2 {
            self.common.device_feature_select.write(half);
            features |= u64::from(self.common.device_feature.read()) << (32 * half);
        }
        features
    }
}
