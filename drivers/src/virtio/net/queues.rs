//! Frames in virtqueues.

use iommu::{
    DmaDevice, DmaError, FromDevice, ToDevice,
    dma::{FaultCounts, Pool, PoolBuffer},
};

use super::{
    CONFIG_ENTRY, FEATURES,
    error::NetTrouble,
    layout::{Configuration, FRAME_HEADER_BYTES, frame_header},
};
use crate::{
    net::{
        Checksum, Link,
        rings::{Arrived, Awaited, Rings as NetRings},
    },
    virtio::{Doorbell, QueueAddresses, Rings, Segment, SplitQueue, Transport, TransportError},
};

/// Numbers of the first pair of queues.
pub const RECEIVE: u16 = 0;
pub const TRANSMIT: u16 = 1;

/// A virtqueue, and the register that tells the device of it once it has been started.
pub struct Queue<T> {
    split: SplitQueue<Rings, T>,
    number: u16,
    entry: u16,
    doorbell: Option<Doorbell>,
    /// The device was not told of all chains.
    has_new: bool,
    doorbells: u64,
}

impl<T> Queue<T> {
    pub fn new(split: SplitQueue<Rings, T>, number: u16, entry: u16) -> Self {
        Self { split, number, entry, doorbell: None, has_new: false, doorbells: 0 }
    }

    /// Tells the device where the queue is.
    fn connect(&mut self, transport: &Transport) -> Result<(), TransportError> {
        let [descriptors, available, used] = self.split.memory().addresses();
        let addresses = QueueAddresses { descriptors, available, used };
        let doorbell = transport.set_queue(self.number, self.split.size(), addresses, self.entry)?;
        self.doorbell = Some(doorbell);
        Ok(())
    }

    fn ring(&mut self) {
        if let Some(doorbell) = &self.doorbell
            && core::mem::take(&mut self.has_new)
            && self.split.wants_notification()
        {
            doorbell.ring();
            self.doorbells += 1;
        }
    }

    /// Hands a segment to the device; there is room for it. The device is told by [`ring`](Self::ring).
    fn add(&mut self, segment: Segment, token: T) {
        self.has_new |= self.split.add(&[segment], token).is_ok();
    }

    fn has_room(&self) -> bool {
        self.split.next_head(1).is_some()
    }

    /// Takes everything back; the device is quiet.
    fn clear(&mut self) -> u64 {
        let mut chains = 0;
        while self.split.take_back().is_some() {
            chains += 1;
        }
        self.split.restart();
        chains
    }
}

/// An empty buffer that the device has.
pub struct Posted {
    buffer: PoolBuffer<FromDevice>,
    faults: FaultCounts,
}

/// A frame that the device has.
pub struct Queued {
    _buffer: PoolBuffer<ToDevice>,
    at_ns: u64,
}

/// The pair of queues and the device that they belong to.
pub struct Queues {
    transport: Transport,
    configuration: Configuration,
    features: u64,
    receive: Queue<Posted>,
    transmit: Queue<Queued>,
    empty: Pool<FromDevice>,
    frames: Pool<ToDevice>,
}

impl Queues {
    /// Makes the pools. There are twice as many buffers to receive as the device can have, so that it has some while
    /// others are being read.
    pub fn new(
        dma: &DmaDevice,
        transport: Transport,
        configuration: Configuration,
        features: u64,
        (receive, transmit): (Queue<Posted>, Queue<Queued>),
        frame_bytes: usize,
    ) -> Result<Self, DmaError> {
        let bytes = FRAME_HEADER_BYTES + frame_bytes;
        let empty = dma.dma_pool(bytes, 2 * usize::from(receive.split.size()), FromDevice)?;
        let frames = dma.dma_pool(bytes, transmit.split.size().into(), ToDevice)?;
        Ok(Self { transport, configuration, features, receive, transmit, empty, frames })
    }

    pub fn receive_depth(&self) -> usize {
        self.receive.split.size().into()
    }
}

impl NetRings for Queues {
    const NAME: &'static str = "virtio-net";
    type Error = NetTrouble;

    fn start(&mut self) -> Result<(), NetTrouble> {
        self.transport.reset()?;
        if self.transport.negotiate(FEATURES)? != self.features {
            return Err(TransportError::FeaturesRefused(self.features).into());
        }
        self.transport.set_config_vector(CONFIG_ENTRY)?;
        self.receive.connect(&self.transport)?;
        self.transmit.connect(&self.transport)?;
        self.transport.start();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), NetTrouble> {
        Ok(self.transport.reset()?)
    }

    fn clear(&mut self) -> u64 {
        self.receive.clear();
        self.transmit.clear()
    }

    fn disconnect(&mut self) {
        self.transport.device().disable_bus_master();
    }

    fn is_running(&self) -> bool {
        self.transport.is_running()
    }

    fn link(&mut self) -> Link {
        self.configuration.link()
    }

    fn take_received(&mut self) -> Result<Option<Arrived>, NetTrouble> {
        let Some(finished) = self.receive.split.take_finished()? else {
            return Ok(None);
        };
        let Posted { buffer, faults } = finished.token;
        // At most what the buffer has room for: the queue has checked it.
        let no_header = NetTrouble::NoHeader { bytes: finished.bytes };
        let bytes = (finished.bytes as usize).checked_sub(FRAME_HEADER_BYTES).ok_or(no_header)?;
        Ok(Some(Arrived { buffer, faults, offset: FRAME_HEADER_BYTES, bytes, is_good: true }))
    }

    fn refill(&mut self, faults: FaultCounts) {
        while self.receive.has_room()
            && let Some(buffer) = self.empty.take()
        {
            let segment = Segment { iova: buffer.iova(), bytes: buffer.len() as u32, writable: true };
            self.receive.add(segment, Posted { buffer, faults });
        }
        self.receive.ring();
    }

    fn take_sent(&mut self) -> Result<bool, NetTrouble> {
        Ok(self.transmit.split.take_finished()?.is_some())
    }

    fn room(&self) -> usize {
        usize::from(self.transmit.split.size() - self.transmit.split.in_flight())
    }

    fn has_unsent(&self, since_ns: u64) -> bool {
        self.transmit.split.tokens().any(|queued| queued.at_ns < since_ns)
    }

    fn queue(&mut self, frame: &[u8], checksum: Option<Checksum>, now_ns: u64) -> bool {
        if !self.transmit.has_room() {
            return false;
        }
        let Some(mut buffer) = self.frames.take() else { return false };
        buffer.copy_from(0, &frame_header(checksum));
        buffer.copy_from(FRAME_HEADER_BYTES, frame);
        let bytes = (FRAME_HEADER_BYTES + frame.len()) as u32;
        let segment = Segment { iova: buffer.iova(), bytes, writable: false };
        let queued = Queued { _buffer: buffer, at_ns: now_ns };
        self.transmit.add(segment, queued);
        true
    }

    fn flush(&mut self) {
        self.transmit.ring();
    }

    fn rearm(&mut self, awaited: Awaited) -> bool {
        let sent = awaited.room && self.transmit.split.rearm();
        let arrived = awaited.frames && self.receive.split.rearm();
        arrived || sent
    }

    fn doorbells(&self) -> u64 {
        self.receive.doorbells + self.transmit.doorbells
    }
}
