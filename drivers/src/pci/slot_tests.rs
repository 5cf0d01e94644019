use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    vec::Vec,
};

use super::*;
use crate::{
    doubles::Bench,
    mmio::trap::Registers,
    pci::{
        ConfigSpace, Msix,
        fake::{FakeFunction, FakeFunctions, Write},
    },
};

const EXPRESS: u16 = 0x40;
const SLOT: u16 = EXPRESS + offset::SLOT_CONTROL_STATUS;
/// What a port that is as it should be can do.
const CAPABLE: u32 = bits::HOT_PLUG | bits::POWER_CONTROLLER;

fn port(capabilities: u32, link_status: u16) -> FakeFunction {
    FakeFunction::new(0x000c_1b36, 0x0604_0000, 1)
        .with(0x34, EXPRESS.into())
        .with(EXPRESS, 0x0142_0010)
        .with(EXPRESS + offset::LINK_CAPABILITIES, bits::REPORTS_LINK)
        .with(EXPRESS + 0x10, u32::from(link_status) << 16)
        .with(EXPRESS + offset::SLOT_CAPABILITIES, capabilities)
        .with(SLOT, bits::PRESENT | bits::POWER_OFF)
        .writable(SLOT, 0x1fff)
}

/// A port that does what it is told. Words are written one by one, so that a status that is written is never 0.
fn obey(functions: &mut FakeFunctions, (function, register, value): Write) {
    let Some(fake) = functions.get_mut(&function).filter(|_| register == SLOT) else { return };
    let before = fake.get(SLOT);
    fake.set(
        SLOT,
        if value >> 16 != 0 { before & !(value & bits::CHANGES) } else { before | bits::COMMAND_COMPLETED },
    );
}

fn bench(port: FakeFunction) -> (Bench, Slot) {
    let bench = Bench::new(port);
    bench.host.space.react(obey);
    bench.host.space.writes.lock().unwrap().clear();
    let slot = Slot::open(&bench.as_host(), &bench.function()).expect("a slot");
    (bench, slot)
}

/// What was written to Slot Control, in order.
fn commands(bench: &Bench) -> Vec<u32> {
    let writes = bench.host.space.writes.lock().unwrap();
    writes.iter().filter(|write| write.1 == SLOT && write.2 >> 16 == 0).map(|write| write.2).collect()
}

#[test]
fn a_slot_is_switched_on_and_off() {
    let (bench, slot) = bench(port(CAPABLE, bits::LINK_ACTIVE));
    assert!(slot.is_occupied() && !slot.has_power());
    let start = bench.as_host().now_ns();
    assert_eq!(slot.power_on(), Ok(()));
    assert!(bench.as_host().now_ns() - start >= SETTLE_NS, "the device had no time");
    assert!(slot.has_power());
    assert_eq!(slot.power_off(), Ok(()));
    assert!(!slot.has_power());
    let off = bits::POWER_OFF | bits::INDICATOR_OFF;
    assert_eq!(commands(&bench), [bits::INDICATOR_BLINK, bits::INDICATOR_ON, off]);
}

#[test]
fn a_link_that_does_not_come_up_costs_the_power() {
    let (bench, slot) = bench(port(CAPABLE, 0));
    let start = bench.as_host().now_ns();
    assert_eq!(slot.power_on(), Err(SlotError::NoLink));
    let took_ns = bench.as_host().now_ns() - start;
    assert!((DEADLINE_NS..2 * DEADLINE_NS).contains(&took_ns), "{took_ns} ns");
    assert!(!slot.has_power());
}

#[test]
fn a_command_that_is_not_completed_is_an_error() {
    let bench = Bench::new(port(CAPABLE, bits::LINK_ACTIVE));
    let slot = Slot::open(&bench.as_host(), &bench.function()).expect("a slot");
    let start = bench.as_host().now_ns();
    assert_eq!(slot.enable_events(true), Err(SlotError::NoCompletion));
    assert!(bench.as_host().now_ns() - start >= DEADLINE_NS);
    // A port that never says so is not waited for.
    let bench = Bench::new(port(CAPABLE | bits::NO_COMMAND_COMPLETED, bits::LINK_ACTIVE));
    let slot = Slot::open(&bench.as_host(), &bench.function()).expect("a slot");
    assert_eq!(slot.enable_events(true), Ok(()));
}

