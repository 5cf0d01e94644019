//! How often the engine touches which entry: its sources, compiled once more on top of atomics that write down every
//! access.
#![cfg(not(loom))]
#![allow(dead_code, unused_imports, clippy::duplicate_mod)]

#[path = "../../src/address.rs"]
mod address;
mod counts;
mod hints;
mod machine;
mod memory;
mod ranges;
#[path = "../../src/table/mod.rs"]
mod table;

pub use address::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};
