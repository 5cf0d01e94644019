//! Devices in a slot that come and go, and that do not go.

use core::cell::RefCell;
use std::{
    string::{String, ToString},
    sync::{Arc, Mutex},
    thread_local, vec,
    vec::Vec,
};

use iommu::{ClaimError, DmaDevice};

use super::{super::Drivers, *};
use crate::{
    doubles::{Bench, await_true},
    pci::{
        Claims,
        fake::{FakeFunction, FakeFunctions, Write, at},
    },
};

const EXPRESS: u16 = 0x40;
const MSI: u16 = 0x80;
const SLOT: u16 = EXPRESS + 0x18;
const PRESENT: u32 = 1 << 22;
const PRESENCE_CHANGED: u32 = 1 << 19;
const COMMAND_COMPLETED: u32 = 1 << 20;
const CHANGES: u32 = 0x011f_0000;
const BAR: u16 = 0x10;
const OCCUPANT: PciAddress = at(1, 0, 0);
const STRANGER: PciAddress = at(1, 1, 0);

thread_local! {
    /// What this test's thread has logged.
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// How many lines about what is behind the port this thread has logged since it was asked last.
fn lines() -> usize {
    LOGGED.take().iter().filter(|line| line.contains("behind")).count()
}

/// Claims what comes, and keeps it until it has gone.
struct Keeper {
    iommu: iommu::Iommu,
    kept: Mutex<Vec<DmaDevice>>,
}

impl Drivers for Keeper {
    fn bind(&self, function: &Function) {
        self.kept.lock().unwrap().push(self.iommu.claim(function.address).expect("nobody has it"));
    }

    fn unbind(&self, function: PciAddress, _is_gone: bool) {
        self.kept.lock().unwrap().retain(|dma| dma.function() != function);
    }
}

/// A port whose slot cannot be switched off, with something in it.
fn port() -> FakeFunction {
    FakeFunction::bridge(1, 1)
        .with(0x34, EXPRESS.into())
        .with(EXPRESS, 0x0142_0010 | u32::from(MSI) << 8)
        .with(EXPRESS + 0x14, 1 << 6)
        .with(SLOT, PRESENT)
        .writable(SLOT, 0x1fff)
        .with(MSI, 0x0080_0005)
        .writable(MSI, 0x0071_0000)
        .writable(MSI + 4, !3)
        .writable(MSI + 8, !0)
        .writable(MSI + 12, 0xffff)
        .writable(0x18, 0x00ff_ffff)
        .writable(0x20, 0xfff0_fff0)
        .writable(0x24, 0xfff0_fff0)
}

/// A function that cannot be reset.
fn occupant() -> FakeFunction {
    FakeFunction::new(0x0010_1b36, 0x00ff_0000, 0).writable(0x04, 7)
}

/// Slot Control completes each command, Slot Status is cleared by ones.
fn obey(functions: &mut FakeFunctions, (function, register, value): Write) {
    let Some(fake) = functions.get_mut(&function).filter(|_| register == SLOT) else { return };
    let before = fake.get(SLOT);
    let cleared = before & !(value & CHANGES);
    fake.set(SLOT, if value >> 16 != 0 { cleared } else { before | COMMAND_COMPLETED });
}

struct Machine {
    bench: Bench,
    hotplug: Arc<Hotplug>,
    keeper: Arc<Keeper>,
    port: Function,
}

impl Machine {
    /// The port alone is known, and not served by a thread if it `is_served_here`.
    fn new(is_served_here: bool) -> Self {
        let _ = log::set_logger(&Logger);
        log::set_max_level(log::LevelFilter::Info);
        let bench = Bench::new(port());
        bench.host.space.react(obey);
        let port = bench.function();
        let keeper = Arc::new(Keeper { iommu: bench.iommu.clone(), kept: Mutex::default() });
        let known = if is_served_here { Vec::new() } else { vec![port.clone()] };
        let hotplug = Hotplug::start(
            &bench.as_host(),
            &bench.iommu,
            known,
            Apertures::nothing(),
            Claims::new(),
            keeper.clone(),
        );
        Self { bench, hotplug, keeper, port }
    }

    fn open(&self) -> Port {
        let event = self.bench.as_host().event();
        Port::open(&self.hotplug, &self.port, &event).expect("it works").expect("a slot")
    }

    fn serve(&self, port: &mut Port) -> bool {
        port.serve(&self.hotplug, &mut Apertures::nothing(), self.hotplug.turn().expect("nobody has it"))
    }

    /// Something happens to the port, and to what is behind it.
    fn change(&self, change: impl Fn(&mut FakeFunctions, PciAddress) + Send + 'static) {
        let port = self.port.address;
        let is_done = core::sync::atomic::AtomicBool::new(false);
        self.bench.host.space.react(move |functions, write| {
            if !is_done.swap(true, core::sync::atomic::Ordering::Relaxed) {
                change(functions, port);
            }
            obey(functions, write);
        });
        self.bench.as_host().config_write32(OCCUPANT, 0, 0);
    }

    fn plug_in(&self) {
        self.change(|functions, port| {
            functions.insert(OCCUPANT, occupant());
            set_status(functions, port, PRESENT | PRESENCE_CHANGED);
        });
    }

    fn pull_out(&self) {
        self.change(|functions, port| {
            functions.remove(&OCCUPANT);
            set_status(functions, port, PRESENCE_CHANGED);
        });
    }

    fn is_known(&self) -> bool {
        self.hotplug.function(OCCUPANT).is_some()
    }
}

fn set_status(functions: &mut FakeFunctions, port: PciAddress, status: u32) {
    let port = functions.get_mut(&port).expect("the port");
    port.set(SLOT, port.get(SLOT) & 0xffff | status);
}

#[test]
fn what_comes_and_goes_for_ever_fills_no_log() {
    const TIMES: u64 = 64;
    let machine = Machine::new(true);
    let mut port = machine.open();
    for _ in 0..TIMES {
        machine.plug_in();
        assert!(machine.serve(&mut port));
        assert!(machine.is_known());
        machine.pull_out();
        assert!(machine.serve(&mut port));
        assert!(!machine.is_known());
    }
    // 1, 2, 4 up to 64, of each.
    assert_eq!(lines(), 14);
    // Nor does what never works.
    for _ in 0..TIMES {
        machine.change(|functions, port| set_status(functions, port, PRESENT | PRESENCE_CHANGED));
        assert!(machine.serve(&mut port));
    }
    assert_eq!(lines(), 7);
}

#[test]
fn what_cannot_be_taken_back_is_said_once_and_tried_again_later() {
    let machine = Machine::new(true);
    let mut port = machine.open();
    machine.plug_in();
    assert!(machine.serve(&mut port));
    assert_eq!((lines(), port.due_ns()), (1, u64::MAX));
    // The slot is empty, and the unit does not forget what was in it.
    machine.pull_out();
    machine.bench.stall_invalidations(true);
    assert!(machine.serve(&mut port));
    assert_eq!(lines(), 1);
    for _ in 0..3 {
        let now_ns = machine.bench.as_host().now_ns();
        assert!((now_ns + 1..=now_ns + RETRY_LOST_NS).contains(&port.due_ns()));
        for _ in 0..3 {
            assert!(!machine.serve(&mut port), "it is tried at once");
        }
        machine.bench.host.advance(RETRY_LOST_NS);
        assert!(machine.serve(&mut port), "it is not tried again");
        assert!(machine.is_known());
    }
    assert_eq!(lines(), 0);
}

/// By the thread, without anything that happens to the slot.
#[test]
fn what_becomes_quiet_at_last_is_taken_back() {
    let machine = Machine::new(false);
    machine.plug_in();
    let signal = || machine.bench.host.signal_all();
    signal();
    await_true(|| machine.is_known() && !machine.keeper.kept.lock().unwrap().is_empty());
    // Something else is in its place, beside something that nobody knows: it cannot be reset.
    machine.change(|functions, port| {
        functions.insert(STRANGER, occupant());
        functions.get_mut(&OCCUPANT).expect("it is there").set(BAR, 0xfe00_0000);
        set_status(functions, port, PRESENT | PRESENCE_CHANGED);
    });
    signal();
    let in_quarantine = ClaimError::Quarantined { function: OCCUPANT };
    await_true(|| machine.bench.iommu.claim(OCCUPANT).err() == Some(in_quarantine));
    assert!(machine.is_known(), "it counts as quiet");
    machine.pull_out();
    await_true(|| {
        machine.bench.host.advance(RETRY_LOST_NS);
        !machine.is_known()
    });
    assert!(machine.keeper.kept.lock().unwrap().is_empty(), "its driver has not ended");
}