#[test]
fn changes_are_told_once_and_commands_take_none_away() {
    let (bench, slot) = bench(port(CAPABLE, bits::LINK_ACTIVE));
    slot.enable_events(true).unwrap();
    let raise = |status: u32| {
        bench.host.space.react(move |functions, write| {
            obey(functions, write);
            if let (function, 0, _) = write {
                let fake = functions.get_mut(&function).unwrap();
                fake.set(SLOT, fake.get(SLOT) | status);
            }
        });
        bench.host.space.write32(bench.dma.function(), 0, 0);
        bench.host.space.react(obey);
    };
    raise(bits::BUTTON_PRESSED | bits::LINK_CHANGED);
    slot.power_off().unwrap();
    let both = Changes { button: true, occupant: true };
    assert_eq!(slot.take_changes(), both, "a command has taken them away");
    assert_eq!(slot.take_changes(), Changes::default());
    raise(bits::PRESENCE_CHANGED);
    assert_eq!(slot.take_changes(), Changes { button: false, occupant: true });
    let control = bench.host.space.read32(bench.dma.function(), SLOT) & 0xffff;
    assert_eq!(control & bits::EVENTS, bits::EVENTS, "taking changes has changed the control");
}

#[test]
fn a_change_that_joins_others_is_not_left_for_an_interrupt_that_will_not_come() {
    let (bench, slot) = bench(port(CAPABLE, bits::LINK_ACTIVE));
    // The button is pressed when the change of the link is just being cleared: once, and then each time anew.
    for presses in [1, usize::MAX] {
        let left = AtomicUsize::new(presses);
        bench.host.space.react(move |functions, write| {
            obey(functions, write);
            let (function, register, value) = write;
            let fake = functions.get_mut(&function).unwrap();
            if register == 0 {
                fake.set(SLOT, fake.get(SLOT) | bits::LINK_CHANGED);
            } else if value >> 16 != 0 && left.load(Relaxed) > 0 {
                left.fetch_sub(1, Relaxed);
                fake.set(SLOT, fake.get(SLOT) | bits::BUTTON_PRESSED);
            }
        });
        bench.host.space.write32(bench.dma.function(), 0, 0);
        assert_eq!(slot.take_changes(), Changes { button: true, occupant: true });
    }
}

/// Registers of a port that nobody looks at.
struct Silent;

impl Registers for Silent {
    fn read(&self, _offset: usize, _width: usize) -> u64 {
        0
    }

    fn write(&self, _offset: usize, _width: usize, _value: u64) {}
}

/// What is behind the port may be in use already when its slot is opened.
#[test]
fn a_port_passes_everything_on_while_its_slot_is_opened() {
    const COMMAND: u16 = 0x04;
    const BAR: u16 = 0x10;
    const MEMORY: u32 = 2;
    const MSIX: u16 = 0x80;
    let port = port(CAPABLE, bits::LINK_ACTIVE).with(EXPRESS, 0x0142_0010 | u32::from(MSIX) << 8);
    let bench = Bench::new(port.with(MSIX, 0x11).writable(MSIX, 0xc000_0000));
    bench.plug(Arc::new(Silent));
    let found = bench.function();
    bench.host.space.writes.lock().unwrap().clear();
    let slot = Slot::open(&bench.as_host(), &found).expect("a slot");
    let _msix = Msix::open(slot.device()).expect("its interrupts");
    let writes = bench.host.space.writes.lock().unwrap();
    let disturbs = |&&(_, at, value): &&Write| at == BAR || at == COMMAND && value & MEMORY == 0;
    assert_eq!(writes.iter().find(disturbs), None);
    assert!(writes.iter().any(|&(_, at, _)| at == MSIX), "nothing was opened");
}

#[test]
fn a_port_without_hot_plug_or_that_is_gone_has_no_slot() {
    let is_none = |port| {
        let bench = Bench::new(port);
        Slot::open(&bench.as_host(), &bench.function()).is_none()
    };
    assert!(is_none(port(bits::POWER_CONTROLLER, 0)));
    assert!(is_none(port(CAPABLE, 0).with(EXPRESS, 0x0042_0010)), "no slot is implemented");
    assert!(is_none(FakeFunction::new(0x000c_1b36, 0x0604_0000, 1)));
    let (bench, slot) = bench(port(CAPABLE, bits::LINK_ACTIVE));
    bench.host.space.remove(bench.dma.function());
    assert_eq!((slot.power_off(), slot.is_occupied()), (Err(SlotError::Gone), false));
    assert_eq!(slot.take_changes(), Changes::default());
}
