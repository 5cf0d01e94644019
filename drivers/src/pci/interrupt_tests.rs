//! MSI and MSI-X as a device finds them programmed.

use alloc::{boxed::Box, sync::Arc};
use core::sync::atomic::{AtomicU32, Ordering};

use iommu::platform::MsiMessage;

use super::{ConfigSpace, Device, Msi, MsiError, Msix, MsixError, fake::FakeFunction};
use crate::{
    doubles::Bench,
    host::{Interrupt, InterruptError},
    mmio::trap::Registers,
};

struct Message(MsiMessage);

impl Interrupt for Message {
    fn message(&self) -> MsiMessage {
        self.0
    }

    /// As without remapping: the address names the CPU.
    fn retarget(&mut self, cpu: usize) -> Result<(), InterruptError> {
        self.0.address = self.0.address & !0xf_f000 | (cpu as u64) << 12;
        Ok(())
    }
}

fn message(address: u64, data: u32) -> Box<dyn Interrupt> {
    Box::new(Message(MsiMessage { address, data }))
}

const REMAPPED: u64 = 0xfee0_1238;

/// A function with an MSI capability at 0x40 whose control register reads `control`.
fn with_msi(control: u32) -> (Bench, Device) {
    let function = FakeFunction::new(0x11e8_1234, 0x00ff_0000, 0).with(0x34, 0x40);
    let function = function.with(0x40, 0x05 | control << 16).writable(0x40, 0x0071_0000);
    let function = function.writable(0x44, !3).writable(0x48, !0).writable(0x4c, 0xffff);
    let bench = Bench::new(function);
    let device = bench.device();
    (bench, device)
}

fn registers(bench: &Bench) -> [u32; 4] {
    [0x40, 0x44, 0x48, 0x4c].map(|offset| bench.host.space.read32(bench.dma.function(), offset))
}

#[test]
fn a_wide_capability_takes_its_data_behind_the_upper_address() {
    let (bench, device) = with_msi(0x0080);
    let msi = Msi::enable(&device, message(0x1_0000_0000 | REMAPPED, 0x4041)).unwrap();
    assert_eq!(registers(&bench), [0x0081_0005, REMAPPED as u32, 1, 0x4041]);
    drop(msi);
    assert_eq!(registers(&bench)[0], 0x0080_0005);
}

#[test]
fn a_narrow_capability_takes_its_data_behind_the_address() {
    // Eight vectors possible, four enabled by somebody else: one stays.
    let (bench, device) = with_msi(0x0026);
    let _msi = Msi::enable(&device, message(REMAPPED, 0x31)).unwrap();
    assert_eq!(registers(&bench), [0x0007_0005, REMAPPED as u32, 0x31, 0]);
}

#[test]
fn a_moved_message_changes_in_one_write_while_it_is_on() {
    let (bench, device) = with_msi(0x0080);
    let mut msi = Msi::enable(&device, message(0xfee0_1000, 0x41)).unwrap();
    msi.retarget(7).unwrap();
    assert_eq!(registers(&bench), [0x0081_0005, 0xfee0_7000, 0, 0x41]);
}

#[test]
fn a_moved_entry_of_a_table_has_the_new_message_and_is_not_masked() {
    let (_bench, device, table) = with_table();
    let mut msix = Msix::open(&device).unwrap();
    msix.set(1, message(0xfee0_1000, 0x41)).unwrap();
    msix.retarget(1, 9).unwrap();
    assert_eq!(entry(&table, 1), [0xfee0_9000, 0, 0x41, entry(&table, 0)[3] & !1]);
    assert_eq!(msix.retarget(2, 9), Err(MsixError::NotInUse(2)));
}

#[test]
fn another_interrupt_takes_the_place_of_one() {
    let (bench, device) = with_msi(0x0080);
    let mut msi = Msi::enable(&device, message(REMAPPED, 0x41)).unwrap();
    msi.replace(message(0x1_0000_0000 | REMAPPED, 0x42)).unwrap();
    assert_eq!(registers(&bench), [0x0081_0005, REMAPPED as u32, 1, 0x42]);
    let (_bench, device, table) = with_table();
    let mut msix = Msix::open(&device).unwrap();
    msix.set(1, message(REMAPPED, 0x41)).unwrap();
    msix.replace(1, message(0x1_0000_0000 | REMAPPED, 0x42)).unwrap();
    assert_eq!(entry(&table, 1), [REMAPPED as u32, 1, 0x42, entry(&table, 0)[3] & !1]);
    assert_eq!(msix.replace(2, message(REMAPPED, 0)), Err(MsixError::NotInUse(2)));
}

