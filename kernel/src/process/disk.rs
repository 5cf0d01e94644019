//! Disks that processes drive.

use alloc::{sync::Arc, vec};
use core::fmt;

use drivers::block::BlockDevice;
use iommu::PciAddress;

use super::{GiveError, Giver, Process, StartError, start};
use crate::arch::clock;

/// The program that drives NVMe controllers.
pub const NVME_DRIVER: &str = "nvme-driver";
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

/// A process that makes a disk.
pub struct Driver {
    /// The process.
    pub process: Arc<Process>,
    /// Its disk.
    pub disk: Arc<dyn BlockDevice>,
}

/// Starts `program` with `number`, gives it `function`, which nobody has, to make a disk of it, and waits for that.
///
/// # Errors
/// See [`DiskError`]. A process that was started is killed then, and ends in its own time.
pub fn start_disk(
    giver: &Giver,
    program: &str,
    number: u64,
    function: PciAddress,
) -> Result<Driver, DiskError> {
    let given = giver.give(function).map_err(DiskError::Give)?.for_disk();
    let process = start(program, number, vec![given]).map_err(DiskError::Start)?;
    match process.await_disk(clock::now_ns() + DISK_NS) {
        Some(disk) => Ok(Driver { process, disk }),
        None => {
            process.kill();
            Err(DiskError::NoDisk(process))
        }
    }
}
