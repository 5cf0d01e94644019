//! NVMe as its specification has it: registers, entries and structures as values. Nothing here touches a device or
//! memory, so that the kernel's driver and the one in ring 3 share it.
//!
//! Addresses are numbers as the controller sees them: where they come from is the driver's business.
#![no_std]
#![forbid(unsafe_code)]

#[cfg(test)]
extern crate std;

mod command;
mod identify;
mod namespace;
mod pages;
pub mod registers;
mod virtualization;

pub use command::{Command, Completion, Status};
pub use identify::{IDENTIFY_BYTES, Identity, bytes_at};
pub use namespace::{Namespace, NamespaceError, namespaces};
pub use pages::{LIST_ENTRIES, Pages, blocks_per_request};
pub use virtualization::{Flexible, Resource, Secondary, controllers, flexible, secondaries};
