//! Fault records.

use iommu::fault::FaultTarget;

use crate::{plain, unit::UnitBench};

// Fault index does not wrap, or is off by one.

#[test]
fn every_record_is_read_once_and_the_index_wraps() {
    for records in [1, 2, 3, 8, 255, 256] {
        let mut config = plain();
        config.units[0].fault_records = records;
        config.units[0].iotlb_offset = 0x180;
        let bench = UnitBench::new(config);
        let device = bench.device(0);
        let mut next_page = 1_u64;
        // Enough rounds that the place of the first record takes every value.
        for round in 0..3 * u64::from(records) {
            let count = 1 + round % u64::from(records);
            let pages: Vec<u64> = (next_page..next_page + count).collect();
            next_page += count;
            pages.iter().for_each(|page| assert!(device.write(page << 12, b"x").is_err()));
            let seen: Vec<u64> = bench.drain().iter().map(|fault| page_of(fault.target)).collect();
            assert_eq!(seen, pages, "{records} records, round {round}");
            assert_eq!(bench.unit.overflows(), 0);
        }
        bench.assert_content();
    }
}

fn page_of(target: FaultTarget) -> u64 {
    match target {
        FaultTarget::Address(iova) => iova.as_u64() >> 12,
        FaultTarget::Interrupt(index) => panic!("interrupt {index:?}"),
    }
}

#[test]
fn more_faults_than_records_are_counted_as_an_overflow_and_do_not_stop_the_unit() {
    for records in [1, 3, 8] {
        let mut config = plain();
        config.units[0].fault_records = records;
        let bench = UnitBench::new(config);
        let device = bench.device(0);
        for round in 1..20 {
            for page in 1..=u64::from(records) + 5 {
                assert!(device.write(page << 12, b"x").is_err());
            }
            assert_eq!(bench.drain().len(), records.into());
            assert_eq!(bench.unit.overflows(), round);
            assert!(!bench.machine.has_pending_faults(0));
        }
        bench.assert_content();
    }
}

// The F bit "cleared" by writing 0.

#[test]
fn a_record_is_free_again_once_it_was_read() {
    let bench = UnitBench::new(plain());
    let device = bench.device(0);
    for page in 1..100_u64 {
        assert!(device.write(page << 12, b"x").is_err());
        assert!(bench.machine.has_pending_faults(0));
        assert_eq!(bench.drain().len(), 1);
        assert!(!bench.machine.has_pending_faults(0));
    }
    bench.assert_content();
}
