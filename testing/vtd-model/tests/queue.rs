//! The invalidation queue of the model: order, waits, errors, late completions; and register-based invalidation.

mod by_hand;

use by_hand::*;
use iommu::{Platform, platform::Registers};
use vtd_model::{MachineConfig, Reason, Rule};

const IOVA: u64 = 0x12_3456_7000;
const IQE: u32 = 1 << 4;
const ICE: u32 = 1 << 5;
const ITE: u32 = 1 << 6;
const WAIT_WITHOUT_STATUS: (u64, u64) = (5, 0);

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}

fn status_of(bench: &Bench) -> u32 {
    bench.load(bench.status) as u32
}

fn run(bench: &Bench) {
    (0..200).for_each(|_| bench.platform.relax());
}

#[test]
fn waits_complete_after_what_came_before() {
    let mut bench = Bench::new(plain());
    for round in 0..1000 {
        bench.submit(&vec![iotlb_domain(3); round % 7]);
    }
    assert_eq!(bench.registers.read64(IQH), bench.registers.read64(IQT));
    bench.assert_content();
}

#[test]
fn a_wait_with_the_interrupt_flag_sends_one_message() {
    let mut bench = Bench::new(plain());
    const IEDATA: usize = 0xa4;
    const IEADDR: usize = 0xa8;
    let message = bench.platform.allocate_vector(iommu::platform::Event::Fault { unit: 0 }).unwrap();
    bench.registers.write32(IEDATA, message.data);
    bench.registers.write32(IEADDR, message.address as u32);
    bench.registers.write32(IECTL, 0);
    let mut count = 0;
    for expected in [1, 1, 2] {
        bench.post(&[(5 | 1 << 4, 0)]);
        run(&bench);
        assert_eq!(bench.registers.read32(ICS), 1);
        count += bench.machine.deliver_events(|_| {});
        assert_eq!(count, expected, "none while the flag is set");
        if expected == 1 && count == 1 {
            bench.post(&[(5 | 1 << 4, 0)]);
            run(&bench);
            assert_eq!(bench.machine.deliver_events(|_| {}), 0);
            bench.registers.write32(ICS, 1);
            bench.post(&[(5 | 1 << 4, 0)]);
            run(&bench);
            assert_eq!(bench.machine.deliver_events(|_| {}), 1);
            return;
        }
    }
}

#[test]
fn a_malformed_descriptor_stops_the_queue_until_it_is_replaced() {
    for tail_restarts in [false, true] {
        let mut config = plain();
        config.units[0].tail_restarts = tail_restarts;
        let mut bench = Bench::new(config);
        let head = bench.registers.read64(IQH);
        bench.put(bench.status, 0);
        bench.post(&[(2 | 3 << 4 | 1 << 8, 0), bench.wait_descriptor(7)]);
        run(&bench);
        assert_eq!(bench.registers.read32(FSTS) & IQE, IQE);
        assert_eq!(bench.registers.read64(IQH), head, "the head is at the bad one");
        assert_eq!(status_of(&bench), 0);
        bench.put(bench.queue + head, WAIT_WITHOUT_STATUS.0);
        bench.put(bench.queue + head + 8, WAIT_WITHOUT_STATUS.1);
        bench.registers.write32(FSTS, IQE);
        run(&bench);
        assert_eq!(status_of(&bench), if tail_restarts { 0 } else { 7 });
        bench.registers.write64(IQT, bench.registers.read64(IQT));
        run(&bench);
        assert_eq!(status_of(&bench), 7);
        assert_eq!(bench.rules(), [Rule::BadInvalidation]);
    }
}

