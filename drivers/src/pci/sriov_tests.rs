use std::{vec, vec::Vec};

use super::*;
use crate::{
    doubles::Bench,
    pci::{
        Apertures, ConfigSpace, ResetError,
        fake::{FakeFunction, FakeFunctions, Write, at},
        place_virtual,
    },
    quiet::{NotQuiet, Target, quieten},
};

const CAPABILITY: u16 = 0x100;
const CONTROL: u16 = CAPABILITY + layout::CONTROL;
const BAR: u32 = 0xffff_c000;
const BAR_BYTES: u64 = 0x4000;
const WINDOW: u64 = 0xe010_0000;
const OFFERED: u16 = 7;
const PORT: PciAddress = at(0, 9, 0);
const PHYSICAL: PciAddress = at(4, 0, 0);

/// A physical function whose virtual ones have one BAR, and begin at `offset`, `stride` apart.
fn physical(offset: u16, stride: u16) -> FakeFunction {
    FakeFunction::new(0x10c9_8086, 0x0200_0000, 0x80)
        .writable(0x04, 7)
        .with(CAPABILITY, 0x0001_0010)
        .writable(CONTROL, 0x19)
        .with(CAPABILITY + 0x0c, u32::from(OFFERED) | u32::from(OFFERED) << 16)
        .writable(CAPABILITY + layout::NUM_VFS, 0xffff)
        .with(CAPABILITY + 0x14, u32::from(offset) | u32::from(stride) << 16)
        .with(CAPABILITY + 0x18, 0x10ca << 16)
        .with(CAPABILITY + 0x1c, 0x553)
        .writable(CAPABILITY + 0x20, 0x553)
        .writable(CAPABILITY + 0x24, BAR)
}

/// A port to bus 4 with a window of 1 MiB.
fn port() -> FakeFunction {
    FakeFunction::bridge(4, 4).with(0x20, 0xe010_e010)
}

/// Virtual functions that are there as long as they are enabled.
fn obey(functions: &mut FakeFunctions, (function, register, _): Write) {
    if function != PHYSICAL || register != CONTROL {
        return;
    }
    let Some(fake) = functions.get(&PHYSICAL) else { return };
    let is_on = fake.get(CONTROL) & 1 != 0;
    let place = fake.get(CAPABILITY + 0x14);
    let count = fake.get(CAPABILITY + 0x10) & 0xffff;
    for number in 0..count.min(OFFERED.into()) {
        let devfn = (place & 0xffff) + (place >> 16) * number;
        let address = PciAddress::from_devfn(0, 4, devfn as u8);
        if is_on {
            functions.insert(address, FakeFunction::new(u32::MAX, 0x0200_0000, 0));
        } else if address != PHYSICAL {
            functions.remove(&address);
        }
    }
}

/// A machine with `fake` behind a port, and what was found there with its addresses.
fn machine(fake: FakeFunction) -> (Bench, Vec<Function>) {
    let bench = Bench::new(FakeFunction::new(0x1234_8086, 0, 0));
    bench.host.space.add(PORT, port());
    bench.host.space.add(PHYSICAL, fake);
    bench.host.space.react(obey);
    let mut found = vec![Function::read(Config::new(&bench.host.space, PHYSICAL), Some(PORT)).unwrap()];
    place_virtual(&*bench.host, &mut found, &mut Apertures::nothing());
    bench.host.space.writes.lock().unwrap().clear();
    (bench, found)
}

fn control(bench: &Bench) -> u32 {
    bench.host.space.read32(PHYSICAL, CONTROL)
}

