//! What the allocator refuses.

use super::{FRAME, G4, Setup, Threads, Zone};
use mm::frames::{FrameAllocator, FrameRecord, FreeError, SetupError, record_count};
use mm::{PhysAddr, PhysRange};

fn region(start: u64, bytes: u64) -> PhysRange {
    PhysRange::new(PhysAddr::new(start), bytes)
}

#[test]
fn double_free() {
    let setup = Setup::new(1, &[(16, 64)]);
    let frames = setup.allocator();
    let frame = frames.allocate(Zone::Any).unwrap();
    frames.free(frame).unwrap();
    assert_eq!(frames.free(frame), Err(FreeError::NotAllocated { start: frame }), "while it is in a cache");
    let run = frames.allocate_run(4, 4, Zone::Any).unwrap();
    frames.free_run(run, 4).unwrap();
    assert_eq!(
        frames.free_run(run, 4),
        Err(FreeError::NotAllocated { start: run }),
        "while it is in a block"
    );
    assert_eq!(frames.statistics().free, 64);
}

#[test]
fn freed_in_pieces_or_in_another_size() {
    let setup = Setup::new(1, &[(16, 64)]);
    let frames = setup.allocator();
    let run = frames.allocate_run(4, 4, Zone::Any).unwrap();
    let second = PhysAddr::new(run.as_u64() + FRAME);
    assert_eq!(frames.free(second), Err(FreeError::NotAllocated { start: second }));
    assert_eq!(frames.free(run), Err(FreeError::WrongSize { start: run, allocated: Some(4) }));
    assert_eq!(frames.free_run(run, 5), Err(FreeError::WrongSize { start: run, allocated: Some(4) }));
    assert_eq!(frames.free_run(run, usize::MAX), Err(FreeError::WrongSize { start: run, allocated: None }));
    // A size whose low bits are right once its high bits are cut off.
    let wide = 4 + (1 << 30);
    assert_eq!(frames.free_run(run, wide), Err(FreeError::WrongSize { start: run, allocated: Some(4) }));
    frames.free_run(run, 4).unwrap();
}

#[test]
fn foreign_memory() {
    let setup = Setup::new(1, &[(16, 64)]);
    let frames = setup.allocator();
    let frame = frames.allocate(Zone::Any).unwrap();
    for start in [15 * FRAME, 80 * FRAME, G4, 1 << 50, frame.as_u64() + 8] {
        let start = PhysAddr::new(start);
        assert_eq!(frames.free(start), Err(FreeError::Foreign { start }));
        assert_eq!(frames.free_run(start, 1), Err(FreeError::Foreign { start }));
    }
    let free = (16..80).map(|number| PhysAddr::new(number * FRAME)).filter(|other| *other != frame);
    for start in free {
        assert_eq!(frames.free(start), Err(FreeError::NotAllocated { start }), "never given out");
    }
}

#[test]
fn impossible_runs() {
    let total = if cfg!(miri) { 1 << 10 } else { 1 << 19 };
    let setup = Setup::new(1, &[(0, total as u64)]);
    let frames = setup.allocator();
    for (count, alignment) in [(0, 1), (1, 0), (1, 3), ((1 << 18) + 1, 1), (1, 1 << 19), (usize::MAX, 1)] {
        assert_eq!(frames.allocate_run(count, alignment, Zone::Any), None);
    }
    assert_eq!(frames.statistics().free, total);
}

#[test]
fn bad_memory_maps() {
    let new = |regions: &[PhysRange], count: usize| {
        let records: std::vec::Vec<_> = (0..count).map(|_| FrameRecord::default()).collect();
        FrameAllocator::new(Threads, &[], regions, &records).map(|frames| frames.statistics().total)
    };
    let (a, b) = (region(0, 8 * FRAME), region(7 * FRAME, FRAME));
    assert_eq!(new(&[a, b], 100), Err(SetupError::Overlap { region: b }));
    assert_eq!(new(&[a], 7), Err(SetupError::TooFewRecords { needed: 8, given: 7 }));
    let high = region((1 << 44) - FRAME, FRAME);
    assert_eq!(new(&[high], 1), Err(SetupError::TooHigh { region: high }));
    let many: std::vec::Vec<_> = (0..33).map(|n| region(n * 2 * FRAME, FRAME)).collect();
    assert_eq!(new(&many, 100), Err(SetupError::TooManyRegions { limit: 32 }));
    // Partial pages do not count, at either end.
    let partial = region(FRAME + 1, 3 * FRAME);
    assert_eq!(record_count(&[partial]), 2);
    assert_eq!(new(&[partial], 2), Ok(2));
    assert_eq!(new(&[region(FRAME + 1, 2), region(5, 0)], 0), Ok(0));
}
