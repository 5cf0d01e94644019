//! Allocating and freeing IOVAs takes nothing from the heap, whatever path it goes.

extern crate iommu;

#[path = "../src/iova/tests/host.rs"]
#[allow(dead_code, reason = "the unit tests use more of it")]
mod host;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use iommu::{
    Iova,
    iova::{IovaRequest, IovaSpace},
};

use host::{Host, become_cpu};

/// Counts what each thread takes from the heap.
struct Counting;

std::thread_local! {
    static TAKEN: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is passed on unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        TAKEN.with(|taken| taken.set(taken.get() + 1));
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

const LAST: u64 = (1 << 48) - 1;

/// Takes each path: hit, refill, depot, holes, fixed places, exhaustion, trimming.
fn work(space: &IovaSpace<Host>, live: &mut Vec<(Iova, u64)>) {
    for (count, pages) in [(10_000, 1), (300, 3), (300, 512), (50, 513), (5, 1 << 17)] {
        for cpu in 0..count {
            become_cpu(cpu % 3);
            live.extend(
                space
                    .allocate(pages, if cpu % 2 == 0 { LAST } else { u32::MAX.into() })
                    .map(|iova| (iova, pages)),
            );
        }
    }
    let request = IovaRequest { alignment: 1 << 30, boundary: 1 << 31, ..IovaRequest::new(5, LAST) };
    live.extend(space.allocate_with(&request).map(|iova| (iova, 5)));
    live.extend(space.allocate_at(Iova::new(1 << 46), 3).map(|()| (Iova::new(1 << 46), 3)));
    assert!(space.reserve(1 << 45, (1 << 45) + 0xfff).is_ok());
    assert!(space.allocate(1 << 20, u32::MAX.into()).is_err());
    for (index, (iova, pages)) in live.drain(..).enumerate() {
        become_cpu(index % 2);
        assert_eq!(space.free(iova, pages), Ok(()));
    }
    space.trim();
}

#[test]
fn iovas_take_no_heap() {
    for new in [IovaSpace::new, IovaSpace::new_checked] {
        let space = new(Host::new(4096), LAST).expect("there is memory");
        let mut live = Vec::with_capacity(20_000);
        let before = TAKEN.with(Cell::get);
        assert!(before > 0, "the heap is counted");
        work(&space, &mut live);
        assert_eq!(TAKEN.with(Cell::get), before);
    }
}