#[test]
fn they_come_with_what_the_physical_one_says_of_them_and_go() {
    let (bench, found) = machine(physical(2, 2));
    let sriov = Sriov::open(&*bench.host, &found[0]).expect("the capability");
    assert_eq!((sriov.offered(), sriov.is_on()), (OFFERED, false));
    let start = bench.as_host().now_ns();
    let functions = sriov.enable(3, &found).expect("virtual functions");
    assert!(bench.as_host().now_ns() - start >= SETTLE_ON_NS, "they had no time");
    assert_eq!(control(&bench) & 9, 9, "on, with their memory");
    let placed: Vec<_> = functions.iter().map(|function| function.address).collect();
    assert_eq!(placed, [at(4, 0, 2), at(4, 0, 4), at(4, 0, 6)]);
    for (function, base) in functions.iter().zip((WINDOW..).step_by(BAR_BYTES as usize)) {
        assert_eq!((function.id.vendor, function.id.device), (0x8086, 0x10ca));
        assert_eq!((function.class, function.parent), (found[0].class, Some(PORT)));
        assert_eq!(function.topology().physical, Some(PHYSICAL));
        let bar = function.bars.unwrap()[0].unwrap();
        assert_eq!((bar.base, bar.bytes), (base, BAR_BYTES));
        assert!(Config::new(&bench.host.space, function.address).is_present());
        assert!(Function::read(Config::new(&bench.host.space, function.address), None).is_none());
    }
    let writes: Vec<u16> = bench.host.space.writes.lock().unwrap().iter().map(|write| write.1).collect();
    let of = |register| writes.iter().position(|&written| written == register).unwrap();
    assert!(of(CAPABILITY + 0x24) < of(CONTROL) && of(CAPABILITY + 0x10) < of(CONTROL), "{writes:x?}");
    assert_eq!(sriov.enable(1, &found), Err(SriovError::On { count: 3 }));

    let start = bench.as_host().now_ns();
    assert_eq!(sriov.disable(), Ok(()));
    assert!(bench.as_host().now_ns() - start >= SETTLE_OFF_NS, "they had no time to go");
    assert_eq!((control(&bench), bench.host.space.read32(PHYSICAL, CAPABILITY + 0x10)), (0, 0));
    assert!(placed.iter().all(|&function| !Config::new(&bench.host.space, function).is_present()));
    // A reset takes addresses away; they come back.
    bench.host.space.write32(PHYSICAL, CAPABILITY + 0x24, 0);
    assert_eq!(sriov.enable(1, &found).map(|functions| functions.len()), Ok(1));
    assert_eq!(bench.host.space.read32(PHYSICAL, CAPABILITY + 0x24), WINDOW as u32);
}

/// What becomes of 3 virtual functions of `fake`, where `known` is too.
fn refused(fake: FakeFunction, known: Option<PciAddress>) -> SriovError {
    let (bench, mut found) = machine(fake);
    if let Some(known) = known {
        found.push(Function { address: known, ..found[0].clone() });
    }
    let error = Sriov::open(&*bench.host, &found[0]).unwrap().enable(3, &found).expect_err("they came");
    assert_eq!(control(&bench) & 1, 0, "they stay after {error:?}");
    error
}

#[test]
fn a_function_that_says_later_that_it_offers_more_gets_no_more_than_it_has_room_for() {
    let (bench, found) = machine(physical(2, 2));
    bench.host.space.add(PHYSICAL, physical(2, 2).with(CAPABILITY + 0x0c, 0x0100_0100));
    let sriov = Sriov::open(&*bench.host, &found[0]).expect("the capability");
    assert_eq!(sriov.offered(), 0x100);
    let refused = SriovError::Count { wanted: OFFERED + 1, offered: OFFERED };
    assert_eq!(sriov.enable(OFFERED + 1, &found), Err(refused));
}

#[test]
fn places_that_cannot_be_are_refused() {
    assert_eq!(refused(physical(2, 0), None), SriovError::Taken { function: at(4, 0, 2) });
    assert_eq!(refused(physical(0, 1), None), SriovError::Taken { function: PHYSICAL });
    assert_eq!(refused(physical(2, 1), Some(at(4, 0, 3))), SriovError::Taken { function: at(4, 0, 3) });
    assert_eq!(refused(physical(0x100, 1), None), SriovError::OtherBus { routing_id: 0x500 });
    assert_eq!(refused(physical(2, 0xffff), None), SriovError::OtherBus { routing_id: 0x1_0401 });
    assert_eq!(refused(physical(u16::MAX, u16::MAX), None), SriovError::OtherBus { routing_id: 0x1_03ff });
    // The port does not pass on more than eight functions.
    assert_eq!(refused(physical(0x80, 2), None), SriovError::NotForwarded { function: at(4, 16, 0) });
}

#[test]
fn eight_bit_function_numbers_take_a_port_that_forwards_them() {
    const EXPRESS: u16 = 0x40;
    let ari = physical(0x80, 2).with(CAPABILITY, 0x1401_0010).with(0x140, 0x0001_000e);
    let (bench, found) = machine(ari);
    let forwarding = port()
        .with(0x04, 1 << 20)
        .with(0x34, EXPRESS.into())
        .with(EXPRESS, 0x0142_0010)
        .with(EXPRESS + 0x24, 1 << 5)
        .writable(EXPRESS + 0x28, 0xffff);
    bench.host.space.add(PORT, forwarding);
    let sriov = Sriov::open(&*bench.host, &found[0]).unwrap();
    let functions = sriov.enable(2, &found).expect("virtual functions");
    assert_eq!(functions[1].address, PciAddress::from_devfn(0, 4, 0x82));
    assert_eq!(bench.host.space.read32(PORT, EXPRESS + 0x28), 1 << 5);
    assert_eq!(control(&bench), 0x19);
    // What is put into the slot next answers for itself alone.
    assert!(Config::new(&bench.host.space, PORT).forward_all_functions(false));
    assert_eq!(bench.host.space.read32(PORT, EXPRESS + 0x28), 0);
}

