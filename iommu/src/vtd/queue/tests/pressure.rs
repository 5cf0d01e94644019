//! A queue that wraps, fills up, and is used by many at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use super::{errors::refuse_pages, *};

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

/// Fills the queue with copies of `filler`, two descriptors each, lets the unit carry out one descriptor every
/// `pace_ns`, and submits a batch of `descriptors`: gives what came of it, and how long it took.
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
    let (waited, longest) = (platform.elapsed_since(start), 2 * DEVICE_TIMEOUT_NS);
    assert!((longest..longest + WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
}

/// Fills the queue with `first` and batches for the unit's own caches, of which it carries out the first `begun`
/// descriptors.
fn fill<'a>(
    platform: &FakePlatform,
    unit: &'a Unit<FakePlatform>,
    first: &'a [Invalidation; 1],
    begun: usize,
) -> Vec<Ticket<'a, FakePlatform>> {
    static OTHERS: [Invalidation; 1] = [Invalidation::Iotlb(IotlbScope::Global)];
    platform.unit.behave(|manner| manner.lazy = true);
    let batches = [&first[..]].into_iter().chain([&OTHERS[..]].into_iter().cycle().take(126));
    let tickets = batches.map(|batch| unit.submit(platform, batch).unwrap()).collect();
    platform.unit.run(begun);
    tickets
}

/// When the unit gives up on the device that held everything up, it has to be set going again, and then has time to go
/// on.
#[test]
fn a_full_queue_moves_on_when_the_unit_gives_up_on_a_device() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    let silent = [device(0x0100)];
    let _tickets = fill(&platform, &unit, &silent, 2);
    let given_up_at = platform.now_ns() + DEVICE_TIMEOUT_NS / 2;
    let goes_on_at = given_up_at + WAIT_TIMEOUT_NS / 2;
    let go_on: UnitEvent = |fake| {
        fake.behave(|manner| manner.lazy = false);
        fake.run(usize::MAX);
    };
    meanwhile(&platform, [(given_up_at, FakeUnit::give_up_on_device), (goes_on_at, go_on)]);
    unit.invalidate(&platform, &[domain(), domain(), domain()]).unwrap();
    assert!(platform.elapsed_since(given_up_at) < WAIT_TIMEOUT_NS);
}

/// A CPU that was away for long finds a queue that stood still meanwhile, because nobody looked, or that somebody has
/// just set going again.
#[test]
fn who_was_kept_from_running_with_a_full_queue_gives_it_time_to_move() {
    for somebody_else_looks in [true, false] {
        let platform = Arc::new(FakePlatform::new(CAP, ECAP));
        let unit = Arc::new(unit(&platform));
        refuse_pages(&platform);
        let refused = [pages(1)];
        let _tickets = fill(&platform, &unit, &refused, 0);
        let (other_platform, other, mut rounds) = (Arc::downgrade(&platform), unit.clone(), 0);
        *platform.on_relax.lock().unwrap() = Some(std::boxed::Box::new(move || {
            let platform = other_platform.upgrade().unwrap();
            rounds += 1;
            match rounds {
                1 => {
                    platform.unit.run(1);
                    platform.clock_ns.fetch_add(2 * WAIT_TIMEOUT_NS, Ordering::Relaxed);
                    if somebody_else_looks {
                        other.queue.as_ref().unwrap().recover(&*platform, &other.hardware);
                    }
                }
                2 => {}
                _ => platform.unit.run(usize::MAX),
            }
        }));
        unit.invalidate(&platform, &[domain(), domain(), domain()]).unwrap();
        assert_eq!(unit.queue_statistics(&platform).unwrap().refused, 1);
    }
}

/// That all slots are taken, by waiters who have not looked yet, says nothing about the unit.
#[test]
fn a_unit_that_has_done_everything_is_not_given_up_for_want_of_slots() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = Arc::new(unit(&platform));
    let slots = &unit.queue.as_ref().unwrap().slots;
    let taken: Vec<_> = core::iter::from_fn(|| slots.take(&platform)).collect();
    let (clock, start, other) = (platform.clock_ns.clone(), platform.now_ns(), unit.clone());
    let mut taken = taken.into_iter();
    *platform.on_relax.lock().unwrap() = Some(std::boxed::Box::new(move || {
        if clock.load(Ordering::Relaxed) > start + 5 * WAIT_TIMEOUT_NS {
            taken.by_ref().for_each(|slot| other.queue.as_ref().unwrap().slots.put_back(slot));
        }
    }));
    unit.invalidate(&platform, &[domain()]).unwrap();
    assert!(platform.elapsed_since(start) > 5 * WAIT_TIMEOUT_NS);
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
