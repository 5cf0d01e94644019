//! An NVMe controller as a block device: its first namespace, by an I/O queue pair for each CPU as far as there are
//! any.

use alloc::{sync::Arc, vec::Vec};

use iommu::DmaDevice;
use nvme_spec::{LIST_ENTRIES, Namespace, blocks_per_request};

use super::{
    Controller, NvmeError, QueuePair, Queues,
    controller::{COMMAND_DEADLINE_NS, READY_DEADLINE_NS},
    requests::RequestQueue,
    setup::{PairPlace, QUEUES_DEADLINE_NS},
};
use crate::{
    block::{
        BlockDevice, BlockInfo,
        attention::Attention,
        engine::{Engine, SHUTDOWN_DEADLINE_NS, Setup},
        hardware::{Hardware, Stop},
    },
    host::{Event, Host},
    pci::Function,
};

/// Most entries of an I/O queue that the driver makes use of.
const ENTRIES_LIMIT: u32 = 128;

/// Whoever shuts a disk down sees it stop, unless the controller says that it needs longer to become quiet.
const _: () = assert!(QUEUES_DEADLINE_NS + COMMAND_DEADLINE_NS + READY_DEADLINE_NS < SHUTDOWN_DEADLINE_NS);

/// Takes `function`, whose DMA handle is `dma`, an NVMe controller with a namespace, into use.
///
/// # Errors
/// It is none, has none, or something it needs is not to be had. It is left without bus mastering.
pub fn open(
    host: &Arc<dyn Host>,
    dma: DmaDevice,
    function: &Function,
) -> Result<Arc<dyn BlockDevice>, NvmeError> {
    let mut controller = Controller::open(host, dma.clone(), function)?;
    let identity = controller.identify()?;
    if !identity.takes_plain_entries() {
        return Err(NvmeError::Entries);
    }
    let namespace = controller.first_namespace(identity.namespaces)?;
    let info = BlockInfo {
        driver: NvmeDisk::NAME,
        block_bytes: 1 << namespace.block_lg2,
        blocks: namespace.blocks,
        blocks_per_request: blocks_per_request(identity.transfer_limit_lg2, namespace.block_lg2),
        blocks_per_deallocation: if identity.deallocates() { u32::MAX } else { 0 },
        read_only: namespace.is_write_protected,
    };
    let attention = Attention::new(host);
    let mut hardware = NvmeDisk { controller, pairs: Vec::new() };
    let queues = hardware.add_queues(host, &dma, namespace)?;
    let flushes = identity.has_volatile_cache;
    Ok(Arc::new(Engine::start(host, Setup { dma, info, flushes, attention, hardware, queues })?))
}

/// The controller apart from its I/O queues.
struct NvmeDisk {
    controller: Controller,
    pairs: Vec<PairPlace>,
}

type RequestQueues = Vec<(RequestQueue, Arc<dyn Event>)>;

impl NvmeDisk {
    /// Makes queue pairs, as many as there are in the controller, CPUs and interrupts for them.
    fn add_queues(
        &mut self,
        host: &Arc<dyn Host>,
        dma: &DmaDevice,
        namespace: Namespace,
    ) -> Result<RequestQueues, NvmeError> {
        let interrupts = self.controller.interrupts().saturating_sub(1).max(1);
        let wanted = host.cpus().clamp(1, interrupts.into()) as u16;
        let count = self.controller.set_queue_count(wanted)?;
        let mut queues = Vec::new();
        queues.try_reserve_exact(count.into()).map_err(|_| NvmeError::OutOfMemory)?;
        self.pairs.try_reserve_exact(count.into()).map_err(|_| NvmeError::OutOfMemory)?;
        for id in 1..=count {
            let wake = host.event();
            queues.push((self.add_queue(dma, id, namespace)?, wake.clone()));
            self.controller.add_interrupt(id, wake, usize::from(id) - 1)?;
        }
        Ok(queues)
    }

    fn add_queue(
        &mut self,
        dma: &DmaDevice,
        id: u16,
        namespace: Namespace,
    ) -> Result<RequestQueue, NvmeError> {
        let size = self.controller.queue_limit().min(ENTRIES_LIMIT) as u16;
        let queues = Queues::new(dma, size)?;
        let [submission, completion] = queues.addresses();
        let pair = QueuePair::new(id, queues, size).map_err(|_| NvmeError::OutOfMemory)?;
        let lists = dma.alloc_coherent(pair.depth() * LIST_ENTRIES)?;
        self.pairs.push(PairPlace { id, size, submission, completion });
        Ok(RequestQueue::new(pair, lists, self.controller.doorbells(id)?, namespace))
    }
}

impl Hardware for NvmeDisk {
    const NAME: &'static str = "nvme";
    type Error = NvmeError;

    fn start(&mut self) -> Result<(), NvmeError> {
        self.controller.restart()?;
        let wanted = self.pairs.len() as u16;
        let given = self.controller.set_queue_count(wanted)?;
        if given < wanted {
            return Err(NvmeError::TooFewQueues { wanted, given });
        }
        self.controller.create_pairs(&self.pairs)
    }

    fn is_running(&self) -> bool {
        self.controller.is_running()
    }

    fn abort(&mut self, queue: usize, request: u16) -> bool {
        self.pairs.get(queue).is_some_and(|place| self.controller.abort(place.id, request))
    }

    fn stop(&mut self, how: Stop) -> Result<(), NvmeError> {
        if how == Stop::CutOff {
            return self.controller.cut_off();
        }
        // A controller that works ends what it has by itself, queue by queue, rather than in the middle of it.
        let ended = self.controller.is_running() && self.controller.delete_pairs(&self.pairs);
        if ended && how == Stop::ForGood {
            self.controller.shut_down();
        }
        self.controller.turn_off()
    }

    fn disconnect(&mut self) {
        self.controller.disconnect();
    }
}

#[cfg(test)]
#[path = "disk_tests.rs"]
mod tests;
