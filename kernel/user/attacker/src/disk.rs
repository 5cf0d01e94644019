//! Block devices whose driver means harm. What the device that they are made of is does not matter.

use core::ptr::NonNull;

use abi::{BlockOffer, BlockOutcome, BlockRequest, EVENT_REQUEST, Error};
use attacker::{DIRECT_MAP, DISK_BYTE, DISK_REQUESTS, LEFT};
use runtime::Device;

const DEVICE: Device = Device::new(0);

/// The kernel took what it should have refused.
const TAKEN: u64 = 1;

const OFFER: BlockOffer = BlockOffer {
    block_bytes: 512,
    blocks: 1024,
    blocks_per_request: 8,
    blocks_per_deallocation: 0,
    depth: 8,
    is_read_only: false,
    flushes: true,
};

/// Waits for a request and takes it.
fn next(data: NonNull<u8>) -> Result<BlockRequest, Error> {
    loop {
        DEVICE.await_events(EVENT_REQUEST, u64::MAX)?;
        // SAFETY: a page of the program's, and as long as a request may be; it is used by volatile accesses.
        if let Some(request) = unsafe { DEVICE.take_request(data) }? {
            return Ok(request);
        }
    }
}

fn run(attack: impl Fn() -> Result<u64, Error>) -> u64 {
    attack().unwrap_or_else(|error| {
        runtime::log(format_args!("{error:?}"));
        TAKEN
    })
}

/// Takes requests and answers none.
pub fn never_answer() -> u64 {
    run(|| {
        let data = runtime::map_memory(4096)?;
        DEVICE.serve(OFFER)?;
        loop {
            next(data)?;
        }
    })
}

/// Offers what it may not, and looks that nothing came of it.
pub fn intrude() -> u64 {
    let is_refused = DEVICE.serve(OFFER) == Err(Error::NotAllowed) && is_refused_before();
    if is_refused { LEFT } else { TAKEN }
}

/// Says of each request what is not so before it says what is.
pub fn lie() -> u64 {
    run(|| {
        let data = runtime::map_memory(4096)?;
        if !is_refused_before() || !offers_are_refused() {
            return Ok(TAKEN);
        }
        DEVICE.serve(OFFER)?;
        if DEVICE.serve(OFFER) != Err(Error::InUse) {
            return Ok(TAKEN);
        }
        for _ in 0..DISK_REQUESTS {
            let request = next(data)?;
            for index in 0..4096 {
                // SAFETY: the page.
                unsafe { data.as_ptr().add(index).write_volatile(DISK_BYTE) };
            }
            if !is_believed_once(&request, data) {
                runtime::log(format_args!("a lie about {request:?} was taken"));
                return Ok(TAKEN);
            }
        }
        Ok(LEFT)
    })
}

/// Whether nothing about requests is answered before anything is offered.
fn is_refused_before() -> bool {
    let nowhere = NonNull::dangling();
    // SAFETY: nothing is written, as there is no request.
    let taken = unsafe { DEVICE.take_request(nowhere) };
    taken == Err(Error::NotServing)
        && DEVICE.complete_request(1, BlockOutcome::Done, 0, nowhere) == Err(Error::NotServing)
        && DEVICE.await_events(EVENT_REQUEST, 0) == Err(Error::NoSuchEvent)
}

/// Whether no device is taken that there cannot be.
fn offers_are_refused() -> bool {
    let nonsense = [
        BlockOffer { block_bytes: 0, ..OFFER },
        BlockOffer { block_bytes: 1 << 32 | 512, ..OFFER },
        BlockOffer { block_bytes: 8192, ..OFFER },
        BlockOffer { blocks: 0, ..OFFER },
        BlockOffer { blocks: u64::MAX, ..OFFER },
        BlockOffer { blocks_per_request: 0, ..OFFER },
        BlockOffer { blocks_per_request: 1 << 40, ..OFFER },
        BlockOffer { depth: 0, ..OFFER },
        BlockOffer { depth: u64::MAX, ..OFFER },
    ];
    nonsense.iter().all(|&offer| DEVICE.serve(offer) == Err(Error::BadLength))
}

/// Whether nothing is taken for an answer but the one that is true, and that once.
fn is_believed_once(request: &BlockRequest, data: NonNull<u8>) -> bool {
    let done = |id, data| DEVICE.complete_request(id, BlockOutcome::Done, 0, data);
    let is_read = request.operation == abi::BlockOperation::Read;
    let foreign = [8, DIRECT_MAP, data.as_ptr() as u64 + 4096, u64::MAX].map(|at| at as *mut u8);
    let foreign_refused = !is_read
        || foreign
            .into_iter()
            .filter_map(NonNull::new)
            .all(|at| done(request.id, at) == Err(Error::BadAddress));
    [0, request.id + 1, request.id.wrapping_sub(1), u64::MAX]
        .iter()
        .all(|&id| done(id, data) == Err(Error::NoSuchRequest))
        && foreign_refused
        && done(request.id, data) == Ok(())
        && done(request.id, data) == Err(Error::NoSuchRequest)
}
