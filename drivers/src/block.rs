//! The interface of block devices, whatever they are.
//!
//! A request owns its buffer and gives it back with its completion. Completions go to a [`Completions`] of the
//! caller's, so that one thread can have many requests in flight, on several devices, and wait for whichever is done
//! first. [`transfer`] is the short way for one request.

use alloc::{
    collections::{TryReserveError, VecDeque},
    sync::Arc,
};
use core::fmt;

use iommu::{DmaError, PageBuffer};

use crate::{
    host::{Event, Host},
    lock::Lock,
};

/// A device that stores blocks.
pub trait BlockDevice: Send + Sync {
    /// What the device is like; does not change.
    fn info(&self) -> BlockInfo;

    /// Hands a request to the device and returns; its completion goes to `completions`, always, within the device's
    /// deadline.
    ///
    /// # Errors
    /// The request comes back untouched.
    fn submit(&self, request: Request, completions: &Arc<Completions>) -> Result<(), Rejected>;
}

/// What a block device is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockInfo {
    /// Size of a block in bytes.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Most blocks in one request.
    pub blocks_per_request: u32,
    /// Writes fail.
    pub read_only: bool,
}

/// Something for a device to do. The caller's `tag` comes back with the completion.
#[derive(Debug)]
pub struct Request {
    /// The caller's name for it.
    pub tag: u64,
    /// What to do.
    pub operation: Operation,
}

/// What to do.
#[derive(Debug)]
pub enum Operation {
    /// Fill the buffer from the medium.
    Read(Transfer),
    /// Store the buffer on the medium.
    Write(Transfer),
    /// Make every write that has completed durable.
    Flush,
}

/// Blocks to move, and the memory to move them from or to.
#[derive(Debug)]
pub struct Transfer {
    /// First block.
    pub first: u64,
    /// Number of blocks; at least one.
    pub blocks: u32,
    /// At least as long as the blocks; what is behind them stays as it is.
    pub buffer: PageBuffer,
}

/// A request that the device did not take.
#[derive(Debug)]
pub struct Rejected {
    /// Why.
    pub reason: Reason,
    /// The request as it was.
    pub request: Request,
}

