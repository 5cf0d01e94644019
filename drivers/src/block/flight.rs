//! A request while the driver or the device has it.

use iommu::{
    DmaDevice, DmaError, FromDevice, Iova, Mapping, PageBuffer, ToDevice,
    dma::{self, FaultCounts},
};

use super::{BlockError, Extent, Operation, Transfer, completions::Promise};

/// Something for the device to do, with its memory mapped.
pub enum Job {
    Read(Extent, Mapping<PageBuffer, FromDevice>),
    Write(Extent, Mapping<PageBuffer, ToDevice>),
    Flush,
    Deallocate(Extent),
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
            Operation::Deallocate(extent) => Ok(Self::Deallocate(extent)),
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
            Self::Deallocate(extent) => Operation::Deallocate(extent),
            // Nothing was mapped.
            Self::Flush | Self::At { .. } => Operation::Flush,
        })
    }

    /// Takes the buffer back from a device that is done with it, or has been reset.
    fn reclaim(self) -> Result<Option<PageBuffer>, BlockError> {
        match self {
            Self::Read(_, mapping) => mapping.unmap().map(Some).map_err(BlockError::Pinned),
            Self::Write(_, mapping) => mapping.unmap().map(Some).map_err(BlockError::Pinned),
            Self::Flush | Self::Deallocate(_) | Self::At { .. } => Ok(None),
        }
    }

    /// Gives the buffer back and completes the request. A buffer that cannot be given back makes it fail.
    pub fn finish(self, promise: Promise, result: Result<(), BlockError>) {
        match self.reclaim() {
            Ok(buffer) => promise.keep(result, buffer),
            Err(error) => promise.keep(result.and(Err(error)), None),
        };
    }

    /// What to ask the device for.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Read(..) | Self::At { writable: true, .. } => Kind::Read,
            Self::Write(..) | Self::At { writable: false, .. } => Kind::Write,
            Self::Flush => Kind::Flush,
            Self::Deallocate(_) => Kind::Deallocate,
        }
    }

    /// The blocks that it is about.
    pub fn extent(&self) -> Option<Extent> {
        match self {
            Self::Read(extent, _)
            | Self::Write(extent, _)
            | Self::Deallocate(extent)
            | Self::At { extent, .. } => Some(*extent),
            Self::Flush => None,
        }
    }

    /// Where the device finds the data.
    pub fn iova(&self) -> Option<Iova> {
        match self {
            Self::Read(_, mapping) => Some(mapping.iova()),
            Self::Write(_, mapping) => Some(mapping.iova()),
            Self::At { iova, .. } => Some(*iova),
            Self::Flush | Self::Deallocate(_) => None,
        }
    }
}

/// What a device is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// To fill memory from the medium.
    Read,
    /// To store memory on the medium.
    Write,
    /// To make what was written durable.
    Flush,
    /// To forget what is in the blocks.
    Deallocate,
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
    /// When the device must have done it.
    pub deadline_ns: u64,
    /// Until when it is done again if it is in doubt.
    pub repeat_until_ns: u64,
    /// The device's fault counts when it was submitted.
    pub faults: FaultCounts,
}

impl InFlight {
    /// Gives the buffer back and completes the request. A buffer that cannot be given back makes it fail.
    pub fn finish(self, result: Result<(), BlockError>) {
        self.job.finish(self.promise, result);
    }

    /// Completes the request of a device that may still reach the buffer: the buffer stays mapped and pinned.
    pub fn pin(self) {
        core::mem::forget(self.job);
        self.promise.keep(Err(BlockError::Gone), None);
    }
}

/// A request that the device has finished, and what it says about it.
pub struct Done {
    pub flight: InFlight,
    pub result: Result<(), BlockError>,
}
