//! NVMe: controllers, and their namespaces as disks.
//!
//! [`QueuePair`] is a submission and a completion queue with what is in flight between them. [`Controller`] has the
//! admin queue; [`open`] makes a block device of a controller, with an I/O queue pair for each CPU. Reads and writes
//! are the business of `block/engine.rs`; `requests.rs` is how the controller is told.
//!
//! A [`Primary`] is a controller that has others under it, its virtual functions, and gives them what they work with.
//!
//! The admin queue makes a fast attacker too: a controller writes an Identify page to any address it is given at once,
//! and reports success whatever the IOMMU made of it.

mod attack;
mod controller;
mod disk;
mod error;
mod memory;
mod primary;
mod queue;
mod registers;
mod requests;
mod setup;

pub use controller::{Controller, has_memory};
pub use disk::open;
pub use error::NvmeError;
pub use memory::{QueueMemory, Queues};
pub use nvme_spec::{Command, Completion, IDENTIFY_BYTES, Identity, NamespaceError, Status};
pub use primary::Primary;
pub use queue::{Finished, PairError, QueuePair};

use crate::pci::Class;

/// Class of NVMe controllers: storage, non-volatile memory, NVM Express.
pub const CLASS: Class = Class { base: 0x01, sub: 0x08, interface: 0x02 };
