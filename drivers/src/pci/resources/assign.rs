//! Addresses for what is behind a port.

use alloc::collections::TryReserveError;
use core::fmt;

use iommu::PciAddress;

use super::{
    super::{
        config::{Config, ConfigSpace, command},
        function::{Function, Layout},
    },
    Apertures, Ranges,
    need::{Need, needs},
    window::{WINDOW_BYTES, Window},
};

/// What a slot behind the port gets at least for what may be plugged in later.
const SLOT_BYTES: u64 = 2 * WINDOW_BYTES;

/// Why functions have no addresses, or bridges no bus numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResourceError {
    /// A bridge's window has no room, and cannot be had with more.
    NoRoom {
        /// The bridge.
        bridge: PciAddress,
        /// Which of its windows.
        window: Window,
        /// Bytes that are wanted in one piece.
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
    /// No bus number is left for a bridge.
    NoBus {
        /// The bridge.
        bridge: PciAddress,
        /// The last bus of its port.
        last: u8,
    },
    /// A bridge does not take its bus numbers.
    NotNumbered {
        /// The bridge.
        bridge: PciAddress,
    },
    /// Too many bridges are behind each other.
    TooDeep {
        /// The first one that is too much.
        bridge: PciAddress,
    },
    /// Too many functions are behind one port.
    TooManyFunctions {
        /// The port.
        port: PciAddress,
        /// How many.
        functions: usize,
    },
    /// No memory for a list.
    OutOfMemory,
}

impl fmt::Display for ResourceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { bridge, window, bytes } => {
                write!(f, "no {bytes:#x} bytes of addresses are free for the {window:?} window of {bridge}")
            }
            Self::NoWindow { bridge, window } => write!(f, "{bridge} does not take a {window:?} window"),
            Self::NotPlaced { function, index } => write!(f, "BAR {index} of {function} takes no address"),
            Self::NoBus { bridge, last } => {
                write!(f, "no bus number is left for bridge {bridge}: its port's last is {last:#x}")
            }
            Self::NotNumbered { bridge } => write!(f, "bridge {bridge} does not take its bus numbers"),
            Self::TooDeep { bridge } => write!(f, "bridge {bridge} is behind too many others"),
            Self::TooManyFunctions { port, functions } => {
                write!(f, "{functions} functions are behind {port}")
            }
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

/// Gives every BAR in memory of `functions`, which are all that is behind `port`, sorted by address, and which nobody
/// uses, an address, every bridge among them a window that holds what is behind it, and has the port and the bridges
/// pass these on. BARs in I/O ports get none, and decode nothing. A port among them that has a slot gets room for what
/// may be plugged in there later, if there is enough.
///
/// What the port's windows do not offer is taken from `apertures`: what the bus that it is on has left.
///
/// # Errors
/// See [`ResourceError`]. The functions decode nothing then.
pub fn assign<C: ConfigSpace + ?Sized>(
    space: &C,
    port: PciAddress,
    functions: &[Function],
    apertures: &mut Apertures,
) -> Result<(), ResourceError> {
    match assign_with(space, port, functions, apertures, SLOT_BYTES) {
        Err(ResourceError::NoRoom { .. }) => assign_with(space, port, functions, apertures, 0),
        result => result,
    }
}

/// The same, with `slot_bytes` for each slot at least.
fn assign_with<C: ConfigSpace + ?Sized>(
    space: &C,
    port: PciAddress,
    functions: &[Function],
    apertures: &mut Apertures,
    slot_bytes: u64,
) -> Result<(), ResourceError> {
    let mut needs = needs(space, port, functions, slot_bytes)?;
    let config = Config::new(space, port);
    let read_ahead = Window::Prefetchable.read(config).is_some();
    let mut placed = 0;
    while let Some(parent) = needs.get(placed).map(|need| need.parent) {
        let (above, below) = needs.split_at_mut(placed);
        let count = below.partition_point(|need| need.parent == parent);
        let its = &mut below[..count];
        if parent == port {
            for window in [Window::Memory, Window::Prefetchable] {
                place_behind_port(space, config, window, its, read_ahead, apertures)?;
            }
        } else {
            let opened = above.iter().find_map(|need| need.window_of(parent));
            let (first, last) =
                opened.ok_or(ResourceError::NoWindow { bridge: parent, window: Window::Memory })?;
            let mut free = Ranges::new();
            free.add(first, last)?;
            place(space, its.iter_mut(), &mut free, Window::Memory)?;
        }
        placed += count;
    }
    config.change_command(command::MEMORY | command::BUS_MASTER, 0);
    for bridge in functions.iter().filter(|function| matches!(function.layout, Layout::Bridge(_))) {
        Config::new(space, bridge.address).change_command(command::MEMORY | command::BUS_MASTER, 0);
    }
    Ok(())
}

/// Places those of `needs` that go into `window` of the port.
fn place_behind_port<C: ConfigSpace + ?Sized>(
    space: &C,
    port: Config<'_, C>,
    window: Window,
    needs: &mut [Need],
    read_ahead: bool,
    apertures: &mut Apertures,
) -> Result<(), ResourceError> {
    let is_its = |need: &Need| need.window(read_ahead) == window;
    let its = || needs.iter().filter(|need| is_its(need));
    let Some(largest) = its().map(|need| need.align).max() else { return Ok(()) };
    let bytes = its().fold(0_u64, |sum, need| sum.saturating_add(need.bytes));
    let mut free = open(port, window, bytes, largest, apertures)?;
    place(space, needs.iter_mut().filter(|need| is_its(need)), &mut free, window)
}

fn place<'a, C: ConfigSpace + ?Sized>(
    space: &C,
    needs: impl Iterator<Item = &'a mut Need>,
    free: &mut Ranges,
    window: Window,
) -> Result<(), ResourceError> {
    for need in needs {
        let no_room = ResourceError::NoRoom { bridge: need.parent, window, bytes: need.bytes };
        let base = free.take(need.bytes, need.align).ok_or(no_room)?;
        need.place(space, base)?;
    }
    Ok(())
}

/// What `window` of the port offers: as it is if `bytes` bytes fit, with `largest` as the largest alignment, else taken
/// anew.
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
    let no_room = ResourceError::NoRoom { bridge: port.function(), window, bytes };
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