#[test]
fn a_message_that_does_not_fit_is_refused() {
    let (bench, device) = with_msi(0x0000);
    let before = registers(&bench);
    let too_wide = Msi::enable(&device, message(1 << 32 | REMAPPED, 0)).err();
    assert_eq!(too_wide, Some(MsiError::AddressTooWide(1 << 32 | REMAPPED)));
    assert_eq!(
        Msi::enable(&device, message(REMAPPED, 0x1_0000)).err(),
        Some(MsiError::DataTooWide(0x1_0000))
    );
    assert_eq!(registers(&bench), before);
}

#[test]
fn a_function_without_msi_has_none() {
    let bench = Bench::new(FakeFunction::new(0x11e8_1234, 0, 0));
    let device = bench.device();
    assert_eq!(Msi::enable(&device, message(REMAPPED, 0)).err(), Some(MsiError::NoCapability));
    assert!(matches!(Msix::open(&device), Err(MsixError::NoCapability)));
}

/// An MSI-X table of three entries at the start of BAR 0, with garbage in it.
struct Table([AtomicU32; 12]);

impl Registers for Table {
    fn read(&self, offset: usize, width: usize) -> u64 {
        assert_eq!(width, 4);
        self.0[offset / 4].load(Ordering::Relaxed).into()
    }

    fn write(&self, offset: usize, width: usize, value: u64) {
        assert_eq!(width, 4);
        self.0[offset / 4].store(value as u32, Ordering::Relaxed);
    }
}

fn with_table() -> (Bench, Device, Arc<Table>) {
    let function = FakeFunction::new(0x11e8_1234, 0, 0).with(0x34, 0x40);
    let bench = Bench::new(function.with(0x40, 0x0002_0011).writable(0x40, 0xc000_0000));
    let table = Arc::new(Table([const { AtomicU32::new(0xdead_bee0) }; 12]));
    bench.plug(table.clone());
    let device = bench.device();
    (bench, device, table)
}

fn entry(table: &Table, index: usize) -> [u32; 4] {
    core::array::from_fn(|dword| table.0[4 * index + dword].load(Ordering::Relaxed))
}

#[test]
fn every_entry_of_a_table_is_masked_but_those_in_use() {
    let (bench, device, table) = with_table();
    let mut msix = Msix::open(&device).unwrap();
    assert_eq!((msix.entries(), registers(&bench)[0] >> 30), (3, 0b10));
    assert!((0..3).all(|index| entry(&table, index)[3] & 1 == 1));
    msix.set(1, message(0x1_0000_0000 | REMAPPED, 0x99)).unwrap();
    assert_eq!(entry(&table, 1)[..3], [REMAPPED as u32, 1, 0x99]);
    assert_eq!([0, 1, 2].map(|index| entry(&table, index)[3] & 1), [1, 0, 1]);
    drop(msix);
    assert_eq!(registers(&bench)[0] >> 31, 0);
}

#[test]
fn an_entry_is_used_once_and_only_if_it_exists() {
    let (_bench, device, _table) = with_table();
    let mut msix = Msix::open(&device).unwrap();
    assert_eq!(msix.set(3, message(REMAPPED, 0)), Err(MsixError::NoSuchEntry { index: 3, entries: 3 }));
    msix.set(2, message(REMAPPED, 0)).unwrap();
    assert_eq!(msix.set(2, message(REMAPPED, 1)), Err(MsixError::Taken(2)));
}

/// Counts how often it was given back.
struct Returned(Arc<AtomicU32>);

impl Interrupt for Returned {
    fn message(&self) -> MsiMessage {
        MsiMessage { address: REMAPPED, data: 0x41 }
    }

    fn retarget(&mut self, _cpu: usize) -> Result<(), InterruptError> {
        Ok(())
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Another driver may have the function by then, and have set it up.
#[test]
fn interrupts_of_a_function_that_was_taken_away_are_given_back_without_touching_it() {
    let returned = Arc::new(AtomicU32::new(0));
    let interrupt = || Box::new(Returned(returned.clone()));
    let (bench, device) = with_msi(0x0080);
    let msi = Msi::enable(&device, interrupt()).unwrap();
    let (before, writes) = (registers(&bench), bench.host.space.writes.lock().unwrap().len());
    msi.abandon();
    assert_eq!((registers(&bench), bench.host.space.writes.lock().unwrap().len()), (before, writes));
    assert_eq!(returned.load(Ordering::Relaxed), 1);

    let (bench, device, table) = with_table();
    let mut msix = Msix::open(&device).unwrap();
    msix.set(0, interrupt()).unwrap();
    msix.set(2, interrupt()).unwrap();
    let entries = || [0, 1, 2].map(|index| entry(&table, index));
    let (before, writes) = ((registers(&bench), entries()), bench.host.space.writes.lock().unwrap().len());
    msix.abandon();
    assert_eq!(
        ((registers(&bench), entries()), bench.host.space.writes.lock().unwrap().len()),
        (before, writes)
    );
    assert_eq!((registers(&bench)[0] >> 31, returned.load(Ordering::Relaxed)), (1, 3));
}
