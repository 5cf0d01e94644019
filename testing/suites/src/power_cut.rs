//! Writes and flushes until the power goes. What a flush has confirmed must be on the medium then, and the host looks.
//!
//! Each round writes some slots of the disk, waits for all of them, flushes, and tells the host. Every sector names
//! its round, so that the host knows which one it finds.

use alloc::format;

use drivers::block::{Completions, Operation, Request, Transfer, transfer};
use harness::{Context, Failure, TestCase, failure};
use iommu::PageBuffer;

use crate::machine::Machine;

/// What is done after the writes of a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flushing {
    /// They are flushed, and that is said.
    Done,
    /// They are said to be flushed: what this loses proves that the host finds lost writes.
    Omitted,
}

static FLUSHES: TestCase = case("power_cut::flushes", |context| write_for_ever(context, Flushing::Done));
static LIES: TestCase = case("power_cut::lies", |context| write_for_ever(context, Flushing::Omitted));

/// Longer than the host lets it run.
const DEADLINE_MS: u64 = 300_000;
/// Longer than the driver lets a request take.
const REQUEST_DEADLINE_NS: u64 = 15_000_000_000;

const SECTOR_BYTES: usize = 512;
/// Where slots are: nobody else writes there.
const AREA: u64 = 64 * 1024;
const SLOTS: u64 = 64;
const SLOT_SECTORS: u64 = 16;
/// Slots that a round writes, all at once. Slot numbers go up by an odd step, so that a round writes none twice.
const WRITES: u64 = 8;
const STEP: u64 = 37;

/// The test that runs until the power goes.
#[must_use]
pub fn case_of(flushing: Flushing) -> &'static TestCase {
    match flushing {
        Flushing::Done => &FLUSHES,
        Flushing::Omitted => &LIES,
    }
}

const fn case(path: &'static str, run: fn(&Context<'_>) -> Result<(), Failure>) -> TestCase {
    TestCase { path, deadline_ms: DEADLINE_MS, lacks: |_| None, run }
}

/// Returns only with a failure.
fn write_for_ever(context: &Context<'_>, flushing: Flushing) -> Result<(), Failure> {
    let machine = Machine::of(context)?;
    let disk = machine.disk()?;
    let completions = Completions::new(&machine.host, WRITES as usize)?;
    for round in 1.. {
        for write in 0..WRITES {
            let slot = (round * WRITES + write) * STEP % SLOTS;
            let (first, sectors) = (AREA + slot * SLOT_SECTORS, 1 + (round + write) % SLOT_SECTORS);
            context.value("power-cut-write", format_args!("{first} {sectors} {round}"));
            let buffer = sectors_of(first, sectors as usize, round)?;
            let transfer = Transfer { first, blocks: sectors as u32, buffer };
            let request = Request { tag: write, operation: Operation::Write(transfer) };
            disk.submit(request, &completions).map_err(|rejected| Failure::from(rejected.reason))?;
        }
        for _ in 0..WRITES {
            let deadline_ns = machine.host.now_ns().saturating_add(REQUEST_DEADLINE_NS);
            let completion = completions.wait(deadline_ns);
            completion.ok_or_else(|| failure!("a write did not complete in time"))?.result?;
        }
        if flushing == Flushing::Done {
            transfer(&machine.host, &*disk, Operation::Flush)?;
        }
        context.value("power-cut-flushed", format_args!("{round}"));
    }
    Ok(())
}

/// `count` sectors from `first` on as `round` writes them.
fn sectors_of(first: u64, count: usize, round: u64) -> Result<PageBuffer, Failure> {
    let pages = (count * SECTOR_BYTES).div_ceil(mm::PAGE_BYTES as usize);
    let mut buffer = PageBuffer::zeroed(pages).ok_or_else(|| Failure::new("no memory for a buffer"))?;
    for (sector, bytes) in (first..).zip(buffer.chunks_exact_mut(SECTOR_BYTES).take(count)) {
        let label = format!("sector {sector} in round {round}\n");
        bytes.iter_mut().zip(label.bytes().cycle()).for_each(|(byte, letter)| *byte = letter);
    }
    Ok(buffer)
}
