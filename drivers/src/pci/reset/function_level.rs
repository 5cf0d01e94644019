//! Function-level reset: of one function alone, by PCI Express.

use iommu::PciAddress;

use super::{
    super::{
        capability::id,
        config::{Config, ConfigSpace, command},
    },
    ResetError, SETTLE_NS, pause,
    saved::Saved,
    wait,
};
use crate::host::Host;

/// Bytes of the PCI Express capability up to its device status register.
const EXPRESS_BYTES: u16 = 12;
const DEVICE_CAPABILITIES: u16 = 4;
pub(super) const FUNCTION_LEVEL_RESET_CAPABLE: u32 = 1 << 28;
/// Device control in the low half; device status, whose bits are cleared by ones, in the high half.
const DEVICE_CONTROL: u16 = 8;
pub(super) const INITIATE_FUNCTION_LEVEL_RESET: u32 = 1 << 15;
pub(super) const TRANSACTIONS_PENDING: u32 = 1 << 21;

/// Resets `function`: when this returns `Ok`, nothing that it had begun touches memory any more. Its configuration is
/// as it was, but that memory decoding, bus mastering and interrupts are off.
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
    if !finishes(host, config) {
        return Err(ResetError::Busy);
    }
    let saved = Saved::take(config).ok_or(ResetError::Absent)?;
    let control = express + DEVICE_CONTROL;
    config.write32(control, config.read32(control) & 0xffff | INITIATE_FUNCTION_LEVEL_RESET);
    pause(host, SETTLE_NS);
    if !wait(host, || config.is_present()) {
        return Err(ResetError::Gone);
    }
    saved.restore(config)
}

/// Whether the function, which may begin nothing new, has an answer to all that it has asked for within the deadline. A
/// conventional one has no way to tell.
pub(super) fn finishes<C: ConfigSpace + ?Sized>(host: &dyn Host, config: Config<'_, C>) -> bool {
    let Some(express) = config.find(id::EXPRESS, EXPRESS_BYTES) else { return true };
    wait(host, || config.read32(express + DEVICE_CONTROL) & TRANSACTIONS_PENDING == 0)
}
