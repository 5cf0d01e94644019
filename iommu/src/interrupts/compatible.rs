//! Interrupts that name CPU and vector themselves: compatibility format, for where nothing is remapped.

use super::{Destination, InterruptError, RedirectionEntry, WireMode};
use crate::platform::MsiMessage;

/// What a device writes to raise `to`: fixed delivery to one local APIC.
pub(super) fn message(to: Destination) -> Result<MsiMessage, InterruptError> {
    let apic = short_id(to.apic)?;
    Ok(MsiMessage { address: 0xfee0_0000 | u64::from(apic) << 12, data: to.vector.into() })
}

/// The redirection entry of a wire that raises `to`.
pub(super) fn redirection(mode: WireMode, to: Destination) -> Result<RedirectionEntry, InterruptError> {
    const ACTIVE_LOW: u32 = 1 << 13;
    const LEVEL_TRIGGERED: u32 = 1 << 15;
    let apic = short_id(to.apic)?;
    let polarity = if mode.active_low { ACTIVE_LOW } else { 0 };
    let trigger = if mode.level_triggered { LEVEL_TRIGGERED } else { 0 };
    Ok(RedirectionEntry { low: u32::from(to.vector) | polarity | trigger, high: u32::from(apic) << 24 })
}

/// An 8-bit destination: all ones is no CPU but all of them.
fn short_id(apic: u32) -> Result<u8, InterruptError> {
    u8::try_from(apic).ok().filter(|&id| id != u8::MAX).ok_or(InterruptError::FarCpu { apic })
}
