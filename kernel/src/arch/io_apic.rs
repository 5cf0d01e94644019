//! I/O APICs: wired interrupts. Only the serial line uses one; devices send messages.

use alloc::vec::Vec;
use core::ptr::NonNull;

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

const ACTIVE_LOW: u32 = 1 << 13;
const LEVEL_TRIGGERED: u32 = 1 << 15;
const MASKED: u32 = 1 << 16;

struct IoApic {
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
        let mut io_apic = IoApic { window, first_input: entry.first_input, inputs: 0 };
        io_apic.inputs = (io_apic.read(VERSION) >> 16 & 0xff) + 1;
        for input in 0..io_apic.inputs {
            io_apic.write(REDIRECTION + 2 * input, MASKED);
        }
        Some(io_apic)
    });
    IO_APICS.call_once(|| IrqMutex::new(Rank::Device, io_apics.collect()));
}

/// Sends what `wire` signals to the CPU with `apic_id`, as `vector`. False if no I/O APIC has that input, or the id does
/// not fit.
pub fn route(wire: Wire, vector: u8, apic_id: u32) -> bool {
    let (Some(io_apics), Ok(destination)) = (IO_APICS.get(), u8::try_from(apic_id)) else { return false };
    let mut io_apics = io_apics.lock();
    let owner = io_apics.iter_mut().find_map(|io_apic| {
        let input = wire.input.checked_sub(io_apic.first_input)?;
        (input < io_apic.inputs).then_some((io_apic, input))
    });
    let Some((io_apic, input)) = owner else { return false };
    let polarity = if wire.is_active_low { ACTIVE_LOW } else { 0 };
    let trigger = if wire.is_level { LEVEL_TRIGGERED } else { 0 };
    let register = REDIRECTION + 2 * input;
    io_apic.write(register + 1, u32::from(destination) << 24);
    io_apic.write(register, u32::from(vector) | polarity | trigger);
    true
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
