//! DMA of a virtual function: a queue of the controller that belongs to one reads its descriptors, and writes them
//! back, in the name of that function.
//!
//! The queue is driven by the physical function's registers, which reach those of all queues: number 0 is the first
//! virtual function's for as long as there is one. No frame is sent: the descriptors are of the kind that only sets the
//! queue up.

use drivers::{
    mmio::{Mmio, Register},
    pci::{Device, Function, Sriov},
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{Bidirectional, Iova};

use crate::{
    faults::Expected,
    machine::{Machine, lacks},
    pattern,
    storm::wait,
};

/// Transmit Control, and its enable bit.
const TCTL: usize = 0x0400;
const TCTL_ENABLE: u32 = 1 << 1;
/// Of transmit queue 0: base, length in bytes, tail, and control with its enable bit.
const TDBAL: usize = 0xe000;
const TDBAH: usize = 0xe004;
const TDLEN: usize = 0xe008;
const TDT: usize = 0xe018;
const TXDCTL: usize = 0xe028;
const QUEUE_ENABLE: u32 = 1 << 25;
/// The least that the controller takes: eight descriptors of 16 bytes.
const RING_BYTES: u32 = 128;
/// Dword 2 of an advanced context descriptor that is to be written back when it is done (DEXT, RS, DTYP 2).
const CONTEXT: u32 = 1 << 29 | 1 << 27 | 2 << 20;
/// Dword 3 as it is written back: done.
const DONE: u32 = 1;

/// The controller's registers.
struct Registers(Mmio);

impl Registers {
    fn write(&self, offset: usize, value: u32) -> Result<(), Failure> {
        self.0.register::<u32, _>(offset).map(|register: Register<u32>| register.write(value))?;
        Ok(())
    }

    /// Gives queue 0 a ring at `ring`, with nothing in it.
    fn start_queue(&self, ring: Iova) -> Result<(), Failure> {
        self.write(TXDCTL, 0)?;
        self.write(TDBAL, ring.as_u64() as u32)?;
        self.write(TDBAH, (ring.as_u64() >> 32) as u32)?;
        self.write(TDLEN, RING_BYTES)?;
        self.write(TCTL, TCTL_ENABLE)?;
        self.write(TXDCTL, QUEUE_ENABLE)
    }
}

fn physical(machine: &Machine) -> Result<Function, Failure> {
    let functions = machine.hotplug.functions()?;
    let has_virtual = |function: &Function| Sriov::open(&*machine.host, function).is_some();
    functions.into_iter().find(has_virtual).ok_or_else(|| failure!("nothing has virtual functions"))
}

fn dword(bytes: &[u8], index: usize) -> u32 {
    bytes.iter().skip(4 * index).take(4).rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

test! {
    /// It reads and writes what is mapped for it; when that is unmapped, or mapped for the physical function alone, it
    /// is blocked, under its own id.
    deadline_ms = 60_000,
    lacks = lacks::virtual_functions,
    fn a_virtual_function_reaches_what_is_mapped_for_it(context) {
        let machine = Machine::of(context)?;
        let found = physical(machine)?;
        let physical = found.address;
        let of_physical = machine.iommu.claim(physical)?;
        let virtual_ones = machine.hotplug.enable_virtual_of(&of_physical, 1)?;
        let function = virtual_ones.first().ok_or_else(|| failure!("none appeared"))?;
        let dma = machine.iommu.claim(function.address)?;
        let device = Device::open(machine.host.clone(), function).ok_or_else(|| failure!("it does not answer"))?;
        device.enable_bus_master();
        let owner = Device::open(machine.host.clone(), &found).ok_or_else(|| failure!("{physical} does not answer"))?;
        owner.enable_memory();
        let registers = Registers(owner.map_bar(0)?);

        let page = machine.fresh_page();
        let mut ring = pattern::pages(1, 0)?;
        ring.fill(0);
        ring[8..12].copy_from_slice(&CONTEXT.to_le_bytes());
        let mapping = dma.dma_map_at(ring, Bidirectional, page)?;
        // The physical function has other memory there, which stays as it is.
        let other = of_physical.dma_map_at(pattern::pages(1, 5)?, Bidirectional, page)?;
        registers.start_queue(page)?;
        let faults = dma.fault_count();
        registers.write(TDT, 1)?;
        check_eq!(dma.fault_count(), faults);
        let ring = mapping.unmap()?;
        check_eq!([dword(&ring, 2), dword(&ring, 3) & DONE], [CONTEXT, DONE]);
        registers.write(TDT, 2)?;
        Expected::read(function.address, page).await_recorded(machine)?;
        check!(dma.fault_count() > faults, "its fault is not counted as its own");
        pattern::expect(&other.unmap()?, 5, "memory of the physical function")?;

        registers.write(TXDCTL, 0)?;
        registers.write(TCTL, 0)?;
        machine.hotplug.disable_virtual(physical)?;
        check!(dma.was_taken_back(), "it still has its rights");
        machine.release(physical)?;
        wait(machine, "the end of all mappings", || of_physical.was_taken_back())?;
    }
}
