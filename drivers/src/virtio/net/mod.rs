//! The virtio network device.
//!
//! One pair of queues: a network device belongs to one thread, and a second pair would bring that thread nothing. A
//! device that has more is left with one until it is asked for more by a command; another pair would be another
//! `Queues`.
//!
//! Each frame takes one descriptor, its header in front of it in the same buffer. Buffers come from pools, so that
//! nothing is mapped or unmapped for a frame.

mod error;
mod layout;
mod queues;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, sync::Arc};

use iommu::DmaDevice;

pub use self::error::VirtioNetError;
use self::{
    layout::{Configuration, feature},
    queues::{Queue, Queues},
};
use crate::{
    host::{Event, Host},
    net::{
        NetDevice, NetInfo,
        attention::Attention,
        engine::{Engine, Setup},
        rings::Rings as _,
    },
    pci::{Function, Id},
    virtio::{EVENT_INDEX, Rings, SplitQueue, Transport, VENDOR},
};

/// What the device is called: by its modern id, and by its transitional one, which may have the modern interface too.
pub const IDS: [Id; 2] = [Id { vendor: VENDOR, device: 0x1041 }, Id { vendor: VENDOR, device: 0x1000 }];

/// Most descriptors of a queue that the driver makes use of.
const QUEUE_SIZE_LIMIT: u16 = 256;

const FEATURES: u64 = feature::CHECKSUM | feature::MTU | feature::MAC | feature::STATUS | EVENT_INDEX;

/// MSI-X entries. A device with too few of them has its queues share one.
const CONFIG_ENTRY: u16 = 0;
const RECEIVE_ENTRY: u16 = 1;
const TRANSMIT_ENTRY: u16 = 2;

/// Takes `function`, whose DMA handle is `dma`, a modern virtio network device, into use.
///
/// # Errors
/// It is none, goes around the IOMMU, or something it needs is not to be had. It is left without bus mastering.
pub fn open(
    host: &Arc<dyn Host>,
    dma: DmaDevice,
    function: &Function,
) -> Result<Box<dyn NetDevice>, VirtioNetError> {
    let mut transport = Transport::open(host, &dma, function)?;
    let features = transport.negotiate(FEATURES)?;
    let window = transport.configuration().ok_or(VirtioNetError::NoConfiguration)?;
    let configuration = Configuration::at(window, features)?;
    let mac = (features & feature::MAC != 0).then(|| configuration.mac()).flatten();
    let mac = mac.ok_or(VirtioNetError::NoMac)?;
    let wake = host.event();
    let attention = Attention::new(&wake);
    let transmit_entry = add_interrupts(&mut transport, &wake, attention.clone())?;
    let receive = queue(&transport, &dma, features, queues::RECEIVE, RECEIVE_ENTRY)?;
    let transmit = queue(&transport, &dma, features, queues::TRANSMIT, transmit_entry)?;
    let frame_bytes = configuration.frame_bytes();
    let rings = Queues::new(&dma, transport, configuration, features, (receive, transmit), frame_bytes)?;
    let info = NetInfo {
        driver: Queues::NAME,
        mac,
        frame_bytes,
        transmit_checksum: features & feature::CHECKSUM != 0,
        transmit_depth: rings.room(),
        receive_depth: rings.receive_depth(),
    };
    Ok(Box::new(Engine::start(host, Setup { dma, info, wake, attention, rings })?))
}

/// Sets the interrupts up, and returns the entry of the transmit queue.
fn add_interrupts(
    transport: &mut Transport,
    wake: &Arc<dyn Event>,
    attention: Arc<Attention>,
) -> Result<u16, VirtioNetError> {
    transport.add_interrupt(CONFIG_ENTRY, attention)?;
    transport.add_interrupt(RECEIVE_ENTRY, wake.clone())?;
    if transport.interrupts() <= TRANSMIT_ENTRY {
        return Ok(RECEIVE_ENTRY);
    }
    transport.add_interrupt(TRANSMIT_ENTRY, wake.clone())?;
    Ok(TRANSMIT_ENTRY)
}

fn queue<T>(
    transport: &Transport,
    dma: &DmaDevice,
    features: u64,
    number: u16,
    entry: u16,
) -> Result<Queue<T>, VirtioNetError> {
    let limit = transport.queue_limit(number)?;
    let size = limit.min(QUEUE_SIZE_LIMIT).checked_ilog2().map(|lg2| 1 << lg2);
    let size = size.ok_or(VirtioNetError::QueueTooSmall(limit))?;
    let split = SplitQueue::new(Rings::new(dma, size)?, size).map_err(|_| VirtioNetError::OutOfMemory)?;
    let split = split.with_event_index(features & EVENT_INDEX != 0);
    Ok(Queue::new(split, number, entry))
}
