//! Devices and a host in software, for tests of drivers on the build machine.
//!
//! DMA goes through the real `iommu` crate and the VT-d unit of `vtd-model`, so that a driver that lets go of memory
//! too early, or believes a device whose access was blocked, shows. Time is virtual: it stands still until a test
//! moves it or a driver polls.

pub mod e1000e;
pub mod frames;
mod host;
pub mod nvme;
pub mod secondaries;
pub mod virtio;
pub mod virtio_blk;
pub mod virtio_net;

pub use host::{BAR, BAR_BYTES, Bench, await_true};
