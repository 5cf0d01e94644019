//! Tests of the frame allocator, with host threads for CPUs.

mod oracle;
#[path = "../support/random.rs"]
mod random;
mod refusal;
mod threads;

use core::{
    cell::RefCell,
    sync::atomic::{AtomicUsize, Ordering},
};
use std::{boxed::Box, sync::mpsc::channel, vec::Vec};

use mm::frames::{CpuCache, FrameAllocator, FrameRecord, LockClass, Processor, Zone, record_count};
use mm::lock_order::HeldLocks;
use mm::{PhysAddr, PhysRange};

pub const FRAME: u64 = 4096;
pub const G4: u64 = 4 << 30;

/// A host thread is a CPU: the one whose number it set.
pub struct Threads;

/// What happens at a moment, which is counted down to.
type Meanwhile = (usize, Box<dyn FnOnce()>);

std::thread_local! {
    static CPU: AtomicUsize = const { AtomicUsize::new(0) };
    /// Guards that live: interrupts are off as long as there are any.
    static GUARDS: AtomicUsize = const { AtomicUsize::new(0) };
    static HELD: HeldLocks = const { HeldLocks::new() };
    /// What happens on another CPU when this one is about to turn its interrupts off, that many times from now.
    static MEANWHILE: RefCell<Option<Meanwhile>> = const { RefCell::new(None) };
}

/// Interrupts off, as far as a thread of the host has any.
pub struct Guard(());

impl Drop for Guard {
    fn drop(&mut self) {
        GUARDS.with(|guards| guards.fetch_sub(1, Ordering::Relaxed));
    }
}

pub fn run_as_cpu(cpu: usize) {
    CPU.with(|own| own.store(cpu, Ordering::Relaxed));
}

impl Processor for Threads {
    type Guard = Guard;

    fn guard(&self) -> Guard {
        let next = MEANWHILE.take();
        match next {
            Some((0, happens)) => happens(),
            Some((left, happens)) => MEANWHILE.set(Some((left - 1, happens))),
            None => {}
        }
        GUARDS.with(|guards| guards.fetch_add(1, Ordering::Relaxed));
        Guard(())
    }

    fn cpu(&self) -> usize {
        CPU.with(|own| own.load(Ordering::Relaxed))
    }

    fn lock_taken(&self, class: LockClass) {
        let interrupts_on = GUARDS.with(|guards| guards.load(Ordering::Relaxed)) == 0;
        HELD.with(|held| held.take(class as u8, interrupts_on)).unwrap();
    }

    fn lock_released(&self, class: LockClass) {
        HELD.with(|held| held.release(class as u8));
    }
}

/// What an allocator borrows.
pub struct Setup {
    regions: Vec<PhysRange>,
    records: Vec<FrameRecord>,
    caches: Vec<CpuCache>,
}

impl Setup {
    /// `regions` as first frame and number of frames.
    pub fn new(cpus: usize, regions: &[(u64, u64)]) -> Self {
        let regions: Vec<_> = regions
            .iter()
            .map(|(first, frames)| PhysRange::new(PhysAddr::new(first * FRAME), frames * FRAME))
            .collect();
        let records = (0..record_count(&regions)).map(|_| FrameRecord::default()).collect();
        Self { regions, records, caches: (0..cpus).map(|_| CpuCache::new()).collect() }
    }

    pub fn allocator(&self) -> FrameAllocator<'_, Threads> {
        FrameAllocator::new(Threads, &self.caches, &self.regions, &self.records).unwrap()
    }
}

#[test]
fn every_frame_comes_once_and_all_come_back() {
    let setup = Setup::new(1, &[(1, 700), (G4 / FRAME - 10, 20)]);
    let frames = setup.allocator();
    let before = frames.statistics();
    assert_eq!((before.total, before.free, before.free_below_4g), (720, 720, 710));
    let mut taken: Vec<_> = core::iter::from_fn(|| frames.allocate(Zone::Any)).collect();
    assert!(taken[..10].iter().all(|frame| frame.as_u64() >= G4), "memory above 4 GiB is used first");
    taken.sort_unstable();
    taken.dedup();
    assert_eq!(taken.len(), 720);
    assert_eq!(frames.statistics().free, 0);
    assert_eq!(frames.allocate_run(1, 1, Zone::Any), None);
    for frame in taken {
        frames.free(frame).unwrap();
    }
    assert_eq!(frames.statistics().free, 720);
}

