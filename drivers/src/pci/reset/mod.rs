//! Resets: a function forgets what it was doing, and touches memory no more.
//!
//! Three kinds, from the one that concerns a function alone to the one that takes all that is behind a bridge with it:
//! [`reset_function`], [`reset_by_power`], [`reset_bus`]. Each stops bus mastering first, brings back what the kernel
//! and firmware have set up in configuration space, and reads it again: what did not come back is an error. A reset
//! that a function claims to have and that changed nothing is one too.

mod function_level;
mod power;
mod saved;
mod secondary_bus;

use alloc::collections::TryReserveError;
use core::fmt;

use iommu::PciAddress;

use crate::host::Host;

pub use function_level::reset_function;
pub use power::reset_by_power;
pub use secondary_bus::reset_bus;

/// How long a function may take to finish what it has begun, and how long to answer again.
pub(super) const DEADLINE_NS: u64 = 1_000_000_000;
/// How long nobody may touch a function after its reset.
const SETTLE_NS: u64 = 100_000_000;

/// Why a function could not be reset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResetError {
    /// Nothing answers.
    Absent,
    /// It has no reset of this kind.
    NoMethod,
    /// It did not finish what it had begun in time, and was not reset.
    Busy,
    /// It did not answer in time after the reset.
    Gone,
    /// Its registers read after the reset as before.
    NoEffect,
    /// A register of configuration space did not take what it had held before.
    NotRestored {
        /// Offset of its dword.
        register: u16,
        /// What it had held.
        wanted: u32,
        /// What it reads now.
        found: u32,
    },
    /// A function that is not of the same group is behind the same bridge: it would be reset too.
    Shared {
        /// That function.
        with: PciAddress,
    },
    /// No memory for what has to be brought back. Nothing was reset.
    OutOfMemory,
}

impl fmt::Display for ResetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing answers"),
            Self::NoMethod => f.write_str("it has no such reset"),
            Self::Busy => f.write_str("it does not finish its requests"),
            Self::Gone => f.write_str("it does not answer after a reset"),
            Self::NoEffect => f.write_str("its reset changes nothing"),
            Self::NotRestored { register, wanted, found } => {
                write!(f, "after a reset, register {register:#x} holds {found:#x} and not {wanted:#x}")
            }
            Self::Shared { with } => write!(f, "{with} would be reset with it"),
            Self::OutOfMemory => f.write_str("no memory for a reset"),
        }
    }
}

impl core::error::Error for ResetError {}

impl From<TryReserveError> for ResetError {
    fn from(_: TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

/// Waits until `done`, or [`DEADLINE_NS`]; whether it came to be.
pub(super) fn wait(host: &dyn Host, mut done: impl FnMut() -> bool) -> bool {
    let deadline_ns = host.now_ns().saturating_add(DEADLINE_NS);
    while !done() {
        if host.now_ns() >= deadline_ns {
            return false;
        }
        host.relax();
    }
    true
}

pub(super) fn pause(host: &dyn Host, ns: u64) {
    let end_ns = host.now_ns().saturating_add(ns);
    while host.now_ns() < end_ns {
        host.relax();
    }
}

#[cfg(test)]
mod tests;
