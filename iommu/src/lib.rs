//! DMA remapping for Rust kernels: no device reaches memory that its driver has not handed it.
#![no_std]
#![warn(missing_docs)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod address;
pub mod dma;
pub mod dmar;
pub mod iova;
pub mod platform;
mod sync;

pub use address::{Iova, PciAddress, SourceId};
pub use dma::{
    Bidirectional, Coherent, DmaBuffer, DmaDevice, DmaError, FromDevice, Mapping, PageBuffer, Rejected,
    ToDevice,
};
pub use platform::Platform;
