//! Finding every function.

use alloc::{collections::TryReserveError, vec::Vec};

use iommu::PciAddress;

use super::{
    config::{Config, ConfigSpace},
    function::{Bridge, Function},
};

/// Buses of one segment that configuration space exists for, as MCFG lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BusRange {
    /// PCI segment group.
    pub segment: u16,
    /// First bus.
    pub first: u8,
    /// Last bus.
    pub last: u8,
}

/// Every function on the buses of `range`, sorted by address; reads configuration space and changes nothing.
///
/// Each bus is looked at once, whatever bridges claim: a bridge whose bus numbers are unset, out of range, or taken by
/// another bridge is a leaf. A bus that no bridge leads to is a root bus, if a function answers on it.
///
/// # Errors
/// No memory for the list.
pub fn enumerate<C: ConfigSpace + ?Sized>(
    space: &C,
    range: BusRange,
) -> Result<Vec<Function>, TryReserveError> {
    let mut walk = Walk { space, range, seen: [false; 256], found: Vec::new(), pending: Vec::new() };
    for bus in range.first..=range.last {
        walk.root(bus)?;
    }
    walk.found.sort_unstable_by_key(|function| function.address);
    Ok(walk.found)
}

/// The functions on one bus, without what is behind them and who leads to it.
pub(super) fn on_bus<C: ConfigSpace + ?Sized>(
    space: &C,
    segment: u16,
    bus: u8,
) -> impl Iterator<Item = Function> {
    let read =
        move |devfn| Function::read(Config::new(space, PciAddress::from_devfn(segment, bus, devfn)), None);
    (0..32).flat_map(move |device| {
        let first = read(device << 3);
        let others = first.as_ref().is_some_and(|function| function.multifunction).then_some(1..8);
        first
            .into_iter()
            .chain(others.into_iter().flatten().filter_map(move |number| read(device << 3 | number)))
    })
}

/// A bus to look at, and the bridge that leads to it.
struct Pending {
    bus: u8,
    parent: Option<PciAddress>,
}

struct Walk<'a, C: ConfigSpace + ?Sized> {
    space: &'a C,
    range: BusRange,
    seen: [bool; 256],
    found: Vec<Function>,
    /// At most one entry a bus, because a bus is marked as seen when it is put in.
    pending: Vec<Pending>,
}

impl<C: ConfigSpace + ?Sized> Walk<'_, C> {
    /// Looks at `bus` and all that is behind it, if no bridge has led to it: buses come in ascending order, and a
    /// bridge's own bus is below the one behind it.
    fn root(&mut self, bus: u8) -> Result<(), TryReserveError> {
        if self.seen[usize::from(bus)] {
            return Ok(());
        }
        self.put(bus, None)?;
        while let Some(Pending { bus, parent }) = self.pending.pop() {
            for function in on_bus(self.space, self.range.segment, bus) {
                self.take_in(Function { parent, ..function })?;
            }
        }
        Ok(())
    }

    fn take_in(&mut self, function: Function) -> Result<(), TryReserveError> {
        if let Some(bridge) = function.bridge() {
            self.behind(function.address, bridge)?;
        }
        self.found.try_reserve(1)?;
        self.found.push(function);
        Ok(())
    }

    fn behind(&mut self, address: PciAddress, bridge: Bridge) -> Result<(), TryReserveError> {
        let Bridge { secondary, .. } = bridge;
        if secondary <= address.bus || secondary > self.range.last {
            if secondary != 0 {
                log::warn!("pci: {address}: bridge to bus {secondary:#x}, which cannot be behind it");
            }
            return Ok(());
        }
        if self.seen[usize::from(secondary)] {
            log::warn!("pci: {address}: bridge to bus {secondary:#x}, which another one leads to");
            return Ok(());
        }
        self.put(secondary, Some(address))
    }

    fn put(&mut self, bus: u8, parent: Option<PciAddress>) -> Result<(), TryReserveError> {
        self.pending.try_reserve(1)?;
        self.seen[usize::from(bus)] = true;
        self.pending.push(Pending { bus, parent });
        Ok(())
    }
}

#[cfg(test)]
#[path = "enumerate_tests.rs"]
mod tests;
