//! Drivers that reach memory only through the `iommu` crate.
//!
//! A driver is given a [`Host`](host::Host) for what has nothing to do with memory (configuration space, registers,
//! interrupts, threads, time) and a `DmaDevice` for everything that has. It never sees a physical address of memory,
//! and whatever a device says is checked before it indexes, allocates or bounds a loop.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod block;
#[cfg(test)]
mod doubles;
pub mod e1000e;
pub mod edu;
mod faults;
pub mod host;
pub mod hotplug;
pub mod lock;
pub mod mmio;
pub mod net;
pub mod nvme;
pub mod pci;
pub mod quiet;
pub mod virtio;
