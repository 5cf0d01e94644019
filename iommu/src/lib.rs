//! DMA remapping for Rust kernels: no device reaches memory that its driver has not handed it.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod address;
pub mod platform;

pub use address::{Iova, PciAddress, SourceId};
pub use platform::Platform;
