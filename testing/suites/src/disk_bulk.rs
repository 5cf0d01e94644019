//! Much data on a disk, in no order and by all CPUs at once; the host knows what must be on it in the end.

use alloc::{boxed::Box, format, string::String, sync::Arc, vec};
use core::sync::atomic::{AtomicUsize, Ordering};

use drivers::{
    block::{
        BlockDevice, BlockInfo, Completion, Completions, Operation, Reason, Rejected, Request, Transfer,
        transfer,
    },
    host::Host,
    lock::Lock,
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::PageBuffer;
use sha2::{Digest, Sha256};

use crate::{
    disk::Hex,
    machine::{Machine, lacks},
    mapping::await_live_mappings,
    pattern,
};

/// Where the host has left room for it: behind everything with a label.
const AREA: u64 = 128 * 1024;
const SECTOR_BYTES: usize = 512;
/// The area in requests of this many sectors each.
const PER_REQUEST: u32 = 32;
const REQUEST_BYTES: usize = PER_REQUEST as usize * SECTOR_BYTES;
const PAGES: usize = REQUEST_BYTES / 4096;

/// Most requests that a thread has in flight.
const DEPTH: usize = 32;
/// Longer than the driver lets a request take.
const REQUEST_DEADLINE_NS: u64 = 30_000_000_000;
/// Longer than a pass over everything may take.
const PASS_DEADLINE_NS: u64 = 120_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    Write,
    Read,
}

/// One pass over the area, and the threads at work on it.
struct Bulk {
    host: Arc<dyn Host>,
    disk: Arc<dyn BlockDevice>,
    pass: Pass,
    /// Requests in all: a power of two.
    count: usize,
    threads: usize,
    running: AtomicUsize,
    problem: Lock<Option<String>>,
}

impl Bulk {
    /// Goes over the area with a thread for each CPU, and waits for them.
    fn run(machine: &Machine, pass: Pass, count: usize) -> Result<(), Failure> {
        let threads = machine.host.cpus();
        let bulk = Arc::new(Self {
            host: machine.host.clone(),
            disk: machine.disk()?,
            pass,
            count,
            threads,
            running: AtomicUsize::new(threads),
            problem: Lock::new(machine.host.clone(), None),
        });
        for thread in 0..threads {
            let share = bulk.clone();
            let body = move || {
                if let Err(problem) = share.share(thread) {
                    let text = format!("{problem}");
                    share.problem.lock().get_or_insert(text);
                }
                share.running.fetch_sub(1, Ordering::AcqRel);
            };
            machine.host.spawn("bulk", Box::new(body))?;
        }
        let deadline_ns = machine.host.now_ns().saturating_add(PASS_DEADLINE_NS);
        while bulk.running.load(Ordering::Acquire) > 0 {
            check!(machine.host.now_ns() < deadline_ns, "the threads are not done");
            machine.host.relax();
        }
        let problem = bulk.problem.lock().take();
        problem.map_or(Ok(()), |problem| Err(Failure::new(problem)))
    }

    /// Which request comes at which time: every number once, neighbours far apart.
    fn number_at(&self, time: usize) -> usize {
        // Odd factors and shifts of the upper part keep it a permutation of a power of two.
        let mask = self.count - 1;
        let mixed = time.wrapping_mul(0x2545_f491) & mask;
        (mixed ^ mixed >> self.count.ilog2().div_ceil(2)).wrapping_mul(0x9e37_79b1) & mask
    }

    /// One thread's part: each `threads`th request.
    fn share(&self, thread: usize) -> Result<(), Failure> {
        let completions = Completions::new(&self.host, DEPTH)?;
        let mut in_flight = 0;
        for time in (thread..self.count).step_by(self.threads) {
            if in_flight == DEPTH {
                self.take_one(&completions)?;
                in_flight -= 1;
            }
            let mut request = self.request(self.number_at(time))?;
            // The others may have the queues full.
            while let Err(Rejected { reason, request: back }) = self.disk.submit(request, &completions) {
                if reason != Reason::QueueFull || in_flight == 0 {
                    return Err(reason.into());
                }
                request = back;
                self.take_one(&completions)?;
                in_flight -= 1;
            }
            in_flight += 1;
        }
        (0..in_flight).try_for_each(|_| self.take_one(&completions))
    }

    fn request(&self, number: usize) -> Result<Request, Failure> {
        let buffer = match self.pass {
            Pass::Write => pattern::pages(PAGES, seed(number))?,
            Pass::Read => PageBuffer::zeroed(PAGES).ok_or_else(|| Failure::new("no memory for a buffer"))?,
        };
        let first = AREA + number as u64 * u64::from(PER_REQUEST);
        let transfer = Transfer { first, blocks: PER_REQUEST, buffer };
        let operation = match self.pass {
            Pass::Write => Operation::Write(transfer),
            Pass::Read => Operation::Read(transfer),
        };
        Ok(Request { tag: number as u64, operation })
    }

    fn take_one(&self, completions: &Completions) -> Result<(), Failure> {
        let deadline_ns = self.host.now_ns().saturating_add(REQUEST_DEADLINE_NS);
        let done = completions.wait(deadline_ns).ok_or_else(|| failure!("no request completed in time"))?;
        let Completion { tag, result, buffer } = done;
        result?;
        let buffer = buffer.ok_or_else(|| failure!("request {tag} keeps its buffer"))?;
        if self.pass == Pass::Read {
            pattern::expect(&buffer, seed(tag as usize), "what was read")?;
        }
        Ok(())
    }
}

/// What request `number` writes.
fn seed(number: usize) -> u64 {
    0x6275_6c6b_0000 + number as u64
}

test! {
    /// `bulk=` MiB written and read again, at random and by every CPU, then told to the host.
    deadline_ms = 300_000,
    lacks = lacks::disk,
    fn random_writes_then_reads(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let BlockInfo { blocks, block_bytes, .. } = disk.info();
        let count = (machine.bulk_mib as usize * (1 << 20) / REQUEST_BYTES).next_power_of_two();
        let sectors = count as u64 * u64::from(PER_REQUEST);
        check_eq!(block_bytes as usize, SECTOR_BYTES);
        check!(AREA + sectors <= blocks, "a disk of {blocks} sectors is too small");
        let (live, resets) = (machine.iommu.live_mappings(), disk.resets());
        Bulk::run(machine, Pass::Write, count)?;
        transfer(&machine.host, &*disk, Operation::Flush)?;
        Bulk::run(machine, Pass::Read, count)?;
        await_live_mappings(machine, live)?;
        check_eq!(disk.resets(), resets);
        let mut hash = Sha256::new();
        let mut request = vec![0; REQUEST_BYTES];
        for number in 0..count {
            pattern::fill(&mut request, seed(number));
            hash.update(&request);
        }
        context.value("disk-written", format_args!("{AREA} {sectors} {}", Hex(hash.finalize().to_vec())));
    }
}
