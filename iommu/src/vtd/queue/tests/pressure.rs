//! A queue that wraps, fills up, and is used by many at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::*;

#[test]
fn trap_queue_tail_wraps_to_zero() {
    for (queue_order, entries) in [(0, 256), (1, 512), (3, 2048)] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit_with_queue(&platform, queue_order);
        let mut last = None;
        let mut wraps = [0, 0];
        for length in [1, 2, 3, 1].into_iter().cycle().take(4 * entries) {
            let batch: Vec<_> = (0..length).map(pages).collect();
            unit.invalidate(&platform, &batch).unwrap();
            let tail = doorbells(&platform.unit.take_log())[0];
            // The unit itself panics at a tail beyond the queue.
            let expected = last.map_or(tail, |last| (last + length as usize + 1) % entries);
            assert_eq!(tail, expected);
            wraps[0] += usize::from(tail == 0);
            wraps[1] += usize::from(last.is_some_and(|last| last > tail && tail != 0));
            last = Some(tail);
        }
        assert!(wraps[0] > 0 && wraps[1] > 0, "the tail met the end exactly, and went beyond it");
    }
}

#[test]
fn the_unit_is_told_of_a_queue_as_large_as_can_be() {
    for (queue_order, size) in [(0, 0), (7, 7), (8, 7), (u8::MAX, 7)] {
        let platform = FakePlatform::new(CAP, ECAP);
        unit_with_queue(&platform, queue_order).invalidate(&platform, &[domain()]).unwrap();
        assert_eq!(platform.unit.peek64(0x90) & 0xfff, size);
    }
}

#[test]
fn a_full_queue_is_waited_for_without_the_lock() {
    let platform = Arc::new(FakePlatform::new(CAP, ECAP));
    platform.slow_clock();
    let unit = Arc::new(unit(&platform));
    platform.unit.behave(|manner| manner.lazy = true);
    // Two descriptors each: 127 fit.
    static BATCH: [Invalidation; 1] = [Invalidation::Iotlb(IotlbScope::Global)];
    let tickets: Vec<_> = (0..127).map(|_| unit.submit(&platform, &BATCH).unwrap()).collect();
    let submitted = Arc::new(AtomicBool::new(false));
    let waiter = {
        let (platform, unit, submitted) = (platform.clone(), unit.clone(), submitted.clone());
        thread::spawn(move || {
            let ticket = unit.submit(&platform, &BATCH).unwrap();
            submitted.store(true, Ordering::SeqCst);
            ticket.wait(&platform)
        })
    };
    // Whoever waits for room keeps nobody from looking.
    for _ in 0..50 {
        assert_eq!(unit.queue_statistics(&platform).unwrap().batches, 128, "127 and one of bring-up");
        assert!(!submitted.load(Ordering::SeqCst));
        thread::yield_now();
    }
    while !waiter.is_finished() {
        platform.unit.run(1);
    }
    waiter.join().unwrap().unwrap();
    tickets.into_iter().for_each(|ticket| ticket.wait(&platform).unwrap());
}

#[test]
fn a_queue_that_stays_full_gives_the_unit_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.lazy = true);
    let batch = [domain()];
    let tickets: Vec<_> = (0..127).map(|_| unit.submit(&platform, &batch).unwrap()).collect();
    let start = platform.now_ns();
    assert_eq!(unit.submit(&platform, &batch).unwrap_err(), stuck());
    let waited = platform.elapsed_since(start);
    assert!((WAIT_TIMEOUT_NS..2 * WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
    for ticket in tickets {
        assert_eq!(ticket.wait(&platform), Err(stuck()));
    }
}

/// Fills the queue with copies of `filler`, two descriptors each, lets the unit carry out one descriptor every `pace_ns`,
/// and submits a batch of `descriptors`: gives what came of it, and how long it took.
fn submit_to_a_slow_unit(
    filler: Invalidation,
    pace_ns: u64,
    descriptors: u64,
) -> (Result<(), InvalidationError>, u64) {
    let platform = FakePlatform::new(CAP, ECAP);
    let stride_ns = if cfg!(miri) { (pace_ns / 2).min(WAIT_TIMEOUT_NS / 4) } else { pace_ns / 100 };
    platform.relax_ns.store(stride_ns, Ordering::Relaxed);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.lazy = true);
    let _tickets: Vec<_> =
        (0..127).map(|_| unit.submit(&platform, core::slice::from_ref(&filler)).unwrap()).collect();
    let start = platform.now_ns();
    platform.unit.behave(|manner| manner.pace_ns = Some(pace_ns));
    // The last of them is the wait.
    let batch: Vec<_> = (1..descriptors).map(pages).collect();
    let result = unit.submit(&platform, &batch).map(drop);
    (result, platform.elapsed_since(start))
}

#[test]
fn a_queue_that_moves_slowly_is_waited_for() {
    const DESCRIPTORS: u64 = if cfg!(miri) { 6 } else { 40 };
    let (result, waited) = submit_to_a_slow_unit(domain(), WAIT_TIMEOUT_NS / 4 * 3, DESCRIPTORS);
    assert_eq!(result, Ok(()));
    assert!(waited > DESCRIPTORS / 2 * WAIT_TIMEOUT_NS, "{waited} ns");
}

