//! Disks that processes drive.

use alloc::{sync::Arc, vec};
use core::fmt;

use drivers::block::BlockDevice;
use iommu::PciAddress;

use super::{GiveError, Giver, Process, StartError, start};
use crate::arch::clock;

/// The program that drives NVMe controllers.
const PROGRAM: &str = "nvme-driver";
/// How long it may take to make a disk of its controller.
const DISK_NS: u64 = 30 * clock::NS_PER_S;

/// Why there is no disk.
#[derive(Debug)]
pub enum DiskError {
    /// The process does not get its device.
    Give(GiveError),
    /// It could not be started.
    Start(StartError),
    /// It ended, or made nothing of its device in time.
    NoDisk(Arc<Process>),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Give(error) => error.fmt(f),
            Self::Start(error) => error.fmt(f),
            Self::NoDisk(process) => write!(f, "{process} has made no disk of it"),
        }
    }
}

impl core::error::Error for DiskError {}

/// Starts a process that drives the NVMe controller `function`, which nobody has, and waits for its disk.
///
/// # Errors
/// See [`DiskError`]. A process that was started is killed then, and ends in its own time.
pub fn start_disk(giver: &Giver, function: PciAddress) -> Result<Arc<dyn BlockDevice>, DiskError> {
    let given = giver.give(function).map_err(DiskError::Give)?;
    let process = start(PROGRAM, 0, vec![given]).map_err(DiskError::Start)?;
    process.await_disk(clock::now_ns() + DISK_NS).ok_or_else(|| {
        process.kill();
        DiskError::NoDisk(process)
    })
}
