//! The interface of network devices, whatever they are, and what their drivers have in common.
//!
//! A network device belongs to one thread, its owner, which waits for the device's [`event`](NetDevice::event), lets
//! the driver look after the device ([`service`](NetDevice::service)), and moves frames: no lock, and no thread of the
//! driver's. Frames lie in pools of buffers that stay mapped and are copied in and out; what does not fit into a queue
//! is refused or dropped, and counted.
//!
//! A driver consists of its `Rings` (`rings.rs`); faults, recovery and shutdown are the `Engine`'s (`engine.rs`).

pub(crate) mod attention;
mod binding;
pub(crate) mod engine;
mod mac;
pub(crate) mod rings;

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use iommu::DmaDevice;

pub use self::{
    binding::{OpenError, is_candidate, open},
    mac::MacAddress,
};
use crate::host::Event;

/// Bytes of an Ethernet header.
pub const HEADER_BYTES: usize = 14;

/// Longest frame, without its check sequence, that any driver moves.
pub const FRAME_LIMIT_BYTES: usize = HEADER_BYTES + 1500;

/// A device that moves Ethernet frames. Dropping it makes it quiet; its memory comes back only then, and stays pinned
/// if it does not become quiet.
///
/// # Examples
/// ```no_run
/// use drivers::net::{FRAME_LIMIT_BYTES, NetDevice};
///
/// /// One turn of a thread that sends back what it receives.
/// fn echo(device: &mut dyn NetDevice) {
///     device.service();
///     let mut frame = [0; FRAME_LIMIT_BYTES];
///     while device.room() > 0 {
///         let Some(bytes) = device.receive(&mut frame) else { break };
///         // What finds no room is dropped, as a network does.
///         let _ = device.transmit(&frame[..bytes], None);
///     }
///     device.flush();
///     // Nothing new since: the next event is waited for.
///     if !device.rearm() {
///         device.event().wait(device.service_by_ns());
///     }
/// }
/// ```
pub trait NetDevice: Send {
    /// What the device is like; does not change.
    fn info(&self) -> NetInfo;

    /// Whether there is a network at the other end.
    fn link(&self) -> Link;

    /// Signalled when frames have arrived, room was made, or the device wants attention.
    fn event(&self) -> Arc<dyn Event>;

    /// When [`service`](Self::service) wants to be called at the latest, whatever happens.
    fn service_by_ns(&self) -> u64;

    /// Takes what the device has finished, gives it new buffers, and resets it if it misbehaves. Called whenever the
    /// event was signalled, before frames are moved.
    fn service(&mut self);

    /// Copies the next frame that has arrived into `frame`, which has [`NetInfo::frame_bytes`] bytes at least, and
    /// returns its length. `None` if there is none, until `service` has been called again.
    fn receive(&mut self, frame: &mut [u8]) -> Option<usize>;

    /// How many frames [`transmit`](Self::transmit) takes for certain; none while the link is down.
    fn room(&self) -> usize;

    /// Queues a frame. The device is told of it by the next [`flush`](Self::flush).
    ///
    /// # Errors
    /// See [`TransmitError`].
    fn transmit(&mut self, frame: &[u8], checksum: Option<Checksum>) -> Result<(), TransmitError>;

    /// Tells the device of what was queued.
    fn flush(&mut self);

    /// Asks for the event at the next thing that happens. True if something has meanwhile, so that there may be no
    /// event for it.
    fn rearm(&mut self) -> bool;

    /// What the device has done so far.
    fn counters(&self) -> Counters;

    /// The device's DMA handle.
    fn dma(&self) -> &DmaDevice;

    /// Resets the device and starts it again: what it has is lost.
    fn reset(&mut self);

    /// Resets the device for good.
    ///
    /// # Errors
    /// It did not become quiet: what it had stays pinned.
    fn shut_down(self: Box<Self>) -> Result<(), NotQuiet>;
}

/// What a network device is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetInfo {
    /// The driver.
    pub driver: &'static str,
    /// Its address: unicast, not zero.
    pub mac: MacAddress,
    /// Longest frame in bytes, header included and check sequence not: from 590 to [`FRAME_LIMIT_BYTES`].
    pub frame_bytes: usize,
    /// It completes checksums of frames that it sends (see [`Checksum`]).
    pub transmit_checksum: bool,
    /// Most frames that wait to be sent.
    pub transmit_depth: usize,
    /// Most frames that wait to be received.
    pub receive_depth: usize,
}

/// Whether there is a network at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// There is.
    Up,
    /// There is none, or the device is out of order.
    Down,
}

/// A checksum of the Internet protocols that the device is to complete: the sum of everything from `start` to the end
/// of the frame. What the field at `start + offset` holds is part of the sum (that of the pseudo-header).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checksum {
    /// First byte that is summed.
    pub start: u8,
    /// Where the sum goes, from `start`.
    pub offset: u8,
}

impl Checksum {
    /// Whether its field lies inside of a frame of `bytes` bytes.
    #[must_use]
    pub fn fits(self, bytes: usize) -> bool {
        usize::from(self.start) + usize::from(self.offset) + 2 <= bytes
    }
}

/// Why a frame was not queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransmitError {
    /// As many as there can be wait already.
    Full,
    /// It is no frame that this device could send.
    BadLength {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The device does not complete checksums, or this one lies outside of the frame.
    BadChecksum,
    /// There is no network. What was queued before the link went down is sent when it is up again.
    NoLink,
    /// The device is out of order for good.
    Gone,
}

impl fmt::Display for TransmitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the device's queue is full"),
            Self::BadLength { bytes } => write!(f, "{bytes} bytes are no frame"),
            Self::BadChecksum => f.write_str("a checksum that the device cannot complete"),
            Self::NoLink => f.write_str("the link is down"),
            Self::Gone => f.write_str("the device is out of order"),
        }
    }
}

impl core::error::Error for TransmitError {}

/// What a device has done since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Frames that arrived and were handed on.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Frames that the device has sent.
    pub sent: u64,
    /// Frames that arrived and are no frames, or that the device itself calls damaged.
    pub damaged: u64,
    /// Frames that arrived while the IOMMU blocked an access of the device, or while records of that were lost: what is
    /// in their buffers may be anything.
    pub doubtful: u64,
    /// Frames that were queued when the device was reset.
    pub lost: u64,
    /// Resets.
    pub resets: u64,
    /// How often the device was told of new frames or buffers.
    pub doorbells: u64,
}

/// A device did not become quiet; what it had stays pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NotQuiet;

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the device did not become quiet; its memory stays pinned")
    }
}

impl core::error::Error for NotQuiet {}
