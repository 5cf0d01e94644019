//! Devices that say something else of themselves than when they were found.

use super::{BarError, Claimant, Claims, ConfigSpace, Device, Function, Misplaced};
use crate::{
    doubles::{BAR, BAR_BYTES, Bench, e1000e::bench as e1000e_bench},
    e1000e::{self, E1000eError},
    net,
    quiet::{Target, quieten},
};

const COMMAND: u16 = 0x04;
const BAR_0: u16 = 0x10;
/// Where PCs have the registers of a remapping unit.
const UNIT: u32 = 0xfed9_0000;

/// A network controller that says, from when it was found on, that its registers are where a unit's are.
fn liar() -> (Bench, Function) {
    let (bench, _) = e1000e_bench();
    let found = bench.function();
    bench.host.space.react(|functions, _| functions.values_mut().for_each(|fake| fake.set(BAR_0, UNIT)));
    bench.host.space.change32(found.address, COMMAND, 0, 0);
    assert_eq!(bench.host.space.read32(found.address, BAR_0), UNIT);
    bench.host.space.writes.lock().unwrap().clear();
    (bench, found)
}

/// Whether nobody has asked the function again where its registers are.
fn was_not_sized(bench: &Bench) -> bool {
    bench.host.space.writes.lock().unwrap().iter().all(|&(_, at, _)| at != BAR_0)
}

#[test]
fn registers_are_mapped_where_they_were_when_the_function_was_found() {
    let (bench, found) = liar();
    let device = Device::open(bench.as_host(), &found).unwrap();
    let bar = device.bar(0).unwrap();
    assert_eq!((bar.base, bar.bytes), (BAR, BAR_BYTES as u64));
    for _ in 0..3 {
        // The host of the bench maps nothing else.
        assert_eq!(device.map_bar(0).map(|mmio| mmio.bytes()), Ok(BAR_BYTES));
    }
    assert!(was_not_sized(&bench));
}

#[test]
fn a_driver_uses_registers_where_they_were_when_the_function_was_found() {
    let (bench, found) = liar();
    assert!(net::open(&bench.as_host(), bench.dma.clone(), &found).is_ok());
    assert!(was_not_sized(&bench));
}

#[test]
fn a_reset_uses_registers_where_they_were_when_the_function_was_found() {
    let (bench, found) = liar();
    Device::open(bench.as_host(), &found).unwrap().enable_bus_master();
    let group = [found.address];
    let target = Target { function: &found, bridge: None, group: &group };
    assert_eq!(quieten(&bench.as_host(), target), Ok(()));
    assert!(was_not_sized(&bench));
    assert!(!bench.host.is_bus_master());
}

/// One that calls itself a bridge, or another device, when it is to be made quiet is made quiet all the same.
#[test]
fn a_function_stays_what_it_was_when_it_was_found() {
    const HEADER: u16 = 0x0c;
    const ID: u16 = 0;
    for (at, value) in [(HEADER, 1 << 16), (ID, 0x0010_1b36)] {
        let (bench, _) = e1000e_bench();
        let found = bench.function();
        let device = Device::open(bench.as_host(), &found).unwrap();
        device.enable_bus_master();
        bench
            .host
            .space
            .react(move |functions, _| functions.values_mut().for_each(|fake| fake.set(at, value)));
        device.enable_memory();
        let group = [found.address];
        let target = Target { function: &found, bridge: None, group: &group };
        assert_eq!(quieten(&bench.as_host(), target), Ok(()));
        assert!(!bench.host.is_bus_master(), "{at:#x}");
    }
}

/// A function that had said so when it was found.
#[test]
fn registers_where_somebody_else_answers_are_not_mapped() {
    let (bench, _) = e1000e_bench();
    let mut claims = Claims::new();
    claims.add(BAR + 0x1000, BAR + 0x1fff, Claimant::RemappingUnit).unwrap();
    let found = bench.settled(&claims);
    let Err(BarError::Misplaced { index: 0, why: Misplaced::Taken { claim, .. } }) =
        Device::open(bench.as_host(), &found).unwrap().map_bar(0).map(drop)
    else {
        panic!("it was mapped");
    };
    assert_eq!(claim.by, Claimant::RemappingUnit);
    let opened = net::open(&bench.as_host(), bench.dma.clone(), &found).err();
    let is_refused = |error| matches!(error, E1000eError::Bar(BarError::Misplaced { .. }));
    assert!(matches!(opened, Some(net::OpenError::E1000e(error)) if is_refused(error)));
    let device = Device::open(bench.as_host(), &found).unwrap();
    assert!(e1000e::await_quiet(&device).is_err_and(is_refused));
    assert!(!bench.host.is_bus_master());
}

#[test]
fn registers_that_nobody_has_compared_are_not_mapped() {
    let (bench, _) = e1000e_bench();
    let mut found = bench.function();
    found.measure(&bench.host.space);
    let why = Misplaced::Unknown { function: found.address };
    let device = Device::open(bench.as_host(), &found).unwrap();
    assert_eq!(device.map_bar(0).map(drop), Err(BarError::Misplaced { index: 0, why }));
}
