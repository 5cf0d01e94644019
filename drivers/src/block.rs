//! The interface of block devices, whatever they are, and what their drivers have in common.
//!
//! A request owns its buffer and gives it back with its completion. Completions go to a [`Completions`] of the
//! caller's, so that one thread can have many requests in flight, on several devices, and wait for whichever is done
//! first. [`transfer`] is the short way for one request.
//!
//! A driver consists of its `Queue`s and its `Hardware` (`hardware.rs`); threads, deadlines, faults, recovery and
//! shutdown are the engine's (`engine.rs`).

pub(crate) mod attention;
mod batch;
mod binding;
mod completions;
pub(crate) mod engine;
mod error;
pub(crate) mod flight;
pub(crate) mod hardware;
mod keeper;
pub mod served;
mod worker;

use alloc::sync::Arc;

use iommu::{DmaDevice, Iova, PageBuffer};

pub use self::{
    binding::{OpenError, is_candidate, open},
    completions::{Completion, Completions},
    error::{BlockError, NotQuiet, Reason, Rejected, TransferError},
    flight::Kind,
};
use crate::host::Host;

/// A device that stores blocks. Dropping the last handle shuts it down in the background.
///
/// # Examples
/// ```no_run
/// use std::{collections::BTreeMap, sync::Arc};
///
/// use drivers::{
///     block::{BlockDevice, Completions, Operation, Request, Transfer},
///     host::Host,
/// };
/// use iommu::PageBuffer;
///
/// /// Reads the first blocks of the medium, four requests at a time. The tag says which one is done.
/// fn read(host: &Arc<dyn Host>, disk: &dyn BlockDevice) -> Option<BTreeMap<u64, PageBuffer>> {
///     let completions = Completions::new(host, 4).ok()?;
///     for tag in 0..4 {
///         let transfer = Transfer { first: 8 * tag, blocks: 8, buffer: PageBuffer::zeroed(8)? };
///         disk.submit(Request { tag, operation: Operation::Read(transfer) }, &completions).ok()?;
///     }
///     let mut read = BTreeMap::new();
///     while read.len() < 4 {
///         let done = completions.wait(u64::MAX)?;
///         done.result.ok()?;
///         read.insert(done.tag, done.buffer?);
///     }
///     Some(read)
/// }
/// ```
pub trait BlockDevice: Send + Sync {
    /// What the device is like; does not change.
    fn info(&self) -> BlockInfo;

    /// Hands a request to the device and returns; its completion goes to `completions`, always, within the device's
    /// deadline.
    ///
    /// # Errors
    /// The request comes back untouched.
    fn submit(&self, request: Request, completions: &Arc<Completions>) -> Result<(), Rejected>;

    /// Submits a transfer whose data are at an address of the caller's choice. Nothing is mapped for it.
    ///
    /// It is safe because what the device can reach is up to the IOMMU; it exists to show that, in tests and in the
    /// shell.
    ///
    /// # Errors
    /// The device does not take it.
    fn submit_at(&self, request: AtAddress, completions: &Arc<Completions>) -> Result<(), Reason>;

    /// The device's DMA handle.
    fn dma(&self) -> &DmaDevice;

    /// Number of queues that requests go through.
    fn queues(&self) -> usize;

    /// Most requests that the device can have at a time.
    fn depth(&self) -> usize;

    /// How often the device has been reset since it was opened.
    fn resets(&self) -> u64;

    /// Has the device reset and started again, soon: what it has then fails.
    fn reset(&self);

    /// Resets the device for good and fails what it has. When this returns `Ok`, every buffer has gone back to its
    /// owner, and the queues go with the last handle.
    ///
    /// # Errors
    /// See [`NotQuiet`].
    fn shut_down(&self) -> Result<(), NotQuiet>;

    /// As [`shut_down`](Self::shut_down), however long the driver takes: each of its waits for the device has a
    /// deadline. When this returns no thread of its touches the device any more, so that another driver may have it.
    ///
    /// # Errors
    /// [`NotQuiet::Device`].
    fn end(&self) -> Result<(), NotQuiet> {
        loop {
            match self.shut_down() {
                Err(NotQuiet::Driver) => {
                    log::warn!("{}: its driver has not ended yet", self.dma().function());
                }
                ended => return ended,
            }
        }
    }
}

/// What a block device is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlockInfo {
    /// The driver.
    pub driver: &'static str,
    /// Size of a block in bytes: a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Most blocks in one transfer.
    pub blocks_per_request: u32,
    /// Most blocks in one deallocation; 0 if there is none.
    pub blocks_per_deallocation: u32,
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
    /// Forget what is in the blocks. What they read as afterwards is up to the device, which may do nothing at all.
    Deallocate(Extent),
}

/// Blocks of the medium; at least one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    /// First block.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u32,
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

/// A transfer whose data address is the caller's; see [`BlockDevice::submit_at`].
#[derive(Clone, Copy, Debug)]
pub struct AtAddress {
    /// The caller's name for it.
    pub tag: u64,
    /// First block.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Address of the data, at the start of a page.
    pub iova: Iova,
    /// The device writes memory: a read from the medium.
    pub writable: bool,
}

impl Transfer {
    fn extent(&self) -> Extent {
        Extent { first: self.first, blocks: self.blocks }
    }
}

impl BlockInfo {
    /// Whether a device like this can do `operation` at all.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, operation: &Operation) -> Result<(), Reason> {
        match operation {
            Operation::Flush => Ok(()),
            Operation::Write(_) | Operation::Deallocate(_) if self.read_only => Err(Reason::ReadOnly),
            Operation::Deallocate(_) if self.blocks_per_deallocation == 0 => Err(Reason::Unsupported),
            Operation::Deallocate(Extent { first, blocks }) => {
                self.check_extent(*first, *blocks, self.blocks_per_deallocation)
            }
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
        self.check_extent(first, blocks, self.blocks_per_request)
    }

    fn check_extent(&self, first: u64, blocks: u32, most: u32) -> Result<(), Reason> {
        let on_medium = first.checked_add(u64::from(blocks)).is_some_and(|end| end <= self.blocks);
        if (1..=most).contains(&blocks) && on_medium {
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

/// Does `operation` on `device` and waits for it: the deadline is the device's. The buffer, if there is one, comes
/// back.
///
/// # Errors
/// The device rejected the request or failed.
///
/// # Examples
/// ```no_run
/// use std::sync::Arc;
///
/// use drivers::{
///     block::{self, BlockDevice, Operation, TransferError},
///     host::Host,
/// };
///
/// /// What was written before this is durable after it.
/// fn sync(host: &Arc<dyn Host>, disk: &dyn BlockDevice) -> Result<(), TransferError> {
///     block::transfer(host, disk, Operation::Flush).map(drop)
/// }
/// ```
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
