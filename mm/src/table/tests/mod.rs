//! Tests of the engine on the host.

mod basic;
mod memory;
