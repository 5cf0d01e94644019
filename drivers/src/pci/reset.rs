//! Function-level reset.

use core::fmt;

use iommu::PciAddress;

use super::{
    capability::id,
    config::{Config, command, offset},
};
use crate::host::Host;

/// Bytes of the PCI Express capability up to its device status register.
const EXPRESS_BYTES: u16 = 12;
const DEVICE_CAPABILITIES: u16 = 4;
const FUNCTION_LEVEL_RESET_CAPABLE: u32 = 1 << 28;
/// Device control in the low half; device status, whose bits are cleared by ones, in the high half.
const DEVICE_CONTROL: u16 = 8;
const INITIATE_FUNCTION_LEVEL_RESET: u32 = 1 << 15;
const TRANSACTIONS_PENDING: u32 = 1 << 21;

/// How long a function may take to finish what it has begun, and how long to answer again.
const DEADLINE_NS: u64 = 1_000_000_000;
/// How long nobody may touch a function after its reset.
const SETTLE_NS: u64 = 100_000_000;

/// Registers of the header that firmware has set up and a reset clears: BARs up to the expansion ROM's, interrupt line.
const KEPT: [u16; 8] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c];

/// Why a function could not be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetError {
    /// Nothing answers.
    Absent,
    /// It has no function-level reset.
    NoMethod,
    /// It did not finish what it had begun in time, and was not reset.
    Busy,
    /// It did not answer in time after the reset.
    Gone,
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absent => "nothing answers",
            Self::NoMethod => "it has no function-level reset",
            Self::Busy => "it does not finish its requests",
            Self::Gone => "it does not answer after a reset",
        })
    }
}

impl core::error::Error for ResetError {}

/// Resets `function`: when this returns `Ok`, nothing that it had begun touches memory any more. Its BARs are as they
/// were; memory decoding, bus mastering and interrupts are off.
///
/// # Errors
/// See [`ResetError`]. It is left without bus mastering.
pub fn reset_function(host: &dyn Host, function: PciAddress) -> Result<(), ResetError> {
    let config = Config::new(host, function);
    if !config.is_present() {
        return Err(ResetError::Absent);
    }
    config.change_command(0, command::BUS_MASTER);
    let express = config.find(id::EXPRESS, EXPRESS_BYTES).ok_or(ResetError::NoMethod)?;
    if config.read32(express + DEVICE_CAPABILITIES) & FUNCTION_LEVEL_RESET_CAPABLE == 0 {
        return Err(ResetError::NoMethod);
    }
    let control = express + DEVICE_CONTROL;
    if !wait(host, || config.read32(control) & TRANSACTIONS_PENDING == 0) {
        return Err(ResetError::Busy);
    }
    let kept = KEPT.map(|register| config.read32(register));
    let device_control = config.read32(control) & 0xffff;
    config.write32(control, device_control | INITIATE_FUNCTION_LEVEL_RESET);
    let settled_ns = host.now_ns().saturating_add(SETTLE_NS);
    while host.now_ns() < settled_ns {
        host.relax();
    }
    if !wait(host, || config.is_present()) {
        return Err(ResetError::Gone);
    }
    config.write32(offset::COMMAND_STATUS, 0);
    KEPT.iter().zip(kept).for_each(|(&register, value)| config.write32(register, value));
    config.write32(control, device_control);
    Ok(())
}

fn wait(host: &dyn Host, mut done: impl FnMut() -> bool) -> bool {
    let deadline_ns = host.now_ns().saturating_add(DEADLINE_NS);
    while !done() {
        if host.now_ns() >= deadline_ns {
            return false;
        }
        host.relax();
    }
    true
}

#[cfg(test)]
#[path = "reset_tests.rs"]
mod tests;
