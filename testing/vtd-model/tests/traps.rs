//! One test for each trap that drivers of this hardware are known to have fallen into.

mod by_hand;
mod unit;

use std::thread;

use by_hand::{Hand, RW, leaf_slot};
use driven::Driven;
use iommu::{
    Bidirectional, DmaError, Iova, Options, Platform, SourceId,
    dmar::Dmar,
    fault::FaultTarget,
    interrupts::{IgnoredBits, Sender},
    platform::MsiMessage,
    vtd::{
        ContextScope, InterruptScope, InterruptSetup, Invalidation, InvalidationError, IotlbScope, Route,
        spec::{DeviceTlbScope, DomainId},
    },
};
use unit::UnitBench;
use vtd_model::{
    Access, InterruptOutcome, MachineConfig, Misbehaviour, ModelBuffer, Reason, Rule, become_cpu,
};

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}

/// Makes one device of `driven` a bus master with a handle.
fn claim(driven: &Driven, index: usize) -> (iommu::DmaDevice, vtd_model::Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}

// Fault index does not wrap, or is off by one.

#[test]
fn every_record_is_read_once_and_the_index_wraps() {
    for records in [1, 2, 3, 8, 255, 256] {
        let mut config = plain();
        config.units[0].fault_records = records;
        config.units[0].iotlb_offset = 0x180;
        let bench = UnitBench::new(config);
        let device = bench.device(0);
        let mut next_page = 1_u64;
        // Enough rounds that the place of the first record takes every value.
        for round in 0..3 * u64::from(records) {
            let count = 1 + round % u64::from(records);
            let pages: Vec<u64> = (next_page..next_page + count).collect();
            next_page += count;
            pages.iter().for_each(|page| assert!(device.write(page << 12, b"x").is_err()));
            let seen: Vec<u64> = bench.drain().iter().map(|fault| page_of(fault.target)).collect();
            assert_eq!(seen, pages, "{records} records, round {round}");
            assert_eq!(bench.unit.overflows(), 0);
        }
        bench.assert_content();
    }
}

fn page_of(target: FaultTarget) -> u64 {
    match target {
        FaultTarget::Address(iova) => iova.as_u64() >> 12,
        FaultTarget::Interrupt(index) => panic!("interrupt {index:?}"),
    }
}

#[test]
fn more_faults_than_records_are_counted_as_an_overflow_and_do_not_stop_the_unit() {
    for records in [1, 3, 8] {
        let mut config = plain();
        config.units[0].fault_records = records;
        let bench = UnitBench::new(config);
        let device = bench.device(0);
        for round in 1..20 {
            for page in 1..=u64::from(records) + 5 {
                assert!(device.write(page << 12, b"x").is_err());
            }
            assert_eq!(bench.drain().len(), records.into());
            assert_eq!(bench.unit.overflows(), round);
            assert!(!bench.machine.has_pending_faults(0));
        }
        bench.assert_content();
    }
}

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

// The F bit "cleared" by writing 0.

#[test]
fn a_record_is_free_again_once_it_was_read() {
    let bench = UnitBench::new(plain());
    let device = bench.device(0);
    for page in 1..100_u64 {
        assert!(device.write(page << 12, b"x").is_err());
        assert!(bench.machine.has_pending_faults(0));
        assert_eq!(bench.drain().len(), 1);
        assert!(!bench.machine.has_pending_faults(0));
    }
    bench.assert_content();
}

// SVT and SQ mixed up in the interrupt-remapping entry, or no source check at all.

