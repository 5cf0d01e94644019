//! Addresses for functions that firmware has given none: those that are plugged in while the machine runs.
//!
//! What is behind a port gets its addresses out of the port's windows. A window that is too small, or that firmware has
//! not opened, is taken anew from the host bridge's [`Apertures`]. Registers in memory are placed, those in I/O ports are
//! not: ports are short, and no driver here needs them.
//!
//! Bridges that are plugged in get their bus numbers first, out of the port's range ([`number_buses`]), then each a window
//! that holds what is behind it ([`assign`]).
//!
//! Registers of virtual functions are placed for as many as a function can have, before it has any ([`place_virtual`]).

mod apertures;
mod assign;
mod buses;
mod need;
mod ranges;
mod virtual_bars;
mod window;

pub use apertures::Apertures;
pub use assign::{ResourceError, assign};
pub use buses::number_buses;
pub use ranges::Ranges;
pub use virtual_bars::place_virtual;
pub use window::Window;

#[cfg(test)]
mod bridge_tests;
#[cfg(test)]
mod tests;
