//! Reset by power management: a function that goes to D3hot and back starts anew, unless it says that it does not.

use iommu::PciAddress;

use super::{
    super::{
        capability::id,
        config::{Config, command},
    },
    ResetError,
    function_level::finishes,
    pause,
    saved::Saved,
    wait,
};
use crate::host::Host;

/// Bytes of the power management capability up to its control and status register.
const CAPABILITY_BYTES: u16 = 6;
/// Control and status. PME_Status in it is cleared by a one.
pub(super) const CONTROL: u16 = 4;
pub(super) const STATE: u16 = 0b11;
const D0: u16 = 0;
const D3HOT: u16 = 3;
pub(super) const NO_SOFT_RESET: u16 = 1 << 3;
const PME_STATUS: u16 = 1 << 15;

/// How long nobody may touch a function after a change to or from D3hot.
const TRANSITION_NS: u64 = 10_000_000;

/// Resets `function` by D3hot and D0: when this returns `Ok`, nothing that it had begun touches memory any more. Its
/// configuration is as it was, but that memory decoding, bus mastering and interrupts are off.
///
/// # Errors
/// See [`ResetError`]. It is left without bus mastering.
pub fn reset_by_power(host: &dyn Host, function: PciAddress) -> Result<(), ResetError> {
    let config = Config::new(host, function);
    if !config.is_present() {
        return Err(ResetError::Absent);
    }
    config.change_command(0, command::BUS_MASTER);
    let control = config.find(id::POWER, CAPABILITY_BYTES).ok_or(ResetError::NoMethod)? + CONTROL;
    let before = config.read16(control);
    if before & NO_SOFT_RESET != 0 {
        return Err(ResetError::NoMethod);
    }
    if !finishes(host, config) {
        return Err(ResetError::Busy);
    }
    let saved = Saved::take(config).ok_or(ResetError::Absent)?;
    for state in [D3HOT, D0] {
        config.write16(control, before & !(STATE | PME_STATUS) | state);
        pause(host, TRANSITION_NS);
    }
    if !wait(host, || config.is_present() && config.read16(control) & STATE == D0) {
        return Err(ResetError::Gone);
    }
    saved.restore(config)
}
