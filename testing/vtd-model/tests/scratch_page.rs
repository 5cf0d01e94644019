//! Quarantine on a scratch page: every address leads to one page of the group's own, reserved memory to itself, and
//! nothing of it is left afterwards.

use std::collections::BTreeSet;

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, Options, PciAddress, dump::GroupStanding, options::Quarantine,
};
use vtd_model::{Access, Denied, Device, MachineConfig, ModelBuffer, Random, ReservedMemory};

const PAGE: u64 = 0x1000;

fn config() -> MachineConfig {
    let mut config = MachineConfig::plain(3);
    config.relax_ns = 1_000_000;
    config
}

fn start(config: MachineConfig) -> Driven {
    let options = Options { quarantine: Quarantine::ScratchPage, ..Options::default() };
    Driven::start_with(config, options).expect("units that work")
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven) -> ModelBuffer {
    driven.machine.allocate_buffer(1, 1).expect("memory")
}

fn is_on_scratch_page(driven: &Driven, function: PciAddress) -> bool {
    matches!(driven.standing(function).0, GroupStanding::Quarantined { on_scratch_page: true, .. })
}

/// The page that `address` leads to, for both kinds of access.
fn page_at(device: &Device, address: u64) -> u64 {
    let read = device.probe(address, Access::Read).expect("a scratch page can be read");
    assert_eq!(device.probe(address, Access::Write), Ok(read), "and written");
    read & !(PAGE - 1)
}

/// Addresses of all sizes below `bits` bits, the edges of tables among them.
fn addresses(bits: u32) -> impl Iterator<Item = u64> {
    let mut random = Random::new(u64::from(bits));
    let drawn: Vec<u64> =
        (0..200).map(|_| random.bits() >> (64 - bits) >> random.below(u64::from(bits) - 12)).collect();
    let edges = (12..bits).flat_map(|bit| [1 << bit, (1 << bit) - 1, (1 << bit) + 1]);
    // Writes there are interrupts.
    [0, (1 << bits) - 1].into_iter().chain(edges).chain(drawn).filter(|address| address >> 20 != 0xfee)
}

#[test]
fn every_address_leads_to_one_page_whatever_the_unit_is_like() {
    // Width, then: snoops, caches what is not present, buffers stores.
    for (sagaw, bits) in [(0b0010, 39), (0b0100, 48), (0b1000, 57)] {
        for traits in 0..8_u8 {
            let mut config = config();
            let unit = &mut config.units[0];
            (unit.sagaw, unit.mgaw) = (sagaw, bits);
            (unit.coherent, unit.caching_mode, unit.write_buffer) =
                (traits & 1 != 0, traits & 2 != 0, traits & 4 != 0);
            let driven = start(config);
            let (handle, device) = claim(&driven, 0);
            let function = handle.function();
            let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
            let (iova, own) = (mapping.iova().as_u64(), page_at(&device, mapping.iova().as_u64()));
            driven.iommu.quarantine(function).expect("a unit that works");
            assert!(is_on_scratch_page(&driven, function));
            let pages: BTreeSet<u64> =
                addresses(bits.into()).chain([iova]).map(|address| page_at(&device, address)).collect();
            assert_eq!(pages.len(), 1, "{bits} bits, traits {traits:#b}: {pages:x?}");
            assert!(!pages.contains(&own));
            driven.machine.audit();
            driven.assert_content("on a scratch page");
            drop(mapping);
        }
    }
}

#[test]
fn it_reads_zeros_or_what_it_wrote_and_faults_nothing() {
    let driven = start(config());
    for round in 0..3_u8 {
        let (handle, device) = claim(&driven, 0);
        let function = handle.function();
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        driven.iommu.quarantine(function).expect("a unit that works");
        assert!(!device.is_bus_master());
        // A driver may turn that on again, or the device may not care.
        driven.enable(function);
        let before = handle.fault_count();
        let mut found = [0xff; 64];
        device.read(0x1234_5000, &mut found).expect("a scratch page");
        assert_eq!(found, [0; 64], "round {round}: it finds something of another owner");
        device.write(mapping.iova().as_u64(), &[0x40 + round; 64]).expect("a scratch page");
        device.read(0x7777_7000, &mut found).expect("a scratch page");
        assert_eq!(found, [0x40 + round; 64]);
        assert_eq!(handle.fault_count(), before);
        // What it does beyond the width is blocked, and no news.
        assert!(matches!(device.probe(1 << 60, Access::Read), Err(Denied::Fault(_))));
        let _ = device.write(1 << 60, b"x");
        driven.pump();
        assert_eq!(handle.fault_count(), before, "what it does in there is no news");
        driven.iommu.release(function, |_| true).expect("a quiet device");
        assert!(device.probe(0x1234_5000, Access::Read).is_err(), "released, it reaches nothing");
        mapping.unmap().expect("the device is quiet");
        let (handle, device) = claim(&driven, 0);
        let before = handle.fault_count();
        assert!(device.write(0x1234_5000, b"x").is_err());
        assert_eq!(handle.fault_count(), before + 1, "its faults are heard again");
        driven.iommu.release(handle.function(), |_| true).expect("a quiet device");
        driven.machine.audit();
        driven.assert_content("after a scratch page");
    }
}

#[test]
fn groups_have_pages_of_their_own() {
    let driven = start(config());
    let devices = [0, 1].map(|index| {
        // The second was never claimed.
        let function = driven.function(index);
        driven.iommu.quarantine(function).expect("a unit that works");
        assert!(is_on_scratch_page(&driven, function));
        driven.device(function)
    });
    assert_ne!(page_at(&devices[0], 0x5000), page_at(&devices[1], 0x5000));
    driven.iommu.release(driven.function(0), |_| true).expect("a quiet device");
    assert!(devices[0].probe(0x5000, Access::Read).is_err());
    assert!(devices[1].probe(0x5000, Access::Read).is_ok());
}

