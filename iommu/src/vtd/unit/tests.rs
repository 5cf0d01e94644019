mod by_register;

use core::sync::atomic::Ordering;
use std::{vec, vec::Vec};

use super::*;
use crate::vtd::{
    mode::TranslationMode,
    queue::IotlbScope,
    spec::{Descriptor, Granularity},
    testing::{Executed, FakePlatform},
};

/// 48 bits, drains, PSI with MAMV 18, one record at 0x220, QI and IR, invalidation registers at 0xf0.
const CAP: u64 = 0x00d2_008c_222f_0606;
const ECAP: u64 = 0x00f0_0f4a;
const QI: u64 = 1 << 1;
const IR: u64 = 1 << 3;
const EIM: u64 = 1 << 4;
const RWBF: u64 = 1 << 4;
const PLMR: u64 = 1 << 5;
const AFL: u64 = 1 << 3;
const PRS: u64 = 1 << 29;
const ESRTPS: u64 = 1 << 63;
const ESIRTPS: u64 = 1 << 62;

const ITE: u32 = 1 << 6;
const AFO: u32 = 1 << 2;
const APF: u32 = 1 << 3;

const TE: u32 = 1 << 31;
const SFL: u32 = 1 << 29;
const EAFL: u32 = 1 << 28;
const SRTP: u32 = 1 << 30;
const WBF: u32 = 1 << 27;
const QIE: u32 = 1 << 26;
const IRE: u32 = 1 << 25;
const SIRTP: u32 = 1 << 24;
const CFI: u32 = 1 << 23;

const BASE: PhysAddr = PhysAddr::new(0xfed9_0000);
const ROOT: PhysAddr = PhysAddr::new(0x1_2345_6000);

fn discover(platform: &FakePlatform) -> Unit<FakePlatform> {
    Unit::discover(platform, 3, Location { base: BASE, segment: 1, host_address_bits: 46 }).unwrap()
}

fn plain() -> BringUp {
    BringUp { root: ROOT, mode: TranslationMode::Legacy, queue: true, queue_order: 0, interrupts: None }
}

fn remapping(x2apic: bool) -> BringUp {
    BringUp { interrupts: Some(InterruptSetup { entries_order: 8, x2apic }), ..plain() }
}

fn bring_up(
    unit: &mut Unit<FakePlatform>,
    platform: &FakePlatform,
    how: &BringUp,
) -> Result<(), BringUpError> {
    // SAFETY: no device exists.
    unsafe { unit.bring_up(platform, how) }
}

fn brought_up(platform: &FakePlatform, how: &BringUp) -> Unit<FakePlatform> {
    let mut unit = discover(platform);
    bring_up(&mut unit, platform, how).unwrap();
    unit
}

fn commands(log: &[Executed]) -> Vec<u32> {
    let command = |event: &Executed| match event {
        Executed::Command(value) => Some(*value),
        _ => None,
    };
    log.iter().filter_map(command).collect()
}

fn position(log: &[Executed], wanted: impl Fn(&Executed) -> bool) -> usize {
    log.iter().position(wanted).expect("it never happened")
}

fn is_context(event: &Executed) -> bool {
    matches!(event, Executed::Descriptor(Descriptor::Context { granularity: Granularity::Global, .. }))
}

fn is_iotlb(event: &Executed) -> bool {
    matches!(event, Executed::Descriptor(Descriptor::Iotlb { granularity: Granularity::Global, .. }))
}

fn is_interrupts(event: &Executed) -> bool {
    matches!(event, Executed::Descriptor(Descriptor::InterruptEntries { entries: None }))
}

#[test]
fn impossible_bases_are_refused_before_anything_is_touched() {
    for raw in [0, 0x800, 0xfed9_0010] {
        let platform = FakePlatform::new(CAP, ECAP);
        let base = PhysAddr::new(raw);
        let result = Unit::discover(&platform, 0, Location { base, segment: 0, host_address_bits: 46 });
        assert_eq!(result.unwrap_err(), DiscoverError::BadBase { base });
        assert!(platform.mapped.lock().unwrap().is_empty());
    }
}

#[test]
fn a_base_where_nothing_answers_is_refused() {
    let platform = FakePlatform::new(CAP, ECAP);
    platform.unit.behave(|manner| manner.gone = true);
    let result = Unit::discover(&platform, 0, Location { base: BASE, segment: 0, host_address_bits: 46 });
    assert!(matches!(result.unwrap_err(), DiscoverError::Capability { base: BASE, .. }));
}

