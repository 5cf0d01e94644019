//! Addresses, frames, and the one page-table engine.
//!
//! The engine ([`table::PageTable`]) walks and edits multi-level tables whose entries a [`table::Format`]
//! describes. The CPU's address spaces and every DMA domain use it; there is no second walker.
#![no_std]
#![warn(missing_docs)]

#[cfg(test)]
extern crate std;

mod address;
#[cfg(feature = "frames")]
pub mod frames;
#[cfg(test)]
mod random;
pub mod table;

pub use address::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};
