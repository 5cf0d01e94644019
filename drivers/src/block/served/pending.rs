//! A request on its way from its caller to the server and back.

use iommu::{PageBuffer, dma::FaultCounts};

use super::Order;
use crate::block::{AtAddress, BlockError, BlockInfo, Extent, Operation, completions::Promise, flight::Kind};

/// A request.
pub struct Pending {
    pub id: u64,
    /// How often everything had failed when it was taken in: it is over when that is more.
    pub failures: u64,
    pub work: Work,
    pub promise: Promise,
    pub deadline_ns: u64,
    /// When the server took it.
    pub faults: FaultCounts,
    pub is_taken: bool,
}

/// What is asked for.
pub enum Work {
    Operation(Operation),
    At(AtAddress),
}

impl Pending {
    pub fn order(&self) -> Order {
        let none = Extent { first: 0, blocks: 0 };
        let (kind, extent, at) = match &self.work {
            Work::Operation(Operation::Read(it)) => (Kind::Read, it.extent(), None),
            Work::Operation(Operation::Write(it)) => (Kind::Write, it.extent(), None),
            Work::Operation(Operation::Flush) => (Kind::Flush, none, None),
            Work::Operation(Operation::Deallocate(extent)) => (Kind::Deallocate, *extent, None),
            Work::At(AtAddress { first, blocks, iova, writable, .. }) => {
                let kind = if *writable { Kind::Read } else { Kind::Write };
                (kind, Extent { first: *first, blocks: *blocks }, Some(*iova))
            }
        };
        Order { id: self.id, kind, extent, at }
    }

    /// What is to be written.
    pub fn to_write(&self, info: &BlockInfo) -> &[u8] {
        match &self.work {
            Work::Operation(Operation::Write(it)) => &it.buffer[..info.bytes(it.blocks) as usize],
            _ => &[],
        }
    }

    /// Where what is read goes.
    pub fn for_filling(&mut self, info: &BlockInfo) -> &mut [u8] {
        match &mut self.work {
            Work::Operation(Operation::Read(it)) => &mut it.buffer[..info.bytes(it.blocks) as usize],
            _ => &mut [],
        }
    }

    pub fn finish(self, result: Result<(), BlockError>) {
        self.promise.keep(result, self.work.into_buffer());
    }
}

impl Work {
    pub fn into_buffer(self) -> Option<PageBuffer> {
        match self {
            Self::Operation(Operation::Read(it) | Operation::Write(it)) => Some(it.buffer),
            Self::Operation(Operation::Flush | Operation::Deallocate(_)) | Self::At(_) => None,
        }
    }
}