#[test]
fn refusals_and_completion_errors_can_be_injected() {
    let mut bench = Bench::new(plain());
    bench.machine.misbehave(0, |unit| unit.refused_descriptors = 1);
    bench.put(bench.status, 0);
    bench.post(&[iotlb_domain(3), bench.wait_descriptor(7)]);
    run(&bench);
    assert_eq!(bench.registers.read32(FSTS) & IQE, IQE);
    bench.registers.write32(FSTS, IQE);
    bench.registers.write64(IQT, bench.registers.read64(IQT));
    run(&bench);
    assert_eq!(status_of(&bench), 7);
    bench.machine.misbehave(0, |unit| unit.completion_error = true);
    bench.put(bench.status, 0);
    bench.post(&[iotlb_domain(3), bench.wait_descriptor(7)]);
    run(&bench);
    assert_eq!((bench.registers.read32(FSTS) & ICE, status_of(&bench)), (ICE, 0));
    bench.registers.write32(FSTS, ICE);
    run(&bench);
    assert_eq!(status_of(&bench), 7);
    bench.assert_content();
}

#[test]
fn a_device_that_does_not_answer_drops_the_waits_behind_it() {
    let mut config = plain();
    config.functions[0].ats = true;
    config.functions[0].ats_queue_depth = 0;
    let mut bench = Bench::new(config);
    bench.device().set_answers_from_ns(u64::MAX);
    bench.machine.misbehave(0, |unit| unit.device_limit_ns = 1_000_000);
    bench.put(bench.status, 0);
    let device_tlb = (3 | u64::from(SOURCE) << 32, 0);
    bench.post(&[device_tlb, bench.wait_descriptor(7), iotlb_domain(3)]);
    run(&bench);
    assert_eq!((bench.registers.read32(FSTS) & ITE, status_of(&bench)), (0, 0), "not yet");
    bench.machine.clock().advance(1_000_000);
    run(&bench);
    assert_eq!(bench.registers.read32(FSTS) & ITE, ITE);
    assert_eq!(bench.registers.read64(0xb0) >> 32 & 0xffff, u64::from(SOURCE));
    bench.registers.write32(FSTS, ITE);
    run(&bench);
    assert_eq!(status_of(&bench), 0, "dropped without a status");
    bench.submit(&[iotlb_domain(3)]);
    bench.assert_content();
}

#[test]
fn a_device_may_take_its_time() {
    let mut config = plain();
    config.functions[0].ats = true;
    config.functions[0].ats_queue_depth = 0;
    let mut bench = Bench::new(config);
    let soon = bench.machine.clock().now_ns() + 1_000_000;
    bench.device().set_answers_from_ns(soon);
    bench.put(bench.status, 0);
    bench.post(&[(3 | u64::from(SOURCE) << 32, 0), bench.wait_descriptor(7)]);
    run(&bench);
    assert_eq!(status_of(&bench), 0);
    bench.machine.clock().advance(1_000_000);
    run(&bench);
    assert_eq!(status_of(&bench), 7);
    assert_eq!(bench.registers.read32(FSTS), 0);
    bench.assert_content();
}

#[test]
fn statuses_can_come_late_or_never() {
    let mut bench = Bench::new(plain());
    bench.machine.misbehave(0, |unit| unit.status_delay_ns = 5_000_000);
    bench.put(bench.status, 0);
    bench.post(&[bench.wait_descriptor(7)]);
    run(&bench);
    assert_eq!(status_of(&bench), 0);
    assert_eq!(bench.registers.read64(IQH), bench.registers.read64(IQT), "but fetched");
    bench.machine.clock().advance(5_000_000);
    run(&bench);
    assert_eq!(status_of(&bench), 7);
    // Turned off before it comes, it never comes.
    bench.put(bench.status, 0);
    bench.post(&[bench.wait_descriptor(8)]);
    run(&bench);
    bench.command(QIE, false);
    assert_eq!(bench.registers.read64(IQH), 0);
    bench.machine.clock().advance(50_000_000);
    run(&bench);
    assert_eq!(status_of(&bench), 0);
    bench.assert_content();
}

#[test]
fn a_stalled_queue_fetches_nothing() {
    let mut bench = Bench::new(plain());
    bench.machine.misbehave(0, |unit| unit.queue_stalled = true);
    let head = bench.registers.read64(IQH);
    bench.post(&[bench.wait_descriptor(7)]);
    run(&bench);
    assert_eq!(bench.registers.read64(IQH), head);
    bench.machine.misbehave(0, |unit| unit.queue_stays_on = true);
    bench.registers.write32(GCMD, TE);
    run(&bench);
    assert_eq!(bench.registers.read32(GSTS) & QIE, QIE);
}

