//! Addresses for what is behind a port.

use alloc::{collections::TryReserveError, vec::Vec};
use core::fmt;

use iommu::PciAddress;

use super::{
    super::{
        bar::{Bar, BarKind},
        config::{Config, ConfigSpace, command},
        function::Function,
    },
    Apertures, Ranges,
    window::{WINDOW_BYTES, Window},
};

/// Why functions have no addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResourceError {
    /// The host bridge has no room for a window of this size.
    NoRoom {
        /// Bytes.
        bytes: u64,
    },
    /// The bridge did not take its window.
    NoWindow {
        /// The bridge.
        bridge: PciAddress,
        /// Which.
        window: Window,
    },
    /// A function did not take an address.
    NotPlaced {
        /// The function.
        function: PciAddress,
        /// Index of its BAR.
        index: u8,
    },
    /// No memory for a list.
    OutOfMemory,
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { bytes } => write!(f, "no {bytes:#x} bytes of addresses are free"),
            Self::NoWindow { bridge, window } => write!(f, "{bridge} does not take a {window:?} window"),
            Self::NotPlaced { function, index } => write!(f, "BAR {index} of {function} takes no address"),
            Self::OutOfMemory => f.write_str("no memory for a list of addresses"),
        }
    }
}

impl core::error::Error for ResourceError {}

impl From<TryReserveError> for ResourceError {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

/// Gives every BAR in memory of `functions`, which are all that is behind `port` and which nobody uses, an address, and
/// has the port pass these on. BARs in I/O ports get none.
///
/// # Errors
/// See [`ResourceError`]. The functions decode nothing then.
pub fn assign<C: ConfigSpace + ?Sized>(
    space: &C,
    port: PciAddress,
    functions: &[Function],
    apertures: &mut Apertures,
) -> Result<(), ResourceError> {
    let config = Config::new(space, port);
    let mut wanted: Vec<Wanted> = Vec::new();
    for function in functions {
        let own = Config::new(space, function.address);
        own.change_command(0, command::MEMORY | command::PORT);
        for bar in Bar::all(own, function.layout).filter(|bar| bar.kind != BarKind::Port) {
            wanted.try_reserve(1)?;
            wanted.push(Wanted { function: function.address, bar });
        }
    }
    // From the largest to the smallest they are packed without gaps: sizes are powers of two, and so is the alignment.
    wanted.sort_unstable_by_key(|wanted| core::cmp::Reverse(wanted.bar.bytes));
    let read_ahead = Window::Prefetchable.read(config).is_some();
    for window in [Window::Memory, Window::Prefetchable] {
        let its = |wanted: &&Wanted| window_of(&wanted.bar, read_ahead) == window;
        place(space, config, window, wanted.iter().filter(its), apertures)?;
    }
    config.change_command(command::MEMORY | command::BUS_MASTER, 0);
    Ok(())
}

/// A BAR that needs an address.
struct Wanted {
    function: PciAddress,
    bar: Bar,
}

/// Only BARs of 64 bits go into the prefetchable window, because it may lie above 4 GiB.
fn window_of(bar: &Bar, read_ahead: bool) -> Window {
    match bar.kind {
        BarKind::Memory { wide: true, prefetchable: true } if read_ahead => Window::Prefetchable,
        _ => Window::Memory,
    }
}

fn place<'a, C: ConfigSpace + ?Sized>(
    space: &C,
    port: Config<'_, C>,
    window: Window,
    wanted: impl Iterator<Item = &'a Wanted> + Clone,
    apertures: &mut Apertures,
) -> Result<(), ResourceError> {
    let Some(largest) = wanted.clone().map(|wanted| wanted.bar.bytes).max() else { return Ok(()) };
    let bytes = wanted.clone().fold(0_u64, |sum, wanted| sum.saturating_add(wanted.bar.bytes));
    let mut free = open(port, window, bytes, largest, apertures)?;
    for Wanted { function, bar } in wanted {
        let base = free.take(bar.bytes, bar.bytes).ok_or(ResourceError::NoRoom { bytes: bar.bytes })?;
        if !bar.place(Config::new(space, *function), base) {
            return Err(ResourceError::NotPlaced { function: *function, index: bar.index });
        }
    }
    Ok(())
}

/// What `window` of the port offers: as it is if `bytes` bytes fit, of which the largest BAR has `largest`, else taken anew.
fn open<C: ConfigSpace + ?Sized>(
    port: Config<'_, C>,
    window: Window,
    bytes: u64,
    largest: u64,
    apertures: &mut Apertures,
) -> Result<Ranges, ResourceError> {
    let mut free = Ranges::new();
    let before = window.read(port);
    if let Some((first, last)) = before {
        free.add(first, last)?;
        if free.clone().take(bytes, largest).is_some() {
            return Ok(free);
        }
    }
    let no_room = ResourceError::NoRoom { bytes };
    let bytes = bytes.checked_next_multiple_of(WINDOW_BYTES).ok_or(no_room)?;
    let first = apertures.take(bytes, largest.max(WINDOW_BYTES)).ok_or(no_room)?;
    let last = first + (bytes - 1);
    if !window.write(port, Some((first, last))) {
        window.write(port, before);
        apertures.give_back(first, last);
        return Err(ResourceError::NoWindow { bridge: port.function(), window });
    }
    if let Some((first, last)) = before {
        apertures.give_back(first, last);
    }
    let mut free = Ranges::new();
    free.add(first, last)?;
    Ok(free)
}
