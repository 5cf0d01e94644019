//! Requests that are completed together: their buffers come back with one flush.

use alloc::{collections::TryReserveError, vec::Vec};
use core::mem;

use iommu::{DmaDevice, FromDevice, Mapping, PageBuffer, ToDevice, dma::Direction};

use super::{
    BlockError,
    completions::Promise,
    flight::{InFlight, Job},
};

type Outcome = Result<(), BlockError>;

/// Requests that the device has finished, until [`finish`](Self::finish) completes them.
pub struct Batch {
    reads: Way<FromDevice>,
    writes: Way<ToDevice>,
}

/// Those that move data one way.
struct Way<D: Direction> {
    mappings: Vec<Mapping<PageBuffer, D>>,
    /// Whom to tell what, in the same order.
    owners: Vec<(Promise, Outcome)>,
}

impl Batch {
    /// A batch that has room for `most` requests.
    pub fn new(most: usize) -> Result<Self, TryReserveError> {
        Ok(Self { reads: Way::new(most)?, writes: Way::new(most)? })
    }

    /// Adds a request that ended with `result`. One without a buffer is completed at once. Returns, as the others here,
    /// whether an owner of what was completed is behind with taking completions.
    #[must_use]
    pub fn add(&mut self, flight: InFlight, result: Outcome) -> bool {
        match flight.job {
            Job::Read(_, mapping) => self.reads.add(mapping, flight.promise, result),
            Job::Write(_, mapping) => self.writes.add(mapping, flight.promise, result),
            Job::Flush | Job::Deallocate(_) | Job::At { .. } => flight.promise.keep(result, None),
        }
    }

    /// Gives the buffers back and completes the requests.
    #[must_use]
    pub fn finish(&mut self, dma: &DmaDevice) -> bool {
        self.reads.finish(dma) | self.writes.finish(dma)
    }
}

impl<D: Direction> Way<D> {
    fn new(most: usize) -> Result<Self, TryReserveError> {
        let (mut mappings, mut owners) = (Vec::new(), Vec::new());
        mappings.try_reserve_exact(most)?;
        owners.try_reserve_exact(most)?;
        Ok(Self { mappings, owners })
    }

    fn add(&mut self, mapping: Mapping<PageBuffer, D>, promise: Promise, result: Outcome) -> bool {
        // The list of mappings is lost with a batch that fails. Without memory for a new one, or with a full batch, a
        // buffer comes back alone.
        if self.owners.len() == self.owners.capacity() || self.mappings.try_reserve(1).is_err() {
            return complete_alone(mapping, promise, result);
        }
        self.mappings.push(mapping);
        self.owners.push((promise, result));
        false
    }

    fn finish(&mut self, dma: &DmaDevice) -> bool {
        // One alone is no batch.
        if self.mappings.len() <= 1 {
            let alone = self.mappings.pop().zip(self.owners.pop());
            return alone
                .is_some_and(|(mapping, (promise, result))| complete_alone(mapping, promise, result));
        }
        let mut is_ahead = false;
        match dma.unmap_batch(mem::take(&mut self.mappings)) {
            Ok(mut buffers) => {
                for ((promise, result), buffer) in self.owners.drain(..).zip(buffers.by_ref()) {
                    is_ahead |= promise.keep(result, Some(buffer));
                }
                self.mappings = buffers.into_list();
            }
            Err(error) => {
                for (promise, result) in self.owners.drain(..) {
                    is_ahead |= promise.keep(result.and(Err(BlockError::Pinned(error))), None);
                }
            }
        }
        is_ahead
    }
}

fn complete_alone<D: Direction>(mapping: Mapping<PageBuffer, D>, promise: Promise, result: Outcome) -> bool {
    match mapping.unmap() {
        Ok(buffer) => promise.keep(result, Some(buffer)),
        Err(error) => promise.keep(result.and(Err(BlockError::Pinned(error))), None),
    }
}
