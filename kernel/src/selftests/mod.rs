//! Tests of the kernel by itself: memory protection, threads, time, interrupts.

mod affinity;
mod cost;
mod cpus;
mod disk_cost;
mod displays;
mod dma_cost;
mod driver_checks;
mod fetch_cost;
mod firmware;
mod interrupts;
mod mapping_cost;
mod memory;
mod misbehaving;
mod not_enforced;
mod process;
mod process_devices;
mod served_disk;
mod shared_spaces;
mod space_cost;
mod threading;
mod time;
mod virtual_disks;

pub use misbehaving::misbehaving;
