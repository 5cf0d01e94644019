//! Descriptors that are refused, devices that do not answer, and units that do not either.

use super::*;
use crate::vtd::{
    fault::Drained,
    spec::{Completion, QueueError, Wait},
};

const FSTS: usize = 0x34;
const ERRORS: u32 = 0x70;

/// Refuses page-selective invalidations.
fn refuse_pages(platform: &FakePlatform) {
    platform.unit.behave(|manner| {
        manner.refuses = Some(std::boxed::Box::new(|descriptor| {
            matches!(descriptor, Descriptor::Iotlb { granularity: Granularity::Selective, .. })
        }));
    });
}

#[test]
fn a_refused_descriptor_is_reported_and_asked_for_more_coarsely() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    unit.invalidate(&platform, &[domain(), pages(5), domain()]).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(words(&done), ["iotlb", "wait", "iotlb", "wait", "all", "all", "all", "wait"]);
    let refused = pages(5).descriptor(unit.capability());
    let report = QueueReport::Refused { descriptor: Ok(refused), error: QueueError(4) };
    assert_eq!(unit.take_queue_report(&platform), Some(report));
    assert_eq!(unit.take_queue_report(&platform), None);
    assert_eq!(platform.unit.peek32(FSTS) & ERRORS, 0);
    assert!(!unit.is_stuck() && platform.wakes.load(Ordering::Relaxed) > 0);
}

#[test]
fn what_goes_the_short_way_is_asked_for_more_coarsely_too() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let Invalidation::Iotlb(scope) = pages(5) else { panic!("pages are translations") };
    unit.forget(&platform, scope).unwrap();
    assert_eq!(words(&platform.unit.take_descriptors()), ["iotlb", "wait"]);
    refuse_pages(&platform);
    unit.forget(&platform, scope).unwrap();
    assert_eq!(words(&platform.unit.take_descriptors()), ["wait", "wait", "all", "wait"]);
    platform.unit.behave(|manner| manner.refuses = Some(std::boxed::Box::new(|_| true)));
    assert_eq!(unit.forget(&platform, scope), Err(stuck()));
    assert_eq!(unit.forget(&platform, scope), Err(stuck()), "nothing more is asked of it");
}

#[test]
fn a_refused_descriptor_disturbs_nobody_else() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    let (bad, good) = ([pages(1)], [domain()]);
    platform.unit.behave(|manner| manner.lazy = true);
    let first = unit.submit(&platform, &good).unwrap();
    let second = unit.submit(&platform, &bad).unwrap();
    let third = unit.submit(&platform, &good).unwrap();
    platform.unit.behave(|manner| manner.lazy = false);
    platform.unit.run(usize::MAX);
    third.wait(&platform).unwrap();
    first.wait(&platform).unwrap();
    platform.unit.take_log();
    second.wait(&platform).unwrap();
    assert_eq!(
        words(&platform.unit.take_descriptors()),
        ["all", "wait"],
        "only the refused one is done again"
    );
}

#[test]
fn a_refused_wait_is_written_anew() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let refuse_one = || {
        let mut refusals = 1;
        platform.unit.behave(|manner| {
            manner.refuses = Some(std::boxed::Box::new(move |descriptor| {
                let refused = matches!(descriptor, Descriptor::Wait(_)) && refusals > 0;
                refusals -= u32::from(refused);
                refused
            }));
        });
    };
    refuse_one();
    unit.invalidate(&platform, &[domain()]).unwrap();
    let Invalidation::Iotlb(scope) = pages(5) else { panic!("pages are translations") };
    refuse_one();
    unit.forget(&platform, scope).unwrap();
    assert!(!unit.is_stuck());
}

#[test]
fn a_unit_that_refuses_everything_is_given_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.refuses = Some(std::boxed::Box::new(|_| true)));
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    assert_eq!(unit.queue_statistics(&platform).unwrap().refused, 2, "the replacement was refused as well");
}

#[test]
fn a_unit_that_refuses_the_coarse_form_too_is_given_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| {
        let refuses = |descriptor| !matches!(descriptor, Descriptor::Wait(_));
        manner.refuses = Some(std::boxed::Box::new(refuses));
    });
    assert_eq!(unit.invalidate(&platform, &[pages(1)]), Err(stuck()));
    assert!(unit.is_stuck());
    assert_eq!(unit.queue_statistics(&platform).unwrap().refused, 2, "each form was asked for once");
}

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
fn who_was_kept_from_running_looks_for_errors_before_the_unit_is_given_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    platform.relax_ns.store(2 * WAIT_TIMEOUT_NS, Ordering::Relaxed);
    assert_eq!(unit.invalidate(&platform, &[pages(5)]), Ok(()));
    assert!(!unit.is_stuck());
}

