//! Descriptors that are refused, and units that do not answer.

use super::*;
use crate::vtd::{fault::Drained, spec::QueueError};

/// Refuses page-selective invalidations.
pub(super) fn refuse_pages(platform: &FakePlatform) {
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
    let refused = pages(5).descriptor(unit.capability(), TableStage::Second);
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
    unit.forget(&platform, &[scope]).unwrap();
    assert_eq!(words(&platform.unit.take_descriptors()), ["iotlb", "wait"]);
    refuse_pages(&platform);
    unit.forget(&platform, &[scope]).unwrap();
    assert_eq!(words(&platform.unit.take_descriptors()), ["wait", "wait", "all", "wait"]);
    platform.unit.behave(|manner| manner.refuses = Some(std::boxed::Box::new(|_| true)));
    assert_eq!(unit.forget(&platform, &[scope]), Err(stuck()));
    assert_eq!(unit.forget(&platform, &[scope]), Err(stuck()), "nothing more is asked of it");
}

#[test]
fn several_scopes_go_the_short_way_together() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let scopes = [pages(5), domain(), pages(7)].map(|invalidation| match invalidation {
        Invalidation::Iotlb(scope) => scope,
        other => panic!("{other:?} for translations"),
    });
    let before = unit.queue_statistics(&platform).unwrap();
    unit.forget(&platform, &scopes).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(words(&done), ["iotlb", "iotlb", "iotlb", "wait"]);
    let expected =
        [pages(5), domain(), pages(7)].map(|one| one.descriptor(unit.capability(), TableStage::Second));
    assert_eq!(done[..3], expected);
    let after = unit.queue_statistics(&platform).unwrap();
    assert_eq!((after.batches - before.batches, after.descriptors - before.descriptors), (1, 4));
    refuse_pages(&platform);
    unit.forget(&platform, &scopes).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(words(&done), ["wait", "iotlb", "wait", "wait", "all", "all", "all", "wait"]);
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
    unit.forget(&platform, &[scope]).unwrap();
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
