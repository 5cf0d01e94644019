//! Devices whose TLBs take long, or that do not answer at all.

use super::{errors::refuse_pages, *};
use crate::vtd::spec::{Completion, Wait};

/// What is refused is asked for again, also when the devices behind it were invalidated without a complaint.
#[test]
fn devices_that_answer_do_not_hide_that_the_rest_was_refused() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    unit.invalidate(&platform, &[pages(1), device(0x0100)]).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(words(&done), ["wait", "fence", "device", "wait", "all", "fence", "device", "wait"]);
}

#[test]
fn trap_a_device_that_does_not_answer_is_an_error_and_nothing_more() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| (manner.silent, manner.gives_up_ns) = (vec![0x0100], Some(60_000_000_000)));
    let batch = [domain(), device(0x0100)];
    assert_eq!(unit.invalidate(&platform, &batch), timed_out(0x0100));
    assert!(!unit.is_stuck());
    assert_eq!(doorbells(&platform.unit.take_log()).len(), 1, "nothing is left to ask for");
    assert_eq!(unit.queue_statistics(&platform).unwrap().device_timeouts, 1);
    let source = SourceId { segment: 0, requester: 0x0100 };
    assert_eq!(unit.take_queue_report(&platform), Some(QueueReport::DeviceTimeout { source }));
    assert_eq!(platform.unit.peek32(FSTS) & ERRORS, 0);
    unit.invalidate(&platform, &[domain(), device(0x0200)]).unwrap();
}

#[test]
fn others_are_done_again_without_the_device_that_does_not_answer() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    let (bad, good) = ([device(0x0100)], [context(), domain(), device(0x0200)]);
    let bad = unit.submit(&platform, &bad).unwrap();
    let good = unit.submit(&platform, &good).unwrap();
    assert!(!good.is_complete(&platform), "the unit completes in order");
    platform.unit.give_up_on_device();
    platform.unit.take_log();
    good.wait(&platform).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(words(&done), ["context", "fence", "iotlb", "fence", "device", "wait"]);
    assert_eq!(bad.wait(&platform), timed_out(0x0100));
}

/// What the unit had not begun when it gave up on the device, it does afterwards, and once: a wait at the head is one
/// of those.
#[test]
fn what_was_not_begun_is_not_done_twice() {
    for begun in [2, 3] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit(&platform);
        platform.unit.behave(|manner| (manner.lazy, manner.silent) = (true, vec![0x0100]));
        let (bad, good) = ([device(0x0100)], [domain()]);
        let bad = unit.submit(&platform, &bad).unwrap();
        let good = unit.submit(&platform, &good).unwrap();
        platform.unit.run(begun);
        platform.unit.give_up_on_device();
        unit.queue.as_ref().unwrap().recover(&platform, &unit.hardware);
        platform.unit.behave(|manner| manner.lazy = false);
        platform.unit.run(usize::MAX);
        good.wait(&platform).unwrap();
        assert_eq!(bad.wait(&platform), timed_out(0x0100));
        assert_eq!(words(&platform.unit.take_descriptors()), ["device", "wait", "iotlb", "wait"]);
    }
}

/// In one batch, the devices that do answer are still flushed.
#[test]
fn the_other_devices_of_a_batch_are_flushed() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| (manner.silent, manner.gives_up_ns) = (vec![0x0100], Some(60_000_000_000)));
    let batch = [domain(), device(0x0200), device(0x0100), device(0x0300)];
    assert_eq!(unit.invalidate(&platform, &batch), timed_out(0x0100));
    let done = platform.unit.take_descriptors();
    let expected = ["iotlb", "fence", "device", "device", "device", "wait", "device", "device", "wait"];
    assert_eq!(words(&done), expected, "without doing the IOTLB again");
}

#[test]
fn a_unit_that_does_not_say_which_device_it_was() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| {
        (manner.silent, manner.gives_up_ns) = (vec![0x0100], Some(60_000_000_000));
        manner.conceals_source = true;
    });
    assert_eq!(unit.invalidate(&platform, &[domain(), device(0x0100)]), timed_out(0x0100));
    assert!(!unit.is_stuck());
}

/// Nor is anybody else's device taken for it: those that were behind it in the queue are asked again.
#[test]
fn a_unit_that_does_not_say_which_device_it_was_has_the_first_in_line_blamed() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| (manner.silent, manner.conceals_source) = (vec![0x0100], true));
    let (bad, good) = ([device(0x0100)], [domain(), device(0x0200)]);
    let only_devices = [device(0x0300)];
    let [bad, good, other] =
        [&bad[..], &good, &only_devices].map(|batch| unit.submit(&platform, batch).unwrap());
    platform.unit.give_up_on_device();
    assert_eq!(good.wait(&platform), Ok(()));
    assert_eq!(other.wait(&platform), Ok(()));
    assert_eq!(bad.wait(&platform), timed_out(0x0100));
    assert_eq!(unit.queue_statistics(&platform).unwrap().device_timeouts, 1);
}