#[test]
fn trap_registers_beyond_the_first_page_are_mapped() {
    // 256 records from 0x1000, IOTLB registers at 0x2100.
    let cap = CAP & !(0x3ff << 24) | 0x100 << 24 | 0xff << 40;
    let platform = FakePlatform::new(cap, ECAP & !(0x3ff << 8) | 0x210 << 8);
    let unit = brought_up(&platform, &plain());
    assert_eq!(*platform.mapped.lock().unwrap(), [(BASE.as_u64(), 0x1000), (BASE.as_u64(), 0x2110)]);
    platform.unit.records(|records| records.fill(255, 0x0010 << 64 | 5 << 96));
    let mut faults = 0;
    let _ = unit.drain_faults(&platform, |_| faults += 1);
    assert_eq!(faults, 1);
}

#[test]
fn bring_up_keeps_to_its_order() {
    let platform = FakePlatform::new(CAP | RWBF, ECAP);
    let unit = brought_up(&platform, &remapping(false));
    unit.enable_translation(&platform).unwrap();
    let log = platform.unit.take_log();
    assert_eq!(
        commands(&log),
        [WBF, QIE, QIE | SRTP, QIE | WBF, QIE | SIRTP, QIE | IRE, TE | QIE | IRE],
        "one change at a time, and no one-shot bit repeated"
    );
    let order = [
        position(&log, |event| *event == Executed::Register { offset: 0x38, value: 1 << 31 }),
        position(&log, |event| *event == Executed::Command(WBF)),
        position(&log, |event| matches!(event, Executed::Register { offset: 0x90, .. })),
        position(&log, |event| *event == Executed::Command(QIE)),
        position(&log, |event| *event == Executed::Register { offset: 0x20, value: ROOT.as_u64() }),
        position(&log, |event| *event == Executed::Command(QIE | SRTP)),
        position(&log, is_context),
        position(&log, is_iotlb),
        position(&log, |event| matches!(event, Executed::Register { offset: 0xb8, .. })),
        position(&log, |event| *event == Executed::Command(QIE | SIRTP)),
        position(&log, is_interrupts),
        position(&log, |event| *event == Executed::Command(QIE | IRE)),
        position(&log, |event| *event == Executed::Register { offset: 0x38, value: 0 }),
        position(&log, |event| *event == Executed::Command(TE | QIE | IRE)),
    ];
    assert!(order.is_sorted(), "{order:?}");
}

#[test]
fn trap_one_shot_bits_are_never_repeated() {
    let platform = FakePlatform::new(CAP | RWBF, ECAP);
    let unit = brought_up(&platform, &remapping(false));
    platform.unit.take_log();
    // GSTS shows RTPS and IRTPS now.
    unit.enable_translation(&platform).unwrap();
    unit.flush_write_buffer(&platform).unwrap();
    assert_eq!(commands(&platform.unit.take_log()), [TE | QIE | IRE, TE | QIE | IRE | WBF]);
}

#[test]
fn trap_caches_are_emptied_after_a_new_root_pointer() {
    let invalidated = |cap| {
        let platform = FakePlatform::new(cap, ECAP);
        brought_up(&platform, &plain());
        let log = platform.unit.take_log();
        (log.iter().any(is_context), log.iter().any(is_iotlb))
    };
    assert_eq!(invalidated(CAP), (true, true));
    assert_eq!(invalidated(CAP | ESRTPS), (false, false), "hardware does it by itself");
}

#[test]
fn trap_interrupt_entries_are_emptied_after_a_new_table() {
    let invalidated = |cap| {
        let platform = FakePlatform::new(cap, ECAP);
        brought_up(&platform, &remapping(false));
        platform.unit.take_log().iter().any(is_interrupts)
    };
    assert!(invalidated(CAP));
    assert!(!invalidated(CAP | ESIRTPS));
}

#[test]
fn trap_write_buffer_is_flushed_where_the_unit_has_one() {
    for (cap, expected) in [(CAP, vec![]), (CAP | RWBF, vec![QIE | WBF])] {
        let platform = FakePlatform::new(cap, ECAP);
        let unit = brought_up(&platform, &plain());
        platform.unit.take_log();
        unit.flush_write_buffer(&platform).unwrap();
        assert_eq!(commands(&platform.unit.take_log()), expected);
    }
}

#[test]
fn trap_extended_destinations_only_where_reported_and_wanted() {
    let extended = |ecap, x2apic| {
        let platform = FakePlatform::new(CAP, ecap);
        let unit = brought_up(&platform, &remapping(x2apic));
        let register = platform.unit.peek64(0xb8);
        assert_eq!(register & 0xf, 7, "256 entries");
        assert_eq!(unit.interrupts().unwrap().is_extended(), register & 1 << 11 != 0);
        register & 1 << 11 != 0
    };
    assert!(!extended(ECAP, true), "EIME although EIM is not reported");
    assert!(extended(ECAP | EIM, true));
    assert!(!extended(ECAP | EIM, false));
}

