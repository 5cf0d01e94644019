//! The engine's x86 format beside the `x86_64` crate's `OffsetPageTable`, on the same memory, with the same leaf sizes.
//!
//! Both map a batch of ranges, then unmap it; map and unmap are timed apart. The tables are there before the first
//! round and stay. Neither side flushes anything.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use mm::table::x86::{X86Access, X86Format};
use mm::table::{LeafSizes, PageTable, Table, TableMemory};
use mm::{PhysAddr, PhysRange};
use x86_64::structures::paging::mapper::CleanUp;
use x86_64::structures::paging::{
    FrameAllocator, FrameDeallocator, Mapper, OffsetPageTable, Page, PageSize, PageTable as CratePageTable,
    PageTableFlags, PhysFrame, Size2MiB, Size4KiB,
};
use x86_64::{PhysAddr as CratePhysAddr, VirtAddr};

const PAGE: u64 = 4096;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;
/// Where the ranges are mapped, and to what: memory that is aligned to pages only.
const INPUT: u64 = 64 * G1;
const OUTPUT: u64 = 16 * G1;

/// Pages for tables. Physical addresses are the pages' own less an offset, as in a kernel with a direct map.
struct Arena {
    base: *mut u8,
    pages: usize,
    free: Mutex<Vec<u64>>,
}

/// Physical address of the arena's first page.
const FIRST: u64 = 1 << 20;

// SAFETY: the memory is used as tables of atomics by one side, and by one thread by the other.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    fn new(pages: usize) -> Self {
        // SAFETY: the layout is not empty.
        let base = unsafe { alloc_zeroed(Self::layout(pages)) };
        let free = (0..pages as u64).rev().map(|page| FIRST + page * PAGE).collect();
        Self { base, pages, free: Mutex::new(free) }
    }

    fn layout(pages: usize) -> Layout {
        Layout::from_size_align(pages * PAGE as usize, PAGE as usize).unwrap()
    }

    fn take(&self) -> Option<u64> {
        self.free.lock().unwrap().pop()
    }

    fn pointer(&self, page: u64) -> *mut u8 {
        self.base.wrapping_add((page - FIRST) as usize)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with the same layout.
        unsafe { dealloc(self.base, Self::layout(self.pages)) };
    }
}

// SAFETY: a page has one owner while it is not in `free`, is zero at the start, and comes back zero.
unsafe impl TableMemory for Arena {
    fn allocate(&self) -> Option<PhysAddr> {
        self.take().map(PhysAddr::new)
    }

    unsafe fn free(&self, page: PhysAddr) {
        self.free.lock().unwrap().push(page.as_u64());
    }

    #[inline]
    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: within the arena (the caller's promise), and atomics only.
        unsafe { &*self.pointer(page.as_u64()).cast() }
    }

    fn write_back(&self, _: *const u8, _: usize) {
        unreachable!("the walker of the x86 format snoops");
    }
}

/// The crate's view of the arena.
struct Frames<'a>(&'a Arena);

// SAFETY: a page has one owner while it is not in `free`.
unsafe impl FrameAllocator<Size4KiB> for Frames<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        self.0.take().map(|page| PhysFrame::containing_address(CratePhysAddr::new(page)))
    }
}

impl FrameDeallocator<Size4KiB> for Frames<'_> {
    unsafe fn deallocate_frame(&mut self, frame: PhysFrame) {
        self.0.free.lock().unwrap().push(frame.start_address().as_u64());
    }
}

/// What both sides do: `count` ranges, one after the other, each of `leaves` leaves of `leaf` bytes.
#[derive(Clone, Copy)]
struct Batch {
    name: &'static str,
    leaf: u64,
    leaves: u64,
    count: u64,
}

impl Batch {
    fn ranges(self) -> impl Iterator<Item = (u64, u64)> {
        let bytes = self.leaf * self.leaves;
        let odd = if self.leaf == PAGE { PAGE } else { 0 };
        (0..self.count).map(move |index| (INPUT + index * bytes, OUTPUT + odd + index * bytes))
    }
}

const BATCHES: [Batch; 4] = [
    Batch { name: "1 page", leaf: PAGE, leaves: 1, count: 512 },
    Batch { name: "16 pages", leaf: PAGE, leaves: 16, count: 256 },
    Batch { name: "512 pages", leaf: PAGE, leaves: 512, count: 8 },
    Batch { name: "1 GiB in 2 MiB leaves", leaf: M2, leaves: 512, count: 4 },
];

/// One side: maps and unmaps one range.
trait Side {
    fn map(&mut self, input: u64, output: u64, bytes: u64);
    fn unmap(&mut self, input: u64, bytes: u64);
}

struct Ours<'a>(PageTable<X86Format, &'a Arena>);

impl Side for Ours<'_> {
    fn map(&mut self, input: u64, output: u64, bytes: u64) {
        let segment = PhysRange::new(PhysAddr::new(output), bytes);
        // SAFETY: nobody else uses the tree.
        let mapped = unsafe { self.0.map(input, &[segment], X86Access::WRITE) };
        assert!(matches!(mapped, Ok(None)));
    }

    fn unmap(&mut self, input: u64, bytes: u64) {
        // SAFETY: nobody else uses the tree, and nobody walks it.
        unsafe {
            let Ok(stale) = self.0.unmap(input, bytes) else { panic!("not unmapped") };
            self.0.redeem(stale.assume_flushed());
        }
    }
}

