//! Addresses for the registers of virtual functions, which nobody uses before there are any.

use alloc::collections::TryReserveError;
use core::fmt;

use iommu::PciAddress;

use super::{
    super::{
        bar::{Bar, BarKind, Bars},
        function::Function,
        sriov::{Sriov, SriovError},
    },
    Apertures, Ranges,
    apertures::left_in,
    window::Window,
};
use crate::host::Host;

/// Finds addresses for the registers of all virtual functions that `functions` can have: in what the windows of the
/// port right above them have left, or on root buses in `apertures`. Virtual functions that are on are turned off:
/// whoever has turned them on is gone.
///
/// BARs are sized on the way, for which their functions' decoding is off for a moment: nobody may use them.
///
/// What has no place is reported, and keeps its function from having virtual ones.
pub fn place_virtual(host: &dyn Host, functions: &mut [Function], apertures: &mut Apertures) {
    let has_some =
        |function: &Function| Sriov::open(host, function).is_some_and(|sriov| sriov.offered() != 0);
    for first in 0..functions.len() {
        let parent = functions[first].parent;
        let is_done = functions[..first].iter().any(|before| before.parent == parent && has_some(before));
        if is_done || !has_some(&functions[first]) {
            continue;
        }
        let mut room = match parent.map(|port| Room::behind(host, port, functions)) {
            None => Room::Root(apertures),
            Some(Ok(room)) => room,
            Some(Err(_)) => return log::warn!("pci: no memory to place virtual functions"),
        };
        for function in &mut functions[first..] {
            if function.parent == parent && has_some(function) {
                match place(host, function, &mut room) {
                    Ok((bars, count)) => {
                        (function.virtual_bars, function.virtual_room) = (Some(bars), count);
                    }
                    Err(error) => log::warn!("pci: {} gets no virtual functions: {error}", function.address),
                }
            }
        }
    }
}

/// Why the registers of virtual functions have no place.
enum NoPlace {
    Sriov(SriovError),
    NoRoom { index: u8, bytes: u64, functions: u16 },
}

impl fmt::Display for NoPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sriov(error) => error.fmt(f),
            Self::NoRoom { index, bytes, functions } => {
                write!(f, "no addresses for BAR {index}, {bytes:#x} bytes for each of {functions}")
            }
        }
    }
}

/// The registers of the first virtual function, and for how many there is room.
fn place(host: &dyn Host, function: &Function, room: &mut Room<'_>) -> Result<(Bars, u16), NoPlace> {
    let Some(sriov) = Sriov::open(host, function) else { return Ok((Bars::default(), 0)) };
    if sriov.is_on() {
        sriov.disable().map_err(NoPlace::Sriov)?;
    }
    let count = sriov.offered();
    let mut bars = sriov.size_bars().map_err(NoPlace::Sriov)?;
    for index in 0..bars.len() {
        let Some(bar) = bars[index] else { continue };
        let base = bar.bytes.checked_mul(count.into()).and_then(|bytes| room.take(&bar, bytes));
        let Some(base) = base else {
            bars[..index].iter().flatten().for_each(|bar| room.give_back(bar, count));
            return Err(NoPlace::NoRoom { index: bar.index, bytes: bar.bytes, functions: count });
        };
        bars[index] = Some(Bar { base, ..bar });
    }
    Ok((bars, count))
}

/// Where the addresses come from.
enum Room<'a> {
    Root(&'a mut Apertures),
    Port { memory: Ranges, prefetchable: Ranges },
}

impl Room<'_> {
    /// What the windows of `port` have left.
    fn behind(host: &dyn Host, port: PciAddress, functions: &[Function]) -> Result<Self, TryReserveError> {
        let left = |window| left_in(window, host, port, functions);
        Ok(Self::Port { memory: left(Window::Memory)?, prefetchable: left(Window::Prefetchable)? })
    }

    /// Takes `bytes` bytes for `bar`, at a multiple of its own length. Only a register of 64 bits that may be read
    /// ahead goes into the prefetchable window, which may lie above 4 GiB.
    fn take(&mut self, bar: &Bar, bytes: u64) -> Option<u64> {
        match self {
            Self::Root(apertures) => apertures.take(bytes, bar.bytes),
            Self::Port { memory, prefetchable } => {
                let reads_ahead = matches!(bar.kind, BarKind::Memory { wide: true, prefetchable: true });
                let ahead = if reads_ahead { prefetchable.take(bytes, bar.bytes) } else { None };
                ahead.or_else(|| memory.take(bytes, bar.bytes))
            }
        }
    }

    /// Gives back what was taken for `bar` of `count` functions on a root bus. Behind a port somebody else may go
    /// without.
    fn give_back(&mut self, bar: &Bar, count: u16) {
        if let Self::Root(apertures) = self {
            apertures.give_back(bar.base, bar.base + (bar.bytes * u64::from(count) - 1));
        }
    }
}
