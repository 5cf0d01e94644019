//! Disjoint ranges of one tree, changed by several threads at once.

use std::sync::atomic::{AtomicBool, Ordering};

use mm::table::{MapError, Stale};

use super::arena::Arena;
use super::format::{BOTH, READ};
use super::random::Random;
use super::walker::Walker;
use super::{G1, K4, M2, Tree, finish, flush, range, remap, tree};

const THREADS: u64 = 4;
const ROUNDS: u32 = if cfg!(miri) { 25 } else { 30_000 };

/// Thread `thread` owns every page whose number is `thread` modulo four, around the border between two upper tables:
/// all threads work in the same tables all the time, which come and go.
fn work(tree: &Tree<'_>, walker: Walker, thread: u64) {
    let mut random = Random::new(thread + 1);
    let mut mapped: Vec<(u64, u64)> = Vec::new();
    let mut waiting: Vec<Stale> = Vec::new();
    for _ in 0..ROUNDS {
        let group = [G1 - 2 * M2, G1, 5 * G1, 1 << 40][random.below(4) as usize];
        let input =
            group + (random.below(96) * THREADS + thread) * K4 * if random.below(4) == 0 { 5 } else { 1 };
        let input = (input / K4 / THREADS * THREADS + thread) * K4;
        let output = random.below(1 << 30) * K4;
        // SAFETY: the page is this thread's alone.
        unsafe {
            match tree.map(input, &[range(output, K4)], BOTH) {
                Ok(stale) => {
                    waiting.extend(stale);
                    mapped.push((input, output));
                }
                Err(MapError::AlreadyMapped { undone, .. }) => {
                    assert!(mapped.iter().any(|(taken, _)| *taken == input));
                    waiting.extend(undone);
                }
                Err(error) => panic!("{error}"),
            }
        }
        for &(input, output) in mapped.iter().rev().take(3) {
            assert_eq!(walker.walk(tree.memory(), input).map(|found| found.output), Some(output));
        }
        while mapped.len() > 3 || (random.below(2) == 0 && !mapped.is_empty()) {
            let (input, output) = mapped.swap_remove(random.below(mapped.len() as u64) as usize);
            assert_eq!(tree.lookup(input).map(|found| found.output.as_u64()), Some(output));
            // SAFETY: the page is this thread's alone.
            let stale = unsafe { tree.unmap(input, K4) }.unwrap();
            assert_eq!(stale.changed_bytes(), K4);
            // Not by the walker: a flush waits for walks that have begun, and nobody waits for this one.
            assert_eq!(tree.lookup(input), None);
            waiting.push(stale);
        }
        while waiting.len() > 2 {
            tree.redeem(flush(waiting.swap_remove(0)));
        }
    }
    for (input, _) in mapped {
        // SAFETY: the page is this thread's alone.
        waiting.push(unsafe { tree.unmap(input, K4) }.unwrap());
    }
    waiting.into_iter().for_each(|stale| tree.redeem(flush(stale)));
}

#[test]
fn pages_of_the_same_tables() {
    let memory = Arena::new(256);
    let mut tree = tree(remap(), &memory);
    let walker = Walker { root: tree.root(), levels: 4, snoops: true, present: 3 };
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            for _ in 0..if cfg!(miri) { 20 } else { 100_000 } {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                // Not a picture of one moment: pages come and go behind and before it. But it goes on and ends.
                let mut next = 0;
                for run in tree.runs(0, (1 << 48) - 1) {
                    assert!(run.input >= next, "{:#x} shown after {next:#x}", run.input);
                    next = run.input + run.bytes;
                }
                let _ = tree.trace(5 * G1);
            }
        });
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let tree = &tree;
                scope.spawn(move || work(tree, walker, thread))
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(tree.runs(0, (1 << 48) - 1).count(), 0);
    if let Some(stale) = tree.trim() {
        tree.redeem(flush(stale));
    }
    tree.release_spare();
    assert_eq!(memory.used(), 1, "every count came back to zero");
    finish(tree);
}

/// Threads that unmap and protect disjoint parts of one superpage: one of them splits it, and no other part is ever
/// unmapped.
#[test]
fn parts_of_one_superpage() {
    for round in 0..if cfg!(miri) { 2 } else { 400 } {
        let memory = Arena::new(64);
        let tree = tree(remap(), &memory);
        let walker = Walker { root: tree.root(), levels: 4, snoops: true, present: 3 };
        let bytes = if round % 2 == 0 { M2 } else { G1 };
        // SAFETY: no other thread knows the tree yet.
        unsafe { assert!(tree.map(4 * G1, &[range(8 * G1, bytes)], BOTH).unwrap().is_none()) };
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (tree, memory) = (&tree, &memory);
                scope.spawn(move || {
                    let own = 4 * G1 + thread * bytes / THREADS;
                    for page in 0..8 {
                        let input = own + page * K4;
                        for later in page..8 {
                            let found = walker.walk(memory, own + later * K4).expect("still mapped");
                            assert_eq!(found.output, own + later * K4 + 4 * G1);
                        }
                        // SAFETY: the pages are this thread's alone.
                        let stale = unsafe {
                            if thread % 2 == 0 {
                                tree.unmap(input, K4)
                            } else {
                                tree.protect(input, K4, READ)
                            }
                        };
                        tree.redeem(flush(stale.unwrap()));
                    }
                });
            }
        });
        for thread in 0..THREADS {
            let own = 4 * G1 + thread * bytes / THREADS;
            let found = tree.lookup(own).map(|found| found.access);
            assert_eq!(found, (thread % 2 == 1).then_some(READ));
            assert_eq!(tree.lookup(own + 8 * K4).map(|found| found.access), Some(BOTH));
        }
        finish(tree);
    }
}
