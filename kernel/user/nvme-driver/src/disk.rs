//! From requests to commands, and back.

use core::convert::Infallible;

use abi::{BlockOffer, BlockOperation, BlockOutcome, BlockRequest, EVENT_REQUEST, EVENT_RESET, Error};
use nvme_spec::{Command, Identity, LIST_ENTRIES, Namespace, Pages, Status, blocks_per_request};

use crate::{
    DEVICE, Problem,
    controller::{ADMIN_BYTES, Controller, REQUESTS},
    memory::Memory,
    queue::Queue,
};

/// Most requests at a time, and bytes that each has room for.
const DEPTH: usize = 64;
const DATA_BYTES: usize = 64 << 10;
/// Entries of the queues for them.
const ENTRIES: u16 = 128;
const QUEUE_BYTES: usize = 3 * 4096;
const LIST_BYTES: usize = LIST_ENTRIES * 8;

/// Where the controller finds what: its queues, the lists of pages, the data. All of it that much further up for each
/// number that the program is started with, so that others can have what it has at addresses at which it has nothing.
const STEP: u64 = 1 << 32;
const QUEUES_AT: u64 = 0x1000_0000;
const LISTS_AT: u64 = 0x2000_0000;
const DATA_AT: u64 = 0x4000_0000;
/// How much memory there is at once.
const PIECE: usize = abi::MEMORY_MAX as usize;
const PIECES: usize = DEPTH * DATA_BYTES / PIECE;

/// How long the controller may be silent while it has something.
const SILENCE_NS: u64 = 8_000_000_000;

/// The disk.
struct Disk {
    controller: Controller,
    queue: Queue,
    namespace: Namespace,
    lists: Memory,
    data: [Memory; PIECES],
    /// The kernel's requests, by the identifiers of their commands.
    in_flight: [Option<BlockRequest>; DEPTH],
}

/// Why requests are not taken any more for now.
struct Reset;

/// Makes a disk of the controller, and serves it until something goes wrong.
pub fn serve(number: u64) -> Result<Infallible, Problem> {
    let base = number.checked_mul(STEP).filter(|base| base.checked_add(STEP).is_some());
    let base = base.ok_or(Problem::Call(Error::BadIova))?;
    let queues = Memory::share(ADMIN_BYTES + QUEUE_BYTES, base + QUEUES_AT)?;
    let mut controller = Controller::open(queues)?;
    controller.restart()?;
    let identity = controller.identify()?;
    if !identity.takes_plain_entries() || controller.queue_limit() < ENTRIES.into() {
        return Err(Problem::Unsupported);
    }
    let namespace = controller.first_namespace(&identity)?;
    let lists = Memory::share(DEPTH * LIST_BYTES, base + LISTS_AT)?;
    let mut data = [lists; PIECES];
    for (piece, iova) in data.iter_mut().zip((base + DATA_AT..).step_by(PIECE)) {
        *piece = Memory::share(PIECE, iova)?;
    }
    let queue = Queue::new(queues.part(ADMIN_BYTES, QUEUE_BYTES), ENTRIES);
    let mut disk = Disk { controller, queue, namespace, lists, data, in_flight: [None; DEPTH] };
    let offer = offer(&identity, &namespace);
    loop {
        disk.queue.clear();
        disk.controller.create(&disk.queue)?;
        DEVICE.serve(offer)?;
        let Reset = disk.run()?;
        disk.in_flight = [None; DEPTH];
        disk.controller.restart()?;
    }
}

fn offer(identity: &Identity, namespace: &Namespace) -> BlockOffer {
    let room = (DATA_BYTES >> namespace.block_lg2) as u32;
    BlockOffer {
        block_bytes: 1 << namespace.block_lg2,
        blocks: namespace.blocks,
        blocks_per_request: blocks_per_request(identity.transfer_limit_lg2, namespace.block_lg2)
            .min(room)
            .into(),
        blocks_per_deallocation: if identity.deallocates() { u32::MAX.into() } else { 0 },
        depth: DEPTH as u64,
        is_read_only: namespace.is_write_protected,
        flushes: identity.has_volatile_cache,
    }
}

