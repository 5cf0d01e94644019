//! What a request to the disk costs, from its submission to its completion in the hands of its owner: the block layer,
//! the driver, the DMA API and the interrupt, on a disk that has no medium behind it.
//!
//! `disk_cost` counts instructions, leaving out the ticks in which the CPU has nothing to do; it wants one CPU, and a
//! tick for each instruction. `disk_speed` measures time.

use alloc::{sync::Arc, vec::Vec};

use drivers::block::{BlockDevice, Completions, Operation, Request, Transfer};
use harness::{Bencher, Context, Failure};
use iommu::PageBuffer;
use suites::{Machine, reports};

use crate::arch::{Cpu, clock};

/// Rounds that are measured, after one that is not. Odd, so that there is a median.
const ROUNDS: usize = 21;
/// Requests in a round.
const REQUESTS: usize = 1024;
/// Longer than the driver lets a request take.
const DEADLINE_NS: u64 = 30 * clock::NS_PER_S;

/// What is asked for, and how much of it at a time.
#[derive(Clone, Copy)]
struct Work {
    bytes: usize,
    depth: usize,
    random: bool,
}

const RANDOM_1: Work = Work { bytes: 4096, depth: 1, random: true };
const RANDOM_32: Work = Work { bytes: 4096, depth: 32, random: true };
const SEQUENTIAL: Work = Work { bytes: 128 << 10, depth: 8, random: false };

/// Buffers that are not in use go round.
struct Load {
    disk: Arc<dyn BlockDevice>,
    completions: Arc<Completions>,
    work: Work,
    spare: Vec<PageBuffer>,
    /// Where the next request goes (xorshift), or its number.
    next: u64,
}

/// What a round took.
struct Round {
    instructions: u64,
    ns: u64,
    doorbells: u64,
}

fn lacks_hollow_disk(context: &Context<'_>) -> Option<&'static str> {
    let machine = Machine::of(context).ok()?;
    (!machine.hollow_disk).then_some("a disk without a medium")
}

impl Load {
    fn new(machine: &Machine, work: Work) -> Result<Self, Failure> {
        let disk = machine.disk()?;
        let completions = Completions::new(&machine.host, work.depth)?;
        let mut spare = Vec::new();
        spare.try_reserve_exact(work.depth)?;
        for _ in 0..work.depth {
            spare.push(PageBuffer::zeroed(work.bytes / 4096).ok_or_else(|| Failure::new("no memory"))?);
        }
        Ok(Self { disk, completions, work, spare, next: 0x9e37_79b9_7f4a_7c15 })
    }

    fn submit(&mut self) -> Result<(), Failure> {
        let info = self.disk.info();
        let blocks = (self.work.bytes / info.block_bytes as usize) as u32;
        let places = (info.blocks / u64::from(blocks)).max(1);
        self.next = if self.work.random { xorshift(self.next) } else { self.next.wrapping_add(1) };
        let first = self.next % places * u64::from(blocks);
        let buffer = self.spare.pop().ok_or_else(|| Failure::new("no buffer is free"))?;
        let operation = Operation::Read(Transfer { first, blocks, buffer });
        let submitted = self.disk.submit(Request { tag: 0, operation }, &self.completions);
        submitted.map_err(|rejected| Failure::from(rejected.reason))
    }

    fn complete(&mut self) -> Result<(), Failure> {
        let done = self.completions.wait(clock::now_ns() + DEADLINE_NS);
        let done = done.ok_or_else(|| Failure::new("a request did not complete"))?;
        done.result?;
        self.spare.extend(done.buffer);
        Ok(())
    }

    fn round(&mut self, machine: &Machine) -> Result<Round, Failure> {
        let doorbells = || reports::units(&machine.iommu).iter().map(|unit| unit.doorbells).sum::<u64>();
        let (rung, busy, start_ns) = (doorbells(), Cpu::current().busy_ticks(), clock::now_ns());
        for _ in 0..self.work.depth {
            self.submit()?;
        }
        for _ in self.work.depth..REQUESTS {
            self.complete()?;
            self.submit()?;
        }
        for _ in 0..self.work.depth {
            self.complete()?;
        }
        let instructions = Cpu::current().busy_ticks() - busy;
        Ok(Round { instructions, ns: clock::now_ns() - start_ns, doorbells: doorbells() - rung })
    }
}

fn xorshift(mut value: u64) -> u64 {
    value ^= value << 13;
    value ^= value >> 7;
    value ^ value << 17
}

fn rounds(bencher: &Bencher<'_>, work: Work) -> Result<Vec<Round>, Failure> {
    let machine = Machine::of(bencher.context())?;
    let mut load = Load::new(machine, work)?;
    load.round(machine)?;
    (0..ROUNDS).map(|_| load.round(machine)).collect()
}

fn measure_cost(bencher: &mut Bencher<'_>, work: Work) -> Result<(), Failure> {
    let rounds = rounds(bencher, work)?;
    let each = |value: fn(&Round) -> u64| rounds.iter().map(value).collect();
    bencher.report("instructions", each(|round| round.instructions / REQUESTS as u64));
    bencher.report("doorbells/1000", each(|round| round.doorbells * 1000 / REQUESTS as u64));
    Ok(())
}

fn measure_speed(bencher: &mut Bencher<'_>, work: Work) -> Result<(), Failure> {
    let rounds = rounds(bencher, work)?;
    let per_second = |amount: u64, round: &Round| amount * clock::NS_PER_S / round.ns.max(1);
    if work.random {
        bencher.report("IOPS", rounds.iter().map(|round| per_second(REQUESTS as u64, round)).collect());
    } else {
        let mib = (REQUESTS * work.bytes) as u64 >> 20;
        bencher.report("MiB/s", rounds.iter().map(|round| per_second(mib, round)).collect());
    }
    Ok(())
}

/// The same work counted and timed, under the same name in two suites.
macro_rules! works {
    ($($name:ident: $work:ident;)+) => {
        $(harness::bench! {
            lacks = lacks_hollow_disk,
            fn $name(bencher) {
                measure_cost(bencher, $work)?;
            }
        })+

        mod disk_speed {
            $(harness::bench! {
                lacks = super::lacks_hollow_disk,
                fn $name(bencher) {
                    super::measure_speed(bencher, super::$work)?;
                }
            })+
        }
    };
}

works! {
    read_4k_depth_1: RANDOM_1;
    read_4k_depth_32: RANDOM_32;
    read_128k_in_order: SEQUENTIAL;
}
