//! Frames in the controller's rings.

use alloc::vec::Vec;

use iommu::{
    Coherent, DmaDevice, DmaError, FromDevice, Iova, ToDevice,
    dma::{FaultCounts, Pool, PoolBuffer},
};

use super::{
    descriptor::{self, BUFFER_BYTES, Filled},
    error::E1000eError,
    registers::{Cause, Registers},
};
use crate::{
    net::{
        Checksum, FRAME_LIMIT_BYTES, Link,
        rings::{Arrived, Awaited, Rings},
    },
    pci::{Device, Msix},
    quiet::is_taken_back,
};

/// Descriptors of a ring: a multiple of 8.
const SIZE: usize = 256;

/// A ring of descriptors, each with a `T` while the controller has it.
///
/// The controller takes descriptors from `first` to the tail, which is never made equal to the head of a full ring: one
/// stays free.
pub struct Ring<T> {
    words: Coherent<u64>,
    held: Vec<Option<T>>,
    /// The oldest descriptor that the controller has.
    first: usize,
    count: usize,
    /// The controller was not told of all.
    has_new: bool,
}

impl<T> Ring<T> {
    fn new(dma: &DmaDevice) -> Result<Self, DmaError> {
        let mut held = Vec::new();
        held.try_reserve_exact(SIZE).map_err(|_| DmaError::OutOfMemory)?;
        held.resize_with(SIZE, || None);
        Ok(Self { words: dma.alloc_coherent(2 * SIZE)?, held, first: 0, count: 0, has_new: false })
    }

    fn iova(&self) -> Iova {
        self.words.iova()
    }

    fn room(&self) -> usize {
        SIZE - 1 - self.count
    }

    fn tail(&self) -> usize {
        (self.first + self.count) % SIZE
    }

    /// Adds a descriptor; there is room.
    fn push(&mut self, words: [u64; 2], held: T) {
        let at = self.tail();
        self.words.write(2 * at, words[0]);
        self.words.write(2 * at + 1, words[1]);
        self.held[at] = Some(held);
        self.count += 1;
        self.has_new = true;
    }

    /// The second word of the descriptor number `ahead` from the oldest, and what is held for it.
    fn peek(&self, ahead: usize) -> Option<(u64, &T)> {
        let at = (self.first + ahead) % SIZE;
        let held = self.held[at].as_ref().filter(|_| ahead < self.count)?;
        Some((self.words.read(2 * at + 1), held))
    }

    fn pop(&mut self) -> Option<T> {
        let held = self.held[self.first].take()?;
        self.first = (self.first + 1) % SIZE;
        self.count -= 1;
        Some(held)
    }

    /// Forgets everything; the controller is quiet.
    fn clear(&mut self) {
        for word in 0..self.words.len() {
            self.words.write(word, 0);
        }
        (self.first, self.count, self.has_new) = (0, 0, false);
        self.held.iter_mut().for_each(|held| *held = None);
    }
}

impl Ring<()> {
    /// Both rings of a controller.
    pub fn pair(
        dma: &DmaDevice,
        device: Device,
        registers: Registers,
        msix: Msix,
    ) -> Result<Controller, DmaError> {
        Ok(Controller {
            dma: dma.clone(),
            registers,
            receive: Ring::new(dma)?,
            transmit: Ring::new(dma)?,
            // Twice as many as the controller can have, so that it has some while others are being read.
            empty: dma.dma_pool(BUFFER_BYTES, 2 * SIZE, FromDevice)?,
            frames: dma.dma_pool(FRAME_LIMIT_BYTES, SIZE, ToDevice)?,
            context: None,
            in_pieces: false,
            doorbells: 0,
            _msix: msix,
            device,
        })
    }
}

/// An empty buffer that the controller has.
struct Posted {
    buffer: PoolBuffer<FromDevice>,
    faults: FaultCounts,
}

/// A transmit descriptor that the controller has.
enum Queued {
    /// It describes the checksums of the frames behind it.
    Context,
    Frame {
        _buffer: PoolBuffer<ToDevice>,
        at_ns: u64,
    },
}

/// The controller and its rings.
pub struct Controller {
    dma: DmaDevice,
    registers: Registers,
    receive: Ring<Posted>,
    transmit: Ring<Queued>,
    empty: Pool<FromDevice>,
    frames: Pool<ToDevice>,
    /// The checksum that the controller was told of last.
    context: Option<Checksum>,
    /// The last buffer that it filled does not end its frame.
    in_pieces: bool,
    doorbells: u64,
    _msix: Msix,
    device: Device,
}

impl Controller {
    pub fn receive_depth(&self) -> usize {
        SIZE - 1
    }

    fn reset(&self) -> Result<(), E1000eError> {
        let host = &**self.device.host();
        if is_taken_back(host, &self.dma) {
            return Ok(());
        }
        self.registers.reset(host)
    }
}

