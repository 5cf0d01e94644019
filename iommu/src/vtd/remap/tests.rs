use std::{vec, vec::Vec};

use super::*;
use crate::{
    SourceId,
    interrupts::IgnoredBits,
    platform::MsiMessage,
    vtd::{
        mode::TranslationMode,
        spec::Descriptor,
        testing::FakePlatform,
        unit::{BringUp, InterruptSetup, Location},
    },
};

const CAP: u64 = 0x00d2_008c_222f_0606;
const ECAP: u64 = 0x00f0_0f4a;
const EIM: u64 = 1 << 4;
const COHERENT: u64 = 1;

const DEVICE: SourceId = SourceId { segment: 0, requester: 0xabcd };
const OWNER: Sender = Sender::Function(DEVICE);

fn unit_with(platform: &FakePlatform, entries_order: u8) -> Unit<FakePlatform> {
    let location = Location { base: PhysAddr::new(0xfed9_0000), segment: 0, host_address_bits: 46 };
    let mut unit = Unit::discover(platform, 5, location).unwrap();
    let interrupts = Some(InterruptSetup { entries_order, x2apic: true });
    let root = PhysAddr::new(0x1000);
    let how = BringUp { root, mode: TranslationMode::Legacy, queue: true, queue_order: 0, interrupts };
    // SAFETY: no device exists.
    unsafe { unit.bring_up(platform, &how) }.unwrap();
    platform.unit.take_log();
    unit
}

fn unit(platform: &FakePlatform) -> Unit<FakePlatform> {
    unit_with(platform, 8)
}

fn route(vector: u8, apic: u32) -> Route {
    Route { sender: Sender::Function(DEVICE), vector, apic, level_triggered: false }
}

/// The entry as the unit reads it.
fn raw(platform: &FakePlatform, index: u16) -> u128 {
    let at = (platform.unit.peek64(0xb8) & !0xfff) + u64::from(index) * 16;
    let word = |at| platform.memory.word(at).load(Ordering::SeqCst);
    u128::from(word(at)) | u128::from(word(at + 8)) << 64
}

#[test]
fn trap_source_fields_are_where_the_unit_looks_for_them() {
    let entry = |sender| Route { sender, ..route(0x31, 4) }.entry(false).unwrap().into_bits();
    let rest = 0x0400 << 32 | 0x31 << 16 | 1;
    assert_eq!(entry(Sender::Function(DEVICE)), 0b01 << 82 | 0xabcd << 64 | rest);
    let ignored = IgnoredBits::Bits210;
    let functions = Sender::Functions { source: DEVICE, ignored };
    assert_eq!(entry(functions), 0b01 << 82 | 0b11 << 80 | 0xabcd << 64 | rest);
    let buses = Sender::Buses { first: 0x12, last: 0x34 };
    assert_eq!(entry(buses), 0b10 << 82 | 0x1234 << 64 | rest);
}

#[test]
fn destinations_fit_their_mode() {
    let destination = |apic, extended| route(0x31, apic).entry(extended).map(|entry| entry.raw_destination());
    assert_eq!(destination(0xfe, false), Ok(0xfe00));
    assert_eq!(destination(0x1_2345, true), Ok(0x1_2345));
    assert_eq!(destination(0xff, true), Ok(0xff));
    for (beyond, extended) in [(0xff, false), (0x100, false), (u32::MAX, true)] {
        assert_eq!(destination(beyond, extended), Err(RouteError::Destination { apic: beyond }));
    }
}

#[test]
fn vectors_of_exceptions_are_refused() {
    assert_eq!(route(15, 0).entry(true), Err(RouteError::Vector { vector: 15 }));
    assert!(route(16, 0).entry(true).is_ok());
}

#[test]
fn a_routed_interrupt_is_stored_written_back_and_flushed() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 0, OWNER).unwrap();
    unit.route_interrupt(&platform, &block, 0, &route(0x31, 4)).unwrap();
    let index = block.first();
    assert_eq!(raw(&platform, index), route(0x31, 4).entry(false).unwrap().into_bits());
    assert_eq!(
        unit.interrupts().unwrap().entry(&platform, index),
        Some(route(0x31, 4).entry(false).unwrap())
    );
    let at = (platform.unit.peek64(0xb8) & !0xfff) + u64::from(index) * 16;
    assert!(platform.memory.was_written_back(at, 16));
    let flushed = platform.unit.take_descriptors();
    assert_eq!(flushed[0], Descriptor::InterruptEntries { entries: Some((index, 0)) });
}