#[test]
fn numbers_and_registers_of_nonsense_are_refused() {
    let count = |offered| SriovError::Count { wanted: 3, offered };
    assert_eq!(refused(physical(2, 1).with(CAPABILITY + 0x0c, 0x0002_0007), None), count(2));
    assert_eq!(refused(physical(2, 1).with(CAPABILITY + 0x0c, 0x0007_0002), None), count(2));
    assert_eq!(refused(physical(2, 1).with(CAPABILITY + 0x0c, u32::MAX), None), count(0));
    let not_taken = |register, wanted, found| SriovError::NotTaken { register, wanted, found };
    let fixed = |register| physical(2, 1).writable(CAPABILITY + register, 0);
    assert_eq!(refused(fixed(layout::NUM_VFS), None), not_taken(layout::NUM_VFS, 3, 0));
    assert_eq!(refused(fixed(layout::CONTROL), None), not_taken(layout::CONTROL, 9, 0));
    // What makes no sense before there are any leaves them without addresses.
    for fake in [
        fixed(layout::SYSTEM_PAGE_SIZE),
        physical(2, 1).with(CAPABILITY + 0x1c, 0x550),
        physical(2, 1).writable(CAPABILITY + 0x24, 0xffff_fff0),
        physical(2, 1).writable(CAPABILITY + 0x24, 0xf0f0_c000),
        physical(2, 1).writable(CAPABILITY + 0x24, 0x8000_0000),
        physical(2, 1).with(CAPABILITY + 0x24, 1).writable(CAPABILITY + 0x24, 0xfff0),
        physical(2, 1)
            .with(CAPABILITY + 0x24, 4)
            .writable(CAPABILITY + 0x24, 0)
            .writable(CAPABILITY + 0x28, 1 << 31),
        physical(2, 1).with(CAPABILITY + 0x24, u32::MAX),
        physical(2, 1).with(CAPABILITY + 0x38, 4).writable(CAPABILITY + 0x38, BAR),
    ] {
        assert_eq!(refused(fake, None), SriovError::NoAddresses);
    }
}

#[test]
fn what_does_not_answer_costs_a_deadline_and_the_rest() {
    let (bench, found) = machine(physical(2, 1));
    bench.host.space.react(|_, _| ());
    let sriov = Sriov::open(&*bench.host, &found[0]).unwrap();
    let start = bench.as_host().now_ns();
    assert_eq!(sriov.enable(1, &found), Err(SriovError::Absent { function: at(4, 0, 2) }));
    assert!(bench.as_host().now_ns() - start >= 1_000_000_000);
    assert_eq!(control(&bench) & 1, 0);
    bench.host.space.remove(PHYSICAL);
    assert_eq!(sriov.enable(1, &found), Err(SriovError::Gone));
    assert_eq!((sriov.disable(), sriov.is_on(), sriov.offered()), (Err(SriovError::Gone), false, 0));
}

