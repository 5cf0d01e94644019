//! Which driver is for which function.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use iommu::DmaDevice;

use super::NetDevice;
use crate::{
    e1000e::{self, E1000eError},
    host::Host,
    pci::Function,
    virtio::net::{self, VirtioNetError},
};

/// Why a function is not in use as a network device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// There is no driver for it.
    NoDriver,
    /// It is a virtio network device.
    Virtio(VirtioNetError),
    /// It is an Intel 82574.
    E1000e(E1000eError),
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDriver => f.write_str("no driver for it"),
            Self::Virtio(error) => error.fmt(f),
            Self::E1000e(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for OpenError {}

/// Whether there is a driver for `function` as a network device.
#[must_use]
pub fn is_candidate(function: &Function) -> bool {
    net::IDS.contains(&function.id) || function.id == e1000e::ID
}

/// Takes `function`, whose DMA handle is `dma`, into use.
///
/// # Errors
/// There is no driver for it, or it cannot be used. It is left without bus mastering.
pub fn open(
    host: &Arc<dyn Host>,
    dma: DmaDevice,
    function: &Function,
) -> Result<Box<dyn NetDevice>, OpenError> {
    if net::IDS.contains(&function.id) {
        net::open(host, dma, function).map_err(OpenError::Virtio)
    } else if function.id == e1000e::ID {
        e1000e::open(host, dma, function).map_err(OpenError::E1000e)
    } else {
        Err(OpenError::NoDriver)
    }
}