/// Why a device did not take a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The device has as many requests as it can hold: wait for a completion and try again.
    QueueFull,
    /// `completions` has no room for another one: take some out.
    CompletionsFull,
    /// The device is being reset: try again a little later.
    Resetting,
    /// The device is out of order for good, or was shut down.
    Gone,
    /// The blocks are not all on the medium, or are none, or are more than a request can have.
    OutOfRange {
        /// First block.
        first: u64,
        /// Number of blocks.
        blocks: u32,
    },
    /// The buffer is shorter than the blocks.
    BufferTooShort {
        /// Its length in bytes.
        bytes: usize,
        /// The length of the blocks in bytes.
        needed: u64,
    },
    /// The medium cannot be written.
    ReadOnly,
    /// The buffer could not be mapped.
    Dma(DmaError),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::QueueFull => f.write_str("the device's queue is full"),
            Self::CompletionsFull => f.write_str("no room for another completion"),
            Self::Resetting => f.write_str("the device is being reset"),
            Self::Gone => f.write_str("the device is out of order"),
            Self::OutOfRange { first, blocks } => {
                write!(f, "{blocks} blocks from {first} are no valid range")
            }
            Self::BufferTooShort { bytes, needed } => {
                write!(f, "a buffer of {bytes} bytes for {needed} bytes of blocks")
            }
            Self::ReadOnly => f.write_str("the medium cannot be written"),
            Self::Dma(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for Reason {}

/// How a request ended.
#[derive(Debug)]
pub struct Completion {
    /// The caller's name for it.
    pub tag: u64,
    /// Whether it was done.
    pub result: Result<(), BlockError>,
    /// The buffer, if the request had one. After an error of a read its contents mean nothing. It is missing when the
    /// device, or a remapping unit, may still reach it: then it stays pinned for ever.
    pub buffer: Option<PageBuffer>,
}

/// Why a request failed. Whether and how much of a failed write is on the medium is not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockError {
    /// The device reported an error; the number is the device's own.
    Device(u16),
    /// The IOMMU blocked an access of the device while it had the request: what it says about it counts for nothing.
    Blocked,
    /// The device did not finish the request in time and was reset.
    TimedOut,
    /// The device was reset because it broke its protocol or asked for it.
    Reset,
    /// The device was shut down, or could not be made to work again.
    Gone,
    /// A remapping unit does not answer, so that the buffer cannot be given back.
    Pinned(DmaError),
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(status) => write!(f, "the device reports error {status:#x}"),
            Self::Blocked => f.write_str("the IOMMU blocked an access of the device"),
            Self::TimedOut => f.write_str("the device did not answer in time"),
            Self::Reset => f.write_str("the device was reset"),
            Self::Gone => f.write_str("the device is out of order"),
            Self::Pinned(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for BlockError {}

impl BlockInfo {
    /// Whether a device like this can do `operation` at all.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, operation: &Operation) -> Result<(), Reason> {
        match operation {
            Operation::Flush => Ok(()),
            Operation::Write(_) if self.read_only => Err(Reason::ReadOnly),
            Operation::Read(transfer) | Operation::Write(transfer) => {
                self.check_range(transfer.first, transfer.blocks)?;
                let (bytes, needed) = (transfer.buffer.len(), self.bytes(transfer.blocks));
                if (bytes as u64) < needed { Err(Reason::BufferTooShort { bytes, needed }) } else { Ok(()) }
            }
        }
    }

    /// Whether the blocks are on the medium, and no more than one request can have.
    ///
    /// # Errors
    /// They are not.
    pub fn check_range(&self, first: u64, blocks: u32) -> Result<(), Reason> {
        let on_medium = first.checked_add(u64::from(blocks)).is_some_and(|end| end <= self.blocks);
        if (1..=self.blocks_per_request).contains(&blocks) && on_medium {
            Ok(())
        } else {
            Err(Reason::OutOfRange { first, blocks })
        }
    }

    /// Length of `blocks` blocks in bytes.
    #[must_use]
    pub fn bytes(&self, blocks: u32) -> u64 {
        u64::from(blocks) * u64::from(self.block_bytes)
    }
}

/// Where completions go until their owner takes them. One thread waits at a time.
pub struct Completions {
    host: Arc<dyn Host>,
    arrived: Arc<dyn Event>,
    queue: Lock<Queue>,
}

struct Queue {
    done: VecDeque<Completion>,
    /// Completions that are still to come; each has its place in `done`.
    promised: usize,
    room: usize,
}

impl Completions {
    /// Room for the completions of `room` requests in flight. Delivering one never allocates.
    ///
    /// # Errors
    /// No memory for them.
    pub fn new(host: &Arc<dyn Host>, room: usize) -> Result<Arc<Self>, TryReserveError> {
        let mut done = VecDeque::new();
        done.try_reserve_exact(room)?;
        let queue = Lock::new(host.clone(), Queue { done, promised: 0, room });
        Ok(Arc::new(Self { host: host.clone(), arrived: host.event(), queue }))
    }

    /// The oldest completion that has arrived.
    pub fn take(&self) -> Option<Completion> {
        self.queue.lock().done.pop_front()
    }

    /// The oldest completion, after waiting for one until `deadline_ns` if need be.
    pub fn wait(&self, deadline_ns: u64) -> Option<Completion> {
        loop {
            if let Some(completion) = self.take() {
                return Some(completion);
            }
            if !self.arrived.wait(deadline_ns) && self.host.now_ns() >= deadline_ns {
                return self.take();
            }
        }
    }

    /// A place for one completion, or `None` if there is no room.
    pub(crate) fn promise(self: &Arc<Self>, tag: u64) -> Option<Promise> {
        let mut queue = self.queue.lock();
        if queue.done.len() + queue.promised >= queue.room {
            return None;
        }
        queue.promised += 1;
        drop(queue);
        Some(Promise { to: Some(self.clone()), tag })
    }

    fn deliver(&self, completion: Completion) {
        let mut queue = self.queue.lock();
        let was_empty = queue.done.is_empty();
        queue.promised -= 1;
        queue.done.push_back(completion);
        drop(queue);
        // Who finds the queue not empty has a signal still to come, or is taking completions out.
        if was_empty {
            self.arrived.signal();
        }
    }
}

/// A completion that is still to come. Dropping it completes the request with [`BlockError::Gone`].
pub(crate) struct Promise {
    to: Option<Arc<Completions>>,
    tag: u64,
}

impl Promise {
    /// Completes the request.
    pub fn keep(mut self, result: Result<(), BlockError>, buffer: Option<PageBuffer>) {
        if let Some(to) = self.to.take() {
            to.deliver(Completion { tag: self.tag, result, buffer });
        }
    }

    /// Takes the promise back: the request was never submitted, and the caller is told so.
    pub fn withdraw(mut self) {
        if let Some(to) = self.to.take() {
            to.queue.lock().promised -= 1;
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.deliver(Completion { tag: self.tag, result: Err(BlockError::Gone), buffer: None });
        }
    }
}

/// Why a [`transfer`] failed.
#[derive(Debug)]
pub enum TransferError {
    /// The device did not take the request.
    Rejected(Rejected),
    /// The device took it and failed; the buffer comes back if it can.
    Failed(BlockError, Option<PageBuffer>),
    /// No memory for the completion.
    OutOfMemory,
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.reason.fmt(f),
            Self::Failed(error, _) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory for the completion"),
        }
    }
}

impl core::error::Error for TransferError {}

/// Does `operation` on `device` and waits for it: the deadline is the device's. The buffer, if there is one, comes
/// back.
///
/// # Errors
/// The device rejected the request or failed.
pub fn transfer(
    host: &Arc<dyn Host>,
    device: &dyn BlockDevice,
    operation: Operation,
) -> Result<Option<PageBuffer>, TransferError> {
    let completions = Completions::new(host, 1).map_err(|_| TransferError::OutOfMemory)?;
    device.submit(Request { tag: 0, operation }, &completions).map_err(TransferError::Rejected)?;
    // Devices complete every request they take, so this ends; without a completion there is nothing to give back.
    match completions.wait(u64::MAX) {
        Some(Completion { result: Ok(()), buffer, .. }) => Ok(buffer),
        Some(Completion { result: Err(error), buffer, .. }) => Err(TransferError::Failed(error, buffer)),
        None => Err(TransferError::Failed(BlockError::Gone, None)),
    }
}