#[test]
fn a_queue_that_moves_and_has_no_room_is_not_waited_for_for_ever() {
    // It never stands still for as long as a device may hold it up.
    let pace_ns = DEVICE_TIMEOUT_NS / 4 * 3;
    let (result, waited) = submit_to_a_slow_unit(device(8), pace_ns, 10);
    assert_eq!(result, Err(stuck()));
    let longest = 2 * DEVICE_TIMEOUT_NS;
    assert!((longest..longest + WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
}

#[test]
fn a_full_queue_with_a_device_in_it_is_waited_for_as_long_as_devices_are() {
    let platform = FakePlatform::new(CAP, ECAP);
    platform.relax_ns.store(100_000_000, Ordering::Relaxed);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.lazy = true);
    let batch = [device(8)];
    let _tickets: Vec<_> = (0..127).map(|_| unit.submit(&platform, &batch).unwrap()).collect();
    let start = platform.now_ns();
    assert_eq!(unit.submit(&platform, &[domain()]).unwrap_err(), stuck());
    let waited = platform.elapsed_since(start);
    assert!((DEVICE_TIMEOUT_NS..DEVICE_TIMEOUT_NS + WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
}

#[test]
fn a_head_that_cannot_be_is_not_believed() {
    for head in [u64::MAX, 0x7_fff0, 0x1_0000, 0] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit(&platform);
        unit.invalidate(&platform, &[domain(), domain()]).unwrap();
        platform.unit.behave(|manner| (manner.lazy, manner.head) = (true, Some(head)));
        let batch = [domain()];
        let mut tickets = Vec::new();
        let error = loop {
            match unit.submit(&platform, &batch) {
                Ok(ticket) => tickets.push(ticket),
                Err(error) => break error,
            }
            assert!(tickets.len() < 256);
        };
        assert_eq!(error, stuck());
    }
}

#[test]
fn dropped_tickets_lose_no_slots() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.lazy = true);
    let batch = [domain(), device(8)];
    for _ in 0..if cfg!(miri) { 300 } else { 2000 } {
        drop(unit.submit(&platform, &batch).unwrap());
        platform.unit.run(usize::MAX);
    }
    platform.unit.behave(|manner| manner.lazy = false);
    unit.invalidate(&platform, &batch).unwrap();
}

/// Nor do waits that the unit dropped when nobody waited for them any more.
#[test]
fn waits_that_were_dropped_lose_no_slots() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    for _ in 0..if cfg!(miri) { 10 } else { 600 } {
        platform.unit.behave(|manner| manner.silent = vec![0x0100]);
        drop(unit.submit(&platform, &[device(0x0100)]).unwrap());
        platform.unit.give_up_on_device();
        platform.unit.behave(|manner| manner.silent.clear());
        unit.invalidate(&platform, &[domain()]).unwrap();
    }
}

/// A slot is its owner's until the owner has looked, however many others are wanted meanwhile.
#[test]
fn a_slot_that_is_waited_for_is_nobody_else_s() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let batch = [domain()];
    let kept = unit.submit(&platform, &batch).unwrap();
    for _ in 0..if cfg!(miri) { 520 } else { 2000 } {
        drop(unit.submit(&platform, &batch).unwrap());
        assert!(kept.is_complete(&platform));
    }
    kept.wait(&platform).unwrap();
}

/// Who waits for long, and sees no error, calls for nobody.
#[test]
fn a_wait_without_an_error_wakes_nobody() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| (manner.lazy, manner.pace_ns) = (true, Some(WAIT_TIMEOUT_NS / 4)));
    let before = platform.wakes.load(Ordering::Relaxed);
    unit.invalidate(&platform, &[domain()]).unwrap();
    assert_eq!(platform.wakes.load(Ordering::Relaxed), before);
}

/// Waiters on many threads, served in lumps: each sees the completion of its own batch, and no sooner than it was
/// carried out.
#[test]
fn many_wait_at_once_and_each_for_its_own() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = if cfg!(miri) { 10 } else { 300 };
    let platform = Arc::new(FakePlatform::new(CAP, ECAP));
    platform.slow_clock();
    let unit = Arc::new(unit(&platform));
    platform.unit.behave(|manner| manner.lazy = true);
    let running = Arc::new(AtomicUsize::new(THREADS as usize));
    let done = Arc::new(std::sync::Mutex::new(vec![false; (THREADS * ROUNDS) as usize]));
    let workers: Vec<_> = (0..THREADS)
        .map(|worker| {
            let (platform, unit, running, done) =
                (platform.clone(), unit.clone(), running.clone(), done.clone());
            thread::spawn(move || {
                for round in 0..ROUNDS {
                    let number = worker * ROUNDS + round;
                    let batch = [pages(number), pages(number)];
                    unit.invalidate(&platform, &batch[..1 + (number % 2) as usize]).unwrap();
                    assert!(done.lock().unwrap()[number as usize], "completed before it was carried out");
                }
                running.fetch_sub(1, Ordering::SeqCst);
            })
        })
        .collect();
    let mut lump = 1;
    while running.load(Ordering::SeqCst) > 0 {
        // What the unit does and what the test notes of it is one step for the others.
        let mut done = done.lock().unwrap();
        platform.unit.run(lump);
        lump = lump % 7 + 1;
        for descriptor in platform.unit.take_descriptors() {
            if let Descriptor::Iotlb { first, .. } = descriptor {
                done[(first.as_u64() >> 12) as usize] = true;
            }
        }
        drop(done);
        thread::yield_now();
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
}
