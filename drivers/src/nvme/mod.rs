//! NVMe: the controller and its admin queue.
//!
//! [`QueuePair`] is a submission and a completion queue with what is in flight between them; the admin queue is one,
//! and I/O queues will be others. The admin queue makes a fast attacker: a controller writes an Identify page to any
//! address it is given at once, and reports success whatever the IOMMU made of it.

mod command;
mod controller;
mod error;
mod identify;
mod memory;
mod queue;
mod registers;

pub use command::{Command, Completion, Status};
pub use controller::Controller;
pub use error::NvmeError;
pub use identify::{IDENTIFY_BYTES, Identity};
pub use memory::{QueueMemory, Queues};
pub use queue::{Finished, PairError, QueuePair};
