use std::{vec, vec::Vec};

use mm::PhysAddr;

use super::*;
use crate::{
    Iova, SourceId,
    fault::{FaultAccess, FaultTarget},
    vtd::{
        mode::TranslationMode,
        testing::FakePlatform,
        unit::{BringUp, Location},
    },
};

const FSTS: usize = 0x34;

/// A unit with `records` fault records, that is up.
fn unit(records: usize) -> (FakePlatform, Unit<FakePlatform>) {
    let platform = FakePlatform::new(0x00d2_000c_222f_0606 | (records as u64 - 1) << 40, 0x00f0_0f4a);
    let location = Location { base: PhysAddr::new(0xfed9_0000), segment: 2, host_address_bits: 46 };
    let mut unit = Unit::discover(&platform, 0, location).unwrap();
    let root = PhysAddr::new(0x1000);
    let how = BringUp { root, mode: TranslationMode::Legacy, queue: true, queue_order: 0, interrupts: None };
    // SAFETY: no device exists.
    unsafe { unit.bring_up(&platform, &how) }.unwrap();
    (platform, unit)
}

/// A read by requester `source`, denied.
fn denied_read(source: u16) -> u128 {
    1 << 126 | 6 << 96 | u128::from(source) << 64 | 0x1_2345_6000
}

fn drain(platform: &FakePlatform, unit: &Unit<FakePlatform>) -> (Vec<u16>, Drained) {
    let mut sources = Vec::new();
    let drained = unit.drain_faults(platform, |fault| sources.push(fault.source.requester));
    (sources, drained)
}

#[test]
fn a_recorded_fault_arrives_whole() {
    let (platform, unit) = unit(1);
    platform.unit.records(|records| records.fill(0, denied_read(0x0308)));
    let mut faults = Vec::new();
    assert_eq!(unit.drain_faults(&platform, |fault| faults.push(fault)), Drained::All);
    let [fault] = faults[..] else { panic!("{faults:?}") };
    assert_eq!(fault.source, SourceId { segment: 2, requester: 0x0308 });
    assert_eq!(fault.target, FaultTarget::Address(Iova::new(0x1_2345_6000)));
    assert_eq!((fault.access, fault.reason.code), (FaultAccess::Read, 6));
    assert_eq!(drain(&platform, &unit), (vec![], Drained::All), "and once");
}

/// Every number of records, every first one, every count.
#[test]
fn trap_fault_index_wraps() {
    for records in [1, 2, 3, 8] {
        let (platform, unit) = unit(records);
        for first in 0..records {
            for count in 1..=records {
                let order: Vec<_> = (0..count).map(|offset| (first + offset) % records).collect();
                platform.unit.records(|writer| {
                    for &index in &order {
                        writer.fill(index, denied_read(0x100 + index as u16));
                    }
                });
                let expected: Vec<_> = order.iter().map(|&index| 0x100 + index as u16).collect();
                assert_eq!(drain(&platform, &unit), (expected, Drained::All), "{records} {first} {count}");
            }
        }
    }
}

#[test]
fn all_of_256_records_are_read_once() {
    let (platform, unit) = unit(256);
    platform
        .unit
        .records(|records| (0..256).for_each(|n| records.fill((n + 200) % 256, denied_read(n as u16))));
    assert_eq!(drain(&platform, &unit), ((0..256).collect(), Drained::All));
}

#[test]
fn trap_f_is_cleared_by_writing_one() {
    let (platform, unit) = unit(4);
    platform.unit.records(|records| records.fill(1, denied_read(7)));
    assert_eq!(drain(&platform, &unit).0, [7]);
    assert_eq!(platform.unit.peek32(0x220 + 0x1c) >> 31, 0, "F of record 1");
}

#[test]
fn overflow_is_cleared_and_counted() {
    let (platform, unit) = unit(1);
    platform.unit.records(|records| {
        records.fill(0, denied_read(7));
        records.overflow();
    });
    assert_eq!(drain(&platform, &unit), (vec![7], Drained::All));
    assert_eq!((platform.unit.peek32(FSTS) & 1, unit.overflows()), (0, 1));
    platform.unit.records(|records| records.overflow());
    assert_eq!(drain(&platform, &unit), (vec![], Drained::All), "without a record, too");
    assert_eq!((platform.unit.peek32(FSTS) & 1, unit.overflows()), (0, 2));
}