struct Theirs<'a, S: PageSize> {
    table: OffsetPageTable<'a>,
    frames: Frames<'a>,
    size: core::marker::PhantomData<S>,
}

impl<S: PageSize> Side for Theirs<'_, S>
where
    for<'a> OffsetPageTable<'a>: Mapper<S>,
{
    fn map(&mut self, input: u64, output: u64, bytes: u64) {
        let flags = PageTableFlags::PRESENT | PageTableFlags::WRITABLE;
        for offset in (0..bytes).step_by(S::SIZE as usize) {
            let page = Page::<S>::containing_address(VirtAddr::new(input + offset));
            let frame = PhysFrame::containing_address(CratePhysAddr::new(output + offset));
            // SAFETY: nobody walks the table.
            let mapped = unsafe { self.table.map_to(page, frame, flags, &mut self.frames) };
            mapped.ok().expect("mapped").ignore();
        }
    }

    fn unmap(&mut self, input: u64, bytes: u64) {
        for offset in (0..bytes).step_by(S::SIZE as usize) {
            let page = Page::<S>::containing_address(VirtAddr::new(input + offset));
            self.table.unmap(page).unwrap().1.ignore();
        }
    }
}

impl<S: PageSize> Drop for Theirs<'_, S> {
    fn drop(&mut self) {
        // SAFETY: nobody walks the table.
        unsafe { self.table.clean_up(&mut self.frames) };
    }
}

/// Times `rounds` maps, or unmaps, of one range of `batch`.
fn time(side: &mut impl Side, batch: Batch, maps: bool, rounds: u64) -> Duration {
    let bytes = batch.leaf * batch.leaves;
    let mut total = Duration::ZERO;
    for _ in 0..rounds.div_ceil(batch.count) {
        let start = Instant::now();
        batch
            .ranges()
            .for_each(|(input, output)| side.map(black_box(input), black_box(output), black_box(bytes)));
        let mapped = start.elapsed();
        let start = Instant::now();
        batch.ranges().for_each(|(input, _)| side.unmap(black_box(input), black_box(bytes)));
        total += if maps { mapped } else { start.elapsed() };
    }
    // Whole batches were timed; criterion wants the time of `rounds`.
    total.mul_f64(rounds as f64 / (rounds.div_ceil(batch.count) * batch.count) as f64)
}

fn run(criterion: &mut Criterion, batch: Batch, name: &str, side: impl Side) {
    let side = RefCell::new(side);
    time(&mut *side.borrow_mut(), batch, true, batch.count);
    for (what, maps) in [("map", true), ("unmap", false)] {
        let mut group = criterion.benchmark_group(format!("{what} {}", batch.name));
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|rounds| time(&mut *side.borrow_mut(), batch, maps, rounds));
        });
        group.finish();
    }
}

fn side_by_side(criterion: &mut Criterion) {
    for batch in BATCHES {
        let arena = Arena::new(64);
        let sizes =
            if batch.leaf == PAGE { LeafSizes::SIZE_4K } else { LeafSizes::SIZE_4K | LeafSizes::SIZE_2M };
        let tree = PageTable::new(X86Format::new(4, sizes, 46).unwrap(), &arena).unwrap();
        run(criterion, batch, "mm", Ours(tree));

        let arena = Arena::new(64);
        let root = arena.pointer(arena.take().unwrap()).cast::<CratePageTable>();
        let offset = VirtAddr::new(arena.base as u64 - FIRST);
        // SAFETY: the root is a zeroed page of the arena, and the offset is the arena's.
        let table = unsafe { OffsetPageTable::new(&mut *root, offset) };
        let frames = Frames(&arena);
        if batch.leaf == PAGE {
            run(
                criterion,
                batch,
                "x86_64",
                Theirs::<Size4KiB> { table, frames, size: core::marker::PhantomData },
            );
        } else {
            run(
                criterion,
                batch,
                "x86_64",
                Theirs::<Size2MiB> { table, frames, size: core::marker::PhantomData },
            );
        }
    }
}

/// One page, with more and more others mapped: the cost stays the same.
fn among_others(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("map and unmap 1 page among others");
    for others in [0_u64, 1_000, 100_000] {
        let arena = Arena::new(2048);
        let tree = PageTable::new(X86Format::new(4, LeafSizes::all(), 46).unwrap(), &arena).unwrap();
        let mut ours = Ours(tree);
        // Every other page, so that none of them can be part of anything larger.
        (0..others).for_each(|page| ours.map(INPUT + 2 * page * PAGE, OUTPUT, PAGE));
        let input = INPUT + PAGE;
        group.bench_function(BenchmarkId::from_parameter(others), |bencher| {
            bencher.iter(|| {
                ours.map(black_box(input), black_box(OUTPUT), PAGE);
                ours.unmap(black_box(input), PAGE);
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(50).measurement_time(Duration::from_secs(2));
    targets = side_by_side, among_others
}
criterion_main!(benches);
