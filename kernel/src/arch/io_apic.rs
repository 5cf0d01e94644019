//! I/O APICs: wired interrupts. Only the serial line uses one; devices send messages.

use alloc::vec::Vec;
use core::ptr::NonNull;

use iommu::interrupts::RedirectionEntry;
use spin::Once;

use crate::{
    acpi::{IoApicEntry, Wire},
    memory,
    sync::{IrqMutex, Rank},
};

const WINDOW_BYTES: usize = 0x20;
const SELECT: usize = 0x00;
const DATA: usize = 0x10;
const VERSION: u32 = 0x01;
const REDIRECTION: u32 = 0x10;

const MASKED: u32 = 1 << 16;

struct IoApic {
    id: u8,
    window: NonNull<u8>,
    first_input: u32,
    inputs: u32,
}

// SAFETY: the window is mapped for ever and only accessed by volatile operations under the lock.
unsafe impl Send for IoApic {}

static IO_APICS: Once<IrqMutex<Vec<IoApic>>> = Once::new();

/// Maps the I/O APICs of the firmware's table and masks all their inputs.
pub fn init(entries: &[IoApicEntry]) {
    let io_apics = entries.iter().filter_map(|entry| {
        let window = memory::map_registers(entry.address, WINDOW_BYTES)?;
        let mut io_apic = IoApic { id: entry.id, window, first_input: entry.first_input, inputs: 0 };
        io_apic.inputs = (io_apic.read(VERSION) >> 16 & 0xff) + 1;
        for input in 0..io_apic.inputs {
            io_apic.write(REDIRECTION + 2 * input, MASKED);
        }
        Some(io_apic)
    });
    IO_APICS.call_once(|| IrqMutex::new(Rank::Device, io_apics.collect()));
}

/// The id of the I/O APIC that has `wire`, if there is one.
pub fn owner(wire: Wire) -> Option<u8> {
    with_input(wire, |io_apic, _| io_apic.id)
}

/// Makes `wire` raise what `entry` says. False if no I/O APIC has it.
pub fn route(wire: Wire, entry: RedirectionEntry) -> bool {
    with_input(wire, |io_apic, input| {
        let register = REDIRECTION + 2 * input;
        // Never half of the old entry and half of the new one.
        io_apic.write(register, MASKED);
        io_apic.write(register + 1, entry.high);
        io_apic.write(register, entry.low);
    })
    .is_some()
}

fn with_input<T>(wire: Wire, access: impl FnOnce(&mut IoApic, u32) -> T) -> Option<T> {
    let mut io_apics = IO_APICS.get()?.lock();
    let (io_apic, input) = io_apics.iter_mut().find_map(|io_apic| {
        let input = wire.input.checked_sub(io_apic.first_input)?;
        (input < io_apic.inputs).then_some((io_apic, input))
    })?;
    Some(access(io_apic, input))
}

impl IoApic {
    fn read(&mut self, register: u32) -> u32 {
        // SAFETY: both registers lie inside the mapped window.
        unsafe {
            self.window.byte_add(SELECT).cast::<u32>().write_volatile(register);
            self.window.byte_add(DATA).cast::<u32>().read_volatile()
        }
    }

    fn write(&mut self, register: u32, value: u32) {
        // SAFETY: as in `read`.
        unsafe {
            self.window.byte_add(SELECT).cast::<u32>().write_volatile(register);
            self.window.byte_add(DATA).cast::<u32>().write_volatile(value);
        }
    }
}
