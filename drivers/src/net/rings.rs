//! What a network driver does for the [engine](super::engine): the device's rings, and its registers.

use core::fmt;

use iommu::{
    FromDevice,
    dma::{FaultCounts, PoolBuffer},
};

use super::{Checksum, Link};

/// A device's rings and registers. Everything that it takes from the device is checked before it is believed.
///
/// What is handed over as a pool's buffer is the device's for as long as the rings keep it.
pub trait Rings: Send + 'static {
    /// The driver, in the log.
    const NAME: &'static str;

    /// What can be wrong with the device.
    type Error: fmt::Display;

    /// Starts the device, which is reset, with empty rings.
    ///
    /// # Errors
    /// It does not work. It may have begun to.
    fn start(&mut self) -> Result<(), Self::Error>;

    /// Makes the device quiet: when this returns `Ok` it touches no memory.
    ///
    /// # Errors
    /// It did not say so in time. What it was given must stay as it is.
    fn stop(&mut self) -> Result<(), Self::Error>;

    /// Takes all buffers back from a device that is quiet, and makes the rings as new. Returns how many frames were not
    /// sent.
    fn clear(&mut self) -> u64;

    /// Takes bus mastering away.
    fn disconnect(&mut self);

    /// Whether the device runs: it asks for no reset, was not given up, and still answers.
    fn is_running(&self) -> bool;

    /// What the device says about its network.
    fn link(&mut self) -> Link;

    /// Takes the next buffer back that the device has filled.
    ///
    /// # Errors
    /// What the device says cannot be true.
    fn take_received(&mut self) -> Result<Option<Arrived>, Self::Error>;

    /// Gives the device as many empty buffers as there are and it can have, each with the fault counts of this moment,
    /// and tells it of them.
    fn refill(&mut self, faults: FaultCounts);

    /// Takes the buffer of the next frame back that the device has sent; false if there is none.
    ///
    /// # Errors
    /// What the device says cannot be true.
    fn take_sent(&mut self) -> Result<bool, Self::Error>;

    /// Frames that can be queued now.
    fn room(&self) -> usize;

    /// Whether a frame queued before `since_ns` has not been sent.
    fn has_unsent(&self, since_ns: u64) -> bool;

    /// Queues a frame that [`NetInfo`](super::NetInfo) allows. False if there is no room.
    fn queue(&mut self, frame: &[u8], checksum: Option<Checksum>, now_ns: u64) -> bool;

    /// Tells the device of queued frames, if it wants to know.
    fn flush(&mut self);

    /// Asks for an interrupt at the next thing of those that are awaited. True if there has been one meanwhile, so that
    /// there may be no interrupt for it.
    fn rearm(&mut self, awaited: Awaited) -> bool;

    /// How often the device was told of something.
    fn doorbells(&self) -> u64;
}

/// What an interrupt is wanted for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Awaited {
    /// The next frame that arrives.
    pub frames: bool,
    /// The next frame that is sent, which makes room.
    pub room: bool,
}

/// A buffer that the device has filled.
pub struct Arrived {
    /// The buffer.
    pub buffer: PoolBuffer<FromDevice>,
    /// The fault counts when the device was given it.
    pub faults: FaultCounts,
    /// Where the frame begins in it; inside of it.
    pub offset: usize,
    /// Length of the frame; it ends inside of the buffer.
    pub bytes: usize,
    /// The device found no damage in it.
    pub is_good: bool,
}