/// What the first of them cost is no suspect when the unit gives up on the second.
#[test]
fn a_unit_that_does_not_say_which_device_it_was_tells_two_of_one_batch_apart() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| {
        (manner.silent, manner.gives_up_ns) = (vec![0x0100, 0x0200], Some(60_000_000_000));
        manner.conceals_source = true;
    });
    let batch = [domain(), device(0x0100), device(0x0200)];
    let result = unit.invalidate(&platform, &batch);
    assert!(matches!(result, Err(InvalidationError::DeviceTimeout { others: true, .. })), "{result:?}");
    assert_eq!(unit.queue_statistics(&platform).unwrap().device_timeouts, 2);
    assert!(!unit.is_stuck());
}

/// It may also be one that was given up long before the unit noticed.
#[test]
fn a_unit_that_does_not_say_which_device_it_was_may_mean_one_that_nobody_waits_for() {
    for gives_up_first in [true, false] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit(&platform);
        platform.unit.behave(|manner| (manner.silent, manner.conceals_source) = (vec![0x0100], true));
        let (bad, good) = ([device(0x0100)], [device(0x0200)]);
        let bad = unit.submit(&platform, &bad).unwrap();
        if gives_up_first {
            assert_eq!(bad.wait(&platform), timed_out(0x0100));
        } else {
            drop(bad);
        }
        let good = unit.submit(&platform, &good).unwrap();
        platform.unit.give_up_on_device();
        assert_eq!(good.wait(&platform), Ok(()));
    }
}

/// Neither deadline of the unit's own caches counts while a device may yet answer.
#[test]
fn waits_behind_a_slow_device_are_not_given_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| (manner.silent, manner.gives_up_ns) = (vec![0x0100], Some(90_000_000_000)));
    let (bad, good) = ([device(0x0100)], [domain()]);
    let bad = unit.submit(&platform, &bad).unwrap();
    let good = unit.submit(&platform, &good).unwrap();
    let start = platform.now_ns();
    good.wait(&platform).unwrap();
    assert!(platform.elapsed_since(start) > 90_000_000_000);
    assert_eq!(bad.wait(&platform), timed_out(0x0100));
    assert!(!unit.is_stuck());
}

/// A unit that is done with a device at last goes on, but not in the same instant.
#[test]
fn a_unit_has_time_to_go_on_when_a_slow_device_is_done_with() {
    let answers: UnitEvent = FakeUnit::complete_late;
    let is_given_up: UnitEvent = FakeUnit::give_up_on_device;
    for end in [answers, is_given_up] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit(&platform);
        platform.unit.behave(|manner| (manner.lazy, manner.silent) = (true, vec![0x0100]));
        let (slow, good) = ([device(0x0100)], [domain()]);
        let slow = unit.submit(&platform, &slow).unwrap();
        let good = unit.submit(&platform, &good).unwrap();
        // It has not even fetched what is behind the device.
        platform.unit.run(2);
        let ends_at = platform.now_ns() + 30 * WAIT_TIMEOUT_NS;
        meanwhile(&platform, [(ends_at, end), (ends_at + WAIT_TIMEOUT_NS / 2, |fake| fake.run(usize::MAX))]);
        assert_eq!(good.wait(&platform), Ok(()));
        assert!(!unit.is_stuck());
        drop(slow);
    }
}

/// A unit that stands still from then on has no more than that time.
#[test]
fn a_unit_that_dies_behind_a_slow_device_has_the_short_deadline_from_then_on() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| (manner.lazy, manner.silent) = (true, vec![0x0100]));
    let (slow, good) = ([device(0x0100)], [domain()]);
    let _slow = unit.submit(&platform, &slow).unwrap();
    let good = unit.submit(&platform, &good).unwrap();
    platform.unit.run(2);
    let answered_at = platform.now_ns() + 30 * WAIT_TIMEOUT_NS;
    meanwhile(&platform, [(answered_at, FakeUnit::complete_late)]);
    assert_eq!(good.wait(&platform), Err(stuck()));
    // It was last seen behind the device a round before that.
    let waited = platform.elapsed_since(answered_at);
    assert!((WAIT_TIMEOUT_NS / 2..2 * WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
}

/// A unit that dies after a device answered has the short deadline, although nobody has looked at the device's wait
/// yet.
#[test]
fn a_device_that_has_answered_excuses_nobody() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let batch = [device(0x0100)];
    let answered = unit.submit(&platform, &batch).unwrap();
    platform.unit.behave(|manner| manner.frozen = true);
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    assert!(platform.elapsed_since(start) < 2 * WAIT_TIMEOUT_NS);
    assert!(answered.is_complete(&platform));
}

/// Nor does one whose wait the unit dropped when nobody waited for it any more.
#[test]
fn a_device_that_nobody_waits_for_excuses_nobody() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    let batch = [device(0x0100)];
    drop(unit.submit(&platform, &batch).unwrap());
    platform.unit.give_up_on_device();
    unit.invalidate(&platform, &[domain()]).unwrap();
    platform.unit.behave(|manner| manner.frozen = true);
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    assert!(platform.elapsed_since(start) < 2 * WAIT_TIMEOUT_NS);
}