impl Disk {
    /// Serves requests until the device is to be reset.
    fn run(&mut self) -> Result<Reset, Problem> {
        loop {
            let is_full = self.take_requests()?;
            let mut events = EVENT_RESET | 1 << REQUESTS;
            if !is_full {
                events |= EVENT_REQUEST;
            }
            let is_idle = self.in_flight.iter().all(Option::is_none);
            let deadline_ns = if is_idle { u64::MAX } else { runtime::now_ns() + SILENCE_NS };
            let came = DEVICE.await_events(events, deadline_ns)?;
            if came & EVENT_RESET != 0 {
                return Ok(Reset);
            }
            let was_done = self.complete_requests()?;
            if came == 0 && !was_done {
                return Err(Problem::TimedOut);
            }
        }
    }

    /// Gives the controller all requests that there are and that there is room for. Whether there is no more.
    fn take_requests(&mut self) -> Result<bool, Problem> {
        let before = self.queue.tail;
        let is_full = loop {
            let Some(id) = self.in_flight.iter().position(Option::is_none) else { break true };
            // SAFETY: nothing has this place.
            let Some(request) = (unsafe { DEVICE.take_request(self.data_of(id).at()) })? else { break false };
            let command = self.command(id, &request);
            self.in_flight[id] = Some(request);
            self.queue.push(command.identified(id as u16));
        };
        if self.queue.tail != before {
            self.controller.ring_submission(REQUESTS, self.queue.tail);
        }
        Ok(is_full)
    }

    /// Tells the kernel of what the controller has finished. Whether there was anything.
    fn complete_requests(&mut self) -> Result<bool, Problem> {
        let mut was_any = false;
        while let Some(entry) = self.queue.pop() {
            was_any = true;
            let id = usize::from(entry.id);
            let request =
                self.in_flight.get_mut(id).filter(|_| entry.queue == REQUESTS).and_then(Option::take);
            let request = request.ok_or(Problem::NotInFlight)?;
            let completed = DEVICE.complete_request(
                request.id,
                outcome(entry.status),
                entry.status.code(),
                self.data_of(id).at(),
            );
            match completed {
                // Everything failed meanwhile, as the device is to be reset.
                Ok(()) | Err(Error::NoSuchRequest) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if was_any {
            self.controller.ring_completion(REQUESTS, self.queue.head);
        }
        Ok(was_any)
    }

    /// The command for `request` under the identifier `id`.
    fn command(&self, id: usize, request: &BlockRequest) -> Command {
        let (namespace, first) = (self.namespace.id, request.first);
        // The kernel has looked that there are as many.
        let blocks = request.blocks as u16;
        match request.operation {
            BlockOperation::Read => Command::read(namespace, first, blocks, self.pages(id, request)),
            BlockOperation::Write => Command::write(namespace, first, blocks, self.pages(id, request)),
            BlockOperation::Flush => Command::flush(namespace),
            BlockOperation::Deallocate => {
                let list = self.list_of(id);
                // Attributes, which are none, below the number of blocks.
                list.write(0, request.blocks << 32);
                list.write(1, first);
                Command::deallocate(namespace, list.iova)
            }
        }
    }

    fn pages(&self, id: usize, request: &BlockRequest) -> [u64; 2] {
        let at = if request.at == 0 { self.data_of(id).iova } else { request.at };
        let list = self.list_of(id);
        let pages = Pages::of(at, request.blocks << self.namespace.block_lg2);
        pages.pointers(list.iova, |entry, page| list.write(entry, page))
    }

    fn data_of(&self, id: usize) -> Memory {
        const IN_PIECE: usize = PIECE / DATA_BYTES;
        self.data[id / IN_PIECE].part(id % IN_PIECE * DATA_BYTES, DATA_BYTES)
    }

    fn list_of(&self, id: usize) -> Memory {
        self.lists.part(id * LIST_BYTES, LIST_BYTES)
    }
}

fn outcome(status: Status) -> BlockOutcome {
    match status {
        status if status.is_success() => BlockOutcome::Done,
        status if status.is_medium_error() => BlockOutcome::Medium,
        status if status.is_refusal() => BlockOutcome::Unsupported,
        _ => BlockOutcome::Failed,
    }
}
