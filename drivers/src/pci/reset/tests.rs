use std::vec::Vec;

use iommu::PciAddress;

use super::{
    function_level::{FUNCTION_LEVEL_RESET_CAPABLE, INITIATE_FUNCTION_LEVEL_RESET, TRANSACTIONS_PENDING},
    power::{CONTROL, NO_SOFT_RESET, STATE},
    secondary_bus::{BRIDGE_CONTROL, SECONDARY_BUS_RESET},
    *,
};
use crate::{
    doubles::Bench,
    pci::{
        ConfigSpace,
        fake::{FakeFunction, FakeFunctions, Write, at},
    },
};

const ID: u32 = 0x0010_1b36;
const CAPABILITY: u16 = 0x40;
const POWER: u16 = 0x80;
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

/// A function with power management whose control register reads so.
fn sleeper(control: u16) -> FakeFunction {
    function(0, 0)
        .with(CAPABILITY, 0x0002_0010 | u32::from(POWER) << 8)
        .with(POWER, 0x0003_0001)
        .with(POWER + CONTROL, control.into())
        .writable(POWER + CONTROL, STATE.into())
}

/// Functions that do what resets ask of them.
fn obey(functions: &mut FakeFunctions, (function, offset, value): Write) {
    let Some(fake) = functions.get_mut(&function) else { return };
    match offset {
        _ if offset == CAPABILITY + 8 && value & RESET != 0 => fake.reset(),
        // On the way back from D3hot.
        _ if offset == POWER + CONTROL && value & u32::from(STATE) == 0 => fake.reset(),
        0x3c if value >> 16 & u32::from(SECONDARY_BUS_RESET) != 0 => {
            let secondary = (fake.get(0x18) >> 8) as u8;
            functions.range_mut(at(secondary, 0, 0)..).for_each(|(_, fake)| fake.reset());
        }
        _ => {}
    }
}

/// A host with one function, memory decoding and bus mastering on.
fn bench(function: FakeFunction) -> Bench {
    let bench = Bench::new(function);
    bench.as_host().config_write32(bench.dma.function(), 0x04, 0x0006);
    bench.host.space.writes.lock().unwrap().clear();
    bench
}

/// A reset of a function, by the name of the method.
type Method = fn(&dyn Host, PciAddress) -> Result<(), ResetError>;

fn reset(bench: &Bench, method: Method) -> (Result<(), ResetError>, u64) {
    let host = bench.as_host();
    let start = host.now_ns();
    let result = method(&*host, bench.dma.function());
    (result, host.now_ns() - start)
}

/// When a write was done, by its number.
fn time_of(bench: &Bench, register: u16, value: u32) -> Option<usize> {
    let writes = bench.host.space.writes.lock().unwrap();
    writes.iter().position(|&(_, offset, written)| (offset, written) == (register, value))
}

fn was_initiated(bench: &Bench) -> bool {
    let writes = bench.host.space.writes.lock().unwrap();
    writes.iter().any(|&(_, offset, value)| {
        offset == CAPABILITY + 8 && value & RESET != 0 || offset == POWER + CONTROL
    })
}

#[test]
fn a_reset_waits_and_brings_the_header_back() {
    let bench = bench(function(FUNCTION_LEVEL_RESET_CAPABLE, 0));
    bench.host.space.react(obey);
    let (result, took_ns) = reset(&bench, reset_function);
    assert_eq!(result, Ok(()));
    assert!(took_ns >= SETTLE_NS, "{took_ns} ns");
    let reset = time_of(&bench, CAPABILITY + 8, 0x10 | RESET).expect("initiated");
    assert!(time_of(&bench, 0x04, 0x0002).expect("bus mastering off") < reset);
    for (register, value) in [(0x10, 0xfe00_0000), (0x3c, 0x0b), (CAPABILITY + 8, 0x10)] {
        assert!(time_of(&bench, register, value).expect("restored") > reset, "{register:#x}");
        assert_eq!(bench.host.space.read32(bench.dma.function(), register), value);
    }
    assert_eq!(bench.host.space.read32(bench.dma.function(), 0x04) & 0xffff, 0, "the command register");
}

#[test]
fn a_virtual_function_is_reset_though_it_has_no_vendor() {
    const NVME: u32 = 0x0108_0202;
    let is_virtual = |function: FakeFunction| function.with(0, u32::MAX).with(8, NVME);
    let bench = bench(is_virtual(function(FUNCTION_LEVEL_RESET_CAPABLE, 0)));
    bench.host.space.react(obey);
    assert_eq!(reset(&bench, reset_function).0, Ok(()));
    assert!(was_initiated(&bench) && !bench.host.is_bus_master());
}

#[test]
fn a_function_without_the_method_is_left_without_bus_mastering() {
    for (function, method) in [
        (function(0, 0), reset_function as Method),
        (FakeFunction::new(ID, 0, 0), reset_function),
        (FakeFunction::new(ID, 0, 0), reset_by_power),
        (sleeper(NO_SOFT_RESET), reset_by_power),
    ] {
        let bench = bench(function);
        assert_eq!(reset(&bench, method).0, Err(ResetError::NoMethod));
        assert!(!bench.host.is_bus_master());
        assert!(!was_initiated(&bench));
    }
}

#[test]
fn a_function_that_stays_busy_is_not_reset() {
    let busy = |function: FakeFunction| function.with(CAPABILITY + 8, TRANSACTIONS_PENDING);
    for (function, method) in [
        (busy(function(FUNCTION_LEVEL_RESET_CAPABLE, 0)), reset_function as Method),
        (busy(sleeper(0)), reset_by_power),
    ] {
        let bench = bench(function);
        let (result, took_ns) = reset(&bench, method);
        assert_eq!(result, Err(ResetError::Busy));
        assert!((DEADLINE_NS..2 * DEADLINE_NS).contains(&took_ns), "{took_ns} ns");
        assert!(!was_initiated(&bench));
    }
}

