//! What a batch becomes.

use super::*;
use crate::vtd::spec::{Completion, Wait};

#[test]
fn a_batch_is_one_doorbell_and_one_wait() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    unit.invalidate(&platform, &[pages(1), pages(2), domain()]).unwrap();
    let log = platform.unit.take_log();
    assert_eq!(doorbells(&log).len(), 1);
    let descriptor = |event: &Executed| match event {
        Executed::Descriptor(descriptor) => Some(*descriptor),
        _ => None,
    };
    let descriptors: Vec<_> = log.iter().filter_map(descriptor).collect();
    assert_eq!(words(&descriptors), ["iotlb", "iotlb", "iotlb", "wait"]);
}

#[test]
fn an_empty_batch_is_done() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    unit.invalidate(&platform, &[]).unwrap();
    assert!(platform.unit.take_log().is_empty());
}

#[test]
fn contexts_are_done_before_translations_and_these_before_devices() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    unit.invalidate(&platform, &[device(8), pages(1), context(), pages(2), context()]).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(
        words(&done),
        ["context", "context", "fence", "iotlb", "iotlb", "fence", "device", "wait"],
        "the wait before device TLBs holds them back"
    );
}

#[test]
fn only_what_needs_order_is_fenced() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    for (batch, expected) in [
        (vec![context()], vec!["context", "wait"]),
        (vec![device(8)], vec!["device", "wait"]),
        (
            vec![pages(1), Invalidation::InterruptEntries(InterruptScope::Global)],
            vec!["iotlb", "interrupts", "wait"],
        ),
    ] {
        unit.invalidate(&platform, &batch).unwrap();
        assert_eq!(words(&platform.unit.take_descriptors()), expected);
    }
}

#[test]
fn pasids_are_done_after_contexts_and_before_translations() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let pasids = Invalidation::Pasid(PasidScope::Global);
    unit.invalidate(&platform, &[pages(1), pasids, context(), device(8)]).unwrap();
    assert_eq!(
        words(&platform.unit.take_descriptors()),
        ["context", "fence", "pasids", "fence", "iotlb", "fence", "device", "wait"]
    );
    unit.invalidate(&platform, &[pages(1), pasids]).unwrap();
    assert_eq!(words(&platform.unit.take_descriptors()), ["pasids", "fence", "iotlb", "wait"]);
}

/// What is cached of the first stage is tagged with a PASID, and goes by it alone; everything goes as ever.
#[test]
fn translations_of_the_first_stage_are_those_of_a_pasid() {
    let platform = FakePlatform::new(CAP, ECAP);
    let mut unit = unit(&platform);
    unit.hardware.stage = TableStage::First;
    unit.invalidate(&platform, &[pages(5), domain()]).unwrap();
    let Invalidation::Iotlb(scope) = pages(6) else { panic!("pages are translations") };
    unit.forget(&platform, &[scope]).unwrap();
    unit.invalidate(&platform, &[Invalidation::Iotlb(IotlbScope::Global)]).unwrap();
    let done = platform.unit.take_descriptors();
    assert_eq!(words(&done), ["of pasid 0", "of pasid 0", "wait", "of pasid 0", "wait", "all", "wait"]);
    let page =
        |page: u64| Descriptor::PasidIotlb { domain: DOMAIN, pages: Some((Iova::new(page << 12), 0, true)) };
    assert_eq!(done[..2], [page(5), Descriptor::PasidIotlb { domain: DOMAIN, pages: None }]);
    assert_eq!(done[3], page(6));
}

#[test]
fn requests_in_flight_are_drained_where_the_unit_can() {
    for (cap, expected) in [(CAP, true), (CAP & !(3 << 54), false)] {
        let platform = FakePlatform::new(cap, ECAP);
        let unit = unit(&platform);
        unit.invalidate(&platform, &[pages(1), domain()]).unwrap();
        for descriptor in platform.unit.take_descriptors() {
            if let Descriptor::Iotlb { drain_reads, drain_writes, .. } = descriptor {
                assert_eq!((drain_reads, drain_writes), (expected, expected));
            }
        }
    }
}

#[test]
fn interrupt_entries_beyond_the_mask_go_all_at_once() {
    // MHMV is 15 in QEMU's ECAP, and 1 here.
    let platform = FakePlatform::new(CAP, ECAP & !(0xf << 20) | 1 << 20);
    let unit = unit(&platform);
    for (order, expected) in [(0, Some((4, 0))), (1, Some((4, 1))), (2, None)] {
        let entries = InterruptScope::Entries { first: 4, order };
        unit.invalidate(&platform, &[Invalidation::InterruptEntries(entries)]).unwrap();
        let first = platform.unit.take_descriptors()[0];
        assert_eq!(first, Descriptor::InterruptEntries { entries: expected });
    }
}