#[test]
fn reserved_memory_is_cut_out_exactly() {
    // Two regions in one lowest table, one over the edge of two.
    let regions = [(0x5000_0000, 0x5000_3fff), (0x5000_8000, 0x5000_8fff), (0x503f_e000, 0x5040_1fff)];
    let mut config = config();
    let function = config.functions[0].address;
    config.reserved.extend(regions.map(|(base, limit)| ReservedMemory { function, base, limit }));
    let driven = start(config);
    let device = driven.device(function);
    let check = |when: &str| {
        let scratch = page_at(&device, 0x1000);
        for (base, limit) in regions {
            for address in (base..=limit).step_by(PAGE as usize) {
                assert_eq!(page_at(&device, address), address, "{when}");
            }
            assert_eq!(page_at(&device, base - PAGE), scratch, "{when}");
            assert_eq!(page_at(&device, limit + 1), scratch, "{when}");
        }
    };
    // Never claimed: it comes from its reserved memory alone.
    driven.iommu.quarantine(function).expect("a unit that works");
    check("unclaimed");
    driven.machine.audit();
    driven.iommu.release(function, |_| true).expect("a quiet device");
    let reach = device.reach_of_tables().expect("translated");
    let reach: Vec<_> = reach.iter().map(|run| (run.address, run.address + run.bytes - 1)).collect();
    assert_eq!(reach, regions, "released, it has its reserved memory and nothing else");
    let (handle, _) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    driven.iommu.quarantine(function).expect("a unit that works");
    check("claimed");
    driven.iommu.release(function, |_| true).expect("a quiet device");
    mapping.unmap().expect("the device is quiet");
    driven.machine.audit();
    driven.assert_content("reserved memory");
}

#[test]
fn its_pages_come_back_when_the_device_is_quiet_and_not_before() {
    let driven = start(config());
    let function = driven.function(0);
    let pages = driven.machine.live_table_pages();
    driven.iommu.quarantine(function).expect("a unit that works");
    let quarantined = driven.machine.live_table_pages();
    assert!(quarantined > pages);
    assert!(driven.iommu.release(function, |_| false).is_err());
    assert!(is_on_scratch_page(&driven, function));
    assert_eq!(driven.machine.live_table_pages(), quarantined);
    driven.iommu.release(function, |_| true).expect("a quiet device");
    // One context table stays, for the bus.
    assert!(driven.machine.live_table_pages() <= pages + 1);
    // Round after round.
    for _ in 0..10 {
        driven.iommu.quarantine(function).expect("a unit that works");
        driven.iommu.release(function, |_| true).expect("a quiet device");
    }
    assert!(driven.machine.live_table_pages() <= pages + 1);
    driven.assert_content("round after round");
}

#[test]
fn a_unit_that_falls_silent_keeps_the_pages() {
    let driven = start(config());
    let function = driven.function(0);
    driven.iommu.quarantine(function).expect("a unit that works");
    let pages = driven.machine.live_table_pages();
    driven.machine.misbehave(0, |unit| unit.statuses_lost = true);
    assert!(driven.iommu.release(function, |_| true).is_err());
    assert_eq!(driven.machine.live_table_pages(), pages, "a unit may still walk them");
}

#[test]
fn without_memory_for_a_page_the_group_is_blocked() {
    let mut refusals = 0;
    for granted in 0.. {
        let driven = start(config());
        let (handle, device) = claim(&driven, 0);
        let function = handle.function();
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        let pages = driven.machine.live_table_pages();
        driven.machine.set_shortage(Some(granted));
        driven.iommu.quarantine(function).expect("a unit that works");
        driven.machine.set_shortage(None);
        if is_on_scratch_page(&driven, function) {
            break;
        }
        refusals += 1;
        assert!(device.probe(mapping.iova().as_u64(), Access::Read).is_err());
        assert!(device.probe(0x5000, Access::Read).is_err());
        assert_eq!(driven.machine.live_table_pages(), pages);
        driven.iommu.release(function, |_| true).expect("a quiet device");
        mapping.unmap().expect("the device is quiet");
        driven.assert_content("a shortage");
    }
    // One table a level.
    assert_eq!(refusals, 4);
}

#[test]
fn without_a_domain_id_the_group_is_blocked() {
    let mut config = MachineConfig::plain(20);
    config.units[0].nd = 0;
    let driven = start(config);
    let claims: Vec<_> = (0..20).map_while(|index| driven.iommu.claim(driven.function(index)).ok()).collect();
    assert!((10..16).contains(&claims.len()), "{} claims", claims.len());
    let idle = driven.function(19);
    driven.iommu.quarantine(idle).expect("a unit that works");
    assert!(matches!(driven.standing(idle).0, GroupStanding::Quarantined { on_scratch_page: false, .. }));
    assert!(driven.device(idle).probe(0x5000, Access::Read).is_err());
    // One that gives its own id up has room.
    let function = claims[3].function();
    driven.iommu.quarantine(function).expect("a unit that works");
    assert!(is_on_scratch_page(&driven, function));
    let refused = claims[3].dma_map(buffer(&driven), Bidirectional).map(drop).map_err(|r| r.error);
    assert_eq!(refused, Err(DmaError::Revoked));
    driven.assert_content("domain ids");
}
