//! The driver against a device in software that never ends its transfer.

use alloc::sync::Arc;

use iommu::Iova;

use super::{Edu, EduError, Transfer, Way};
use crate::{doubles::Bench, mmio::trap::Registers, pci::fake::FakeFunction};

/// It runs from the first command on.
struct Endless;

impl Registers for Endless {
    fn read(&self, offset: usize, _width: usize) -> u64 {
        match offset {
            0x00 => 0x0100_00ed,
            0x98 => 1,
            _ => 0,
        }
    }

    fn write(&self, _offset: usize, _width: usize, _value: u64) {}
}

/// With MSI at 0x40.
fn bench() -> Bench {
    let function = FakeFunction::new(0x11e8_1234, 0x00ff_0000, 0).with(0x34, 0x40);
    let wide = 1 << 23;
    let function = function.with(0x40, 5 | wide).writable(0x40, 0x0071_0000);
    let bench = Bench::new([0x44, 0x48, 0x4c].into_iter().fold(function, |it, at| it.writable(at, u32::MAX)));
    bench.plug(Arc::new(Endless));
    bench
}

const TRANSFER: Transfer = Transfer { way: Way::FromMemory, iova: Iova::new(0x1000), offset: 0, bytes: 8 };

#[test]
fn interrupts_without_end_gain_a_transfer_no_time() {
    let bench = bench();
    let mut edu = Edu::open(&bench.as_host(), &bench.dma, &bench.function()).unwrap();
    edu.start(TRANSFER).unwrap();
    bench.host.begin_storm();
    assert_eq!(edu.finish(), Err(EduError::TimedOut));
    assert!(!bench.host.is_bus_master());
}

/// Another driver has it by then, with bus mastering and its interrupt on.
#[test]
fn a_device_that_is_anothers_by_now_is_left_alone() {
    let bench = bench();
    let old = Edu::open(&bench.as_host(), &bench.dma, &bench.function()).unwrap();
    let dma = bench.pass_on(|| ());
    let new = Edu::open(&bench.as_host(), &dma, &bench.function()).unwrap();
    let before = bench.writes();
    drop(old);
    assert_eq!((bench.writes(), bench.host.live_vectors()), (before, 1));
    drop(new);
    assert!(!bench.host.is_bus_master());
    assert_eq!(bench.host.live_vectors(), 0);
}