#[test]
fn trap_an_empty_table_is_written_back_before_it_is_used() {
    let platform = FakePlatform::new(CAP, ECAP);
    unit_with(&platform, 10);
    let table = platform.unit.peek64(0xb8) & !0xfff;
    for page in 0..4 {
        assert!(platform.memory.was_written_back(table + page * 0x1000, 0x1000));
    }
    let coherent = FakePlatform::new(CAP, ECAP | COHERENT);
    unit_with(&coherent, 10);
    assert_eq!(coherent.memory.write_backs(), 0);
}

#[test]
fn a_live_interrupt_may_move_but_not_change_hands() {
    let platform = FakePlatform::new(CAP, ECAP | EIM);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 0, OWNER).unwrap();
    unit.route_interrupt(&platform, &block, 0, &route(0x31, 4)).unwrap();
    platform.unit.take_log();
    unit.route_interrupt(&platform, &block, 0, &route(0x55, 0x1_0000)).unwrap();
    assert_eq!(raw(&platform, block.first()), route(0x55, 0x1_0000).entry(true).unwrap().into_bits());
    assert_eq!(platform.unit.take_descriptors().len(), 2, "the old destination is flushed");
    let other = Route { sender: Sender::Buses { first: 1, last: 2 }, ..route(0x55, 1) };
    let error = unit.route_interrupt(&platform, &block, 0, &other).unwrap_err();
    assert_eq!(error, RouteError::OtherSender { index: block.first() });
    assert_eq!(raw(&platform, block.first()), route(0x55, 0x1_0000).entry(true).unwrap().into_bits());
}

/// What was allocated before its sender was muted can only be freed, stored or not; what is allocated afterwards works.
#[test]
fn a_sender_is_muted_whether_or_not_its_entries_are_in_use() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 1, OWNER).unwrap();
    let foreign = SourceId { requester: 0xabce, ..DEVICE };
    let others = unit.allocate_interrupts(&platform, 0, Sender::Function(foreign)).unwrap();
    unit.route_interrupt(&platform, &block, 0, &route(0x31, 4)).unwrap();
    unit.mute_interrupts(&platform, DEVICE).unwrap();
    for offset in 0..2 {
        let index = block.first() + offset;
        let routed = unit.route_interrupt(&platform, &block, offset, &route(0x31, 4));
        assert_eq!(routed, Err(RouteError::Muted { index }));
        assert_eq!(raw(&platform, index) & 1, 0);
    }
    let other = Route { sender: Sender::Function(foreign), ..route(0x32, 4) };
    unit.route_interrupt(&platform, &others, 0, &other).unwrap();
    unit.free_interrupts(&platform, block).unwrap();
    let block = unit.allocate_interrupts(&platform, 1, OWNER).unwrap();
    unit.route_interrupt(&platform, &block, 1, &route(0x31, 4)).unwrap();
}

/// What is tried with an entry that is nobody's is recorded, whoever had it before is muted or not.
#[test]
fn a_free_entry_is_not_muted_with_who_had_it() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 1, OWNER).unwrap();
    let first = block.first();
    unit.route_interrupt(&platform, &block, 0, &route(0x31, 4)).unwrap();
    unit.free_interrupts(&platform, block).unwrap();
    unit.mute_interrupts(&platform, DEVICE).unwrap();
    assert_eq!([raw(&platform, first), raw(&platform, first + 1)], [0, 0]);
}

#[test]
fn a_freed_block_is_withdrawn_flushed_and_only_then_free() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 3, OWNER).unwrap();
    let first = block.first();
    for offset in 0..8 {
        unit.route_interrupt(&platform, &block, offset, &route(0x31 + offset as u8, 4)).unwrap();
    }
    platform.unit.take_log();
    unit.free_interrupts(&platform, block).unwrap();
    for index in first..first + 8 {
        assert_eq!(raw(&platform, index) & 1, 0);
    }
    let flushed = platform.unit.take_descriptors();
    assert_eq!(flushed[0], Descriptor::InterruptEntries { entries: Some((first, 3)) });
    assert_eq!(unit.allocate_interrupts(&platform, 3, OWNER).unwrap().first(), first, "free again");
}

