//! The virtio block device.
//!
//! Callers map and submit in their own threads; one thread of the driver's takes finished requests back, unmaps,
//! completes, watches deadlines and recovers. Nothing happens in the interrupt but waking that thread.
//!
//! A request succeeds if the device says so *and* no fault of the device was counted while it had the request. A device
//! that breaks its protocol, asks for a reset or exceeds a deadline is reset, and everything that it had fails; memory
//! goes back to its owner only after the device has become quiet, and stays pinned if it does not.

mod error;
mod flight;
mod layout;
mod service;
mod state;
#[cfg(test)]
mod tests;

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu::{DmaDevice, Iova};

pub use self::error::{DiskError, NotQuiet};
use self::{
    flight::{Extent, Job, NotMapped},
    service::Service,
    state::{DESCRIPTORS, State},
};
use crate::{
    block::{BlockDevice, BlockError, BlockInfo, Completions, Operation, Promise, Reason, Rejected, Request},
    host::{Event, Host},
    lock::Lock,
    pci::Id,
    virtio::VENDOR,
};

/// What the device is called: by its modern id, and by its transitional one, which may have the modern interface too.
pub const IDS: [Id; 2] = [Id { vendor: VENDOR, device: 0x1042 }, Id { vendor: VENDOR, device: 0x1001 }];

/// How long the device may have a request.
const REQUEST_DEADLINE_NS: u64 = 10_000_000_000;

/// How long [`Disk::shut_down`] waits for the driver's thread, which itself waits for the device.
const SHUTDOWN_DEADLINE_NS: u64 = 5_000_000_000;

/// A virtio block device in use. Dropping it shuts it down in the background.
pub struct Disk {
    shared: Arc<Shared>,
}

/// What submitters and the driver's thread share.
struct Shared {
    host: Arc<dyn Host>,
    dma: DmaDevice,
    info: BlockInfo,
    /// The device has a flush request; without one, what completes is durable.
    flushes: bool,
    /// Something for the thread to do.
    wake: Arc<dyn Event>,
    stop: AtomicBool,
    /// Somebody wants the device reset.
    reset: AtomicBool,
    /// The thread has ended.
    stopped: Arc<dyn Event>,
    resets: AtomicU64,
    state: Lock<State>,
}

/// A transfer whose data address is the caller's; see [`Disk::submit_at`].
#[derive(Clone, Copy, Debug)]
pub struct AtAddress {
    /// The caller's name for it.
    pub tag: u64,
    /// First block.
    pub first: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Address of the data.
    pub iova: Iova,
    /// The device writes memory: a read from the medium.
    pub writable: bool,
}

impl Disk {
    /// Takes `dma`'s function, a modern virtio block device, into use.
    ///
    /// # Errors
    /// It is none, goes around the IOMMU, or something it needs is not to be had. It is left without bus mastering.
    pub fn open(host: &Arc<dyn Host>, dma: DmaDevice) -> Result<Self, DiskError> {
        let service = Service::bring_up(host, dma)?;
        let shared = service.shared().clone();
        host.spawn("virtio-blk", Box::new(move || service.run())).map_err(DiskError::Spawn)?;
        Ok(Self { shared })
    }

    /// The device's DMA handle.
    #[must_use]
    pub fn dma(&self) -> &DmaDevice {
        &self.shared.dma
    }

    /// How often the device has been reset since it was opened.
    #[must_use]
    pub fn resets(&self) -> u64 {
        self.shared.resets.load(Ordering::Relaxed)
    }

    /// Most requests that the device can have at a time.
    #[must_use]
    pub fn depth(&self) -> usize {
        usize::from(self.shared.state.lock().queue.size() / DESCRIPTORS)
    }

    /// Submits a transfer whose data are at an address of the caller's choice. Nothing is mapped for it.
    ///
    /// It is safe because what the device can reach is up to the IOMMU; it exists to show that, in tests and in the
    /// shell.
    ///
    /// # Errors
    /// The device does not take it.
    pub fn submit_at(&self, request: AtAddress, completions: &Arc<Completions>) -> Result<(), Reason> {
        let AtAddress { tag, first, blocks, iova, writable } = request;
        self.shared.info.check_range(first, blocks)?;
        let promise = completions.promise(tag).ok_or(Reason::CompletionsFull)?;
        let job = Job::At { extent: Extent { first, blocks }, iova, writable };
        self.shared.start(job, promise).map_err(|refused| {
            refused.promise.withdraw();
            refused.reason
        })
    }

    /// Has the device reset and started again, soon: what it has then fails.
    pub fn reset(&self) {
        self.shared.reset.store(true, Ordering::Release);
        self.shared.wake.signal();
    }

    /// Resets the device and fails what it has. When this returns `Ok`, all memory has gone back to its owners.
    ///
    /// # Errors
    /// The device did not become quiet: what it had stays pinned.
    pub fn shut_down(self) -> Result<(), NotQuiet> {
        let shared = self.shared.clone();
        drop(self);
        let deadline_ns = shared.host.now_ns().saturating_add(SHUTDOWN_DEADLINE_NS);
        if shared.stopped.wait(deadline_ns) && shared.state.lock().is_quiet() {
            Ok(())
        } else {
            Err(NotQuiet)
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.signal();
    }
}

impl BlockDevice for Disk {
    fn info(&self) -> BlockInfo {
        self.shared.info
    }

    fn submit(&self, request: Request, completions: &Arc<Completions>) -> Result<(), Rejected> {
        let Request { tag, operation } = request;
        let reject = |reason, operation| Err(Rejected { reason, request: Request { tag, operation } });
        if let Err(reason) = self.shared.info.check(&operation) {
            return reject(reason, operation);
        }
        let Some(promise) = completions.promise(tag) else {
            return reject(Reason::CompletionsFull, operation);
        };
        if matches!(operation, Operation::Flush) && !self.shared.flushes {
            promise.keep(Ok(()), None);
            return Ok(());
        }
        let job = match Job::map(&self.shared.dma, operation) {
            Ok(job) => job,
            Err(NotMapped { error, operation: Some(operation) }) => {
                promise.withdraw();
                return reject(Reason::Dma(error), operation);
            }
            // There is no buffer to reject the request with, here and below.
            Err(NotMapped { error, operation: None }) => {
                promise.keep(Err(BlockError::Pinned(error)), None);
                return Ok(());
            }
        };
        let Err(Refused { reason, job, promise }) = self.shared.start(job, promise) else {
            return Ok(());
        };
        match job.unmap() {
            Ok(operation) => {
                promise.withdraw();
                reject(reason, operation)
            }
            Err(error) => {
                promise.keep(Err(error), None);
                Ok(())
            }
        }
    }
}

/// A job that the device cannot take now.
struct Refused {
    reason: Reason,
    job: Job,
    promise: Promise,
}

impl Shared {
    /// Hands a job to the device.
    fn start(&self, job: Job, promise: Promise) -> Result<(), Refused> {
        let deadline_ns = self.host.now_ns().saturating_add(REQUEST_DEADLINE_NS);
        self.state.lock().start(job, promise, deadline_ns)
    }
}
