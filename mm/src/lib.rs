//! Addresses, frames, and the one page-table engine.
//!
//! The engine ([`table::PageTable`]) walks and edits multi-level tables whose entries a [`table::Format`]
//! describes. The CPU's address spaces and every DMA domain use it; there is no second walker.
#![no_std]
#![warn(missing_docs)]

mod address;
#[cfg(feature = "frames")]
pub mod frames;
pub mod lock_order;
mod machine;
pub mod table;

pub use address::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};