impl Rings for Controller {
    const NAME: &'static str = "e1000e";
    type Error = E1000eError;

    fn start(&mut self) -> Result<(), E1000eError> {
        self.reset()?;
        let bytes = SIZE as u32 * descriptor::BYTES;
        self.registers.receive.set(self.receive.iova().as_u64(), bytes);
        self.registers.transmit.set(self.transmit.iova().as_u64(), bytes);
        self.registers.configure()?;
        self.device.enable_bus_master();
        self.registers.start();
        self.registers.unmask(Cause::RECEIVED | Cause::OTHER | Cause::LINK_CHANGED);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), E1000eError> {
        self.reset()
    }

    fn clear(&mut self) -> u64 {
        let frames = self.transmit.held.iter().flatten().filter(|held| matches!(held, Queued::Frame { .. }));
        let unsent = frames.count() as u64;
        self.transmit.clear();
        self.receive.clear();
        (self.context, self.in_pieces) = (None, false);
        unsent
    }

    fn disconnect(&mut self) {
        self.device.disable_bus_master();
    }

    fn is_running(&self) -> bool {
        self.registers.is_running()
    }

    fn link(&mut self) -> Link {
        self.registers.link()
    }

    fn take_received(&mut self) -> Result<Option<Arrived>, E1000eError> {
        let Some((word, _)) = self.receive.peek(0) else { return Ok(None) };
        let Some(Filled { bytes, is_last, has_errors }) = descriptor::filled(word) else { return Ok(None) };
        if bytes > BUFFER_BYTES {
            return Err(E1000eError::TooLong { bytes });
        }
        let Some(Posted { buffer, faults }) = self.receive.pop() else { return Ok(None) };
        // A frame that takes several buffers is longer than any that is let in.
        let goes_on = core::mem::replace(&mut self.in_pieces, !is_last);
        let is_whole = is_last && !goes_on;
        Ok(Some(Arrived { buffer, faults, offset: 0, bytes, is_good: is_whole && !has_errors }))
    }

    fn refill(&mut self, faults: FaultCounts) {
        while self.receive.room() > 0
            && let Some(buffer) = self.empty.take()
        {
            self.receive.push([buffer.iova().as_u64(), 0], Posted { buffer, faults });
        }
        if core::mem::take(&mut self.receive.has_new) {
            self.registers.receive.tail.write(self.receive.tail() as u32);
            self.doorbells += 1;
        }
    }

    fn take_sent(&mut self) -> Result<bool, E1000eError> {
        let is_context = matches!(self.transmit.peek(0), Some((_, Queued::Context)));
        let frame = usize::from(is_context);
        if !self.transmit.peek(frame).is_some_and(|(word, _)| descriptor::is_sent(word)) {
            return Ok(false);
        }
        for _ in 0..=frame {
            self.transmit.pop();
        }
        Ok(true)
    }

    fn room(&self) -> usize {
        // Each frame may want a descriptor for its checksum.
        self.transmit.room() / 2
    }

    fn has_unsent(&self, since_ns: u64) -> bool {
        let oldest = (0..2).filter_map(|ahead| self.transmit.peek(ahead));
        oldest
            .map(|(_, held)| held)
            .any(|held| matches!(held, Queued::Frame { at_ns, .. } if *at_ns < since_ns))
    }

    fn queue(&mut self, frame: &[u8], checksum: Option<Checksum>, now_ns: u64) -> bool {
        if self.room() == 0 {
            return false;
        }
        let Some(mut buffer) = self.frames.take() else { return false };
        buffer.copy_from(0, frame);
        if let Some(wanted) = checksum
            && self.context != checksum
        {
            self.transmit.push(descriptor::context(wanted), Queued::Context);
            self.context = checksum;
        }
        let words = [buffer.iova().as_u64(), descriptor::frame(frame.len(), checksum.is_some())];
        self.transmit.push(words, Queued::Frame { _buffer: buffer, at_ns: now_ns });
        true
    }

    fn flush(&mut self) {
        if core::mem::take(&mut self.transmit.has_new) {
            self.registers.transmit.tail.write(self.transmit.tail() as u32);
            self.doorbells += 1;
        }
    }

    fn rearm(&mut self, awaited: Awaited) -> bool {
        let mut causes = Cause::empty();
        causes.set(Cause::RECEIVED, awaited.frames);
        causes.set(Cause::SENT, awaited.room);
        // What has come meanwhile is raised by this.
        self.registers.unmask(causes);
        awaited.frames && self.receive.peek(0).is_some_and(|(word, _)| descriptor::filled(word).is_some())
    }

    fn doorbells(&self) -> u64 {
        self.doorbells
    }
}
