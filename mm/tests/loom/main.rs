//! The table engine itself, and the records of frames, under `loom`: their sources, compiled once more on top of
//! `loom`'s atomics and with tables of two entries. Each test tries every interleaving of its threads (up to a number
//! of preemptions) and every value that the memory model lets a load return.
#![cfg(not(miri))]
// Of the sizes that `machine` sets here some are 1.
#![allow(dead_code, unused_imports, clippy::duplicate_mod, clippy::modulo_one)]

#[path = "../../src/address.rs"]
mod address;
mod machine;
mod memory;
#[path = "../../src/frames/record.rs"]
mod record;
mod records;
mod scenarios;
#[path = "../../src/table/mod.rs"]
mod table;

pub use address::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};
