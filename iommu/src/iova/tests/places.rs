//! Where ranges may lie.

use std::{sync::mpsc, thread, time::Duration, vec::Vec};

use super::{
    super::{FreeError, INTERRUPT_RANGE, IovaError, IovaRequest, IovaSpace, holes::Run},
    MASK_32, MASK_48, holes,
    host::{Host, become_cpu},
    spaces,
};
use crate::Iova;

const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

#[test]
fn all_but_page_zero_and_the_interrupt_range_is_handed_out() {
    let host = Host::new(256);
    // All of it but under Miri, which gets to see what lies at the ends.
    let elsewhere = if cfg!(miri) { 16 * MIB..4 * GIB - 64 * MIB } else { 0..0 };
    for space in spaces(&host, MASK_32) {
        if !elsewhere.is_empty() {
            space.reserve(elsewhere.start, elsewhere.end - 1).expect("nothing is taken yet");
        }
        let mut blocks: Vec<u64> = Vec::new();
        while let Ok(iova) = space.allocate(256, MASK_48) {
            blocks.push(iova.as_u64());
        }
        blocks.sort_unstable();
        let all = (0..4 * GIB).step_by(MIB as usize).filter(|first| !elsewhere.contains(first));
        let expected: Vec<u64> =
            all.filter(|&first| first != 0 && first != *INTERRUPT_RANGE.start()).collect();
        assert_eq!(blocks, expected);
        for page in (1..256).map(|page| page * PAGE) {
            assert!(space.allocate(1, MASK_32).is_ok_and(|iova| iova.as_u64() < MIB), "page {page:#x}");
        }
        assert_eq!(space.allocate(1, MASK_32), Err(IovaError::Exhausted { pages: 1, last: MASK_32 }));
        let elsewhere = elsewhere.end - elsewhere.start;
        assert_eq!(space.statistics().allocated_pages, (4 * GIB - elsewhere - MIB) / PAGE - 1);
    }
}

#[test]
fn an_empty_space_hands_out_nothing() {
    let host = Host::new(256);
    let space = IovaSpace::empty(host.clone());
    let exhausted = Err(IovaError::Exhausted { pages: 1, last: MASK_48 });
    assert_eq!(
        (space.allocate(1, MASK_48), space.allocate_with(&IovaRequest::new(1, MASK_48))),
        (exhausted, exhausted)
    );
    for iova in [0, PAGE, 1 << 32].map(Iova::new) {
        assert!(matches!(space.allocate_at(iova, 1), Err(IovaError::Taken { .. })), "{iova}");
        assert_eq!(space.free(iova, 1), Err(FreeError::NotAllocated { iova, pages: 1 }));
    }
    assert_eq!((holes(&space), host.frames.in_use()), (Vec::new(), 0));
}

#[test]
fn page_zero_is_there_for_who_asks_for_it() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_48) {
        let before = holes(&space);
        let zero = Iova::new(0);
        assert_eq!(space.allocate_at(zero, 2), Ok(()));
        assert_eq!(space.allocate_at(zero, 1), Err(IovaError::Taken { first: 0, last: PAGE - 1 }));
        assert_eq!(space.free(zero, 2), Ok(()));
        // Not even when it has just come back, as a block of just the length that is wanted next.
        for pages in [1, 2, 4] {
            assert_eq!(space.allocate_at(zero, pages), Ok(()));
            assert_eq!(space.free(zero, pages), Ok(()));
            let other = space.allocate(pages, MASK_32).expect("there is room");
            assert_ne!(other, zero, "{pages} pages");
            assert_eq!(space.free(other, pages), Ok(()));
        }
        assert_eq!(space.reserve(0, PAGE - 1), Ok(()));
        assert_eq!(holes(&space), before[1..]);
    }
}

#[test]
fn a_wide_device_leaves_the_low_addresses_alone() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_48) {
        for pages in [1, 3, 16, 256, 257, 512, 513, 100_000] {
            assert!(
                space.allocate(pages, MASK_48).is_ok_and(|iova| iova.as_u64() >= 4 * GIB),
                "{pages} pages"
            );
            assert!(
                space.allocate(pages, MASK_32).is_ok_and(|iova| iova.as_u64() < 4 * GIB),
                "{pages} pages"
            );
        }
    }
    for space in spaces(&host, 4 * GIB + MIB - 1) {
        let places: Vec<Iova> = (0..3).map_while(|_| space.allocate(256, MASK_48).ok()).collect();
        assert_eq!(places[0], Iova::new(4 * GIB));
        assert!(
            places[1] < places[0] && places[2] < places[0],
            "low ones when there is no other: {places:?}"
        );
    }
}