fn registers_only() -> MachineConfig {
    let mut config = plain();
    config.units[0].queued = false;
    config.units[0].interrupt_remapping = false;
    config
}

fn register_bench() -> Bench {
    let bench = Bench::off(registers_only());
    bench.set_root(bench.root);
    assert_eq!(context_command(&bench, 1 << 61), 1);
    assert_eq!(iotlb_command(&bench, 0, 1 << 60), 1);
    bench.command(TE, true);
    bench
}

/// Gives a CCMD and gives the granularity that was done.
fn context_command(bench: &Bench, value: u64) -> u64 {
    bench.registers.write64(CCMD, 1 << 63 | value);
    assert!(bench.wait_for(|bench| bench.registers.read64(CCMD) >> 63 == 0), "CCMD never finished");
    bench.registers.read64(CCMD) >> 59 & 3
}

fn iotlb_command(bench: &Bench, address: u64, value: u64) -> u64 {
    bench.registers.write64(0x500, address);
    bench.registers.write64(0x508, 1 << 63 | value);
    assert!(bench.wait_for(|bench| bench.registers.read64(0x508) >> 63 == 0), "IOTLB never finished");
    bench.registers.read64(0x508) >> 57 & 3
}

#[test]
fn registers_invalidate_too() {
    let mut bench = register_bench();
    let page = bench.one_page(IOVA);
    let device = bench.device();
    assert!(probe(&device, IOVA).is_ok());
    bench.put(leaf_slot(page.path[2], IOVA), 0);
    assert_eq!(iotlb_command(&bench, IOVA + 0x1000, 3 << 60 | 3 << 32), 3);
    assert!(probe(&device, IOVA).is_ok(), "another page");
    assert_eq!(iotlb_command(&bench, IOVA, 3 << 60 | 3 << 32), 3);
    assert_eq!(probe(&device, IOVA), read_fault(Reason::NoRead));
    bench.put(bench.context_slot(SOURCE), page.top);
    assert_eq!(context_command(&bench, 3 << 61 | u64::from(SOURCE) << 16 | 3), 3);
    assert_eq!(iotlb_command(&bench, 0, 2 << 60 | 3 << 32), 2);
    assert_eq!(probe(&device, IOVA), read_fault(Reason::ContextNotPresent));
    bench.assert_content();
}

#[test]
fn registers_can_refuse_and_stall() {
    let bench = register_bench();
    bench.machine.misbehave(0, |unit| unit.registers_refuse = true);
    assert_eq!(iotlb_command(&bench, 0, 1 << 60), 0);
    assert_eq!(context_command(&bench, 1 << 61), 0);
    bench.assert_content();
    bench.machine.misbehave(0, |unit| unit.registers_stalled = true);
    bench.registers.write64(CCMD, 1 << 63 | 1 << 61);
    run(&bench);
    assert_eq!(bench.registers.read64(CCMD) >> 63, 1);
}

#[test]
fn a_unit_that_is_gone_reads_as_ones() {
    let bench = Bench::new(plain());
    bench.machine.misbehave(0, |unit| unit.gone = true);
    assert_eq!(bench.registers.read32(GSTS), !0);
    assert_eq!(bench.registers.read64(0x8), !0);
    bench.registers.write32(GCMD, 0);
    bench.machine.misbehave(0, |unit| unit.gone = false);
    assert_eq!(bench.registers.read32(GSTS) >> 31, 1, "the write did nothing");
}

#[test]
fn commands_can_go_unheard() {
    let bench = Bench::new(plain());
    bench.machine.misbehave(0, |unit| unit.deaf_to = TE);
    bench.registers.write32(GCMD, QIE);
    run(&bench);
    assert_eq!(bench.registers.read32(GSTS) >> 31, 1);
}
