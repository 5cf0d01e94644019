//! Why a virtio block device cannot be used.

use core::fmt;

use iommu::DmaError;

use crate::{block::engine::EngineError, host::SpawnError, mmio::OutsideWindow, virtio::TransportError};

/// Why a virtio block device cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiskError {
    /// The transport is unusable.
    Transport(TransportError),
    /// The device has no configuration structure.
    NoConfiguration,
    /// Its configuration structure is too short.
    Configuration(OutsideWindow),
    /// A queue cannot hold a single request.
    QueueTooSmall(u16),
    /// No memory that the device can reach.
    Dma(DmaError),
    /// No memory for bookkeeping.
    OutOfMemory,
    /// No thread.
    Spawn(SpawnError),
}

impl fmt::Display for DiskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::NoConfiguration => f.write_str("no configuration structure"),
            Self::Configuration(error) => write!(f, "configuration: {error}"),
            Self::QueueTooSmall(size) => write!(f, "a queue of {size} descriptors holds no request"),
            Self::Dma(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory"),
            Self::Spawn(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for DiskError {}

impl From<TransportError> for DiskError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<DmaError> for DiskError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

impl From<OutsideWindow> for DiskError {
    fn from(error: OutsideWindow) -> Self {
        Self::Configuration(error)
    }
}

impl From<EngineError<TransportError>> for DiskError {
    fn from(error: EngineError<TransportError>) -> Self {
        match error {
            EngineError::OutOfMemory => Self::OutOfMemory,
            EngineError::Spawn(error) => Self::Spawn(error),
            EngineError::Hardware(error) => Self::Transport(error),
        }
    }
}
