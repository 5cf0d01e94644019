//! A disk in trouble: errors of its medium, and a neighbour that goes for what its driver has mapped.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use drivers::block::{
    BlockError, Completion, Completions, Extent, Operation, Request, Transfer, TransferError, transfer,
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::Iova;

use crate::{
    machine::{Machine, lacks},
    mapping::await_live_mappings,
    pattern, reports,
};

/// Sectors that QEMU fails to read, and to write, in the machines of `xtask`.
const UNREADABLE: u64 = 50_000;
const UNWRITABLE: u64 = 50_008;
/// Sectors that are written anew by nobody else.
const SPARE: u64 = 64 * 1024 + 48 * 1024;

/// Longer than the driver lets a request take.
const DEADLINE_NS: u64 = 15_000_000_000;

fn read(first: u64, blocks: u32) -> Result<Operation, Failure> {
    Ok(Operation::Read(Transfer { first, blocks, buffer: pattern::pages(1, 1)? }))
}

fn write(first: u64, blocks: u32) -> Result<Operation, Failure> {
    Ok(Operation::Write(Transfer { first, blocks, buffer: pattern::pages(1, first)? }))
}

fn is_medium_error(result: &Result<(), BlockError>) -> bool {
    matches!(result, Err(BlockError::Medium(_)))
}

test! {
    /// Errors of the medium reach whoever asked for just these sectors, with the buffer; everybody else gets his data.
    deadline_ms = 60_000,
    lacks = lacks::disk,
    fn an_error_of_the_medium_reaches_its_caller_alone(context) {
        const REQUESTS: u64 = 16;
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let (live, resets) = (machine.iommu.live_mappings(), disk.resets());
        for bad in [UNREADABLE, UNWRITABLE] {
            let completions = Completions::new(&machine.host, REQUESTS as usize)?;
            // One sector each, the bad one among them, and none beside another: QEMU would make one request of them.
            for first in (bad - 8..bad - 8 + 2 * REQUESTS).step_by(2) {
                let operation = if bad == UNREADABLE { read(first, 1)? } else { write(first, 1)? };
                let submitted = disk.submit(Request { tag: first, operation }, &completions);
                submitted.map_err(|rejected| Failure::from(rejected.reason))?;
            }
            for _ in 0..REQUESTS {
                let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
                let done = completions.wait(deadline_ns).ok_or_else(|| failure!("a request never completed"))?;
                let Completion { tag, result, buffer } = done;
                check!(buffer.is_some(), "request {tag} keeps its buffer");
                if tag == bad {
                    check!(is_medium_error(&result), "sector {tag}: {result:?}");
                } else {
                    check_eq!(result, Ok(()), "sector {tag}");
                }
            }
            // A longer request fails whole.
            let operation = if bad == UNREADABLE { read(bad - 3, 8)? } else { write(bad - 3, 8)? };
            match transfer(&machine.host, &*disk, operation) {
                Err(TransferError::Failed(error, Some(_))) => check!(is_medium_error(&Err(error)), "{error}"),
                other => return Err(failure!("eight sectors with a bad one: {other:?}")),
            }
        }
        await_live_mappings(machine, live)?;
        check_eq!(disk.resets(), resets);
        transfer(&machine.host, &*disk, read(0, 8)?)?;
    }
}

test! {
    /// A device that knows deallocation takes it, and the blocks can be written again.
    deadline_ms = 30_000,
    lacks = lacks::disk,
    fn deallocated_blocks_can_be_used_again(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        transfer(&machine.host, &*disk, write(SPARE, 8)?)?;
        check!(disk.info().blocks_per_deallocation > 0, "the disk has no deallocation");
        transfer(&machine.host, &*disk, Operation::Deallocate(Extent { first: SPARE, blocks: 8 }))?;
        transfer(&machine.host, &*disk, Operation::Flush)?;
        transfer(&machine.host, &*disk, write(SPARE, 8)?)?;
        let back = transfer(&machine.host, &*disk, read(SPARE, 8)?)?;
        pattern::expect(&back.ok_or_else(|| failure!("the buffer did not come back"))?, SPARE, "what was written")?;
    }
}

/// Reads the same sectors with many requests in flight until it is told to stop.
struct Load {
    stop: AtomicBool,
    ended: AtomicBool,
    right: AtomicUsize,
    wrong: AtomicUsize,
}

impl Load {
    /// Requests in flight, of one page each.
    const DEPTH: usize = 32;