#[test]
fn a_function_that_sleeps_and_wakes_starts_anew() {
    // With PME_Status, which a one would clear.
    let bench = bench(sleeper(1 << 15));
    bench.host.space.react(obey);
    assert_eq!(reset(&bench, reset_by_power).0, Ok(()));
    let (asleep, awake) = (time_of(&bench, POWER + CONTROL, 3), time_of(&bench, POWER + CONTROL, 0));
    let stopped = time_of(&bench, 0x04, 0x0002);
    assert!(stopped.is_some() && stopped < asleep && asleep < awake, "{stopped:?} {asleep:?} {awake:?}");
    assert_eq!(bench.host.space.read32(bench.dma.function(), 0x10), 0xfe00_0000);
    assert!(!bench.host.is_bus_master());
}

#[test]
fn a_reset_that_changes_nothing_is_none() {
    let bench_of = |function| bench(function);
    let pairs =
        [(function(FUNCTION_LEVEL_RESET_CAPABLE, 0), reset_function as Method), (sleeper(0), reset_by_power)];
    for (function, method) in pairs {
        let bench = bench_of(function);
        assert_eq!(reset(&bench, method).0, Err(ResetError::NoEffect));
        assert!(!bench.host.is_bus_master());
    }
}

#[test]
fn a_function_that_does_not_come_back_is_gone() {
    let bench = bench(function(FUNCTION_LEVEL_RESET_CAPABLE, 0));
    bench.host.space.react(|functions, (function, offset, value)| {
        if offset == CAPABILITY + 8 && value & RESET != 0 {
            functions.remove(&function);
        }
    });
    let (result, took_ns) = reset(&bench, reset_function);
    assert_eq!(result, Err(ResetError::Gone));
    assert!((DEADLINE_NS..3 * DEADLINE_NS).contains(&took_ns), "{took_ns} ns");
}

#[test]
fn what_does_not_come_back_is_named() {
    let bench = bench(function(FUNCTION_LEVEL_RESET_CAPABLE, 0));
    bench.host.space.react(|functions, write| {
        obey(functions, write);
        if let (function, 0x10, _) = write {
            functions.get_mut(&function).unwrap().set(0x10, 0);
        }
    });
    let wanted = ResetError::NotRestored { register: 0x10, wanted: 0xfe00_0000, found: 0 };
    assert_eq!(reset(&bench, reset_function).0, Err(wanted));
}

#[test]
fn nothing_is_done_where_nothing_answers() {
    let bench = bench(function(FUNCTION_LEVEL_RESET_CAPABLE, 0));
    let elsewhere = at(9, 9, 0);
    assert_eq!(reset_function(&*bench.as_host(), elsewhere), Err(ResetError::Absent));
    assert_eq!(reset_by_power(&*bench.as_host(), elsewhere), Err(ResetError::Absent));
    assert_eq!(reset_bus(&*bench.as_host(), elsewhere, &[]), Err(ResetError::Absent));
    assert_eq!(bench.host.space.read32(elsewhere, 0), u32::MAX);
}

/// A bridge to bus 5 on a machine of its own, and functions behind it.
fn bench_with_bridge(behind: &[PciAddress]) -> (Bench, PciAddress) {
    let bench = bench(function(0, 0));
    let bridge = at(0, 9, 0);
    let fake = FakeFunction::bridge(5, 5).writable(0x3c, 0xffff_ffff).with(0x3c, 0x0003_010b);
    bench.host.space.add(bridge, fake);
    for &address in behind {
        let fake = function(0, 0).with(0x10, 0xfe10_0000).writable(0x10, 0xffff_f000);
        bench.host.space.add(address, fake.with(0x04, 0x6).writable(0x04, 0xffff));
    }
    bench.host.space.react(obey);
    (bench, bridge)
}

#[test]
fn a_bus_is_reset_with_all_that_is_on_it() {
    let behind = [at(5, 0, 0), at(5, 1, 0)];
    let (bench, bridge) = bench_with_bridge(&behind);
    assert_eq!(reset_bus(&*bench.as_host(), bridge, &behind), Ok(()));
    let pulses: Vec<u32> = {
        let writes = bench.host.space.writes.lock().unwrap();
        writes.iter().filter(|write| (write.0, write.1) == (bridge, 0x3c)).map(|write| write.2).collect()
    };
    let asserted = u32::from(SECONDARY_BUS_RESET) << (8 * (BRIDGE_CONTROL & 2));
    assert_eq!(pulses, [0x0003_010b | asserted, 0x0003_010b]);
    for address in behind {
        let read = |register| bench.host.space.read32(address, register);
        assert_eq!((read(0x10), read(0x3c), read(0x04)), (0xfe10_0000, 0x0b, 0), "{address}");
    }
}

#[test]
fn a_bus_is_not_reset_with_a_function_of_somebody_else_on_it() {
    let [mine, other] = [at(5, 0, 0), at(5, 1, 0)];
    let (bench, bridge) = bench_with_bridge(&[mine, other]);
    let refused = Err(ResetError::Shared { with: other });
    assert_eq!(reset_bus(&*bench.as_host(), bridge, &[mine]), refused);
    assert_eq!(bench.host.space.read32(other, 0x04), 6, "it goes on");
    assert_eq!(reset_bus(&*bench.as_host(), mine, &[mine, other]), Err(ResetError::NoMethod), "no bridge");
}
