//! Several CPUs at once.

use core::sync::atomic::{AtomicU32, Ordering};
use std::vec::Vec;

use super::random::Random;
use super::{FRAME, Setup, Zone, run_as_cpu};

const ROUNDS: u32 = if cfg!(miri) { 150 } else { 60_000 };
const CPUS: usize = 4;
const FRAMES: u64 = 512;

#[test]
fn no_frame_has_two_owners() {
    let setup = Setup::new(CPUS, &[(0, FRAMES)]);
    let frames = setup.allocator();
    let owners: Vec<AtomicU32> = (0..FRAMES).map(|_| AtomicU32::new(0)).collect();
    let claim = |start: u64, count: u64, from, to| {
        for frame in start / FRAME..start / FRAME + count {
            let seen = owners[frame as usize].swap(to, Ordering::Relaxed);
            assert_eq!(seen, from, "frame {frame}");
        }
    };
    std::thread::scope(|scope| {
        for cpu in 0..CPUS {
            let (frames, claim) = (&frames, &claim);
            scope.spawn(move || {
                run_as_cpu(cpu);
                let own = cpu as u32 + 1;
                let mut random = Random::new(own.into());
                let mut taken = Vec::new();
                for _ in 0..ROUNDS {
                    if taken.len() < 24 && random.below(2) == 0 {
                        let count = 1 + random.below(6) * random.below(2);
                        let start = if count == 1 {
                            frames.allocate(Zone::Any)
                        } else {
                            frames.allocate_run(count as usize, 1, Zone::Any)
                        };
                        let Some(start) = start else { continue };
                        claim(start.as_u64(), count, 0, own);
                        taken.push((start, count));
                    } else if !taken.is_empty() {
                        let (start, count) = taken.swap_remove(random.below(taken.len() as u64) as usize);
                        claim(start.as_u64(), count, own, 0);
                        let freed = if count == 1 {
                            frames.free(start)
                        } else {
                            frames.free_run(start, count as usize)
                        };
                        freed.unwrap();
                    }
                }
                for (start, count) in taken {
                    claim(start.as_u64(), count, own, 0);
                    frames.free_run(start, count as usize).unwrap();
                }
            });
        }
    });
    assert_eq!(frames.statistics().free as u64, FRAMES);
    assert!(frames.allocate_run(FRAMES as usize, 1, Zone::Any).is_some());
}

#[test]
fn of_two_who_free_a_frame_one_succeeds() {
    let setup = Setup::new(2, &[(0, 64)]);
    let frames = setup.allocator();
    for _ in 0..ROUNDS / 50 {
        let frame = frames.allocate(Zone::Any).unwrap();
        let freed = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2)
                .map(|cpu| {
                    let frames = &frames;
                    scope.spawn(move || {
                        run_as_cpu(cpu);
                        frames.free(frame).is_ok()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum::<usize>()
        });
        assert_eq!(freed, 1);
    }
    assert_eq!(frames.statistics().free, 64);
}