    fn start(machine: &Machine) -> Result<Arc<Self>, Failure> {
        let load = Arc::new(Self {
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            right: AtomicUsize::new(0),
            wrong: AtomicUsize::new(0),
        });
        let disk = machine.disk()?;
        let completions = Completions::new(&machine.host, Self::DEPTH)?;
        let wanted = transfer(&machine.host, &*disk, read(0, 8)?)?.ok_or_else(|| failure!("no buffer"))?;
        for _ in 0..Self::DEPTH {
            let submitted = disk.submit(Request { tag: 0, operation: read(0, 8)? }, &completions);
            submitted.map_err(|rejected| Failure::from(rejected.reason))?;
        }
        let (shared, host) = (load.clone(), machine.host.clone());
        let body = move || {
            let mut in_flight = Self::DEPTH;
            while in_flight > 0 {
                let Some(done) = completions.wait(host.now_ns().saturating_add(DEADLINE_NS)) else { break };
                in_flight -= 1;
                let is_right =
                    done.result.is_ok() && done.buffer.is_some_and(|buffer| buffer[..] == wanted[..]);
                let count = if is_right { &shared.right } else { &shared.wrong };
                if count.fetch_add(1, Ordering::Relaxed) == 0 && !is_right {
                    log::warn!("the first read that was wrong: {:?}", done.result);
                }
                if !shared.stop.load(Ordering::Relaxed)
                    && let Ok(operation) = read(0, 8)
                    && disk.submit(Request { tag: 0, operation }, &completions).is_ok()
                {
                    in_flight += 1;
                }
            }
            shared.ended.store(true, Ordering::Release);
        };
        machine.host.spawn("load", Box::new(body))?;
        Ok(load)
    }

    /// Waits until something more was read.
    fn await_progress(&self, machine: &Machine) -> Result<(), Failure> {
        let before = self.right.load(Ordering::Relaxed);
        let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
        while self.right.load(Ordering::Relaxed) == before && !self.ended.load(Ordering::Acquire) {
            check!(machine.host.now_ns() < deadline_ns, "nothing is read any more");
            machine.host.relax();
        }
        Ok(())
    }

    /// Ends it. All that it read must have been right.
    fn finish(&self, machine: &Machine) -> Result<usize, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let deadline_ns = machine.host.now_ns().saturating_add(2 * DEADLINE_NS);
        while !self.ended.load(Ordering::Acquire) {
            check!(machine.host.now_ns() < deadline_ns, "the reader does not end");
            machine.host.relax();
        }
        check_eq!(self.wrong.load(Ordering::Relaxed), 0, "reads that were wrong");
        Ok(self.right.load(Ordering::Relaxed))
    }
}

test! {
    /// While the disk reads, another device goes for each page that the disk's driver has mapped, rings and buffers:
    /// all of it is blocked, and what is read stays right.
    deadline_ms = 90_000,
    lacks = lacks::isolated_nvme_and_kernels_disk,
    fn what_its_driver_has_mapped_is_out_of_reach_for_others(context) {
        const TRIES: usize = 400;
        // A read that was in flight while records were lost is in doubt, and done again: it needs a lull.
        const BURST: usize = 16;
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let mut nvme = machine.nvme()?;
        let dma = nvme.dma().clone();
        let mapped = |function| reports::group(&machine.iommu, function).unwrap_or_default().mappings;
        let load = Load::start(machine)?;
        let mut tried = 0;
        let mut rounds = 0;
        while tried < TRIES && rounds < TRIES {
            rounds += 1;
            let own = mapped(dma.function());
            let is_own = |address| {
                own.iter().any(|own| (own.iova.as_u64()..own.iova.as_u64() + own.bytes).contains(&address))
            };
            for mapping in mapped(disk.dma().function()) {
                let pages = (mapping.iova.as_u64()..).step_by(4096).take((mapping.bytes / 4096) as usize);
                // Where the attacker has something of its own it reaches that.
                for target in pages.filter(|&page| !is_own(page)) {
                    let before = dma.fault_counts().own;
                    nvme.write_at(Iova::new(target))?;
                    let written = dma.fault_counts().own;
                    nvme.read_at(Iova::new(target))?;
                    let read = dma.fault_counts().own;
                    check!(before < written && written < read, "{target:#x} was reached");
                    tried += 1;
                    if tried % BURST == 0 {
                        load.await_progress(machine)?;
                    }
                }
            }
        }
        if machine.edus() > 0 {
            let mut edu = machine.edu(0)?;
            let theirs = mapped(edu.device.function());
            let target = mapped(disk.dma().function())
                .iter()
                .map(|mapping| mapping.iova)
                .find(|iova| !theirs.iter().any(|own| own.iova == *iova));
            if let Some(target) = target {
                let before = edu.dma.fault_counts().own;
                edu.push(target, 64)?;
                check!(edu.dma.fault_counts().own > before, "an edu reached {target}");
            }
        }
        let reads = load.finish(machine)?;
        check!(reads > Load::DEPTH, "only {reads} reads");
        check!(tried >= TRIES, "only {tried} pages were tried");
    }
}
