//! The virtio block device: several queues, one for each CPU as far as the device has them.
//!
//! What is done with requests is the business of `block/engine.rs`; here is how the device is told.

mod error;
mod layout;
mod queue;
#[cfg(test)]
mod tests;

use alloc::{sync::Arc, vec::Vec};

use iommu::DmaDevice;

pub use self::error::DiskError;
use self::{
    layout::{Medium, feature, read_medium},
    queue::{DESCRIPTORS, RequestQueue},
};
use crate::{
    block::{
        BlockDevice,
        attention::Attention,
        engine::{Engine, Setup},
        hardware::{Hardware, Stop},
    },
    host::{Event, Host},
    pci::{Function, Id},
    virtio::{
        Doorbell, EVENT_INDEX, INDIRECT_DESCRIPTORS, QueueAddresses, Rings, SplitQueue, Transport,
        TransportError, VENDOR,
    },
};

/// What the device is called: by its modern id, and by its transitional one, which may have the modern interface too.
pub const IDS: [Id; 2] = [Id { vendor: VENDOR, device: 0x1042 }, Id { vendor: VENDOR, device: 0x1001 }];

/// MSI-X entry for changes of the configuration; the queues' are behind it.
const CONFIG_ENTRY: u16 = 0;

/// Most descriptors of a queue that the driver makes use of.
const QUEUE_SIZE_LIMIT: u16 = 256;

const FEATURES: u64 = feature::SEGMENT_SIZE
    | feature::READ_ONLY
    | feature::FLUSH
    | feature::QUEUES
    | feature::DISCARD
    | INDIRECT_DESCRIPTORS
    | EVENT_INDEX;

/// Takes `function`, whose DMA handle is `dma`, a modern virtio block device, into use.
///
/// # Errors
/// It is none, goes around the IOMMU, or something it needs is not to be had. It is left without bus mastering.
pub fn open(
    host: &Arc<dyn Host>,
    dma: DmaDevice,
    function: &Function,
) -> Result<Arc<dyn BlockDevice>, DiskError> {
    let mut transport = Transport::open(host, &dma, function)?;
    let features = transport.negotiate(FEATURES)?;
    let medium = read_medium(transport.configuration().ok_or(DiskError::NoConfiguration)?, features)?;
    let attention = Attention::new(host);
    transport.add_interrupt(CONFIG_ENTRY, attention.clone())?;
    let mut hardware = VirtioBlk { transport, features, queues: Vec::new() };
    let queues = hardware.add_queues(host, &dma, &medium)?;
    let Medium { info, .. } = medium;
    let flushes = features & feature::FLUSH != 0;
    Ok(Arc::new(Engine::start(host, Setup { dma, info, flushes, attention, hardware, queues })?))
}

/// The device apart from its queues.
struct VirtioBlk {
    transport: Transport,
    features: u64,
    /// Where the queues are, by number, and how large.
    queues: Vec<(QueueAddresses, u16)>,
}

type Queues = Vec<(RequestQueue, Arc<dyn Event>)>;

impl VirtioBlk {
    /// Makes queues, as many as there are in the device, CPUs and interrupts for them.
    fn add_queues(
        &mut self,
        host: &Arc<dyn Host>,
        dma: &DmaDevice,
        medium: &Medium,
    ) -> Result<Queues, DiskError> {
        let most = usize::from(medium.queues.min(self.transport.interrupts().saturating_sub(1)).max(1));
        let mut queues = Vec::new();
        for number in 0..host.cpus().clamp(1, most) {
            queues.try_reserve(1).map_err(|_| DiskError::OutOfMemory)?;
            self.queues.try_reserve(1).map_err(|_| DiskError::OutOfMemory)?;
            let wake = host.event();
            queues.push((self.add_queue(dma, number as u16, &wake)?, wake));
            let moved = self.transport.send_interrupt_to(CONFIG_ENTRY + 1 + number as u16, number);
            if let Err(error) = moved {
                log::info!("virtio-blk {}: queue {number}: {error}", dma.function());
            }
        }
        Ok(queues)
    }

    fn add_queue(
        &mut self,
        dma: &DmaDevice,
        number: u16,
        wake: &Arc<dyn Event>,
    ) -> Result<RequestQueue, DiskError> {
        let has = |feature| self.features & feature != 0;
        let size = queue_size(self.transport.queue_limit(number)?, has(INDIRECT_DESCRIPTORS))?;
        let rings = if has(INDIRECT_DESCRIPTORS) {
            Rings::with_indirect(dma, size, DESCRIPTORS)?
        } else {
            Rings::new(dma, size)?
        };
        let [descriptors, available, used] = rings.addresses();
        let addresses = QueueAddresses { descriptors, available, used };
        let queue = SplitQueue::new(rings, size).map_err(|_| DiskError::OutOfMemory)?;
        let slots = dma.alloc_coherent(usize::from(size))?;
        let doorbell = self.transport.set_queue(number, size, addresses, CONFIG_ENTRY + 1 + number)?;
        self.transport.add_interrupt(CONFIG_ENTRY + 1 + number, wake.clone())?;
        self.queues.push((addresses, size));
        Ok(RequestQueue::new(queue.with_event_index(has(EVENT_INDEX)), slots, doorbell))
    }
}

impl Hardware for VirtioBlk {
    const NAME: &'static str = "virtio-blk";
    type Error = TransportError;

    fn start(&mut self) -> Result<(), TransportError> {
        self.transport.reset()?;
        let features = self.transport.negotiate(FEATURES)?;
        if features != self.features {
            return Err(TransportError::FeaturesRefused(self.features));
        }
        self.transport.set_config_vector(CONFIG_ENTRY)?;
        for (number, &(addresses, size)) in (0..).zip(&self.queues) {
            // The doorbell is where it was.
            let _: Doorbell = self.transport.set_queue(number, size, addresses, CONFIG_ENTRY + 1 + number)?;
        }
        self.transport.start();
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.transport.is_running()
    }

    fn stop(&mut self, _how: Stop) -> Result<(), TransportError> {
        self.transport.reset()
    }

    fn disconnect(&mut self) {
        self.transport.device().disable_bus_master();
    }
}

/// The size to use of a queue that may have up to `limit` descriptors: a power of two.
fn queue_size(limit: u16, indirect: bool) -> Result<u16, DiskError> {
    let least = if indirect { 1 } else { DESCRIPTORS };
    let size = limit.min(QUEUE_SIZE_LIMIT).checked_ilog2().map_or(0, |lg2| 1 << lg2);
    if size < least { Err(DiskError::QueueTooSmall(limit)) } else { Ok(size) }
}