#[test]
fn interrupts_are_remapped_only_with_the_queue() {
    for (ecap, queue) in [(ECAP, false), (ECAP & !QI, true), (ECAP & !IR, true)] {
        let platform = FakePlatform::new(CAP, ecap);
        let unit = brought_up(&platform, &BringUp { queue, ..remapping(false) });
        assert!(unit.interrupts().is_none());
        assert!(!unit.read_global_status().interrupt_remapping());
    }
}

#[test]
fn compatibility_format_is_blocked() {
    let platform = FakePlatform::new(CAP, ECAP);
    platform.unit.preset32(0x1c, CFI);
    let unit = brought_up(&platform, &remapping(false));
    assert!(!unit.read_global_status().compatibility_interrupts());
}

#[test]
fn what_firmware_left_on_is_turned_off_first() {
    let platform = FakePlatform::new(CAP, ECAP);
    platform.unit.preset32(0x1c, TE | QIE | IRE | SRTP);
    platform.unit.preset32(0x38, 0);
    platform.unit.preset32(0x34, 0x71);
    platform.unit.records(|records| records.fill(0, 0x0100 << 64 | 6 << 96));
    let unit = brought_up(&platform, &plain());
    let log = platform.unit.take_log();
    assert_eq!(commands(&log)[..4], [TE | IRE, TE, 0, QIE]);
    let status = unit.read_fault_status().into_bits();
    assert_eq!(status & 0xff, 0, "old faults are forgotten");
    let _ = unit.drain_faults(&platform, |fault| panic!("{fault}"));
}

/// A queue that a device has stopped comes to its end only when the error is cleared.
#[test]
fn firmwares_queue_is_set_going_again_before_it_is_turned_off() {
    let platform = FakePlatform::new(CAP, ECAP);
    let queue = platform.memory.allocate_run(1).unwrap();
    let flush = Descriptor::InterruptEntries { entries: None }.encode();
    for (address, word) in (queue.as_u64()..).step_by(8).zip([flush.low(), flush.high()].repeat(3)) {
        platform.memory.word(address).store(word, Ordering::Relaxed);
    }
    platform.unit.preset_queue(queue, 3);
    platform.unit.preset32(0x34, ITE);
    let start = platform.now_ns();
    brought_up(&platform, &plain());
    assert!(platform.elapsed_since(start) < 1_000_000_000, "nothing was waited for in vain");
    let log = platform.unit.take_log();
    let off = position(&log, |event| *event == Executed::Command(0));
    assert_eq!(log[..off].iter().filter(|event| is_interrupts(event)).count(), 3);
}

/// With it on, faults would never get to the records.
#[test]
fn firmwares_fault_log_is_turned_off_by_a_command_of_its_own() {
    let platform = FakePlatform::new(CAP | AFL, ECAP);
    platform.unit.preset32(0x1c, TE | EAFL | SFL | QIE);
    platform.unit.preset32(0x34, AFO | APF);
    let unit = brought_up(&platform, &plain());
    assert_eq!(commands(&platform.unit.take_log())[..3], [TE | QIE, TE, 0]);
    assert_eq!(unit.read_fault_status().into_bits() & 0xff, 0, "what it held is forgotten");
    let stubborn = FakePlatform::new(CAP | AFL, ECAP);
    stubborn.unit.preset32(0x1c, EAFL);
    stubborn.unit.behave(|manner| manner.ignores = EAFL);
    let error = bring_up(&mut discover(&stubborn), &stubborn, &plain()).unwrap_err();
    let timeout = CommandError::Timeout { unit: 3, register: "GSTS", bit: "AFLS" };
    assert_eq!(error, BringUpError::Command(timeout));
}

#[test]
fn events_of_page_requests_are_masked_where_there_are_any() {
    for (ecap, control) in [(ECAP | PRS, 1 << 31), (ECAP, 0)] {
        let platform = FakePlatform::new(CAP, ecap);
        platform.unit.preset32(0xe0, 0);
        brought_up(&platform, &plain());
        assert_eq!(platform.unit.peek32(0xe0), control);
    }
}

#[test]
fn fault_events_are_programmed_as_the_host_says() {
    let platform = FakePlatform::new(CAP, ECAP);
    brought_up(&platform, &plain());
    let registers = [0x38, 0x3c, 0x40, 0x44].map(|offset| platform.unit.peek32(offset));
    assert_eq!(registers, [0, 0x41, 0xfee0_3000, 0x7700]);
    assert_eq!(platform.unit.peek32(0xa0), 1 << 31, "completion events stay masked");
}

#[test]
fn without_a_vector_the_unit_does_not_come_up() {
    let platform = FakePlatform { has_vectors: false, ..FakePlatform::new(CAP, ECAP) };
    let error = bring_up(&mut discover(&platform), &platform, &plain()).unwrap_err();
    assert_eq!(error, BringUpError::NoVector { unit: 3 });
}

