//! Bridges that firmware has left alone: nobody uses what is behind them, so it gets buses and addresses as if it had
//! been plugged in.

use alloc::{collections::TryReserveError, vec::Vec};

use iommu::PciAddress;

use super::{
    super::{
        config::{Config, ConfigSpace, command, offset},
        enumerate::{BusRange, enumerate},
        function::{Bridge, Function, Layout},
    },
    Apertures, ResourceError, assign,
    buses::number_behind,
    need::close,
};

/// Gives every bridge on the buses of `range` that leads nowhere buses that nobody has, and so to all bridges behind
/// it. Returns the topmost of them, sorted by address; their windows are shut. [`enumerate`] finds what is behind them
/// now.
///
/// A bridge whose parent firmware has numbered gets buses of its parent's; one on a root bus those between that bus and
/// the next root bus. The longest free run is tried, and what is left of it is the next bridge's. A bridge that gets
/// none is reported, and stays as it was.
///
/// # Errors
/// No memory.
pub fn number_unconfigured<C: ConfigSpace + ?Sized>(
    space: &C,
    range: BusRange,
) -> Result<Vec<PciAddress>, TryReserveError> {
    let found = enumerate(space, range)?;
    let mut taken = Vec::new();
    let mut numbered = Vec::new();
    for function in &found {
        let Layout::Bridge(bridge) = function.layout else { continue };
        if leads_somewhere(function.address, bridge, range) {
            continue;
        }
        let Some((first, last)) = longest_free(&found, &taken, function, range) else {
            let last = range.last;
            log::warn!("pci: {}", ResourceError::NoBus { bridge: function.address, last });
            continue;
        };
        numbered.try_reserve(1)?;
        taken.try_reserve(1)?;
        close(Config::new(space, function.address));
        match number_behind(space, function, BusRange { first, last, ..range }) {
            Ok(last) => {
                taken.push((first, last));
                numbered.push(function.address);
            }
            Err(error) => log::warn!("pci: {error}"),
        }
    }
    Ok(numbered)
}

/// Gives all that is behind each of `bridges`, which [`number_unconfigured`] returned, addresses, and the bridges
/// windows: out of `apertures`, or of what the window above has left. `functions` are all that there are. What gets
/// none is reported.
///
/// # Errors
/// No memory.
pub fn assign_unconfigured<C: ConfigSpace + ?Sized>(
    space: &C,
    bridges: &[PciAddress],
    functions: &[Function],
    apertures: &mut Apertures,
) -> Result<(), TryReserveError> {
    for bridge in functions.iter().filter(|function| bridges.contains(&function.address)) {
        let Layout::Bridge(Bridge { secondary, subordinate }) = bridge.layout else { continue };
        let is_behind = |function: &&Function| {
            function.address.segment == bridge.address.segment
                && (secondary..=subordinate).contains(&function.address.bus)
        };
        let mut behind = Vec::new();
        behind.try_reserve_exact(functions.iter().filter(is_behind).count())?;
        behind.extend(functions.iter().filter(is_behind).cloned());
        let assigned = match bridge.parent {
            None => assign(space, bridge.address, &behind, apertures),
            Some(parent) => {
                let mut left = Apertures::left_by(space, parent, functions)?;
                assign(space, bridge.address, &behind, &mut left)
            }
        };
        match assigned {
            Ok(()) => log::info!("pci: {}: bridge to {secondary:#x}-{subordinate:#x}", bridge.address),
            Err(error) => log::warn!("pci: behind {}: {error}", bridge.address),
        }
    }
    Ok(())
}

/// Leaves every bridge on the root buses of `range` as a reset does, and as firmware does that configures no bridges.
/// For tests of what a kernel does then.
///
/// # Errors
/// No memory.
pub fn unconfigure<C: ConfigSpace + ?Sized>(space: &C, range: BusRange) -> Result<(), TryReserveError> {
    for function in enumerate(space, range)?.iter().filter(|function| function.parent.is_none()) {
        if let Layout::Bridge(_) = function.layout {
            let config = Config::new(space, function.address);
            config.change_command(0, command::MEMORY | command::BUS_MASTER);
            close(config);
            config.write32(offset::BUS_NUMBERS, config.read32(offset::BUS_NUMBERS) & 0xff00_0000);
        }
    }
    Ok(())
}

/// Whether the numbers of a bridge can be right: what is behind it is on higher buses than itself.
fn leads_somewhere(address: PciAddress, bridge: Bridge, range: BusRange) -> bool {
    let Bridge { secondary, subordinate } = bridge;
    address.bus < secondary && secondary <= subordinate && secondary <= range.last
}

/// The longest run of buses that `function` may lead to and that are nobody's: neither `taken`, nor with functions on
/// them, nor of a bridge that is not above it.
fn longest_free(
    found: &[Function],
    taken: &[(u8, u8)],
    function: &Function,
    range: BusRange,
) -> Option<(u8, u8)> {
    let of = |address| found.iter().find(|function| function.address == address);
    let above = |bridge: PciAddress| {
        let parent = |function: &PciAddress| of(*function)?.parent;
        core::iter::successors(Some(function.address), parent).take(found.len()).any(|above| above == bridge)
    };
    let (first, last) = match function.parent.and_then(of).map(|parent| parent.layout) {
        Some(Layout::Bridge(Bridge { secondary, subordinate })) => (secondary, subordinate),
        _ => {
            let roots = found.iter().filter(|other| other.parent.is_none()).map(|root| root.address.bus);
            let next = roots.filter(|&root| root > function.address.bus).min();
            (function.address.bus, next.map_or(range.last, |next| next - 1))
        }
    };
    let is_free = |bus: u8| {
        let is_anothers = |other: &Function| match other.layout {
            _ if other.address.bus == bus => true,
            Layout::Bridge(bridge) | Layout::CardBus(bridge) => {
                leads_somewhere(other.address, bridge, range)
                    && (bridge.secondary..=bridge.subordinate).contains(&bus)
                    && !above(other.address)
            }
            _ => false,
        };
        !taken.iter().any(|&(first, last)| (first..=last).contains(&bus)) && !found.iter().any(is_anothers)
    };
    let mut longest: Option<(u8, u8)> = None;
    let mut start = None;
    for bus in first.checked_add(1)?..=last {
        start = if is_free(bus) { start.or(Some(bus)) } else { None };
        if let Some(start) = start
            && longest.is_none_or(|(first, last)| bus - start > last - first)
        {
            longest = Some((start, bus));
        }
    }
    longest
}
