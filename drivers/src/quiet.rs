//! Making a function quiet before its memory is used for something else.

use alloc::sync::Arc;
use core::fmt;

use iommu::PciAddress;

use crate::{
    edu::{self, EduError},
    host::Host,
    pci::{Device, ResetError, reset_function},
    virtio::{self, TransportError},
};

/// Why a function may still touch memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotQuiet {
    /// It could not be reset.
    Reset(ResetError),
    /// It is an `edu`, and does not come to rest.
    Edu(EduError),
    /// It is a virtio device, and was not reset.
    Virtio(TransportError),
}

impl fmt::Display for NotQuiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset(error) => error.fmt(f),
            Self::Edu(error) => error.fmt(f),
            Self::Virtio(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for NotQuiet {}

/// Makes `function` quiet, whoever used it: when this returns `Ok`, nothing that it had begun touches memory any more.
///
/// By a function-level reset; where there is none, a virtio device by its own, and an `edu` by waiting for its transfer. A
/// bridge begins nothing itself.
///
/// # Errors
/// See [`NotQuiet`]. It is left without bus mastering.
pub fn quieten(host: &Arc<dyn Host>, function: PciAddress) -> Result<(), NotQuiet> {
    let device = Device::open(host.clone(), function).ok_or(NotQuiet::Reset(ResetError::Absent))?;
    if device.is_bridge() {
        return Ok(());
    }
    match reset_function(&**host, function) {
        Err(ResetError::NoMethod) if device.id() == edu::ID => {
            edu::await_quiet(host, function).map_err(NotQuiet::Edu)
        }
        Err(ResetError::NoMethod) if device.id().vendor == virtio::VENDOR => {
            virtio::await_quiet(host, function).map_err(NotQuiet::Virtio)
        }
        other => other.map_err(NotQuiet::Reset),
    }
}
