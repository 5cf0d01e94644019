//! What happens when the host has no memory.

use std::{
    string::{String, ToString},
    vec::Vec,
};

use super::{
    super::{FreeError, IovaError, IovaRequest, IovaSpace},
    MASK_32, MASK_48, Random, holes,
    host::Host,
};
use crate::Iova;

type Operation = fn(&IovaSpace<Host>) -> Result<(), IovaError>;

/// Each operation that may take memory, so arranged that it does.
const OPERATIONS: [(&str, Operation); 7] = [
    ("allocate a block", |space| space.allocate(1, MASK_48).map(drop)),
    ("allocate a narrow block", |space| space.allocate(3, MASK_32).map(drop)),
    ("allocate the largest block", |space| space.allocate(512, MASK_48).map(drop)),
    ("allocate more than a block", |space| space.allocate(513, MASK_48).map(drop)),
    ("allocate with alignment", |space| {
        space.allocate_with(&IovaRequest { alignment: 1 << 30, ..IovaRequest::new(5, MASK_48) }).map(drop)
    }),
    ("allocate at an address", |space| space.allocate_at(Iova::new(0x4000_0000), 3)),
    ("reserve", |space| space.reserve(0x8000_0000, 0x8000_ffff)),
];

/// Fills the slabs of `space` to the brim, so that the next node, record and magazine each take a page.
fn use_up_slots(space: &IovaSpace<Host>, host: &Host) -> Vec<Iova> {
    space.trim();
    host.frames.refuse_after(0);
    let mut places = (0..10_000).map(|index| Iova::new((1 << 47) + index * 0x40_0000));
    let taken = places.by_ref().take_while(|&iova| space.allocate_at(iova, 513).is_ok()).collect();
    let mut singles = places.map(Iova::as_u64);
    assert!(singles.any(|first| space.reserve(first, first + 0xfff) == Err(IovaError::OutOfMemory)));
    host.frames.relent();
    taken
}

#[test]
fn an_operation_that_fails_for_want_of_memory_leaves_no_trace() {
    for checked in [false, true] {
        for (index, (name, operation)) in OPERATIONS.into_iter().enumerate() {
            // Half of them are enough for Miri.
            if cfg!(miri) && checked == (index % 2 == 0) {
                continue;
            }
            let host = Host::new(256);
            let new = if checked { IovaSpace::new_checked } else { IovaSpace::new };
            let space = new(host.clone(), MASK_48).expect("there is memory");
            let taken = use_up_slots(&space, &host);
            let before = (holes(&space), space.statistics(), host.frames.in_use());
            let mut failures = 0;
            loop {
                host.frames.refuse_after(failures);
                let result = operation(&space);
                host.frames.relent();
                if result.is_ok() {
                    break;
                }
                assert_eq!(result, Err(IovaError::OutOfMemory), "{name}, {failures} pages granted");
                assert_eq!((holes(&space), space.statistics(), host.frames.in_use()), before, "{name}");
                failures += 1;
            }
            assert!(failures > 0, "{name} took no memory: the test is void");
            taken.into_iter().for_each(|iova| assert_eq!(space.free(iova, 513), Ok(())));
        }
    }
}

#[test]
fn a_space_that_cannot_be_made_leaves_no_trace() {
    let host = Host::new(256);
    for granted in 0.. {
        host.frames.refuse_after(granted);
        let space = IovaSpace::new(host.clone(), MASK_48);
        host.frames.relent();
        if space.is_ok() {
            assert!(granted > 0, "a space takes memory");
            break;
        }
        assert_eq!(space.map(drop), Err(IovaError::OutOfMemory));
        assert_eq!(host.frames.in_use(), 0);
    }
    assert_eq!(host.frames.in_use(), 0, "nothing is left of the space");
}

#[test]
fn giving_back_never_takes_memory() {
    let operations = if cfg!(miri) { 300 } else { 60_000 };
    for checked in [false, true] {
        let host = Host::new(if cfg!(miri) { 64 } else { 4096 });
        let new = if checked { IovaSpace::new_checked } else { IovaSpace::new };
        let space = new(host.clone(), MASK_48).expect("there is memory");
        let before = holes(&space);
        let mut random = Random(7);
        let mut live: Vec<(Iova, u64)> = (0..operations)
            .map_while(|_| {
                let pages = random.pick(&[1, 1, 1, 2, 3, 8, 60, 256, 512, 513, 1000]);
                space.allocate(pages, random.pick(&[MASK_32, MASK_48])).ok().map(|iova| (iova, pages))
            })
            .collect();
        host.frames.refuse_after(0);
        while !live.is_empty() {
            let (iova, pages) = live.swap_remove(random.below(live.len() as u64) as usize);
            assert_eq!(space.free(iova, pages), Ok(()));
        }
        assert_eq!(holes(&space), before);
        let statistics = space.statistics();
        assert_eq!((statistics.allocated_pages, statistics.cached_pages), (0, 0));
        drop(space);
        assert_eq!(host.frames.in_use(), 0);
    }
}

#[test]
fn memory_follows_use() {
    let host = Host::new(4096);
    let space = IovaSpace::new(host.clone(), MASK_48).expect("there is memory");
    let before = holes(&space);
    let idle = host.frames.in_use();
    let count = if cfg!(miri) { 500 } else { 100_000 };
    let live: Vec<Iova> = (0..count).map_while(|_| space.allocate(1, MASK_48).ok()).collect();
    assert_eq!(live.len(), count);
    let busy = host.frames.in_use();
    assert_eq!(space.statistics().memory_pages, busy);
    assert!(busy - idle <= count / 60 + 10, "{busy} pages of memory for {count} ranges");
    live.into_iter().for_each(|iova| assert_eq!(space.free(iova, 1), Ok(())));
    assert!(space.statistics().cached_pages <= 66 * 64, "magazines and depot are bounded");
    assert_eq!(holes(&space), before);
    // The few nodes that are left may each keep a page.
    assert!(host.frames.in_use() <= idle + before.len(), "what was needed for many ranges went back");
}

#[test]
fn errors_read_well() {
    let text = |error: IovaError| -> String { std::format!("{error}") };
    assert_eq!(text(IovaError::Exhausted { pages: 2, last: 0xffff }), "no 2 free pages of IOVA up to 0xffff");
    assert_eq!(
        text(IovaError::Taken { first: 0x1000, last: 0x1fff }),
        "IOVAs 0x1000..=0x1fff are not all free"
    );
    let iova = Iova::new(0x3000);
    let not = FreeError::NotAllocated { iova, pages: 2 };
    assert_eq!(not.to_string(), "2 pages of IOVA at 0x3000 are not allocated");
    let wrong = FreeError::WrongLength { iova, pages: 2, allocated: 3 };
    assert_eq!(wrong.to_string(), "2 pages of IOVA at 0x3000 given back, but 3 are allocated there");
}

#[test]
fn memory_that_records_take_is_counted() {
    let host = Host::new(256);
    let space = IovaSpace::new_checked(host.clone(), MASK_48).expect("there is memory");
    for pages in (1..200).map(|number| 1 + number % 3) {
        space.allocate(pages, MASK_48).expect("room");
        assert_eq!(space.statistics().memory_pages, host.frames.in_use());
    }
}
