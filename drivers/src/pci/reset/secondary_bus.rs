//! Secondary bus reset: of everything behind a bridge.

use alloc::vec::Vec;

use iommu::PciAddress;

use super::{
    super::{
        config::Config,
        enumerate::{BusRange, enumerate},
        function::{Bridge, Function, Layout},
    },
    ResetError, SETTLE_NS, pause,
    saved::Saved,
    wait,
};
use crate::host::Host;

/// Bridge Control, in the upper half of the last dword of a bridge's header.
pub(super) const BRIDGE_CONTROL: u16 = 0x3e;
pub(super) const SECONDARY_BUS_RESET: u16 = 1 << 6;

/// How long the reset lasts: the least is 1 ms.
const ASSERTED_NS: u64 = 2_000_000;

/// Resets all that is behind `bridge`, if it is nothing but functions of `group`: when this returns `Ok`, nothing that
/// they had begun touches memory any more. Their configuration is as it was, but that memory decoding, bus mastering
/// and interrupts of endpoints are off.
///
/// # Errors
/// See [`ResetError`]. The endpoints are left without bus mastering, unless nothing was done because of
/// [`Absent`](ResetError::Absent), [`NoMethod`](ResetError::NoMethod) or [`Shared`](ResetError::Shared).
pub fn reset_bus(host: &dyn Host, bridge: PciAddress, group: &[PciAddress]) -> Result<(), ResetError> {
    let config = Config::new(host, bridge);
    let layout = Function::read(config, None).ok_or(ResetError::Absent)?.layout;
    let Layout::Bridge(Bridge { secondary, subordinate }) = layout else { return Err(ResetError::NoMethod) };
    if secondary <= bridge.bus || subordinate < secondary {
        return Err(ResetError::NoMethod);
    }
    let behind = enumerate(host, BusRange { segment: bridge.segment, first: secondary, last: subordinate })?;
    if behind.is_empty() {
        return Err(ResetError::Absent);
    }
    if let Some(function) = behind.iter().find(|function| !group.contains(&function.address)) {
        return Err(ResetError::Shared { with: function.address });
    }
    let mut saved: Vec<(Config<'_, dyn Host>, Saved)> = Vec::new();
    saved.try_reserve_exact(behind.len())?;
    for function in &behind {
        let config = Config::new(host, function.address);
        saved.push((config, Saved::take(config).ok_or(ResetError::Absent)?));
    }
    let control = config.read16(BRIDGE_CONTROL);
    config.write16(BRIDGE_CONTROL, control | SECONDARY_BUS_RESET);
    pause(host, ASSERTED_NS);
    config.write16(BRIDGE_CONTROL, control & !SECONDARY_BUS_RESET);
    pause(host, SETTLE_NS);
    // A bridge comes before what is behind it, which cannot be reached until its bus numbers are back.
    for (config, saved) in saved {
        if !wait(host, || config.is_present()) {
            return Err(ResetError::Gone);
        }
        saved.restore(config)?;
    }
    Ok(())
}