#[test]
fn an_interrupt_entry_serves_its_sender_and_nobody_else() {
    let mut config = MachineConfig::plain(3);
    for devfn in [0x11, 0x12, 0x14] {
        let address = iommu::PciAddress::from_devfn(0, 0, devfn);
        config.functions.push(vtd_model::FunctionConfig::endpoint(address, 0));
    }
    for (bus, devfn) in [(2, 8), (3, 0)] {
        let address = iommu::PciAddress::from_devfn(0, bus, devfn);
        config.functions.push(vtd_model::FunctionConfig::endpoint(address, 0));
    }
    let bench = UnitBench::new(config);
    let source = SourceId { segment: 0, requester: 0x10 };
    let senders: [(Sender, &[u16]); 5] = [
        (Sender::Function(source), &[0x10]),
        (Sender::Functions { source, ignored: IgnoredBits::Bit2 }, &[0x10, 0x14]),
        (Sender::Functions { source, ignored: IgnoredBits::Bits210 }, &[0x10, 0x11, 0x12, 0x14]),
        (Sender::Buses { first: 2, last: 2 }, &[0x208]),
        (Sender::Buses { first: 2, last: 3 }, &[0x208, 0x300]),
    ];
    for (sender, allowed) in senders {
        let block = bench.unit.allocate_interrupts(&bench.platform, 0, sender).expect("an entry");
        let route = Route { sender, vector: 0x61, apic: 2, level_triggered: false };
        bench.unit.route_interrupt(&bench.platform, &block, 0, &route).expect("a route");
        let message = remappable(block.first());
        for (index, function) in bench.machine.config().functions.iter().enumerate() {
            let outcome = bench.device(index).interrupt(message);
            if allowed.contains(&function.requester) {
                let InterruptOutcome::Delivered(delivered) = outcome else {
                    panic!("{sender:?}: {outcome:?}")
                };
                assert_eq!((delivered.vector, delivered.destination), (0x61, 2));
            } else {
                let refused = InterruptOutcome::Blocked(Reason::InterruptSourceRefused);
                assert_eq!(outcome, refused, "{sender:?} from {:#06x}", function.requester);
            }
        }
        bench.unit.free_interrupts(&bench.platform, block).expect("a unit that works");
        let gone = bench.device(0).interrupt(message);
        assert_eq!(gone, InterruptOutcome::Blocked(Reason::InterruptNotPresent));
    }
    bench.drain();
    bench.assert_content();
}

fn remappable(index: u16) -> MsiMessage {
    let handle = u64::from(index & 0x7fff) << 5 | u64::from(index >> 15) << 2;
    MsiMessage { address: 0xfee0_0010 | handle, data: 0 }
}