#[test]
fn without_memory_the_unit_does_not_come_up() {
    let platform = FakePlatform::new(CAP, ECAP);
    platform.memory.exhaust();
    let error = bring_up(&mut discover(&platform), &platform, &plain()).unwrap_err();
    assert_eq!(error, BringUpError::OutOfMemory { unit: 3 });
}

#[test]
fn protected_memory_is_released_after_translation_is_on() {
    let platform = FakePlatform::new(CAP | PLMR, ECAP);
    platform.unit.preset32(0x64, 1 << 31 | 1);
    let unit = brought_up(&platform, &plain());
    assert_eq!(platform.unit.peek32(0x64), 1 << 31 | 1);
    unit.enable_translation(&platform).unwrap();
    assert_eq!(platform.unit.peek32(0x64), 0);
    let log = platform.unit.take_log();
    let on = position(&log, |event| *event == Executed::Command(TE | QIE));
    assert!(on < position(&log, |event| matches!(event, Executed::Register { offset: 0x64, .. })));
}

#[test]
fn a_unit_without_translation_says_so_instead_of_hanging() {
    let platform = FakePlatform::new(CAP & !(0x1f << 8), ECAP);
    let unit = brought_up(&platform, &plain());
    assert_eq!(
        unit.enable_translation(&platform),
        Err(BringUpError::NoTranslation { unit: 3, first_stage: false })
    );
    assert!(!unit.is_stuck());
}

/// Each command that a unit may ignore ends with an error that names the bit, within a few seconds.
#[test]
fn trap_every_command_has_a_deadline() {
    let cases = [(WBF, "WBFS"), (QIE, "QIES"), (SRTP, "RTPS"), (SIRTP, "IRTPS"), (IRE, "IRES"), (TE, "TES")];
    for (ignored, bit) in cases {
        let platform = FakePlatform::new(CAP | RWBF, ECAP);
        platform.unit.behave(|manner| manner.ignores = ignored);
        let mut unit = discover(&platform);
        let start = platform.now_ns();
        let result = bring_up(&mut unit, &platform, &remapping(false))
            .and_then(|()| unit.enable_translation(&platform));
        if ignored != WBF {
            let expected = CommandError::Timeout { unit: 3, register: "GSTS", bit };
            assert_eq!(result, Err(BringUpError::Command(expected)));
        }
        assert!(result.is_err() && unit.is_stuck());
        let waited = platform.elapsed_since(start);
        assert!((1_000_000_000..10_000_000_000).contains(&waited), "{bit}: {waited} ns");
    }
}

#[test]
fn protected_memory_that_stays_blocked_is_an_error() {
    let platform = FakePlatform::new(CAP | PLMR, ECAP);
    let unit = brought_up(&platform, &plain());
    platform.unit.behave(|manner| manner.gone = true);
    let error = unit.release_protected_memory(&platform).unwrap_err();
    assert_eq!(error, CommandError::Timeout { unit: 3, register: "PMEN", bit: "PRS" });
}

#[test]
fn a_unit_that_is_gone_is_noticed() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = brought_up(&platform, &plain());
    platform.unit.behave(|manner| manner.gone = true);
    let error = BringUpError::Command(CommandError::Gone { unit: 3 });
    assert_eq!(unit.enable_translation(&platform), Err(error));
    let stuck = InvalidationError::Stuck(Stuck { unit: 3 });
    assert_eq!(unit.invalidate(&platform, &[Invalidation::Iotlb(IotlbScope::Global)]), Err(stuck));
}

#[test]
fn a_unit_without_any_means_to_invalidate_is_refused() {
    let platform = FakePlatform::new(CAP, ECAP);
    platform.unit.preset32(0, 0x60);
    let mut unit = discover(&platform);
    let error = bring_up(&mut unit, &platform, &BringUp { queue: false, ..plain() }).unwrap_err();
    assert_eq!(error, BringUpError::NoInvalidation { unit: 3 });
}

#[test]
fn a_shut_down_unit_is_off_and_takes_nothing() {
    let platform = FakePlatform::new(CAP | PLMR, ECAP);
    let unit = brought_up(&platform, &remapping(false));
    unit.enable_translation(&platform).unwrap();
    platform.unit.take_log();
    unit.shut_down(&platform).unwrap();
    let log = platform.unit.take_log();
    assert_eq!(commands(&log), [QIE | IRE, QIE, 0]);
    assert!(log.iter().any(is_context) && log.iter().any(is_iotlb) && log.iter().any(is_interrupts));
    assert_eq!(platform.unit.peek32(0x38), 1 << 31);
    assert!(unit.invalidate(&platform, &[Invalidation::Iotlb(IotlbScope::Global)]).is_err());
}