/// A device that faults faster than its faults are read: one lap, and no endless loop.
#[test]
fn a_storm_takes_one_lap_and_says_so() {
    let (platform, unit) = unit(4);
    platform.unit.behave(|manner| {
        let mut source = 0x100;
        manner.on_clear = Some(std::boxed::Box::new(move |records, index| {
            source += 1;
            records.fill(index, denied_read(source));
        }));
    });
    platform.unit.records(|records| (0..4).for_each(|n| records.fill(n, denied_read(n as u16))));
    assert_eq!(drain(&platform, &unit), (vec![0, 1, 2, 3], Drained::More));
    assert_eq!(drain(&platform, &unit), (vec![0x101, 0x102, 0x103, 0x104], Drained::More));
    platform.unit.behave(|manner| manner.on_clear = None);
    assert_eq!(drain(&platform, &unit).1, Drained::All, "the end of the storm is seen");
}

#[test]
fn a_first_record_that_cannot_be_is_survived() {
    let (platform, unit) = unit(4);
    platform.unit.records(|records| records.fill(2, denied_read(7)));
    for wrong in [0, 3, 4, 255] {
        let status = platform.unit.peek32(FSTS) & !0xff00 | wrong << 8;
        platform.unit.preset32(FSTS, status);
        assert_eq!(drain(&platform, &unit), (vec![7], Drained::All), "FRI {wrong}");
        platform.unit.records(|records| records.fill(2, denied_read(7)));
    }
}

#[test]
fn a_unit_that_is_gone_has_no_faults() {
    let (platform, unit) = unit(4);
    platform.unit.behave(|manner| manner.gone = true);
    assert_eq!(drain(&platform, &unit), (vec![], Drained::All));
    assert!(unit.is_stuck());
}

/// As long as an error of the queue is pending, a record raises no event: whoever clears the error has to see it.
#[test]
fn a_fault_beside_an_error_of_the_queue_is_not_left_behind() {
    const ICE: u32 = 1 << 5;
    let (platform, unit) = unit(4);
    platform.unit.preset32(FSTS, ICE);
    platform.unit.behave(|manner| {
        manner.before_status = Some(std::boxed::Box::new(|records| records.fill(0, denied_read(7))));
    });
    assert_eq!(drain(&platform, &unit), (vec![], Drained::More));
    assert_eq!(drain(&platform, &unit), (vec![7], Drained::All));
}

#[test]
fn a_record_that_is_pending_and_not_there_is_not_tried_for_ever() {
    const PENDING: u32 = 1 << 1;
    let (platform, unit) = unit(4);
    platform.unit.preset32(FSTS, PENDING);
    assert_eq!(drain(&platform, &unit), (vec![], Drained::All));
}

#[test]
fn a_unit_that_goes_while_it_is_read_has_no_faults_of_whoever_has_the_highest_id() {
    let (platform, unit) = unit(4);
    platform.unit.records(|records| (0..4).for_each(|n| records.fill(n, denied_read(n as u16))));
    let mut sources = Vec::new();
    let drained = unit.drain_faults(&platform, |fault| {
        sources.push(fault.source.requester);
        platform.unit.behave(|manner| manner.gone = true);
    });
    assert_eq!((sources, drained), (vec![0], Drained::All));
    assert!(unit.is_stuck());
}

/// Whatever keeps the unit from raising events, and not only a record.
#[test]
fn what_is_pending_without_a_record_is_dealt_with() {
    let bits = [
        FaultStatus::new().with_overflow(true),
        FaultStatus::new().with_completion_error(true),
        FaultStatus::new().with_timeout_error(true),
    ];
    for status in bits {
        let (platform, unit) = unit(4);
        platform.unit.preset32(FSTS, status.into_bits());
        let _ = drain(&platform, &unit);
        assert_eq!(platform.unit.peek32(FSTS) & 0xff, 0, "{status:?}");
    }
}

#[test]
fn nothing_pending_reads_no_record() {
    let (platform, unit) = unit(4);
    assert_eq!(drain(&platform, &unit), (vec![], Drained::All));
    assert_eq!(unit.overflows(), 0);
}
