//! Random operations against a map of who has what.

use std::collections::BTreeMap;
use std::vec::Vec;

use super::random::Random;
use super::{FRAME, G4, Setup, Zone, run_as_cpu};

const OPERATIONS: u32 = if cfg!(miri) { 200 } else { 1_000_000 };

/// By how much the memory is smaller under Miri, for which each look at a record is a look at all of them.
const SHRINK: u64 = if cfg!(miri) { 16 } else { 1 };

#[test]
fn random_operations() {
    let setup = Setup::new(
        4,
        &[(3, 5000 / SHRINK), (5010, 3000 / SHRINK), (G4 / FRAME - 100, 100 + 4100_u64.div_ceil(SHRINK))],
    );
    let frames = setup.allocator();
    let total = frames.statistics().total;
    let mut random = Random::new(0x5eed);
    // First byte to length in bytes.
    let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
    let mut held = 0;
    for _ in 0..OPERATIONS {
        run_as_cpu(random.below(5) as usize);
        let zone = if random.below(3) == 0 { Zone::Below4G } else { Zone::Any };
        // Drift between nearly empty and nearly full.
        if taken.is_empty() || random.below(100) < 52 {
            let single = random.below(2) == 0;
            let (count, alignment) =
                if single { (1, 1) } else { (1 + random.below(40), 1 << random.below(7)) };
            let start = if single {
                frames.allocate(zone)
            } else {
                frames.allocate_run(count as usize, alignment, zone)
            };
            let Some(start) = start.map(|start| start.as_u64()) else { continue };
            assert!(start.is_multiple_of(alignment as u64 * FRAME));
            let end = start + count * FRAME;
            assert!(zone == Zone::Any || end <= G4);
            let before = taken.range(..end).next_back();
            assert!(before.is_none_or(|(other, bytes)| other + bytes <= start), "given out twice");
            taken.insert(start, count * FRAME);
            held += count;
        } else {
            let from = random.below(G4 / FRAME + 5000) * FRAME;
            let (&start, &bytes) = taken.range(from..).next().or_else(|| taken.first_key_value()).unwrap();
            taken.remove(&start);
            held -= bytes / FRAME;
            let start = mm::PhysAddr::new(start);
            if bytes == FRAME {
                frames.free(start)
            } else {
                frames.free_run(start, (bytes / FRAME) as usize)
            }
            .unwrap();
        }
        if random.below(64) == 0 {
            assert_eq!(frames.statistics().free as u64 + held, total as u64);
        }
    }
    for (start, bytes) in taken {
        frames.free_run(mm::PhysAddr::new(start), (bytes / FRAME) as usize).unwrap();
    }
    assert_eq!(frames.statistics().free, total);
    assert_whole(&frames);
}

/// With everything free, the blocks are as large as the regions allow.
fn assert_whole(frames: &mm::frames::FrameAllocator<'_, super::Threads>) {
    run_as_cpu(0);
    let large = (1 << 12) / SHRINK as usize;
    let runs: Vec<_> = core::iter::from_fn(|| frames.allocate_run(large, 1, Zone::Any)).collect();
    assert_eq!(runs.len(), 1, "the only aligned 16 MiB (1 MiB) are those above 4 GiB");
    assert_eq!(runs[0].as_u64(), G4);
}