#[test]
fn a_mask_holds_for_what_magazines_serve() {
    let host = Host::new(256);
    let space = IovaSpace::new(host, MASK_48).expect("there is memory");
    let far = Iova::new(1 << 40);
    let mask_34 = (1 << 34) - 1;
    assert_eq!(space.allocate_at(far, 1), Ok(()));
    assert_eq!(space.free(far, 1), Ok(()));
    for _ in 0..200 {
        assert!(space.allocate(1, mask_34).is_ok_and(|iova| iova.as_u64() < 1 << 34));
    }
    let mut rest = (0..200).map_while(|_| space.allocate(1, MASK_48).ok());
    assert!(rest.any(|iova| iova == far), "it is still in the magazine for those who reach it");
}

#[test]
fn a_block_that_the_mask_ends_in_is_not_served() {
    let host = Host::new(64);
    let space = IovaSpace::new(host, MASK_48).expect("there is memory");
    let block = space.allocate(16, MASK_32).expect("there is room");
    assert_eq!(space.free(block, 16), Ok(()), "it lies on top of the magazine now");
    let last = block.as_u64() + 8 * PAGE - 1;
    let lower = space.allocate(16, last).expect("there is room from page 1 on");
    assert!(lower.as_u64() + 16 * PAGE - 1 <= last, "{lower} is beyond {last:#x}");
}

#[test]
fn a_miss_fetches_half_a_magazine() {
    let host = Host::new(64);
    let space = IovaSpace::new(host, MASK_48).expect("there is memory");
    assert!(space.allocate(4, MASK_48).is_ok());
    let statistics = space.statistics();
    assert_eq!((statistics.allocated_pages, statistics.cached_pages), (4, 31 * 4));
}

#[test]
fn a_mask_may_end_anywhere() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_48) {
        let exhausted = |pages, last| Err(IovaError::Exhausted { pages, last });
        assert_eq!(space.allocate(1, 0), exhausted(1, 0));
        assert_eq!(space.allocate(1, 2 * PAGE - 2), exhausted(1, 2 * PAGE - 2));
        assert_eq!(space.allocate(1, 2 * PAGE - 1), Ok(Iova::new(PAGE)));
        assert_eq!(space.allocate(2, 4 * PAGE - 2), exhausted(2, 4 * PAGE - 2));
        assert_eq!(space.allocate(2, 4 * PAGE - 1), Ok(Iova::new(2 * PAGE)));
        assert_eq!(
            space.allocate(3, 7 * PAGE - 1),
            Ok(Iova::new(4 * PAGE)),
            "an exact run where no block fits"
        );
        assert_eq!(
            space.allocate_at(Iova::new(7 * PAGE), 1),
            Ok(()),
            "which leaves the page behind it alone"
        );
        assert_eq!(space.free(Iova::new(4 * PAGE), 3), Ok(()));
        assert!(matches!(space.allocate_at(Iova::new(7 * PAGE), 1), Err(IovaError::Taken { .. })));
        assert!(space.allocate(1, u64::MAX).is_ok());
        assert_eq!(space.allocate(1 << 52, u64::MAX), exhausted(1 << 52, u64::MAX));
        assert_eq!(space.allocate(u64::MAX, u64::MAX), exhausted(u64::MAX, u64::MAX));
    }
}

#[test]
fn a_run_may_end_at_its_boundary() {
    let host = Host::new(256);
    for space in spaces(&host, 8 * PAGE - 1) {
        assert_eq!(space.allocate_at(Iova::new(PAGE), 4), Ok(()));
        let request = IovaRequest { boundary: 4 * PAGE, ..IovaRequest::new(3, MASK_48) };
        assert_eq!(space.allocate_with(&request), Ok(Iova::new(5 * PAGE)));
    }
}