/// Nor does one that was given up: what waits behind it afterwards has the short deadline.
#[test]
fn a_device_that_was_given_up_excuses_nobody() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    assert_eq!(unit.invalidate(&platform, &[device(0x0100)]), timed_out(0x0100));
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    assert!(platform.elapsed_since(start) < 2 * WAIT_TIMEOUT_NS);
}

/// A device that may yet answer excuses the unit for as long as it has, and no longer.
#[test]
fn the_excuse_of_a_device_has_an_end() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    let batch = [device(0x0100)];
    let _nobody_waits = unit.submit(&platform, &batch).unwrap();
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    let (waited, deadline) = (platform.elapsed_since(start), DEVICE_TIMEOUT_NS + WAIT_TIMEOUT_NS);
    assert!((deadline..deadline + WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
}

/// The unit never gives up on the device: the software deadline does, for that device alone.
#[test]
fn a_device_that_is_late_is_reported_although_the_unit_waits_on() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain(), device(0x0100)]), timed_out(0x0100));
    assert!(platform.elapsed_since(start) > DEVICE_TIMEOUT_NS);
    assert!(!unit.is_stuck());
    // It answers after all: the queue moves on, and the slot that was given up is nobody else's.
    platform.unit.behave(|manner| manner.silent.clear());
    platform.unit.complete_late();
    unit.invalidate(&platform, &[domain(), device(0x0100)]).unwrap();
}

/// Status slots of the waits carried out since the last look, in order.
fn slots(platform: &FakePlatform) -> Vec<u64> {
    let slot = |descriptor: Descriptor| match descriptor {
        Descriptor::Wait(Wait { completion: Completion::Status { address, .. }, .. }) => {
            Some(address.as_u64())
        }
        _ => None,
    };
    platform.unit.take_descriptors().into_iter().filter_map(slot).collect()
}

#[test]
fn trap_a_late_completion_is_not_taken_for_another() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    assert_eq!(unit.invalidate(&platform, &[device(0x0100)]), timed_out(0x0100));
    let late = slots(&platform);
    assert_eq!(late.len(), 1);
    platform.unit.behave(|manner| manner.silent.clear());
    platform.unit.give_up_on_device();
    // More batches than there are slots: none gets the one that may yet be written.
    platform.unit.behave(|manner| manner.lazy = true);
    let batch = [domain()];
    for _ in 0..if cfg!(miri) { 100 } else { 2000 } {
        let ticket = unit.submit(&platform, &batch).unwrap();
        platform.unit.complete_late();
        assert!(!ticket.is_complete(&platform), "completed by a write that was meant for another");
        unit.queue.as_ref().unwrap().recover(&platform, &unit.hardware);
        platform.unit.run(usize::MAX);
        assert!(ticket.is_complete(&platform));
        // Slots that nobody waits for are used up first.
        drop(ticket);
        assert!(slots(&platform).iter().all(|slot| !late.contains(slot)));
    }
}

/// A batch whose waits are dropped over and over by others ends some day.
#[test]
fn endless_device_timeouts_end() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    // The unit blames a device that is not in the batch, each time.
    platform.unit.behave(|manner| (manner.silent, manner.gives_up_ns) = (vec![0x0100], Some(1_000_000_000)));
    platform.unit.behave(|manner| {
        manner.refuses = None;
        manner.blames = Some(0x0666);
    });
    assert_eq!(unit.invalidate(&platform, &[device(0x0100)]), timed_out(0x0100));
    assert!(!unit.is_stuck());
}

/// What is silently left out of the answer would go on using memory that is somebody else's by then.
#[test]
fn no_device_that_may_not_have_answered_is_left_out() {
    let others = |requester| {
        let source = SourceId { segment: 0, requester };
        Err(InvalidationError::DeviceTimeout { source, others: true })
    };
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| {
        (manner.silent, manner.gives_up_ns) = (vec![0x0100, 0x0300], Some(60_000_000_000));
    });
    let batch = [domain(), device(0x0100), device(0x0200), device(0x0300)];
    assert_eq!(unit.invalidate(&platform, &batch), others(0x0100), "two are named by the unit");
    // The unit names nobody, and waits on: it may be any of them.
    platform.unit.behave(|manner| (manner.silent, manner.gives_up_ns) = (vec![0x0200], None));
    assert_eq!(unit.invalidate(&platform, &batch), others(0x0100));
    assert!(!unit.is_stuck());
}

/// Two things go wrong at once: a part is refused, and a device is late.
#[test]
fn a_late_device_does_not_hide_that_the_rest_was_refused() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    platform.unit.behave(|manner| manner.silent = vec![0x0100]);
    let batch = [pages(1), device(0x0100)];
    let ticket = unit.submit(&platform, &batch).unwrap();
    unit.queue.as_ref().unwrap().recover(&platform, &unit.hardware);
    // The main part of the second attempt is behind the device, and so is the unit.
    let result = ticket.wait(&platform);
    assert!(matches!(result, Err(InvalidationError::Stuck(_))), "{result:?}");
}