#[test]
fn a_large_batch_is_carried_out_whole() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let batch: Vec<_> = (0..1000).map(pages).collect();
    unit.invalidate(&platform, &batch).unwrap();
    let done = platform.unit.take_descriptors();
    let first = |descriptor: &Descriptor| match descriptor {
        Descriptor::Iotlb { first, .. } => Some(first.as_u64() >> 12),
        _ => None,
    };
    assert!(done.iter().filter_map(first).eq(0..1000));
}

/// The last part of a batch is under way when the ticket is given, whatever its length; the others are done.
#[test]
fn a_large_batch_is_submitted_in_parts() {
    for (length, parts) in
        [(64, vec![64]), (65, vec![64, 1]), (128, vec![64, 64]), (200, vec![64, 64, 64, 8])]
    {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = unit(&platform);
        let batch: Vec<_> = (0..length).map(pages).collect();
        let ticket = unit.submit(&platform, &batch).unwrap();
        let log = platform.unit.take_log();
        assert_eq!(doorbells(&log).len(), parts.len(), "{length}");
        ticket.wait(&platform).unwrap();
        let statistics = unit.queue_statistics(&platform).unwrap();
        assert_eq!(statistics.batches, 1 + parts.len() as u64, "one of bring-up");
        let descriptors: u64 = parts.iter().map(|part| part + 1).sum();
        let carried_out = |event: &&Executed| matches!(event, Executed::Descriptor(_));
        assert_eq!(log.iter().filter(carried_out).count() as u64, descriptors, "{length}");
    }
}

#[test]
fn a_ticket_tells_when_it_is_complete() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    platform.unit.behave(|manner| manner.lazy = true);
    let batch = [pages(1), device(8)];
    let ticket = unit.submit(&platform, &batch).unwrap();
    for step in 0..4 {
        assert!(!ticket.is_complete(&platform), "after {step} descriptors");
        platform.unit.run(1);
    }
    assert!(ticket.is_complete(&platform));
    ticket.wait(&platform).unwrap();
}

#[test]
fn two_units_can_work_at_the_same_time() {
    let platforms = [FakePlatform::new(CAP, ECAP), FakePlatform::new(CAP, ECAP)];
    let units = [unit(&platforms[0]), unit(&platforms[1])];
    let batch = [domain()];
    platforms.iter().for_each(|platform| platform.unit.behave(|manner| manner.lazy = true));
    let tickets = [0, 1].map(|index| units[index].submit(&platforms[index], &batch).unwrap());
    platforms.iter().for_each(|platform| platform.unit.run(usize::MAX));
    for (ticket, platform) in tickets.into_iter().zip(&platforms) {
        ticket.wait(platform).unwrap();
    }
}

#[test]
fn trap_queue_entries_are_written_back_where_walks_do_not_snoop() {
    for (ecap, snoops) in [(ECAP, false), (ECAP | COHERENT, true)] {
        let platform = FakePlatform::new(CAP, ecap);
        let unit = unit(&platform);
        let (before, queue) = (platform.memory.write_backs(), platform.unit.peek64(0x90) & !0xfff);
        unit.invalidate(&platform, &[domain()]).unwrap();
        let tail = (doorbells(&platform.unit.take_log())[0] * 16) as u64;
        if snoops {
            assert_eq!(platform.memory.write_backs(), before);
        } else {
            for entry in 1..=2 {
                // Its line is that of its first word.
                assert!(platform.memory.was_written_back(queue + tail - 16 * entry, 8));
            }
        }
    }
}

/// Some units stop the machine when a wait asks for both a status and an interrupt.
#[test]
fn a_wait_has_one_kind_of_completion() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    unit.invalidate(&platform, &[context(), domain(), device(8)]).unwrap();
    for descriptor in platform.unit.take_descriptors() {
        if let Descriptor::Wait(Wait { completion, .. }) = descriptor {
            assert!(matches!(completion, Completion::Status { .. }));
            let raw = descriptor.encode().low();
            assert_eq!(raw & 0x30, 0x20, "SW and not IF");
        }
    }
}

#[test]
fn statistics_count_what_was_done() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let before = unit.queue_statistics(&platform).unwrap();
    unit.invalidate(&platform, &[pages(1), pages(2)]).unwrap();
    let after = unit.queue_statistics(&platform).unwrap();
    assert_eq!((after.batches - before.batches, after.descriptors - before.descriptors), (1, 3));
}
