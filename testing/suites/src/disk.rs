//! A real disk: what the kernel reads is what the host has put there, and what it writes the host finds there.

use alloc::{sync::Arc, vec::Vec};

use drivers::block::{
    AtAddress, BlockDevice, BlockError, Completions, Operation, Reason, Request, Transfer, transfer,
};
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::PageBuffer;
use sha2::{Digest, Sha256};

use crate::{
    faults::Expected,
    machine::{Machine, lacks},
    mapping::await_live_mappings,
    pattern,
};

/// Sectors of 512 bytes in each request.
const PER_REQUEST: u32 = 64;
const PAGES: usize = PER_REQUEST as usize * 512 / 4096;

/// Longer than the driver lets a request take.
const DEADLINE_NS: u64 = 15_000_000_000;

/// Where tests read; the host's pattern is there, and nobody writes it.
const READ_AREA: u64 = 0;
/// Where tests write, each in a part of its own.
const WRITE_AREA: u64 = 64 * 1024;

/// Does one request for each of `0..count`, at most `depth` at a time, and returns the buffers in order.
fn run(
    machine: &Machine,
    disk: &dyn BlockDevice,
    count: usize,
    depth: usize,
    operation: impl Fn(usize) -> Result<Operation, Failure>,
) -> Result<Vec<PageBuffer>, Failure> {
    let completions = Completions::new(&machine.host, depth)?;
    let mut buffers: Vec<Option<PageBuffer>> = Vec::new();
    buffers.resize_with(count, || None);
    let mut submitted = 0;
    for finished in 0..count {
        while submitted < count && submitted - finished < depth {
            // Not in order: what is next to each other on the medium is not next to each other in time.
            let number = submitted * 37 % count;
            let request = Request { tag: number as u64, operation: operation(number)? };
            disk.submit(request, &completions).map_err(|rejected| Failure::from(rejected.reason))?;
            submitted += 1;
        }
        let (number, buffer) = await_one(machine, &completions)?;
        let place = buffers.get_mut(number).ok_or_else(|| failure!("completion of request {number}"))?;
        check!(place.is_none(), "request {number} completed twice");
        *place = buffer;
    }
    let all: Option<Vec<PageBuffer>> = buffers.into_iter().collect();
    all.ok_or_else(|| failure!("a request did not give its buffer back"))
}

fn await_one(
    machine: &Machine,
    completions: &Arc<Completions>,
) -> Result<(usize, Option<PageBuffer>), Failure> {
    let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
    let completion = completions.wait(deadline_ns).ok_or_else(|| failure!("no request completed in time"))?;
    completion.result?;
    Ok((completion.tag as usize, completion.buffer))
}

/// Bytes of requests as their digest, in hexadecimal.
pub struct Hex(pub Vec<u8>);

