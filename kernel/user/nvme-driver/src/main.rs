//! Drives the NVMe controller that it was given, from ring 3, and makes a block device of its first namespace.
//!
//! The kernel hands requests over and takes their results; the controller is this program's alone. What both agree on
//! is in [`abi`]. Memory is laid out once (`memory`), a request has one place in it for as long as it is in flight,
//! which is also its command's identifier (`disk`), and when something goes wrong that a reset does not mend the
//! program ends: whoever waits for a request is told by the kernel, and a new process begins with a reset controller.
#![no_std]
#![no_main]

mod controller;
mod disk;
mod memory;
mod queue;

use abi::Error;
use nvme_spec::{NamespaceError, Status};
use runtime::Device;

runtime::main!(drive);

/// The controller.
const DEVICE: Device = Device::new(0);

/// Why the program ends.
#[derive(Debug)]
enum Problem {
    /// A call of the kernel's failed.
    Call(#[expect(dead_code, reason = "it is shown")] Error),
    /// The controller lacks NVM commands, pages of 4 KiB, entries of 64 and 16 bytes or interrupts.
    Unsupported,
    /// It did not become ready or quiet in time.
    NotReady,
    /// A command was not finished in time.
    TimedOut,
    /// A completion of nothing that is in flight.
    NotInFlight,
    /// An admin command failed.
    Refused(#[expect(dead_code, reason = "it is shown")] Status),
    /// There is no namespace.
    NoNamespace,
    /// It cannot be used.
    Namespace(#[expect(dead_code, reason = "it is shown")] NamespaceError),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

/// The controller finds the program's memory `argument` times 4 GiB further up. Returns only if something is wrong.
fn drive(argument: u64) -> u64 {
    const WRONG: u64 = 1;
    let Err(problem) = disk::serve(argument);
    runtime::log(format_args!("{problem:?}"));
    WRONG
}
