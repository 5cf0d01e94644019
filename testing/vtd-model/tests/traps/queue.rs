//! Invalidations: how they are asked for, and waited for.

use driven::Driven;
use iommu::{
    Bidirectional, Options, Platform, SourceId,
    interrupts::{Destination, MessageSource},
    vtd::{
        ContextScope, InterruptScope, Invalidation, InvalidationError, IotlbScope,
        spec::{DeviceTlbScope, DomainId},
    },
};
use vtd_model::{Access, Misbehaviour, Rule};

use crate::{
    buffer,
    by_hand::{Hand, RW, leaf_slot},
    claim, plain,
    unit::UnitBench,
};

// Queue tail written as the queue's size instead of 0.

#[test]
fn the_tail_of_the_queue_wraps_to_zero() {
    let bench = UnitBench::new(plain());
    let domain = IotlbScope::Domain(DomainId::new(3));
    for round in 0..2_000 {
        let batch = vec![Invalidation::Iotlb(domain); 1 + round % 5];
        bench.invalidate(&batch);
    }
    let statistics = bench.unit.queue_statistics(&bench.platform).expect("a queue");
    assert!(statistics.descriptors > 8 * 256, "{} descriptors", statistics.descriptors);
    bench.assert_content();
}

// A device-caused time-out (ITE) panics the kernel.

fn device_tlb(source: SourceId) -> Invalidation {
    let queue_depth = std::num::NonZeroU8::MIN;
    Invalidation::DeviceTlb { source, physical_function: 0, queue_depth, scope: DeviceTlbScope::All }
}

fn ats_bench() -> UnitBench {
    let mut config = plain();
    config.functions.iter_mut().for_each(|function| function.ats = true);
    let bench = UnitBench::new(config);
    bench.machine.clock().set_relax_ns(1_000_000);
    bench
}

fn timed_out(result: Result<(), InvalidationError>, device: SourceId) -> bool {
    matches!(result, Err(InvalidationError::DeviceTimeout { source, .. }) if source == device)
}

#[test]
fn a_device_that_times_out_is_named_and_nothing_else_is_hurt() {
    let bench = ats_bench();
    bench.machine.misbehave(0, |unit| unit.device_limit_ns = 100_000_000);
    bench.device(0).set_answers_from_ns(u64::MAX);
    let [slow, fine] = [bench.source(0), bench.source(1)];
    let domain = Invalidation::Iotlb(IotlbScope::Domain(DomainId::new(3)));
    for _ in 0..50 {
        let error = bench.unit.invalidate(&bench.platform, &[domain, device_tlb(slow), device_tlb(fine)]);
        assert!(timed_out(error, slow), "{error:?}");
        assert!(!bench.unit.is_stuck());
        bench.invalidate(&[domain, device_tlb(fine)]);
    }
    bench.assert_content();
}

// A time-out path that nothing can reach, so the wait is endless.

#[test]
fn every_wait_for_a_command_ends() {
    type Change = fn(&mut Misbehaviour);
    let ways: [(&str, Change); 7] = [
        ("translation", |unit| unit.deaf_to = 1 << 31),
        ("root table", |unit| unit.deaf_to = 1 << 30),
        ("write buffer", |unit| unit.deaf_to = 1 << 27),
        ("queue", |unit| unit.deaf_to = 1 << 26),
        ("queue stalled", |unit| unit.queue_stalled = true),
        ("statuses lost", |unit| unit.statuses_lost = true),
        ("gone", |unit| unit.gone = true),
    ];
    for (what, change) in ways {
        let mut config = plain();
        config.units[0].write_buffer = true;
        config.relax_ns = 1_000_000;
        let machine = vtd_model::Machine::new(config);
        machine.misbehave(0, change);
        let start = machine.clock().now_ns();
        let started = Driven::start_on(machine.clone(), Options::default());
        assert!(started.is_err(), "{what}");
        let seconds = (machine.clock().now_ns() - start) / 1_000_000_000;
        assert!(seconds <= 20, "{what}: gave up after {seconds} s");
        assert!(machine.is_content(), "{what}: {:#?}", machine.take_complaints());
    }
}

#[test]
fn every_wait_for_a_register_invalidation_ends() {
    for refuse in [false, true] {
        let mut config = plain();
        config.units[0].queued = false;
        config.units[0].interrupt_remapping = false;
        config.relax_ns = 1_000_000;
        let machine = vtd_model::Machine::new(config);
        machine.misbehave(0, |unit| match refuse {
            true => unit.registers_refuse = true,
            false => unit.registers_stalled = true,
        });
        assert!(Driven::start_on(machine.clone(), Options::default()).is_err(), "refuse: {refuse}");
        assert!(machine.clock().now_ns() < 20_000_000_000);
    }
}

// A late completion taken for a later command's.

