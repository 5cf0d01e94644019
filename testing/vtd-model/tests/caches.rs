//! Each cache of the model keeps its entries until exactly the right invalidation.

mod by_hand;

use by_hand::*;
use iommu::{Platform, platform::MsiMessage};
use mm::{PhysAddr, table::TableMemory};
use vtd_model::{Access, InterruptOutcome, MachineConfig, Reason, Rule};

const IOVA: u64 = 0x12_3456_7000;

fn plain() -> MachineConfig {
    MachineConfig::plain(2)
}

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
        // The page that was named goes if it was a piece, and stays if the whole was cached: the mask was too small for it.
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

fn ats_bench() -> Bench {
    let mut config = plain();
    config.functions[0].ats = true;
    let mut bench = Bench::new(config);
    let page = bench.one_page(IOVA);
    let slot = bench.context_slot(SOURCE);
    // Translation type 01: untranslated and translated requests, with a device TLB.
    bench.put(slot, page.top | 1 << 2 | 1);
    const ATS_CONTROL: u16 = 0x104;
    bench.platform.write_config(bench.function(0), ATS_CONTROL, 1 << 31);
    bench
}

#[test]
fn a_device_tlb_outlives_the_iotlb() {
    let mut bench = ats_bench();
    let device = bench.device();
    (0..10).for_each(|_| assert!(probe(&device, IOVA).is_ok()));
    let slot = leaf_slot(bench.path_of(IOVA), IOVA);
    bench.put(slot, 0);
    let device_tlb = (3 | u64::from(SOURCE) << 32, IOVA);
    // The unit still knows the page: a device that asks again would get it back.
    bench.submit(&[iotlb_domain(3)]);
    assert!((0..100).any(|_| probe(&device, IOVA).is_ok()), "stale in the device");
    drop(bench.take_back());
    assert_eq!(bench.rules(), [Rule::BufferStillReachable]);
    bench.submit(&[device_tlb]);
    assert!((0..100).all(|_| probe(&device, IOVA).is_err()));
}

impl Bench {
    /// The level-1 table of an address in the domain of the first function.
    fn path_of(&self, iova: u64) -> u64 {
        let mut table = self.load(self.context_slot(SOURCE)) & 0x000f_ffff_ffff_f000;
        for shift in [39, 30, 21] {
            table = self.load(table + (iova >> shift & 511) * 8) & 0x000f_ffff_ffff_f000;
        }
        table
    }
}

#[test]
fn device_tlb_before_iotlb_lets_the_entry_come_back() {
    let mut came_back = 0;
    for seed in 0..100 {
        let mut bench = ats_bench_with(seed);
        let device = bench.device();
        (0..10).for_each(|_| assert!(probe(&device, IOVA).is_ok()));
        let slot = leaf_slot(bench.path_of(IOVA), IOVA);
        bench.put(slot, 0);
        bench.submit(&[(3 | u64::from(SOURCE) << 32, IOVA), iotlb_domain(3)]);
        came_back += i32::from((0..20).any(|_| probe(&device, IOVA).is_ok()));
    }
    assert!(came_back > 0);
}

fn ats_bench_with(seed: u64) -> Bench {
    let mut config = plain();
    config.seed = seed;
    config.functions[0].ats = true;
    let mut bench = Bench::new(config);
    let page = bench.one_page(IOVA);
    bench.put(bench.context_slot(SOURCE), page.top | 1 << 2 | 1);
    bench.platform.write_config(bench.function(0), 0x104, 1 << 31);
    bench
}

#[test]
fn translated_requests_need_a_context_that_trusts_them() {
    let mut bench = ats_bench();
    let device = bench.device();
    (0..10).for_each(|_| assert!(probe(&device, IOVA).is_ok()));
    let slot = bench.context_slot(SOURCE);
    bench.put(slot, bench.load(slot) & !0xd);
    bench.submit(&[context_device(3, SOURCE)]);
    bench.submit(&[iotlb_domain(3)]);
    bench.put(slot, bench.load(slot) | 1);
    let answers: Vec<_> = (0..100).map(|_| probe(&device, IOVA)).collect();
    assert!(answers.contains(&read_fault(Reason::RequestBlocked)), "translated");
    assert!(answers.iter().any(Result::is_ok), "untranslated");
}

fn remapping_bench() -> (Bench, u64) {
    let mut bench = Bench::new(plain());
    let table = bench.page();
    bench.registers_irta(table);
    bench.submit(&[(4, 0)]);
    bench.command(IRE, true);
    (bench, table)
}

impl Bench {
    fn registers_irta(&self, table: u64) {
        use iommu::platform::Registers;
        self.registers.write64(IRTA, table | 7);
        self.command(SIRTP, true);
    }
}