impl core::fmt::Display for Hex {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn digest(buffers: &[PageBuffer]) -> Hex {
    let mut hash = Sha256::new();
    for buffer in buffers {
        hash.update(&buffer[..]);
    }
    Hex(hash.finalize().to_vec())
}

fn read_operation(area: u64, number: usize) -> Result<Operation, Failure> {
    let buffer = PageBuffer::zeroed(PAGES).ok_or_else(|| Failure::new("no memory for a buffer"))?;
    Ok(Operation::Read(Transfer {
        first: area + number as u64 * u64::from(PER_REQUEST),
        blocks: PER_REQUEST,
        buffer,
    }))
}

fn write_operation(area: u64, number: usize) -> Result<Operation, Failure> {
    let buffer = pattern::pages(PAGES, area + number as u64)?;
    let first = area + number as u64 * u64::from(PER_REQUEST);
    Ok(Operation::Write(Transfer { first, blocks: PER_REQUEST, buffer }))
}

/// Reads `count` requests' worth from `area` and tells the host what was there.
fn read_and_report(context: &Context<'_>, area: u64, count: usize, depth: usize) -> Result<(), Failure> {
    let machine = Machine::of(context)?;
    let buffers = run(machine, &*machine.disk()?, count, depth, |number| read_operation(area, number))?;
    let sectors = count * PER_REQUEST as usize;
    context.value("disk-read", format_args!("{area} {sectors} {}", digest(&buffers)));
    Ok(())
}

/// Writes `count` requests' worth to `area`, makes them durable, reads them back, and tells the host what it must find.
fn write_and_report(context: &Context<'_>, area: u64, count: usize, depth: usize) -> Result<(), Failure> {
    let machine = Machine::of(context)?;
    let disk = machine.disk()?;
    let written = run(machine, &*disk, count, depth, |number| write_operation(area, number))?;
    transfer(&machine.host, &*disk, Operation::Flush)?;
    let read = run(machine, &*disk, count, depth, |number| read_operation(area, number))?;
    for (number, (written, read)) in written.iter().zip(&read).enumerate() {
        check!(written[..] == read[..], "request {number} reads other than it wrote");
    }
    let sectors = count * PER_REQUEST as usize;
    context.value("disk-written", format_args!("{area} {sectors} {}", digest(&written)));
    Ok(())
}

test! {
    /// One request at a time.
    deadline_ms = 30_000,
    lacks = lacks::disk,
    fn reads_one_at_a_time(context) {
        read_and_report(context, READ_AREA, 32, 1)?;
    }
}

test! {
    /// 64 requests in flight.
    deadline_ms = 60_000,
    lacks = lacks::disk,
    fn reads_64_at_a_time(context) {
        read_and_report(context, READ_AREA + 8192, 128, 64)?;
    }
}

test! {
    /// One request at a time.
    deadline_ms = 30_000,
    lacks = lacks::disk,
    fn writes_one_at_a_time(context) {
        write_and_report(context, WRITE_AREA, 32, 1)?;
    }
}

test! {
    /// 64 requests in flight.
    deadline_ms = 60_000,
    lacks = lacks::disk,
    fn writes_64_at_a_time(context) {
        write_and_report(context, WRITE_AREA + 8192, 128, 64)?;
    }
}

test! {
    /// The disk has a queue for each CPU: QEMU's have as many.
    lacks = lacks::disk,
    fn has_a_queue_for_each_cpu(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        check_eq!(disk.queues(), machine.host.cpus());
        check!(disk.depth() >= 64 * disk.queues(), "only {} requests at a time", disk.depth());
    }
}

test! {
    /// A request shorter than its buffer leaves the rest of it alone.
    lacks = lacks::disk,
    fn a_short_read_fills_its_part_only(context) {
        let machine = Machine::of(context)?;
        let buffer = pattern::pages(1, 1)?;
        let operation = Operation::Read(Transfer { first: 5, blocks: 1, buffer });
        let buffer = transfer(&machine.host, &*machine.disk()?, operation)?;
        let buffer = buffer.ok_or_else(|| failure!("the buffer did not come back"))?;
        check!(buffer[..512].starts_with(b"Sluice test disk, sector 5\n"), "sector 5 is another");
        check!(buffer[512..] == pattern::pages(1, 1)?[512..], "bytes behind the request have changed");
    }
}

test! {
    /// What a disk cannot do it refuses at once, and the buffer comes back.
    lacks = lacks::disk,
    fn what_makes_no_sense_is_refused(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let completions = Completions::new(&machine.host, 1)?;
        let blocks = disk.info().blocks;
        let limit = disk.info().blocks_per_request;
        let out_of_range = [(blocks, 1), (blocks - 1, 2), (u64::MAX, 2), (0, 0), (0, limit + 1)];
        for (first, count) in out_of_range {
            let transfer = Transfer { first, blocks: count, buffer: pattern::pages(1, 1)? };
            let result = disk.submit(Request { tag: 0, operation: Operation::Read(transfer) }, &completions);
            let reason = result.map_err(|rejected| rejected.reason);
            check_eq!(reason, Err(Reason::OutOfRange { first, blocks: count }));
        }
        let transfer = Transfer { first: 0, blocks: 9, buffer: pattern::pages(1, 1)? };
        let result = disk.submit(Request { tag: 0, operation: Operation::Write(transfer) }, &completions);
        let rejected = result.err().ok_or_else(|| failure!("a buffer that is too short was taken"))?;
        check_eq!(rejected.reason, Reason::BufferTooShort { bytes: 4096, needed: 9 * 512 });
        check!(completions.take().is_none(), "a request that was refused completed");
        let Operation::Write(Transfer { buffer, .. }) = rejected.request.operation else {
            return Err(failure!("another request came back"));
        };
        pattern::expect(&buffer, 1, "the buffer that came back")?;
    }
}

/// Submits a request at an address that is not mapped, and returns what came of it.
fn attempt(
    machine: &Machine,
    disk: &dyn BlockDevice,
    request: AtAddress,
) -> Result<Result<(), BlockError>, Failure> {
    let completions = Completions::new(&machine.host, 1)?;
    disk.submit_at(request, &completions)?;
    let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
    let completion = completions.wait(deadline_ns).ok_or_else(|| failure!("the request did not complete"))?;
    Ok(completion.result)
}

test! {
    /// A write whose data are not mapped fails, whatever the device calls it, and the disk works afterwards.
    deadline_ms = 30_000,
    lacks = lacks::isolated_disk,
    fn a_write_of_unmapped_data_fails(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let page = machine.fresh_page();
        let request = AtAddress { tag: 1, first: WRITE_AREA + 32 * 1024, blocks: 8, iova: page, writable: false };
        check_eq!(attempt(machine, &*disk, request)?, Err(BlockError::Blocked));
        Expected::read(disk.dma().function(), page).await_recorded(machine)?;
        await_running(machine, &*disk)?;
    }
}

test! {
    /// A buffer that is unmapped before the doorbell is never touched.
    deadline_ms = 30_000,
    lacks = lacks::mappable_disk,
    fn a_buffer_unmapped_before_the_doorbell_is_not_touched(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let page = machine.fresh_page();
        let mapping = disk.dma().dma_map_at(pattern::pages(1, 1)?, iommu::FromDevice, page)?;
        let buffer = mapping.unmap()?;
        let request = AtAddress { tag: 1, first: READ_AREA, blocks: 8, iova: page, writable: true };
        check_eq!(attempt(machine, &*disk, request)?, Err(BlockError::Blocked));
        Expected::write(disk.dma().function(), page).await_recorded(machine)?;
        pattern::expect(&buffer, 1, "the buffer after the request")?;
        await_running(machine, &*disk)?;
    }
}

test! {
    /// A reset fails what is in flight, gives every buffer back, and is not the end.
    deadline_ms = 60_000,
    lacks = lacks::disk,
    fn a_reset_gives_every_buffer_back(context) {
        const REQUESTS: usize = 48;
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        let (live, resets) = (machine.iommu.live_mappings(), disk.resets());
        let completions = Completions::new(&machine.host, REQUESTS)?;
        for number in 0..REQUESTS {
            let request = Request { tag: number as u64, operation: read_operation(READ_AREA, number)? };
            disk.submit(request, &completions).map_err(|rejected| Failure::from(rejected.reason))?;
        }
        disk.reset();
        for _ in 0..REQUESTS {
            let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
            let completion = completions.wait(deadline_ns).ok_or_else(|| failure!("a request never completed"))?;
            // What was done before the reset is done.
            check!(
                matches!(completion.result, Ok(()) | Err(BlockError::Reset)),
                "request {} ended with {:?}",
                completion.tag,
                completion.result
            );
            check!(completion.buffer.is_some(), "request {} keeps its buffer", completion.tag);
        }
        let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
        while disk.resets() == resets && machine.host.now_ns() < deadline_ns {
            machine.host.relax();
        }
        check_eq!(disk.resets(), resets + 1);
        await_running(machine, &*disk)?;
        await_live_mappings(machine, live)?;
    }
}

/// Waits until the disk takes requests again, and does one.
fn await_running(machine: &Machine, disk: &dyn BlockDevice) -> Result<(), Failure> {
    let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
    loop {
        match transfer(&machine.host, disk, read_operation(READ_AREA, 0)?) {
            Ok(_) => return Ok(()),
            Err(error) if machine.host.now_ns() >= deadline_ns => return Err(error.into()),
            Err(_) => machine.host.relax(),
        }
    }
}
