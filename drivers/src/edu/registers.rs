//! The registers of an `edu` device.

use crate::mmio::{Mmio, OutsideWindow, ReadOnly, Register, WriteOnly};

/// Bits of the command register.
pub mod command {
    pub const RUN: u64 = 1;
    pub const TO_MEMORY: u64 = 2;
    pub const INTERRUPT: u64 = 4;
}

/// Status register: a factorial is being computed.
pub const STATUS_COMPUTING: u32 = 1;

/// The device's registers.
pub struct Registers {
    pub identification: Register<u32, ReadOnly>,
    pub liveness: Register<u32>,
    pub factorial: Register<u32>,
    pub status: Register<u32>,
    pub interrupt_status: Register<u32, ReadOnly>,
    pub interrupt_raise: Register<u32, WriteOnly>,
    pub interrupt_acknowledge: Register<u32, WriteOnly>,
    pub source: Register<u64>,
    pub destination: Register<u64>,
    pub count: Register<u64>,
    pub command: Register<u64>,
}

impl Registers {
    /// Those at the start of `bar`.
    pub fn at(bar: &Mmio) -> Result<Self, OutsideWindow> {
        Ok(Self {
            identification: bar.register(0x00)?,
            liveness: bar.register(0x04)?,
            factorial: bar.register(0x08)?,
            status: bar.register(0x20)?,
            interrupt_status: bar.register(0x24)?,
            interrupt_raise: bar.register(0x60)?,
            interrupt_acknowledge: bar.register(0x64)?,
            source: bar.register(0x80)?,
            destination: bar.register(0x88)?,
            count: bar.register(0x90)?,
            command: bar.register(0x98)?,
        })
    }
}