#[test]
fn requests_that_cannot_be_met_are_told_apart() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_48) {
        let request = IovaRequest::new(3, MASK_48);
        let impossible = |alignment, boundary| {
            let request = IovaRequest { alignment, boundary, ..request };
            let error = IovaError::Impossible { pages: 3, alignment, boundary };
            assert_eq!(space.allocate_with(&request), Err(error), "{request:?}");
        };
        impossible(0, 0);
        impossible(512, 0);
        impossible(3 * PAGE, 0);
        impossible(PAGE, 512);
        impossible(PAGE, 3 * PAGE);
        impossible(PAGE, 2 * PAGE);
        let none = Err(IovaError::NotWholePages { first: 0, bytes: 0 });
        assert_eq!(space.allocate(0, MASK_48), none);
        assert_eq!(space.allocate_with(&IovaRequest { pages: 0, ..request }), none);
        let far = IovaRequest { alignment: 1 << 63, ..request };
        assert_eq!(space.allocate_with(&far), Err(IovaError::Exhausted { pages: 3, last: MASK_48 }));
    }
}

#[test]
fn a_fixed_range_is_exactly_that() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_48) {
        let before = holes(&space);
        let first = Iova::new(GIB);
        let behind = Iova::new(GIB + 3 * PAGE);
        // Three pages that could be the beginning of a block of four, and the page behind them.
        assert_eq!(space.allocate_at(first, 3), Ok(()));
        assert_eq!(space.allocate_at(behind, 1), Ok(()));
        assert_eq!(space.free(first, 3), Ok(()));
        assert!(matches!(space.allocate_at(behind, 1), Err(IovaError::Taken { .. })), "somebody else's page");
        assert_eq!(space.free(behind, 1), Ok(()));
        // Across the wall at 4 GiB.
        let across = Iova::new(4 * GIB - 5 * PAGE);
        assert_eq!(space.allocate_at(across, 9), Ok(()));
        assert_eq!(space.free(across, 9), Ok(()));
        assert_eq!(holes(&space), before);
    }
}

#[test]
fn only_whole_free_pages_can_be_reserved() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_48) {
        let unaligned = |first, bytes| Err(IovaError::NotWholePages { first, bytes });
        assert_eq!(space.reserve(GIB + 1, GIB + PAGE), unaligned(GIB + 1, PAGE));
        assert_eq!(space.reserve(GIB, GIB + PAGE), unaligned(GIB, PAGE + 1));
        assert_eq!(space.reserve(GIB + 1, GIB + PAGE + 1), unaligned(GIB + 1, PAGE + 1));
        assert_eq!(space.reserve(GIB, GIB - 1), unaligned(GIB, 0));
        assert_eq!(space.allocate_at(Iova::new(GIB), 0), unaligned(GIB, 0));
        assert_eq!(space.allocate_at(Iova::new(PAGE), u64::MAX), unaligned(PAGE, u64::MAX));
        for (first, last) in
            [(0xfee0_0000, 0xfee0_0fff), (0xfedf_f000, 0xfee0_0fff), (MASK_48 + 1, MASK_48 + PAGE)]
        {
            assert_eq!(space.reserve(first, last), Err(IovaError::Taken { first, last }));
        }
        let whole = IovaSpace::new(host.clone(), u64::MAX).expect("there is memory");
        let (first, last) = (1 << 60, (1 << 60) + PAGE - 1);
        assert_eq!(whole.reserve(first, last), Err(IovaError::Taken { first, last }), "beyond 57 bits");
        assert_eq!(space.reserve(GIB, GIB + 3 * PAGE - 1), Ok(()));
        assert_eq!(space.reserve(GIB + 3 * PAGE, GIB + 4 * PAGE - 1), Ok(()));
        let (first, last) = (GIB + 2 * PAGE, GIB + 3 * PAGE - 1);
        assert_eq!(space.reserve(first, last), Err(IovaError::Taken { first, last }));
    }
}

#[test]
fn what_another_cpu_keeps_can_be_had_by_address() {
    let host = Host::new(256);
    let space = IovaSpace::new(host, MASK_48).expect("there is memory");
    become_cpu(3);
    let iova = space.allocate(4, MASK_32).expect("there is room");
    assert_eq!(space.free(iova, 4), Ok(()));
    assert!(space.statistics().cached_pages >= 4);
    become_cpu(5);
    assert_eq!(space.allocate_at(iova, 4), Ok(()));
}

