//! When a unit sees what a CPU stores.

use iommu::Platform;
use mm::table::TableMemory;
use vtd_model::{Reason, Rule};

use super::{IOVA, by_hand::*, plain};

#[test]
fn a_unit_that_does_not_snoop_sees_what_was_written_back() {
    let mut config = plain();
    config.units[0].coherent = false;
    let mut bench = Bench::new(config);
    let page = bench.one_page(IOVA);
    let device = bench.device();
    let other = IOVA + 0x8000;
    bench.store(leaf_slot(page.path[2], other), page.memory | RW);
    assert_eq!(probe(&device, other), read_fault(Reason::NoRead));
    bench.write_back(leaf_slot(page.path[2], other));
    assert_eq!(probe(&device, other), Ok(page.memory));
    bench.assert_content();
}

#[test]
fn a_table_linked_before_it_was_written_is_told() {
    for evicted in [false, true] {
        let mut config = plain();
        config.units[0].coherent = false;
        let bench = Bench::new(config);
        let top = bench.page();
        let table = bench.platform.tables().allocate().unwrap().as_u64();
        bench.put_context(SOURCE, 3, top);
        bench.machine.audit();
        bench.assert_content();
        bench.store(top, table | RW);
        if !evicted {
            bench.write_back(top);
        }
        bench.machine.audit();
        assert!(bench.rules().contains(&Rule::LinkedBeforeWrittenBack));
    }
}

#[test]
fn lines_are_evicted_without_being_asked() {
    let mut config = plain();
    config.units[0].coherent = false;
    config.evict_once_in = 1;
    config.audit_once_in = 0;
    let mut bench = Bench::new(config);
    let page = bench.one_page(IOVA);
    bench.store(leaf_slot(page.path[2], IOVA + 0x8000), page.memory | RW);
    let device = bench.device();
    assert!(bench.wait_for(|_| probe(&device, IOVA + 0x8000).is_ok()));
}

#[test]
fn stores_wait_in_the_write_buffer() {
    let mut config = plain();
    config.units[0].write_buffer = true;
    let mut bench = Bench::new(config);
    let page = bench.one_page(IOVA);
    bench.command(WBF, true);
    let device = bench.device();
    assert!(probe(&device, IOVA).is_ok());
    let next = IOVA + 0x8000;
    bench.put(leaf_slot(page.path[2], next), page.memory | RW);
    assert_eq!(probe(&device, next), read_fault(Reason::NoRead));
    bench.command(WBF, true);
    assert_eq!(probe(&device, next), Ok(page.memory));
    bench.put(leaf_slot(page.path[2], next + 0x1000), page.memory | RW);
    assert_eq!(probe(&device, next + 0x1000), read_fault(Reason::NoRead));
    bench.submit(&[iotlb_pages(3, next, 0, true)]);
    assert_eq!(probe(&device, next + 0x1000), Ok(page.memory), "an invalidation drains it too");
    bench.assert_content();
}

#[test]
fn a_table_younger_than_the_last_drain_has_not_arrived() {
    let mut config = plain();
    config.units[0].write_buffer = true;
    let mut bench = Bench::new(config);
    let page = bench.one_page(IOVA);
    bench.command(WBF, true);
    let device = bench.device();
    assert!(probe(&device, IOVA).is_ok());
    let far = IOVA + (1 << 30);
    bench.map(page.top, far, page.memory | RW);
    assert_ne!(probe(&device, far), Ok(page.memory));
    bench.submit(&[iotlb_domain(3)]);
    assert_eq!(probe(&device, far), Ok(page.memory));
}