#[test]
fn a_moved_interrupt_goes_to_the_new_place_at_once() {
    let bench = UnitBench::new(plain());
    let sender = Sender::Function(bench.source(0));
    let block = bench.unit.allocate_interrupts(&bench.platform, 2, sender).expect("entries");
    for round in 0..200_u8 {
        let (offset, vector, apic) = (u16::from(round % 4), 0x30 + round % 100, u32::from(round));
        let route = Route { sender, vector, apic, level_triggered: false };
        bench.unit.route_interrupt(&bench.platform, &block, offset, &route).expect("a route");
        let outcome = bench.device(0).interrupt(remappable(block.first() + offset));
        let InterruptOutcome::Delivered(delivered) = outcome else { panic!("{outcome:?}") };
        assert_eq!((delivered.vector, delivered.destination), (vector, apic));
    }
    bench.unit.free_interrupts(&bench.platform, block).expect("a unit that works");
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

// Write-buffer flush (RWBF), non-coherent walk (ECAP.C=0), caching mode (CM=1) ignored.

#[test]
fn what_is_mapped_is_seen_at_once_whatever_the_unit_needs_for_that() {
    type Change = fn(&mut vtd_model::UnitConfig);
    let needs: [(&str, Change); 4] = [
        ("nothing", |_| {}),
        ("RWBF", |unit| unit.write_buffer = true),
        ("ECAP.C = 0", |unit| unit.coherent = false),
        ("CM", |unit| unit.caching_mode = true),
    ];
    for (what, change) in needs {
        for queued in [true, false] {
            let mut config = plain();
            change(&mut config.units[0]);
            config.units[0].queued = queued;
            config.units[0].interrupt_remapping = queued;
            let driven = Driven::start(config).expect("a unit that works");
            let hardware = driven.device(driven.function(0));
            assert!(hardware.probe(0x5000, Access::Read).is_err());
            let (handle, hardware) = claim(&driven, 0);
            for page in 1..600_u64 {
                let iova = page * 0x20_3000;
                assert!(hardware.probe(iova, Access::Write).is_err(), "{what}");
                let memory = buffer(&driven, 1);
                let physical = memory.physical();
                let mapping =
                    handle.dma_map_at(memory, Bidirectional, Iova::new(iova)).expect("a free address");
                assert_eq!(hardware.probe(iova, Access::Write), Ok(physical), "{what}, queue: {queued}");
                if page % 3 == 0 {
                    mapping.unmap().expect("a unit that works");
                    assert!(hardware.probe(iova, Access::Write).is_err(), "{what}");
                } else {
                    std::mem::forget(mapping);
                }
            }
            driven.machine.audit();
            driven.assert_content(what);
        }
    }
}

// Domain id 0 used with CM=1; domain id = BDF although ND allows fewer.

#[test]
fn domain_ids_fit_the_unit_and_run_out_with_an_error() {
    let mut config = MachineConfig::plain(18);
    config.units[0].nd = 0;
    config.units[0].caching_mode = true;
    let driven = Driven::start(config).expect("a unit that works");
    let mut claimed = 0;
    for index in 0..18 {
        match driven.iommu.claim(driven.function(index)) {
            Ok(device) => {
                claimed += 1;
                device
                    .dma_map(buffer(&driven, 1), Bidirectional)
                    .expect("room")
                    .unmap()
                    .expect("a working unit");
            }
            Err(error) => {
                let expected = iommu::ClaimError::Domain(DmaError::OutOfDomainIds { unit: 0 });
                assert_eq!(error, expected);
            }
        }
    }
    assert_eq!(claimed, 15, "16 ids, and 0 is not to be used");
    driven.machine.audit();
    driven.assert_content("with 16 ids");
}

// No invalidation after SRTP or SIRTP when ESRTPS or ESIRTPS is 0.

#[test]
fn what_the_caches_held_before_is_gone_when_the_unit_is_up() {
    for (esrtps, esirtps, queued) in [
        (false, false, true),
        (true, true, true),
        (false, false, false),
        (true, false, true),
        (false, true, true),
    ] {
        let mut config = plain();
        let unit = &mut config.units[0];
        (unit.esrtps, unit.esirtps, unit.queued, unit.interrupt_remapping) =
            (esrtps, esirtps, queued, queued);
        let bench = UnitBench::new(config);
        for page in 0..64_u64 {
            let answer = bench.device(0).probe(page << 12, Access::Read);
            assert_eq!(answer, Err(vtd_model::Denied::Fault(Reason::RootNotPresent)));
        }
        for index in (0..256).filter(|_| queued) {
            let outcome = bench.device(0).interrupt(remappable(index));
            assert_eq!(outcome, InterruptOutcome::Blocked(Reason::InterruptNotPresent));
        }
    }
}

// EIME set although EIM is not reported.

#[test]
fn long_destinations_only_where_the_unit_has_them() {
    for eim in [false, true] {
        let mut config = plain();
        config.units[0].eim = eim;
        let setup = InterruptSetup { entries_order: 8, x2apic: true };
        let bench = UnitBench::try_new(config, Some(setup)).expect("a unit that works");
        assert_eq!(bench.unit.interrupts().expect("a table").is_extended(), eim);
        bench.assert_content();
        let sender = Sender::Function(bench.source(0));
        let block = bench.unit.allocate_interrupts(&bench.platform, 0, sender).expect("an entry");
        let far = Route { sender, vector: 0x61, apic: 0x1234, level_triggered: false };
        let routed = bench.unit.route_interrupt(&bench.platform, &block, 0, &far);
        assert_eq!(routed.is_ok(), eim, "{routed:?}");
        let near = Route { apic: 0x12, ..far };
        bench.unit.route_interrupt(&bench.platform, &block, 0, &near).expect("a route");
        let outcome = bench.device(0).interrupt(remappable(block.first()));
        assert!(matches!(outcome, InterruptOutcome::Delivered(d) if d.destination == 0x12), "{outcome:?}");
        bench.assert_content();
    }
}

// Only the last or first DRHD used; only 4 KiB of a larger register set reserved.

#[test]
fn every_unit_of_every_segment_isolates_its_own_functions() {
    let mut config = MachineConfig::plain(0);
    config.units.clear();
    for (index, segment) in [0, 0, 1, 7].into_iter().enumerate() {
        let mut unit = vtd_model::UnitConfig::plain(0xfe80_0000 + index as u64 * 0x1_0000);
        unit.segment = segment;
        // Fault records and IOTLB registers in the last of four pages.
        (unit.fault_offset, unit.fault_records, unit.iotlb_offset) = (0x300, 64, 0x3f0);
        config.units.push(unit);
        let address = iommu::PciAddress::from_devfn(segment, 0, (index as u8 + 2) << 3);
        config.functions.push(vtd_model::FunctionConfig::endpoint(address, index));
    }
    let driven = Driven::start(config).expect("units that work");
    let reports = driven.units();
    assert_eq!(reports.len(), 4);
    for index in 0..4 {
        assert!(driven.machine.is_on(index).0, "unit {index}");
        let (handle, hardware) = claim(&driven, index);
        assert!(hardware.write(0x5000, b"x").is_err());
        assert_eq!(handle.fault_count(), 1, "unit {index}");
        let mapping = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
        hardware.write(mapping.iova().as_u64(), b"x").expect("mapped");
        for other in (0..4).filter(|&other| other != index) {
            let other = driven.device(driven.function(other));
            assert!(other.probe(mapping.iova().as_u64(), Access::Read).is_err());
        }
        mapping.unmap().expect("a unit that works");
    }
    driven.assert_content("with four units");
}

#[test]
fn a_table_with_units_reads_the_same_in_every_order() {
    let config = MachineConfig::random(3);
    let table = config.dmar_table();
    let dmar = Dmar::parse(&table).expect("a good table");
    let bases: Vec<u64> = dmar.units().map(|unit| unit.base).collect();
    assert_eq!(bases, config.units.iter().map(|unit| unit.base).collect::<Vec<_>>());
}

// 0xFEEx_xxxx handed out as IOVA.

#[test]
fn the_interrupt_range_is_never_mapped() {
    let driven = Driven::start(plain()).expect("a unit that works");
    let (handle, _) = claim(&driven, 0);
    handle.set_address_bits(32);
    for first in [0xfee0_0000_u64, 0xfeef_f000, 0xfee8_1000, 0xfedf_f000, 0xfede_0000] {
        let pages = if first < 0xfee0_0000 { ((0xfee0_0000 - first) >> 12) as u32 + 1 } else { 1 };
        let refused = handle.dma_map_at(buffer(&driven, pages), Bidirectional, Iova::new(first));
        let Err(rejected) = refused else { panic!("{first:#x} was mapped") };
        assert_eq!(rejected.error, DmaError::IovaTaken { iova: Iova::new(first) });
    }
    // All of the 32-bit space, a megabyte at a time.
    let mut held = Vec::new();
    while let Some(memory) = driven.machine.allocate_buffer(256, 1) {
        match handle.dma_map(memory, Bidirectional) {
            Ok(mapping) => {
                let first = mapping.iova().as_u64();
                let last = first + mapping.len() as u64 - 1;
                assert!(last < 0xfee0_0000 || first > 0xfeef_ffff, "{first:#x}");
                assert!(last <= 0xffff_ffff && first >= 0x1000);
                held.push(mapping);
            }
            Err(rejected) => {
                assert!(matches!(rejected.error, DmaError::NoIova { .. }), "{}", rejected.error);
                break;
            }
        }
    }
    assert!(held.len() > 500, "{}", held.len());
    driven.assert_content("with a full space");
}

// IOVA freed before the invalidation completed; never freed.

#[test]
fn an_iova_is_not_given_out_while_its_invalidation_is_under_way() {
    // Half a second is waited for, in few steps.
    let driven = Driven::start(MachineConfig { relax_ns: 100_000, ..plain() }).expect("a unit that works");
    let (handle, _) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
    let iova = mapping.iova();
    const DELAY_NS: u64 = 500_000_000;
    driven.machine.misbehave(0, |unit| unit.status_delay_ns = DELAY_NS);
    let flushed_at = driven.machine.clock().now_ns() + DELAY_NS;
    thread::scope(|scope| {
        let unmapping = scope.spawn(|| mapping.unmap().expect("only slow"));
        become_cpu(1);
        let taken = loop {
            let over = unmapping.is_finished();
            match handle.dma_map_at(buffer(&driven, 1), Bidirectional, iova) {
                Ok(mapping) => break mapping,
                Err(rejected) => assert!(!over, "{} after the unmap", rejected.error),
            }
        };
        let now = driven.machine.clock().now_ns();
        assert!(
            now >= flushed_at,
            "{iova} was free {} ns before its invalidation was done",
            flushed_at - now
        );
        std::mem::forget(taken);
    });
    become_cpu(0);
    driven.assert_content("after a slow unmap");
}

#[test]
fn iovas_come_back() {
    let driven = Driven::start(plain()).expect("a unit that works");
    let (handle, _) = claim(&driven, 0);
    // 2^20 pages in all: ten times as many mappings only fit if every address is used again.
    handle.set_address_bits(24);
    for _ in 0..40_000 {
        let mapping = handle.dma_map(buffer(&driven, 1), Bidirectional).expect("room");
        mapping.unmap().expect("a unit that works");
    }
    driven.assert_content("after many mappings");
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