#[test]
fn a_checked_space_refuses_what_is_not_allocated() {
    let host = Host::new(256);
    let space = IovaSpace::new_checked(host, MASK_48).expect("there is memory");
    let before = holes(&space);
    let iova = space.allocate(5, MASK_32).expect("there is room");
    let inside = Iova::new(iova.as_u64() + PAGE);
    let taken = holes(&space);
    let not_allocated = |iova, pages| Err(FreeError::NotAllocated { iova, pages });
    assert_eq!(space.free(iova, 4), Err(FreeError::WrongLength { iova, pages: 4, allocated: 5 }));
    assert_eq!(space.free(inside, 4), not_allocated(inside, 4));
    for stranger in [0, PAGE, GIB, GIB + 1, 0xfee0_0000, MASK_48 + 1, !(PAGE - 1)].map(Iova::new) {
        assert_eq!(space.free(stranger, 1), not_allocated(stranger, 1));
        assert_eq!(space.free(stranger, 600), not_allocated(stranger, 600));
        assert_eq!(space.free(stranger, 0), not_allocated(stranger, 0));
        assert_eq!(space.free(stranger, u64::MAX), not_allocated(stranger, u64::MAX));
    }
    assert_eq!(holes(&space), taken, "nothing has changed");
    assert_eq!(space.free(iova, 5), Ok(()));
    assert_eq!(space.free(iova, 5), not_allocated(iova, 5), "twice");
    assert_eq!(holes(&space), before);
}

#[test]
fn an_unchecked_space_sees_what_is_free_already() {
    let host = Host::new(256);
    let space = IovaSpace::new(host, MASK_48).expect("there is memory");
    let iova = space.allocate(600, MASK_32).expect("there is room");
    assert_eq!(space.free(iova, 600), Ok(()));
    assert_eq!(space.free(iova, 600), Err(FreeError::NotAllocated { iova, pages: 600 }));
    // A block that comes in twice goes to the holes once.
    let before = holes(&space);
    let block = space.allocate(2, MASK_32).expect("there is room");
    assert_eq!(space.free(block, 2), Ok(()));
    let _ = space.free(block, 2);
    assert_eq!(holes(&space), before);
}

/// Allocates and frees a range of each length on CPU 1, whose magazines have blocks, while the lock of all CPUs is held
/// and there is no memory.
fn serve_from_magazines(space: &IovaSpace<Host>, host: &Host, lengths: &[u64]) {
    let cycle = || {
        let allocate = |&pages: &u64| (space.allocate(pages, MASK_48).expect("there is room"), pages);
        let ranges: Vec<(Iova, u64)> = lengths.iter().map(allocate).collect();
        ranges.into_iter().for_each(|(iova, pages)| assert_eq!(space.free(iova, pages), Ok(())));
    };
    become_cpu(1);
    cycle();
    let (done, finished) = mpsc::channel();
    thread::scope(|scope| {
        let central = space.central.lock(&*space.platform);
        host.frames.refuse_after(0);
        scope.spawn(move || {
            become_cpu(1);
            (0..100).for_each(|_| cycle());
            done.send(()).expect("the test waits");
        });
        let served = finished.recv_timeout(Duration::from_secs(20));
        drop(central);
        assert_eq!(served, Ok(()), "it waits for the lock");
    });
    host.frames.relent();
}

#[test]
fn what_magazines_serve_takes_neither_the_lock_nor_memory() {
    let host = Host::new(256);
    let space = IovaSpace::new(host.clone(), MASK_48).expect("there is memory");
    serve_from_magazines(&space, &host, &[1, 2, 3, 7, 16, 100, 256, 512]);
    assert_eq!(space.allocate_at(Iova::new(GIB), 3), Ok(()));
    serve_from_magazines(&space, &host, &[1, 2, 16, 256, 512]);
}

#[test]
fn holes_grow_together_again() {
    let host = Host::new(256);
    for space in spaces(&host, MASK_32) {
        let before = holes(&space);
        assert_eq!(
            before,
            [Run { first: 0, end: 1 }, Run { first: 1, end: 0xfee00 }, Run { first: 0xfef00, end: 1 << 20 }]
        );
        let ranges: Vec<Iova> = (0..9).map_while(|_| space.allocate(1000, MASK_32).ok()).collect();
        for index in [4, 2, 6, 3, 5, 0, 8, 1, 7] {
            assert_eq!(space.free(ranges[index], 1000), Ok(()));
        }
        assert_eq!(holes(&space), before);
    }
}