/// The same later on: it has looked before, and found nothing.
#[test]
fn who_is_kept_from_running_while_it_waits_looks_for_errors_again() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    platform.unit.behave(|manner| manner.lazy = true);
    let batch = [pages(5)];
    let ticket = unit.submit(&platform, &batch).unwrap();
    let (fake, clock, mut rounds) = (platform.unit.clone(), platform.clock_ns.clone(), 0);
    *platform.on_relax.lock().unwrap() = Some(std::boxed::Box::new(move || {
        rounds += 1;
        if rounds == 3 {
            fake.behave(|manner| manner.lazy = false);
            fake.run(usize::MAX);
            clock.fetch_add(WAIT_TIMEOUT_NS + WAIT_TIMEOUT_NS / 5, Ordering::Relaxed);
        }
    }));
    assert_eq!(ticket.wait(&platform), Ok(()));
    assert!(!unit.is_stuck());
}

/// A CPU that is kept away each time is no reason to wait for a dead unit for ever.
#[test]
fn who_hardly_ever_runs_gives_a_dead_unit_up_some_day() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.frozen = true);
    platform.relax_ns.store(2 * WAIT_TIMEOUT_NS, Ordering::Relaxed);
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
}

/// While an error is pending, a unit raises no further event: a handler that leaves one gets no more interrupts.
#[test]
fn the_fault_handler_leaves_no_queue_error_behind() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    refuse_pages(&platform);
    let batch = [pages(1)];
    let ticket = unit.submit(&platform, &batch).unwrap();
    assert_ne!(platform.unit.peek32(FSTS) & ERRORS, 0);
    assert_eq!(unit.drain_faults(&platform, |fault| panic!("{fault}")), Drained::All);
    assert_eq!(platform.unit.peek32(FSTS) & ERRORS, 0);
    ticket.wait(&platform).unwrap();
}

#[test]
fn an_unexpected_completion_is_cleared_and_reported() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.raise_completion_error(0x0810);
    assert_eq!(unit.drain_faults(&platform, |fault| panic!("{fault}")), Drained::All);
    assert_eq!(platform.unit.peek32(FSTS) & ERRORS, 0);
    let source = SourceId { segment: 0, requester: 0x0810 };
    assert_eq!(unit.take_queue_report(&platform), Some(QueueReport::UnexpectedCompletion { source }));
    unit.invalidate(&platform, &[domain()]).unwrap();
}

#[test]
fn trap_a_queue_that_never_completes_is_given_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.frozen = true);
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    let waited = platform.elapsed_since(start);
    assert!((WAIT_TIMEOUT_NS..2 * WAIT_TIMEOUT_NS).contains(&waited), "{waited} ns");
    // For good, and at once: no flush is attempted any more.
    platform.unit.behave(|manner| manner.frozen = false);
    platform.unit.take_log();
    let start = platform.now_ns();
    assert_eq!(unit.invalidate(&platform, &[domain()]), Err(stuck()));
    assert!(platform.elapsed_since(start) < 1_000_000);
    assert!(platform.unit.take_log().is_empty());
}

#[test]
fn everybody_who_waits_learns_that_the_unit_is_stuck() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.frozen = true);
    let batch = [domain()];
    let tickets = [(); 3].map(|()| unit.submit(&platform, &batch).unwrap());
    for ticket in tickets {
        assert_eq!(ticket.wait(&platform), Err(stuck()));
    }
}

#[test]
fn a_unit_that_is_gone_while_it_is_waited_for_is_given_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.frozen = true);
    let batch = [domain()];
    let ticket = unit.submit(&platform, &batch).unwrap();
    platform.unit.behave(|manner| manner.gone = true);
    let start = platform.now_ns();
    assert_eq!(ticket.wait(&platform), Err(stuck()));
    assert!(platform.elapsed_since(start) < WAIT_TIMEOUT_NS, "all ones are noticed before the deadline");
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

/// What the unit had not begun when it gave up on the device, it does afterwards, and once: a wait at the head is one of those.
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

/// A unit that dies after a device answered has the short deadline, although nobody has looked at the device's wait yet.
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

/// Each use of a slot has a value that it never had before.
#[test]
fn values_of_a_slot_are_not_reused() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..if cfg!(miri) { 100 } else { 5000 } {
        unit.invalidate(&platform, &[domain()]).unwrap();
        for descriptor in platform.unit.take_descriptors() {
            if let Descriptor::Wait(Wait { completion: Completion::Status { address, value }, .. }) =
                descriptor
            {
                assert!(seen.insert((address, value)), "{value} at {address} was used before");
            }
        }
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

/// The head is where the refused descriptor lies: if it cannot be, nothing is overwritten, and the unit is given up.
#[test]
fn a_refusal_at_a_place_that_cannot_be() {
    // Nothing was ever written there, or it was carried out long ago, or it is no place at all.
    for head in [Some(200 * 16), Some(16), Some(0x1000), Some(u64::MAX), None] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit(&platform);
        for _ in 0..150 {
            unit.invalidate(&platform, &[domain()]).unwrap();
        }
        // Or it is the tail, where nothing was written yet.
        let tail = doorbells(&platform.unit.take_log()).last().unwrap() + 2;
        let head = head.unwrap_or((tail * 16 % 0x1000) as u64);
        refuse_pages(&platform);
        platform.unit.behave(|manner| manner.head = Some(head));
        assert_eq!(unit.invalidate(&platform, &[pages(1)]), Err(stuck()), "head {head:#x}");
        assert_eq!(unit.queue_statistics(&platform).unwrap().refused, 1, "head {head:#x}");
    }
}
