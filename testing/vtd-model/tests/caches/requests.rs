//! Requests that are under way while their translation goes.

use vtd_model::Rule;

use super::{IOVA, by_hand::*, plain};

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
