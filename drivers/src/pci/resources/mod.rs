//! Addresses for functions that firmware has given none: those that are plugged in while the machine runs, and those
//! behind bridges that firmware has left alone.
//!
//! What is behind a port gets its addresses out of the port's windows. A window that is too small, or that firmware has
//! not opened, is taken anew: on a root bus from the host bridge's [`Apertures`], elsewhere from what the window above
//! has left.
//!
//! Registers in memory are placed. Those in I/O ports get no address, and decoding of ports is turned off: there are 64
//! KiB of ports for all, in pieces of 4 KiB a bridge; PCI Express asks that a device works without; and no driver here
//! uses any. The registers of virtio, NVMe, e1000e and `edu` that matter are in memory.
//!
//! Bridges that are plugged in get their bus numbers first, out of the port's range ([`number_buses`]), then each a
//! window that holds what is behind it ([`assign`]). Behind them everything is in memory windows, below 4 GiB: their
//! prefetchable ones stay shut. Bridges without numbers that are there from the start are treated in the same way
//! ([`number_unconfigured`], [`assign_unconfigured`]).
//!
//! Who has which addresses is in one place ([`Claims`]).
//!
//! Registers of virtual functions are placed for as many as a function can have, before it has any ([`place_virtual`]).

mod apertures;
mod assign;
mod buses;
mod claims;
mod need;
mod ranges;
mod unconfigured;
mod virtual_bars;
mod window;

pub use apertures::Apertures;
pub use assign::{ResourceError, assign};
pub use buses::number_buses;
pub use claims::{Claim, Claimant, Claims, Misplaced, Places};
pub use ranges::Ranges;
pub use unconfigured::{assign_unconfigured, number_unconfigured, unconfigure};
pub use virtual_bars::place_virtual;
pub use window::Window;

#[cfg(test)]
mod bridge_tests;
#[cfg(test)]
mod claims_tests;
#[cfg(test)]
mod hierarchy_tests;
#[cfg(test)]
mod tests;
