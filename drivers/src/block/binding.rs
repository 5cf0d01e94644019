//! Which driver is for which function.

use alloc::sync::Arc;
use core::fmt;

use iommu::DmaDevice;

use super::BlockDevice;
use crate::{
    host::Host,
    nvme::{self, NvmeError},
    pci::Function,
    virtio::blk::{self, DiskError},
};

/// Why a function is not in use as a block device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// There is no driver for it.
    NoDriver,
    /// It is a virtio block device.
    Virtio(DiskError),
    /// It is an NVMe controller.
    Nvme(NvmeError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => f.write_str("no driver for it"),
            Self::Virtio(error) => error.fmt(f),
            Self::Nvme(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OpenError {}

/// Whether there is a driver for `function` as a block device.
#[must_use]
pub fn is_candidate(function: &Function) -> bool {
    blk::IDS.contains(&function.id) || function.class == nvme::CLASS
}

/// Takes `function`, whose DMA handle is `dma`, into use.
///
/// # Errors
/// There is no driver for it, or it cannot be used. It is left without bus mastering.
pub fn open(
    host: &Arc<dyn Host>,
    dma: DmaDevice,
    function: &Function,
) -> Result<Arc<dyn BlockDevice>, OpenError> {
    if blk::IDS.contains(&function.id) {
        blk::open(host, dma, function).map_err(OpenError::Virtio)
    } else if function.class == nvme::CLASS {
        nvme::open(host, dma, function).map_err(OpenError::Nvme)
    } else {
        Err(OpenError::NoDriver)
    }
}
