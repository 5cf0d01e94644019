//! What an IOVA costs: `cargo bench -p iommu --bench iova`.
//!
//! *Hit*: one page, allocated and freed by the same CPU's magazine. *Refill*: 256 pages one by one, then freed, so that
//! magazines go to the depot and back. *Miss*: a range larger than magazines hold, out of the holes and back. Each with
//! 0, 1,000 and 100,000 other ranges live and as many holes between them.

extern crate iommu;

#[path = "../src/iova/tests/host.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod host;

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use iommu::{Iova, iova::IovaSpace};

use host::Host;

/// Highest address of a domain with four levels of tables.
const LAST: u64 = (1 << 48) - 1;

/// A space with `live` single pages in use and a free page behind each.
fn fragmented(live: usize) -> IovaSpace<Host> {
    let space = IovaSpace::new(Host::new(8192), LAST).expect("there is memory");
    let pages: Vec<Iova> = (0..2 * live).map(|_| space.allocate(1, LAST).expect("there is room")).collect();
    pages.iter().skip(1).step_by(2).for_each(|&iova| space.free(iova, 1).expect("it was allocated"));
    space.trim();
    space
}

fn cycle(space: &IovaSpace<Host>, pages: u64) {
    let iova = space.allocate(black_box(pages), black_box(LAST)).expect("there is room");
    space.free(black_box(iova), pages).expect("it was allocated");
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("iova");
    for live in [0, 1_000, 100_000] {
        let space = fragmented(live);
        group.bench_function(BenchmarkId::new("hit", live), |bencher| bencher.iter(|| cycle(&space, 1)));
        group.bench_function(BenchmarkId::new("refill", live), |bencher| {
            let mut ranges = Vec::with_capacity(256);
            bencher.iter(|| {
                ranges.extend((0..256).map(|_| space.allocate(1, LAST).expect("there is room")));
                ranges.drain(..).for_each(|iova| space.free(iova, 1).expect("it was allocated"));
            });
        });
        group.bench_function(BenchmarkId::new("miss", live), |bencher| bencher.iter(|| cycle(&space, 513)));
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
