//! Requests in an I/O queue pair.

use iommu::{Coherent, Iova};
use nvme_spec::{Command, LIST_ENTRIES, Namespace, Pages, Status};

use super::{PairError, QueuePair, Queues, registers::Doorbells};
use crate::block::{
    BlockError, Extent,
    flight::{Done, InFlight, Job, Kind},
    hardware::Queue,
};

/// A queue of a disk.
pub struct RequestQueue {
    pair: QueuePair<Queues, InFlight>,
    /// [`LIST_ENTRIES`] for each command, by its identifier: the pages of its data, or the range that it deallocates.
    lists: Coherent<u64>,
    doorbells: Doorbells,
    namespace: Namespace,
    /// What the controller was told last.
    told: (u16, u16),
}

impl RequestQueue {
    /// Requests to `namespace`; `lists` has room for each command of `pair`.
    pub fn new(
        pair: QueuePair<Queues, InFlight>,
        lists: Coherent<u64>,
        doorbells: Doorbells,
        namespace: Namespace,
    ) -> Self {
        Self { pair, lists, doorbells, namespace, told: (0, 0) }
    }

    /// The command for `job` under the identifier `id`.
    fn command(&mut self, id: u16, job: &Job) -> Command {
        let (namespace, extent) = (self.namespace.id, job.extent().unwrap_or(Extent { first: 0, blocks: 1 }));
        match (job.kind(), job.iova()) {
            (Kind::Read, Some(iova)) => {
                let pages = self.pages(id, iova, extent.blocks);
                Command::read(namespace, extent.first, extent.blocks as u16, pages)
            }
            (Kind::Write, Some(iova)) => {
                let pages = self.pages(id, iova, extent.blocks);
                Command::write(namespace, extent.first, extent.blocks as u16, pages)
            }
            (Kind::Deallocate, _) => {
                let list = usize::from(id) * LIST_ENTRIES;
                // Attributes, which are none, below the number of blocks.
                self.lists.write(list, u64::from(extent.blocks) << 32);
                self.lists.write(list + 1, extent.first);
                Command::deallocate(namespace, self.lists.iova_of(list).as_u64())
            }
            (Kind::Read | Kind::Write | Kind::Flush, _) => Command::flush(namespace),
        }
    }

    /// The pointers to the data of `blocks` blocks at `iova`: two pages, or one page and the list of the others.
    fn pages(&mut self, id: u16, iova: Iova, blocks: u32) -> [u64; 2] {
        let bytes = u64::from(blocks) << self.namespace.block_lg2;
        let list = usize::from(id) * LIST_ENTRIES;
        let at = self.lists.iova_of(list).as_u64();
        Pages::of(iova.as_u64(), bytes).pointers(at, |entry, page| self.lists.write(list + entry, page))
    }
}

impl Queue for RequestQueue {
    type Error = PairError;

    fn depth(&self) -> usize {
        self.pair.depth()
    }

    fn in_flight(&self) -> usize {
        self.pair.in_flight()
    }

    fn start(&mut self, flight: InFlight) -> Result<(), InFlight> {
        let Some(id) = self.pair.next_id() else {
            return Err(flight);
        };
        let command = self.command(id, &flight.job);
        self.pair.submit(command, flight)
    }

    fn ring(&mut self) {
        if self.told.0 != self.pair.tail() {
            self.told.0 = self.pair.tail();
            self.doorbells.submission_tail.write(self.told.0.into());
        }
    }

    fn take_finished(&mut self) -> Result<Option<Done>, PairError> {
        let finished = self.pair.take_finished()?;
        Ok(finished.map(|finished| Done { flight: finished.token, result: result_of(finished.status) }))
    }

    fn rearm(&mut self) -> bool {
        if self.told.1 != self.pair.head() {
            self.told.1 = self.pair.head();
            self.doorbells.completion_head.write(self.told.1.into());
        }
        // Each entry that comes after those that were seen raises the interrupt.
        false
    }

    fn overdue(&self, now_ns: u64) -> Option<u16> {
        self.pair.tokens().find_map(|(id, flight)| (flight.deadline_ns <= now_ns).then_some(id))
    }

    fn take_back(&mut self) -> Option<InFlight> {
        self.pair.take_back()
    }

    fn restart(&mut self) {
        self.pair.restart();
        self.told = (0, 0);
    }
}

fn result_of(status: Status) -> Result<(), BlockError> {
    match status {
        status if status.is_success() => Ok(()),
        status if status.is_aborted() => Err(BlockError::TimedOut),
        status if status.is_medium_error() => Err(BlockError::Medium(status.code())),
        status if status.is_refusal() => Err(BlockError::Unsupported(status.code())),
        status => Err(BlockError::Device(status.code())),
    }
}
