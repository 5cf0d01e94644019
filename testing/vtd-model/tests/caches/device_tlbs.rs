//! What a device remembers.

use iommu::Platform;
use vtd_model::{Reason, Rule};

use super::{IOVA, by_hand::*, plain};

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
