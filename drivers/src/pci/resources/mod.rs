//! Addresses for functions that firmware has given none: those that are plugged in while the machine runs.
//!
//! What is behind a port gets its addresses out of the port's windows. A window that is too small, or that firmware has
//! not opened, is taken anew from the host bridge's [`Apertures`]. Registers in memory are placed, those in I/O ports are
//! not: ports are short, and no driver here needs them.

mod apertures;
mod assign;
mod ranges;
mod window;

pub use apertures::Apertures;
pub use assign::{ResourceError, assign};
pub use ranges::Ranges;
pub use window::Window;

#[cfg(test)]
mod tests;
