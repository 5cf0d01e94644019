//! Why a virtio network device cannot be used.

use core::fmt;

use iommu::DmaError;

use crate::{mmio::OutsideWindow, net::engine::EngineError, virtio::TransportError};

/// Why a virtio network device cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VirtioNetError {
    /// The transport is unusable.
    Transport(TransportError),
    /// The device has no configuration structure.
    NoConfiguration,
    /// Its configuration structure is too short.
    Configuration(OutsideWindow),
    /// It has no address, or one that no interface can have.
    NoMac,
    /// A queue has no room for a frame.
    QueueTooSmall(u16),
    /// No memory that the device can reach.
    Dma(DmaError),
    /// No memory for bookkeeping.
    OutOfMemory,
}

impl fmt::Display for VirtioNetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::NoConfiguration => f.write_str("no configuration structure"),
            Self::Configuration(error) => write!(f, "configuration: {error}"),
            Self::NoMac => f.write_str("no usable address"),
            Self::QueueTooSmall(size) => write!(f, "a queue of {size} descriptors holds no frame"),
            Self::Dma(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory"),
        }
    }
}

impl core::error::Error for VirtioNetError {}

impl From<TransportError> for VirtioNetError {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<DmaError> for VirtioNetError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

impl From<OutsideWindow> for VirtioNetError {
    fn from(error: OutsideWindow) -> Self {
        Self::Configuration(error)
    }
}

impl From<EngineError<NetTrouble>> for VirtioNetError {
    fn from(error: EngineError<NetTrouble>) -> Self {
        match error {
            EngineError::OutOfMemory => Self::OutOfMemory,
            // A device that is just being started has no chains.
            EngineError::Rings(NetTrouble::Transport(error)) => Self::Transport(error),
            EngineError::Rings(_) => Self::OutOfMemory,
        }
    }
}

/// What can be wrong with a device in use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetTrouble {
    /// It cannot be started or stopped.
    Transport(TransportError),
    /// It broke the protocol of a queue.
    Queue(crate::virtio::QueueError),
    /// It filled a buffer with less than the header of a frame.
    NoHeader {
        /// Bytes that it says it wrote.
        bytes: u32,
    },
}

impl fmt::Display for NetTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Queue(error) => error.fmt(f),
            Self::NoHeader { bytes } => write!(f, "a frame of {bytes} bytes has no header"),
        }
    }
}

impl From<TransportError> for NetTrouble {
    fn from(error: TransportError) -> Self {
        Self::Transport(error)
    }
}

impl From<crate::virtio::QueueError> for NetTrouble {
    fn from(error: crate::virtio::QueueError) -> Self {
        Self::Queue(error)
    }
}