#[test]
fn a_late_answer_completes_nothing_that_came_after() {
    let bench = ats_bench();
    bench.machine.misbehave(0, |unit| unit.device_limit_ns = u64::MAX / 2);
    let source = bench.source(0);
    let device = bench.device(0);
    const HOURS_NS: u64 = 3_600_000_000_000;
    let answers_at = bench.machine.clock().now_ns() + 5 * HOURS_NS;
    device.set_answers_from_ns(answers_at);
    let late = bench.unit.invalidate(&bench.platform, &[device_tlb(source)]);
    assert!(timed_out(late, source), "{late:?}");
    // From now on the wait that was given up completes: whoever shared its slot would believe it.
    bench.machine.clock().advance(5 * HOURS_NS);
    for delay_ns in [1_000_000, 0] {
        bench.machine.misbehave(0, |unit| unit.status_delay_ns = delay_ns);
        for _ in 0..600 {
            let before = bench.machine.clock().now_ns();
            bench.invalidate(&[Invalidation::Iotlb(IotlbScope::Global)]);
            let waited = bench.machine.clock().now_ns() - before;
            assert!(waited >= delay_ns, "done after {waited} ns of {delay_ns}");
        }
    }
    bench.assert_content();
}

// Waiting for one another although the queue takes many.

#[test]
fn batches_under_way_do_not_wait_for_each_other() {
    const DELAY_NS: u64 = 50_000_000;
    let bench = UnitBench::new(plain());
    bench.machine.misbehave(0, |unit| unit.status_delay_ns = DELAY_NS);
    let start = bench.machine.clock().now_ns();
    let batches: Vec<[Invalidation; 1]> =
        (1..40).map(|id| [Invalidation::Iotlb(IotlbScope::Domain(DomainId::new(id)))]).collect();
    let tickets: Vec<_> =
        batches.iter().map(|batch| bench.unit.submit(&bench.platform, batch).expect("room")).collect();
    tickets.into_iter().for_each(|ticket| ticket.wait(&bench.platform).expect("only slow"));
    let waited = bench.machine.clock().now_ns() - start;
    assert!((DELAY_NS..2 * DELAY_NS).contains(&waited), "{waited} ns for 39 batches");
    bench.assert_content();
}

// The order of invalidations, and both kinds of scope.

#[test]
fn contexts_go_before_translations_and_these_before_device_tlbs() {
    let bench = ats_bench();
    let source = bench.source(0);
    let domain = DomainId::new(3);
    bench.invalidate(&[
        device_tlb(source),
        Invalidation::Iotlb(IotlbScope::Domain(domain)),
        Invalidation::InterruptEntries(InterruptScope::Global),
        Invalidation::Context(ContextScope::Global),
    ]);
    let complaints = bench.machine.take_complaints();
    assert!(!complaints.iter().any(|c| c.rule == Rule::InvalidationOrder), "{complaints:#?}");
}

#[test]
fn device_tlbs_are_emptied_after_what_fills_them() {
    const IOVA: u64 = 0x12_3456_7000;
    const ATS_CONTROL: u16 = 0x104;
    for seed in 0..300 {
        let mut config = plain();
        config.seed = seed;
        config.functions[0].ats = true;
        let bench = UnitBench::new(config);
        // A domain by hand: translation type 01, one page.
        let hand = Hand { platform: bench.platform.clone(), root: bench.root.as_u64() };
        let memory = bench.machine.allocate_buffer(1, 1).expect("memory");
        let top = hand.page();
        let path = hand.map(top, IOVA, memory.physical() | RW);
        hand.put_context_words(bench.source(0).requester, top | 1 << 2 | 1, 3 << 8 | 2);
        bench.platform.write_config(bench.function(0), ATS_CONTROL, 1 << 31);
        let device = bench.device(0);
        (0..10).for_each(|_| assert!(device.probe(IOVA, Access::Read).is_ok()));
        hand.put(leaf_slot(path[2], IOVA), 0);
        let domain = IotlbScope::Domain(DomainId::new(3));
        bench.invalidate(&[device_tlb(bench.source(0)), Invalidation::Iotlb(domain)]);
        assert!((0..20).all(|_| device.probe(IOVA, Access::Read).is_err()), "seed {seed}");
    }
}

// More asked for at a time than the unit can, or of a kind that it has not.

#[test]
fn masks_stay_within_what_the_unit_says() {
    for (pages, entries) in [(None, 0), (Some(0), 1), (Some(3), 2), (Some(18), 15)] {
        for queued in [true, false] {
            let mut config = plain();
            let unit = &mut config.units[0];
            (unit.page_selective, unit.interrupt_mask) = (pages, entries);
            (unit.queued, unit.interrupt_remapping) = (queued, queued);
            let driven = Driven::start(config).expect("a unit that works");
            let (handle, device) = claim(&driven, 0);
            for length in [1, 2, 7, 64, 512] {
                let mapping = handle.dma_map(buffer(&driven, length), Bidirectional).expect("room");
                let last = mapping.iova().as_u64() + u64::from(length - 1) * 0x1000;
                assert!(device.probe(last, Access::Write).is_ok());
                mapping.unmap().expect("a unit that works");
                assert!(device.probe(last, Access::Write).is_err(), "MAMV {pages:?}, {length} pages");
            }
            for count in [1, 2, 4, 32] {
                let source = MessageSource::Function(handle.function());
                let interrupts = driven.iommu.message_interrupts(source, count).expect("room");
                interrupts.route_all(Destination { apic: 0, vector: 0x40 }).expect("a route");
                interrupts.release().expect("a unit that works");
            }
            driven.assert_content(&format!("MAMV {pages:?}, MHMV {entries}, queue: {queued}"));
        }
    }
}
