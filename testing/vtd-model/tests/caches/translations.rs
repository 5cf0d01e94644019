//! What a unit remembers of a domain's translations and of its sources.

use iommu::Platform;
use mm::{PhysAddr, table::TableMemory};
use vtd_model::{Access, MachineConfig, Reason, Rule};

use super::{IOVA, by_hand::*, plain};

#[test]
fn a_mapped_page_is_reached_byte_by_byte() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    let device = bench.device();
    device.write(IOVA + 5, b"hello").unwrap();
    let mut back = [0; 5];
    device.read(IOVA + 5, &mut back).unwrap();
    assert_eq!(&back, b"hello");
    assert_eq!(probe(&device, IOVA + 0xabc), Ok(page.memory + 0xabc));
    assert_eq!(probe(&device, IOVA + 0x1000), read_fault(Reason::NoRead));
    assert_eq!(&bench.take_back_after_unmap(&page)[5..10], b"hello");
    bench.assert_content();
}

impl Bench {
    /// Unmaps the page the right way and gives its bytes.
    fn take_back_after_unmap(&mut self, page: &OnePage) -> Vec<u8> {
        self.put(leaf_slot(page.path[2], IOVA), 0);
        self.submit(&[iotlb_pages(3, IOVA, 0, true)]);
        self.take_back().as_slice().to_vec()
    }
}

#[test]
fn iotlb_entries_stay_until_their_page_or_domain_goes() {
    for (right, wrong) in [
        (iotlb_pages(3, IOVA, 0, true), iotlb_pages(3, IOVA + 0x1000, 0, true)),
        (iotlb_pages(3, IOVA & !0xffff, 4, false), iotlb_pages(4, IOVA, 0, false)),
        (iotlb_domain(3), iotlb_domain(2)),
        (iotlb_global(), context_global()),
    ] {
        let mut bench = Bench::new(plain());
        let page = bench.one_page(IOVA);
        let device = bench.device();
        assert!(probe(&device, IOVA).is_ok());
        bench.put(leaf_slot(page.path[2], IOVA), 0);
        assert_eq!(probe(&device, IOVA), Ok(page.memory), "stale");
        bench.submit(&[wrong]);
        assert_eq!(probe(&device, IOVA), Ok(page.memory), "still stale after {wrong:x?}");
        bench.submit(&[right]);
        assert_eq!(probe(&device, IOVA), read_fault(Reason::NoRead));
        bench.assert_content();
    }
}

#[test]
fn a_buffer_that_a_unit_still_knows_is_told() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    assert!(probe(&bench.device(), IOVA).is_ok());
    bench.put(leaf_slot(page.path[2], IOVA), 0);
    drop(bench.take_back());
    assert_eq!(bench.rules(), [Rule::BufferStillReachable]);
}

#[test]
fn superpages_may_be_cached_in_pieces() {
    let iova = 0x4000_0000_u64;
    let mut stale_wholes = 0;
    for seed in 0..40 {
        let mut bench = Bench::new(MachineConfig { seed, ..plain() });
        let memory = bench.lend_aligned(512, 512);
        let top = bench.page();
        let path = bench.map(top, iova, 0);
        let slot = path[1] + (iova >> 21 & 511) * 8;
        bench.put(slot, memory | 1 << 7 | RW);
        bench.put_context(SOURCE, 3, top);
        let device = bench.device();
        for page in [0, 100, 511] {
            assert_eq!(probe(&device, iova + page * 4096), Ok(memory + page * 4096));
        }
        bench.put(slot, 0);
        bench.submit(&[iotlb_pages(3, iova, 0, false)]);
        // The page that was named goes if it was a piece, and stays if the whole was cached: the mask was too small for
        // it.
        stale_wholes += i32::from(probe(&device, iova).is_ok());
        assert!(probe(&device, iova + 511 * 4096).is_ok());
        bench.submit(&[iotlb_pages(3, iova, 9, false)]);
        assert!([0, 100, 511].iter().all(|page| probe(&device, iova + page * 4096).is_err()));
        bench.assert_content();
    }
    assert!((5..35).contains(&stale_wholes), "{stale_wholes}");
}

#[test]
fn paging_structures_survive_the_leaf_hint() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    let device = bench.device();
    assert!(probe(&device, IOVA).is_ok());
    // Another level-1 table takes the place of the first.
    let other = bench.page();
    let memory = bench.lend(1);
    bench.put(leaf_slot(other, IOVA), memory | RW);
    bench.put(page.path[1] + (IOVA >> 21 & 511) * 8, other | RW);
    bench.submit(&[iotlb_pages(3, IOVA, 0, true)]);
    assert_eq!(probe(&device, IOVA), Ok(page.memory), "found through the cached upper entry");
    bench.submit(&[iotlb_pages(3, IOVA, 0, false)]);
    assert_eq!(probe(&device, IOVA), Ok(memory));
}