#[test]
fn blocks_grow_together_again() {
    // The largest block; under Miri one that takes less time.
    let count = if cfg!(miri) { 1 << 10 } else { 1 << 18 };
    let setup = Setup::new(1, &[(1 << 18, count as u64)]);
    let frames = setup.allocator();
    assert_eq!(frames.statistics().largest_free, count);
    let one = frames.allocate_run(1, 1, Zone::Below4G).unwrap();
    assert_eq!(frames.statistics().largest_free, count / 2);
    frames.free_run(one, 1).unwrap();
    assert_eq!(frames.statistics().largest_free, count);
    let all = frames.allocate_run(count, 1, Zone::Any).unwrap();
    assert_eq!(all.as_u64(), 1 << 30);
    frames.free_run(all, count).unwrap();
}

#[test]
fn a_run_takes_no_more_than_it_needs() {
    let setup = Setup::new(1, &[(0, 1 << 10)]);
    let frames = setup.allocator();
    let run = frames.allocate_run(5, 64, Zone::Any).unwrap();
    assert!(run.is_aligned(64 * FRAME));
    assert_eq!(frames.statistics().free, (1 << 10) - 5);
    frames.free_run(run, 5).unwrap();
    assert_eq!(frames.statistics().largest_free, 1 << 10);
}

/// Between a CPU's miss and its look into the caches another may put all that they hold into the zone.
#[test]
fn what_another_cpu_has_drained_is_found() {
    type Take = fn(&FrameAllocator<'_, Threads>) -> Option<PhysAddr>;
    let takes: [(usize, Take); 2] =
        [(1, |frames| frames.allocate(Zone::Any)), (2, |frames| frames.allocate_run(2, 1, Zone::Any))];
    for (guards_before, take) in takes {
        let setup = Setup::new(3, &[(0, 8)]);
        let frames = setup.allocator();
        run_as_cpu(2);
        let one = frames.allocate(Zone::Any).unwrap();
        assert_eq!(frames.statistics().cached, 7);
        run_as_cpu(0);
        std::thread::scope(|scope| {
            let (start, started) = channel();
            let (end, ended) = channel();
            let frames = &frames;
            scope.spawn(move || {
                run_as_cpu(1);
                started.recv().unwrap();
                assert!(frames.allocate_run(1, 1, Zone::Any).is_some());
                end.send(()).unwrap();
            });
            let drained_by_another = move || {
                start.send(()).unwrap();
                ended.recv().unwrap();
            };
            MEANWHILE.set(Some((guards_before, Box::new(drained_by_another))));
            let taken = take(frames);
            assert!(MEANWHILE.take().is_none(), "nothing happened meanwhile");
            assert!(taken.is_some(), "6 frames are free");
        });
        frames.free(one).unwrap();
    }
}

#[test]
fn a_run_is_found_although_caches_hold_its_pieces() {
    let setup = Setup::new(3, &[(0, 64)]);
    let frames = setup.allocator();
    for cpu in 0..3 {
        run_as_cpu(cpu);
        let frame = frames.allocate(Zone::Any).unwrap();
        frames.free(frame).unwrap();
    }
    run_as_cpu(0);
    assert!(frames.statistics().cached >= 16);
    let run = frames.allocate_run(64, 64, Zone::Any).unwrap();
    frames.free_run(run, 64).unwrap();
    assert_eq!(frames.statistics().free, 64);
}

#[test]
fn the_last_frame_is_found_in_another_cpus_cache() {
    let setup = Setup::new(2, &[(0, 8)]);
    let frames = setup.allocator();
    run_as_cpu(1);
    let frame = frames.allocate(Zone::Any).unwrap();
    frames.free(frame).unwrap();
    run_as_cpu(0);
    assert_eq!(core::iter::from_fn(|| frames.allocate(Zone::Any)).count(), 8);
}

#[test]
fn low_memory_is_low() {
    let setup = Setup::new(1, &[(G4 / FRAME - 4, 8)]);
    let frames = setup.allocator();
    let low: Vec<_> = core::iter::from_fn(|| frames.allocate(Zone::Below4G)).collect();
    assert_eq!(low.len(), 4);
    assert!(low.iter().all(|frame| frame.as_u64() < G4));
    assert_eq!(frames.allocate_run(1, 1, Zone::Below4G), None);
    assert_eq!(core::iter::from_fn(|| frames.allocate_run(1, 1, Zone::Any)).count(), 4);
}
