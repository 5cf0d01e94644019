//! Why a controller cannot be used, or a command failed.

use core::fmt;

use iommu::DmaError;

use nvme_spec::{NamespaceError, Resource, Status};

use super::queue::PairError;
use crate::{
    block::engine::EngineError,
    host::SpawnError,
    mmio::OutsideWindow,
    pci::{BarError, MsixError, ResetError},
};

/// Why a controller cannot be used, or a command failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NvmeError {
    /// Nothing answers.
    Absent,
    /// Its registers cannot be mapped.
    Bar(BarError),
    /// Its registers do not fit into their BAR.
    Outside(OutsideWindow),
    /// It lacks the NVM command set, pages of 4 KiB, or room for a queue.
    Unsupported {
        /// What its capabilities register reads.
        capabilities: u64,
    },
    /// It did not become ready, or not quiet, in time.
    NotReady {
        /// Ready was waited for, not quiet.
        wanted: bool,
        /// What its status register reads.
        status: u32,
    },
    /// MSI-X is unusable.
    Msix(MsixError),
    /// No memory that it can reach, or a buffer could not be given back.
    Dma(DmaError),
    /// No memory for bookkeeping.
    OutOfMemory,
    /// It broke the protocol of its queue, and was reset.
    Queue(PairError),
    /// It did not finish a command in time, and was reset.
    TimedOut,
    /// It reports an error.
    Status(Status),
    /// The IOMMU blocked an access of the controller while it had the command, which it may call a success.
    Blocked,
    /// It has no namespace.
    NoNamespace,
    /// What it says about its namespace makes no sense, or its format is none that the driver can use.
    Namespace(NamespaceError),
    /// It takes no submission entries of 64, or no completion entries of 16 bytes.
    Entries,
    /// It gives fewer I/O queues than before.
    TooFewQueues {
        /// How many it had.
        wanted: u16,
        /// How many it gives now.
        given: u16,
    },
    /// It has no secondary controllers, or cannot be told what these get.
    NoSecondaries,
    /// It has no secondary controller for a virtual function.
    NoSecondary {
        /// The number of the virtual function, from 1 on.
        number: u16,
    },
    /// It has too little for so many secondary controllers.
    TooLittle {
        /// Of what.
        resource: Resource,
        /// What each of them would get.
        share: u16,
    },
    /// It gives its secondary controllers nothing: it keeps all for itself, and cannot be reset.
    Reset(ResetError),
    /// No thread.
    Spawn(SpawnError),
    /// It could not be made to work again after an error, or was taken from its driver.
    Gone,
}

impl fmt::Display for NvmeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing answers"),
            Self::Bar(error) => error.fmt(f),
            Self::Outside(error) => error.fmt(f),
            Self::Unsupported { capabilities } => {
                write!(f, "no NVM commands, 4 KiB pages or queues: capabilities {capabilities:#x}")
            }
            Self::NotReady { wanted, status } => {
                write!(f, "not {} in time: status {status:#x}", if *wanted { "ready" } else { "quiet" })
            }
            Self::Msix(error) => error.fmt(f),
            Self::Dma(error) => error.fmt(f),
            Self::OutOfMemory => f.write_str("no memory"),
            Self::Queue(error) => error.fmt(f),
            Self::TimedOut => f.write_str("a command was not finished in time"),
            Self::Status(status) => status.fmt(f),
            Self::Blocked => f.write_str("the IOMMU blocked an access of the controller"),
            Self::NoNamespace => f.write_str("it has no namespace"),
            Self::Namespace(error) => error.fmt(f),
            Self::Entries => f.write_str("it takes no entries of 64 and 16 bytes"),
            Self::TooFewQueues { wanted, given } => {
                write!(f, "it gives {given} I/O queues where it gave {wanted}")
            }
            Self::NoSecondaries => f.write_str("it has no secondary controllers that it could give anything"),
            Self::NoSecondary { number } => {
                write!(f, "it has no secondary controller for virtual function {number}")
            }
            Self::TooLittle { resource, share } => {
                let what = match resource {
                    Resource::Queues => "queues",
                    Resource::Interrupts => "interrupts",
                };
                write!(f, "each secondary controller would get {share} {what}")
            }
            Self::Reset(error) => error.fmt(f),
            Self::Spawn(error) => error.fmt(f),
            Self::Gone => f.write_str("the controller is out of order"),
        }
    }
}

impl core::error::Error for NvmeError {}

impl From<BarError> for NvmeError {
    fn from(error: BarError) -> Self {
        Self::Bar(error)
    }
}

impl From<OutsideWindow> for NvmeError {
    fn from(error: OutsideWindow) -> Self {
        Self::Outside(error)
    }
}

impl From<MsixError> for NvmeError {
    fn from(error: MsixError) -> Self {
        Self::Msix(error)
    }
}

impl From<ResetError> for NvmeError {
    fn from(error: ResetError) -> Self {
        Self::Reset(error)
    }
}

impl From<DmaError> for NvmeError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}

impl From<PairError> for NvmeError {
    fn from(error: PairError) -> Self {
        Self::Queue(error)
    }
}

impl From<EngineError<NvmeError>> for NvmeError {
    fn from(error: EngineError<NvmeError>) -> Self {
        match error {
            EngineError::OutOfMemory => Self::OutOfMemory,
            EngineError::Spawn(error) => Self::Spawn(error),
            EngineError::Hardware(error) => error,
        }
    }
}