#[test]
fn trap_entries_of_a_stuck_unit_are_never_free_again() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 5, OWNER).unwrap();
    let first = block.first();
    platform.unit.behave(|manner| manner.frozen = true);
    assert!(matches!(unit.free_interrupts(&platform, block), Err(RouteError::Invalidation(_))));
    for _ in 0..7 {
        let other = unit.allocate_interrupts(&platform, 5, OWNER).unwrap();
        assert_ne!(other.first(), first);
    }
    assert_eq!(unit.allocate_interrupts(&platform, 5, OWNER), Err(RouteError::NoEntries { order: 5 }));
}

#[test]
fn blocks_are_aligned_and_apart() {
    let mut free = FreeBlocks::new(8).unwrap();
    let (mut used, mut blocks) = (vec![false; 256], Vec::new());
    let mut random: u32 = 1;
    for _ in 0..if cfg!(miri) { 300 } else { 20_000 } {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let order = (random >> 16) as u8 % (MAX_BLOCK_ORDER + 2);
        if random >> 28 < 7 && !blocks.is_empty() {
            let block: InterruptBlock = blocks.swap_remove((random >> 8) as usize % blocks.len());
            block.indices().for_each(|index| used[usize::from(index)] = false);
            free.put_back(block);
            continue;
        }
        let room = order <= MAX_BLOCK_ORDER && used.chunks(1 << order).any(|chunk| !chunk.contains(&true));
        let block = free.take(0, order);
        assert_eq!(block.is_some(), room);
        let Some(block) = block else { continue };
        assert_eq!(block.first() % (1 << order), 0);
        for index in block.indices() {
            assert!(!core::mem::replace(&mut used[usize::from(index)], true), "{index} is in use");
        }
        blocks.push(block);
    }
}

#[test]
fn the_largest_table_has_an_entry_for_every_handle() {
    // Miri is content with one that is smaller.
    const ORDER: u8 = if cfg!(miri) { 9 } else { MAX_TABLE_ORDER };
    const LAST: u16 = ((1u32 << ORDER) - 1) as u16;
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit_with(&platform, ORDER);
    assert_eq!(unit.interrupts().unwrap().entries(), 1 << ORDER);
    assert_eq!(platform.unit.peek64(0xb8) & 0xf, u64::from(ORDER) - 1);
    let blocks: Vec<_> =
        (0..1 << (ORDER - 5)).map(|_| unit.allocate_interrupts(&platform, 5, OWNER).unwrap()).collect();
    let last = blocks.last().unwrap();
    assert_eq!(last.index(31), Some(LAST));
    unit.route_interrupt(&platform, last, 31, &route(0x31, 4)).unwrap();
    assert_eq!(raw(&platform, LAST) & 1, 1);
    let address = if cfg!(miri) { 0xfee0_3ff0 } else { 0xfeef_fff4 };
    assert_eq!(last.message(31), Some(MsiMessage { address, data: 0 }));
}

#[test]
fn messages_name_their_entry() {
    let mut free = FreeBlocks::new(8).unwrap();
    let _first = free.take(0, 3).unwrap();
    let block = free.take(0, 2).unwrap();
    assert_eq!((block.first(), block.index(3), block.index(4)), (8, Some(11), None));
    assert_eq!(block.message(1), Some(MsiMessage { address: 0xfee0_0010 | 9 << 5, data: 0 }));
    assert_eq!(block.multi_message(), MsiMessage { address: 0xfee0_0018 | 8 << 5, data: 0 });
    let entry = block.ioapic_entry(2, 0x31).unwrap();
    assert_eq!(entry.into_bits(), 10 << 49 | 1 << 48 | 1 << 16 | 0x31);
    assert_eq!(block.message(4), None);
}

#[test]
fn offsets_outside_a_block_are_refused() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = unit(&platform);
    let block = unit.allocate_interrupts(&platform, 1, OWNER).unwrap();
    let error = unit.route_interrupt(&platform, &block, 2, &route(0x31, 4)).unwrap_err();
    assert_eq!(error, RouteError::OutOfBlock { offset: 2 });
    let error = unit.allocate_interrupts(&platform, MAX_BLOCK_ORDER + 1, OWNER).unwrap_err();
    assert_eq!(error, RouteError::NoEntries { order: MAX_BLOCK_ORDER + 1 });
}