#[test]
fn a_freed_table_in_a_paging_structure_cache_is_told() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    assert!(probe(&bench.device(), IOVA).is_ok());
    bench.put(page.path[1] + (IOVA >> 21 & 511) * 8, 0);
    bench.submit(&[iotlb_pages(3, IOVA, 0, true)]);
    // SAFETY: allocated by the bench and unlinked.
    unsafe { bench.platform.tables().free(PhysAddr::new(page.path[2])) };
    assert_eq!(bench.rules(), [Rule::FreedWhileReachable]);
}

#[test]
fn context_entries_stay_until_their_device_goes() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    let device = bench.device();
    assert!(probe(&device, IOVA).is_ok());
    let slot = bench.context_slot(SOURCE);
    bench.put(slot, page.top);
    assert!(probe(&device, IOVA).is_ok(), "stale");
    bench.submit(&[context_device(2, SOURCE)]);
    bench.submit(&[iotlb_domain(3)]);
    assert!(probe(&device, IOVA).is_ok(), "the domain was not the old one");
    bench.submit(&[context_device(3, SOURCE)]);
    assert_eq!(probe(&device, IOVA), read_fault(Reason::ContextNotPresent));
    bench.assert_content();
}

#[test]
fn caching_mode_remembers_what_is_not_there() {
    let mut config = plain();
    config.units[0].caching_mode = true;
    let mut bench = Bench::new(config);
    let device = bench.device();
    assert_eq!(probe(&device, IOVA), read_fault(Reason::RootNotPresent));
    let page = bench.one_page(IOVA);
    assert_eq!(probe(&device, IOVA), read_fault(Reason::RootNotPresent), "remembered");
    bench.submit(&[context_device(3, SOURCE)]);
    assert_eq!(probe(&device, IOVA), read_fault(Reason::RootNotPresent), "filed under domain 0");
    bench.submit(&[context_device(0, SOURCE)]);
    assert_eq!(
        probe(&device, IOVA),
        read_fault(Reason::NoRead),
        "the unit has not looked what is in the domain"
    );
    bench.submit(&[iotlb_pages(3, IOVA, 0, false), iotlb_domain(4)]);
    assert_eq!(probe(&device, IOVA), read_fault(Reason::NoRead), "nor now");
    bench.submit(&[iotlb_domain(3)]);
    assert_eq!(probe(&device, IOVA), Ok(page.memory));
    // The same for pages, through whatever level.
    for step in 1..100_u64 {
        let iova = IOVA + (step << 12) + (step << (20 + step % 20));
        assert_eq!(probe(&device, iova), read_fault(Reason::NoRead));
        bench.map(page.top, iova, page.memory | RW);
        assert_eq!(probe(&device, iova), read_fault(Reason::NoRead), "remembered");
        bench.submit(&[iotlb_pages(3, iova, 0, false)]);
        assert_eq!(probe(&device, iova), Ok(page.memory));
    }
    bench.assert_content();
}

#[test]
fn without_caching_mode_nothing_missing_is_remembered() {
    let mut bench = Bench::new(plain());
    let device = bench.device();
    assert!(probe(&device, IOVA).is_err());
    let page = bench.one_page(IOVA);
    assert_eq!(probe(&device, IOVA), Ok(page.memory));
    bench.assert_content();
}

#[test]
fn a_new_root_pointer_invalidates_nothing_unless_it_says_so() {
    for esrtps in [false, true] {
        let mut config = plain();
        config.units[0].esrtps = esrtps;
        let mut bench = Bench::new(config);
        bench.one_page(IOVA);
        let device = bench.device();
        assert!(probe(&device, IOVA).is_ok());
        let empty = bench.page();
        bench.set_root(empty);
        assert_eq!(probe(&device, IOVA).is_ok(), !esrtps);
        bench.invalidate_all();
        assert_eq!(probe(&device, IOVA), read_fault(Reason::RootNotPresent));
    }
}

#[test]
fn at_power_on_the_caches_hold_what_nobody_put_there() {
    let bench = Bench::off(plain());
    bench.set_root(bench.root);
    bench.command(TE, true);
    assert!(probe(&bench.device(), 0x5000).is_ok());
    let mut data = [0; 4];
    assert!(bench.device().read(0x5000, &mut data).is_err());
    assert_eq!(bench.rules(), [Rule::StrayDma]);
}

#[test]
fn rights_are_cached_too() {
    let mut bench = Bench::new(plain());
    let page = bench.one_page(IOVA);
    bench.put(leaf_slot(page.path[2], IOVA), page.memory | 1);
    let device = bench.device();
    assert!(probe(&device, IOVA).is_ok());
    bench.put(leaf_slot(page.path[2], IOVA), page.memory | RW);
    assert!(device.probe(IOVA, Access::Write).is_err(), "stale rights");
    bench.submit(&[iotlb_pages(3, IOVA, 0, true)]);
    assert!(device.probe(IOVA, Access::Write).is_ok());
}
