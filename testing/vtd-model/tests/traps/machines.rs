//! All of the units, and the addresses that devices use.

use std::thread;

use driven::Driven;
use iommu::{Bidirectional, DmaError, Iova, dmar::Dmar};
use vtd_model::{Access, MachineConfig, become_cpu};

use crate::{buffer, claim, plain};

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
        assert_eq!(rejected.error, DmaError::IovaReserved { iova: Iova::new(first) });
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
