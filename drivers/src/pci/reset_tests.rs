use iommu::PciAddress;

use super::*;
use crate::{
    doubles::Bench,
    pci::{ConfigSpace, fake::FakeFunction},
};

const ID: u32 = 0x0010_1b36;
const CAPABILITY: u16 = 0x40;
const RESET: u32 = INITIATE_FUNCTION_LEVEL_RESET;

/// A function with a PCI Express capability whose device capabilities and status read so, and an interrupt line.
fn function(capabilities: u32, status: u32) -> FakeFunction {
    FakeFunction::new(ID, 0, 0)
        .with(0x34, CAPABILITY.into())
        .with(CAPABILITY, 0x0002_0010)
        .with(CAPABILITY + 4, capabilities)
        .with(CAPABILITY + 8, status | 0x10)
        .writable(CAPABILITY + 8, 0xffff)
        .with(0x3c, 0x0b)
        .writable(0x3c, 0xff)
}

fn reset(function: FakeFunction) -> (Result<(), ResetError>, Bench, u64) {
    let bench = Bench::new(function);
    let host = bench.as_host();
    let start = host.now_ns();
    host.config_write32(bench.dma.function(), 0x04, 0x0006);
    bench.host.space.writes.lock().unwrap().clear();
    let result = reset_function(&*host, bench.dma.function());
    let took_ns = host.now_ns() - start;
    (result, bench, took_ns)
}

#[test]
fn a_reset_waits_and_brings_the_header_back() {
    let (result, bench, took_ns) = reset(function(FUNCTION_LEVEL_RESET_CAPABLE, 0));
    assert_eq!(result, Ok(()));
    assert!(took_ns >= SETTLE_NS, "{took_ns} ns");
    assert!(!bench.host.is_bus_master());
    let writes = bench.host.space.writes.lock().unwrap();
    let at = |register: u16, value: u32| {
        writes.iter().position(|&(_, offset, written)| (offset, written) == (register, value))
    };
    let reset = at(CAPABILITY + 8, 0x10 | RESET).expect("initiated");
    assert!(at(0x04, 2).expect("bus mastering off") < reset);
    for (register, value) in [(0x10, 0xfe00_0000), (0x3c, 0x0b), (CAPABILITY + 8, 0x10)] {
        assert!(at(register, value).expect("restored") > reset, "{register:#x}");
    }
}

#[test]
fn a_function_without_the_method_is_left_without_bus_mastering() {
    for function in [function(0, 0), FakeFunction::new(ID, 0, 0)] {
        let (result, bench, _) = reset(function);
        assert_eq!(result, Err(ResetError::NoMethod));
        assert!(!bench.host.is_bus_master());
        assert!(bench.host.space.writes.lock().unwrap().iter().all(|&(_, _, value)| value & RESET == 0));
    }
}

#[test]
fn a_function_that_stays_busy_is_not_reset() {
    let (result, bench, took_ns) = reset(function(FUNCTION_LEVEL_RESET_CAPABLE, TRANSACTIONS_PENDING));
    assert_eq!(result, Err(ResetError::Busy));
    assert!((DEADLINE_NS..2 * DEADLINE_NS).contains(&took_ns), "{took_ns} ns");
    assert!(bench.host.space.writes.lock().unwrap().iter().all(|&(_, _, value)| value & RESET == 0));
}

#[test]
fn nothing_is_done_where_nothing_answers() {
    let bench = Bench::new(function(FUNCTION_LEVEL_RESET_CAPABLE, 0));
    let elsewhere = PciAddress::new(0, 9, 9, 0).unwrap();
    assert_eq!(reset_function(&*bench.as_host(), elsewhere), Err(ResetError::Absent));
    assert_eq!(bench.host.space.read32(elsewhere, 0), u32::MAX);
}