#[test]
fn registers_are_placed_for_all_that_there_can_be_beside_everything_else() {
    let (bench, _) = machine(physical(2, 1));
    // Two of them, with registers of their own in the middle of the window; one has virtual functions on.
    let own = |fake: FakeFunction, base: u32| fake.with(0x10, base).writable(0x10, BAR);
    let left_on = physical(2, 1).with(CONTROL, 9).with(CAPABILITY + 0x10, 1);
    bench.host.space.add(PHYSICAL, own(left_on, WINDOW as u32 + 0x1_8000));
    bench.host.space.add(at(4, 0, 1), own(physical(16, 1), WINDOW as u32 + 0x4_0000));
    let read = |function| Function::read(Config::new(&bench.host.space, function), Some(PORT)).unwrap();
    let mut found = vec![read(PHYSICAL), read(at(4, 0, 1))];
    place_virtual(&*bench.host, &mut found, &mut Apertures::nothing());
    assert_eq!(control(&bench), 0, "whoever has turned them on is gone");
    let mut taken = vec![(WINDOW + 0x1_8000, BAR_BYTES), (WINDOW + 0x4_0000, BAR_BYTES)];
    for function in &found {
        let bar = function.virtual_bars.expect("addresses")[0].unwrap();
        taken.push((bar.base, bar.bytes * u64::from(OFFERED)));
    }
    taken.sort_unstable();
    assert!(taken.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{taken:x?}");
    assert!(taken.iter().all(|&(base, bytes)| base >= WINDOW && base + bytes <= WINDOW + 0x10_0000));
    // There is no place in a window that is shut.
    bench.host.space.add(PORT, FakeFunction::bridge(4, 4).with(0x20, 0x0000_fff0));
    let mut found = vec![read(PHYSICAL)];
    place_virtual(&*bench.host, &mut found, &mut Apertures::nothing());
    assert_eq!(found[0].virtual_bars, None);
}

/// A machine in which two virtual functions are on.
fn turned_on() -> (Bench, Vec<Function>) {
    let (bench, found) = machine(physical(2, 1));
    let functions =
        Sriov::open(&*bench.host, &found[0]).unwrap().enable(2, &found).expect("virtual functions");
    assert_eq!(virtual_functions(&*bench.host, PHYSICAL).collect::<Vec<_>>(), [at(4, 0, 2), at(4, 0, 3)]);
    assert_eq!(functions.len(), 2);
    (bench, found)
}

/// VF Enable stays set, whoever clears it.
fn stick(functions: &mut FakeFunctions, (function, register, value): Write) {
    if let Some(fake) = functions.get_mut(&PHYSICAL)
        && (function, register) == (PHYSICAL, CONTROL)
    {
        fake.set(CONTROL, value | u32::from(control::ENABLE));
    }
}

#[test]
fn what_stays_on_is_said_to() {
    let (bench, found) = turned_on();
    let sriov = Sriov::open(&*bench.host, &found[0]).unwrap();
    bench.host.space.react(stick);
    let stays = SriovError::StaysOn { control: control::ENABLE };
    assert_eq!((sriov.disable(), sriov.is_on()), (Err(stays), true));
    assert_eq!(sriov.enable(1, &found), Err(SriovError::On { count: 2 }));
    bench.host.space.react(obey);
    assert_eq!((sriov.disable(), sriov.is_on()), (Ok(()), false));
    // It is worse than that they do not answer.
    bench.host.space.react(stick);
    assert_eq!(sriov.enable(1, &found), Err(stays));
}

#[test]
fn who_does_not_answer_has_not_turned_them_off() {
    let (bench, found) = turned_on();
    let sriov = Sriov::open(&*bench.host, &found[0]).unwrap();
    let before = bench.host.space.read32(PHYSICAL, 0);
    let say = |id| {
        bench.host.space.react(move |functions, (function, register, _)| {
            if (function, register) == (PHYSICAL, CONTROL) {
                functions.entry(PHYSICAL).and_modify(|fake| fake.set(0, id));
            }
        });
        bench.host.space.write32(PHYSICAL, CONTROL, 9);
    };
    say(0xffff);
    assert_eq!(sriov.disable(), Err(SriovError::Gone), "it says nothing from the start");
    say(before);
    bench.host.space.react(|functions, (function, register, _)| {
        if (function, register) == (PHYSICAL, CONTROL) {
            functions.remove(&PHYSICAL);
        }
    });
    assert_eq!(sriov.disable(), Err(SriovError::Gone), "it says nothing when it was told");
}

#[test]
fn a_reset_that_would_end_virtual_functions_of_others_is_refused() {
    let (bench, found) = turned_on();
    let host = bench.as_host();
    let quieten =
        |group: &[PciAddress]| quieten(&host, Target { function: &found[0], bridge: Some(PORT), group });
    let shared = |with| Err(NotQuiet::Reset(ResetError::Shared { with }));
    bench.host.space.writes.lock().unwrap().clear();
    assert_eq!(quieten(&[PHYSICAL]), shared(at(4, 0, 2)));
    assert_eq!(quieten(&[PHYSICAL, at(4, 0, 2)]), shared(at(4, 0, 3)));
    assert_eq!(*bench.host.space.writes.lock().unwrap(), [], "it was touched");
    let all = [PHYSICAL, at(4, 0, 2), at(4, 0, 3)];
    assert_ne!(quieten(&all), shared(at(4, 0, 2)), "they are given up with it");
    Sriov::open(&*bench.host, &found[0]).unwrap().disable().expect("off");
    assert_ne!(quieten(&[PHYSICAL]), shared(at(4, 0, 2)));
}