fn message(index: u64) -> MsiMessage {
    MsiMessage { address: 0xfee0_0010 | index << 5, data: 0 }
}

/// Vector 0x55 to APIC 1 from `SOURCE` alone.
fn put_interrupt(bench: &Bench, table: u64, index: u64, vector: u64) {
    bench.put(table + index * 16 + 8, 1 << 18 | u64::from(SOURCE));
    bench.put(table + index * 16, 1 | vector << 16 | 1 << 40);
}

fn vector(outcome: InterruptOutcome) -> Result<u8, Reason> {
    match outcome {
        InterruptOutcome::Delivered(delivered) => Ok(delivered.vector),
        InterruptOutcome::Blocked(reason) => Err(reason),
        InterruptOutcome::NotBusMaster => panic!("not a bus master"),
    }
}

#[test]
fn interrupt_entries_stay_until_their_index_goes() {
    let (mut bench, table) = remapping_bench();
    let device = bench.device();
    put_interrupt(&bench, table, 5, 0x55);
    assert_eq!(vector(device.interrupt(message(5))), Ok(0x55));
    bench.put(table + 5 * 16, 0);
    assert_eq!(vector(device.interrupt(message(5))), Ok(0x55), "stale");
    let index = |index: u64, mask: u64| (4 | 1 << 4 | mask << 27 | index << 32, 0);
    bench.submit(&[index(4, 0)]);
    assert_eq!(vector(device.interrupt(message(5))), Ok(0x55), "another index");
    bench.submit(&[index(4, 1)]);
    assert_eq!(vector(device.interrupt(message(5))), Err(Reason::InterruptNotPresent));
    bench.assert_content();
}

#[test]
fn a_new_interrupt_table_invalidates_nothing_unless_it_says_so() {
    for esirtps in [false, true] {
        let mut config = plain();
        config.units[0].esirtps = esirtps;
        let bench = Bench::new(config);
        let table = bench.page();
        bench.registers_irta(table);
        bench.command(IRE, true);
        let outcome = vector(bench.device().interrupt(message(5)));
        assert_eq!(outcome, if esirtps { Err(Reason::InterruptNotPresent) } else { Ok(0xee) });
    }
}

#[test]
fn reads_land_when_an_invalidation_drains_them_or_a_unit_that_cannot_be_told_does() {
    const DRAIN_READS: u64 = 1 << 7;
    let cases = [(true, true, true), (true, false, false), (false, false, true), (false, true, true)];
    for (has, asks, drains) in cases {
        let mut config = plain();
        config.units[0].drains_reads = has;
        let mut bench = Bench::new(config);
        let page = bench.one_page(IOVA);
        bench.device().post_read(IOVA, 4).unwrap();
        bench.put(leaf_slot(page.path[2], IOVA), 0);
        let (low, high) = iotlb_pages(3, IOVA, 0, true);
        // What the bench itself asks for is not looked at.
        let _ = bench.rules();
        bench.post(&[(if asks { low } else { low & !DRAIN_READS }, high)]);
        assert!(bench.wait_for(|bench| bench.iqh() != 0));
        let _ = bench.take_back();
        let rules = bench.rules();
        let wanted: &[Rule] = match (has, drains) {
            (false, _) if asks => &[Rule::BadInvalidation],
            (_, true) => &[],
            // Time alone lands it too.
            (_, false) if rules.is_empty() => &[],
            (_, false) => &[Rule::BufferStillReachable],
        };
        assert_eq!(rules, wanted, "{has} {asks}");
    }
}

#[test]
fn posted_writes_land_when_an_invalidation_drains_them() {
    for drain in [true, false] {
        let mut bench = Bench::new(plain());
        let page = bench.one_page(IOVA);
        let device = bench.device();
        device.post_write(IOVA, b"late").unwrap();
        bench.put(leaf_slot(page.path[2], IOVA), 0);
        let (low, high) = iotlb_pages(3, IOVA, 0, true);
        let low = if drain { low } else { low & !(3 << 6) };
        bench.post(&[(low, high)]);
        // Read as the very next thing: time alone lands writes too.
        assert!(bench.wait_for(|bench| bench.iqh() != 0));
        let buffer = bench.take_back();
        if drain {
            assert_eq!(&buffer.as_slice()[..4], b"late");
            bench.assert_content();
        } else {
            let rules = bench.rules();
            assert!(rules.is_empty() || rules[0] == Rule::BufferStillReachable, "{rules:?}");
        }
    }
}

impl Bench {
    fn iqh(&self) -> u64 {
        use iommu::platform::Registers;
        self.registers.read64(IQH)
    }
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
