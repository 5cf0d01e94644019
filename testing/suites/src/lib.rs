//! What the kernel tests about itself when it boots.
//!
//! A kernel hands a [`Machine`] to its tests as their environment. A test that needs something that the machine does
//! not have says so and is not run; one that needs something that should be there and does not work fails.
//!
//! - `unit`: the state of the remapping units after bring-up, and who gets a device;
//! - `edu`: DMA inside of mappings moves the right bytes;
//! - `isolation`: everything else is blocked, and recorded exactly;
//! - `assigned`: a device that changes owners, and memory that two of them share;
//! - `passthrough`: a device that is trusted with all of RAM;
//! - `reserved`: memory that firmware reserves for a device;
//! - `interrupts`: a device raises what was given to it and nothing else;
//! - `mapping`: the life of a mapping, and errors that leave nothing behind;
//! - `ragged`: buffers that are not whole pages;
//! - `retired`: buffers that come back late, and many at once;
//! - `nvme`: the same from a device that does thousands of transfers a second;
//! - `storm`: a device that faults without end is put in quarantine, the others go on, and it can be released;
//! - `hierarchy`: bus numbers, windows and addresses of all that is behind bridges;
//! - `disk`: a real disk, compared with what the host has in its image;
//! - `network`: files fetched from the host, pages served to it, and neighbours that go for what a driver has mapped;
//! - `virtual_functions`: a device that is told to have some, each with rights of its own;
//! - `power_cut`: a disk whose power goes while it is written.
#![no_std]

extern crate alloc;

mod assigned;
mod disk;
mod disk_bulk;
mod disk_errors;
mod disks;
mod edu;
mod faults;
mod hierarchy;
mod hotplug;
mod hotplug_bridges;
mod interrupts;
mod isolation;
mod machine;
mod mapping;
pub mod network;
mod nvme;
mod passthrough;
mod pattern;
mod plugged;
pub mod power_cut;
mod ragged;
pub mod reports;
mod reserved;
mod resets;
mod retired;
mod storm;
mod stress;
mod topologies;
mod unit;
mod virtual_dma;
mod virtual_functions;

pub use disks::Disks;
pub use faults::Expected;
pub use machine::{ClaimedEdu, Machine, Memory, OpenDisk, Parts, lacks};
pub use plugged::Plugged;
