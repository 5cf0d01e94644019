//! A request while the driver or the device has it.

use iommu::{
    DmaDevice, DmaError, FromDevice, Iova, Mapping, PageBuffer, ToDevice,
    dma::{self, FaultCounts},
};

use super::layout::Kind;
use crate::block::{BlockError, Operation, Promise, Transfer};

/// Blocks of the medium.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub first: u64,
    pub blocks: u32,
}

/// Something for the device to do, with its memory mapped.
pub enum Job {
    Read(Extent, Mapping<PageBuffer, FromDevice>),
    Write(Extent, Mapping<PageBuffer, ToDevice>),
    Flush,
    /// A transfer to (`writable`) or from an address of the caller's choice: nothing is owned, the IOMMU decides.
    At {
        extent: Extent,
        iova: Iova,
        writable: bool,
    },
}

impl Job {
    /// Maps the buffer of `operation`.
    pub fn map(dma: &DmaDevice, operation: Operation) -> Result<Self, NotMapped> {
        match operation {
            Operation::Flush => Ok(Self::Flush),
            Operation::Read(Transfer { first, blocks, buffer }) => match dma.dma_map(buffer, FromDevice) {
                Ok(mapping) => Ok(Self::Read(Extent { first, blocks }, mapping)),
                Err(dma::Rejected { error, buffer }) => {
                    let whole = |buffer| Operation::Read(Transfer { first, blocks, buffer });
                    Err(NotMapped { error, operation: buffer.map(whole) })
                }
            },
            Operation::Write(Transfer { first, blocks, buffer }) => match dma.dma_map(buffer, ToDevice) {
                Ok(mapping) => Ok(Self::Write(Extent { first, blocks }, mapping)),
                Err(dma::Rejected { error, buffer }) => {
                    let whole = |buffer| Operation::Write(Transfer { first, blocks, buffer });
                    Err(NotMapped { error, operation: buffer.map(whole) })
                }
            },
        }
    }

    /// Undoes [`map`](Self::map). The buffer is lost if its unit does not answer.
    pub fn unmap(self) -> Result<Operation, BlockError> {
        Ok(match self {
            Self::Read(Extent { first, blocks }, mapping) => Operation::Read(Transfer {
                first,
                blocks,
                buffer: mapping.unmap().map_err(BlockError::Pinned)?,
            }),
            Self::Write(Extent { first, blocks }, mapping) => Operation::Write(Transfer {
                first,
                blocks,
                buffer: mapping.unmap().map_err(BlockError::Pinned)?,
            }),
            // Nothing was mapped.
            Self::Flush | Self::At { .. } => Operation::Flush,
        })
    }

    /// Takes the buffer back from a device that is done with it, or has been reset.
    fn reclaim(self) -> Result<Option<PageBuffer>, BlockError> {
        match self {
            Self::Read(_, mapping) => mapping.unmap().map(Some).map_err(BlockError::Pinned),
            Self::Write(_, mapping) => mapping.unmap().map(Some).map_err(BlockError::Pinned),
            Self::Flush | Self::At { .. } => Ok(None),
        }
    }

    /// What to ask the device for, and at which block.
    pub fn command(&self) -> (Kind, u64) {
        match self {
            Self::Read(extent, _) | Self::At { extent, writable: true, .. } => (Kind::Read, extent.first),
            Self::Write(extent, _) | Self::At { extent, writable: false, .. } => (Kind::Write, extent.first),
            Self::Flush => (Kind::Flush, 0),
        }
    }

    /// Where the device finds the data of how many blocks, and whether it writes them.
    pub fn data(&self) -> Option<(Iova, u32, bool)> {
        match self {
            Self::Read(extent, mapping) => Some((mapping.iova(), extent.blocks, true)),
            Self::Write(extent, mapping) => Some((mapping.iova(), extent.blocks, false)),
            Self::At { extent, iova, writable } => Some((*iova, extent.blocks, *writable)),
            Self::Flush => None,
        }
    }
}

/// A buffer that could not be mapped.
pub struct NotMapped {
    pub error: DmaError,
    /// What was to be done, unless its buffer is pinned behind a unit that does not answer.
    pub operation: Option<Operation>,
}

/// A request that the device has: it owns the buffer and the promise to complete it.
pub struct InFlight {
    pub job: Job,
    pub promise: Promise,
    /// When it must be done.
    pub deadline_ns: u64,
    /// The device's fault counts when it was submitted.
    pub faults: FaultCounts,
}

impl InFlight {
    /// Gives the buffer back and completes the request. A buffer that cannot be given back makes it fail.
    pub fn finish(self, result: Result<(), BlockError>) {
        match self.job.reclaim() {
            Ok(buffer) => self.promise.keep(result, buffer),
            Err(error) => self.promise.keep(result.and(Err(error)), None),
        }
    }

    /// Completes the request of a device that may still reach the buffer: the buffer stays mapped and pinned.
    pub fn pin(self) {
        core::mem::forget(self.job);
        self.promise.keep(Err(BlockError::Gone), None);
    }
}
