//! A VT-d unit in software that forgives nothing.
//!
//! The driver runs against it through the very traits by which it runs in a kernel
//! ([`Platform`](iommu::Platform)). It is written apart from the driver, from the description of the hardware alone:
//! no constant, no type of an entry and no walker is shared.
//!
//! - [`MachineConfig`] says what a machine is made of; [`MachineConfig::random`] draws one.
//! - [`Machine`] runs it, [`ModelPlatform`] shows it to the driver, [`Device`] does DMA on it.
//! - [`ModelBuffer`] is memory to lend to devices; it notices who can still reach it when it comes back.
//! - [`Machine::take_complaints`] tells what the driver did wrongly: see [`Rule`].
//! - [`Misbehaviour`] makes a unit do what it should not.
//!
//! What hardware *may* do, the model does: each cache keeps its entries, stale ones above all, until the invalidation
//! that covers exactly them; entries also go at random; what the CPU has not written back is not seen by a unit that
//! does not snoop, unless the line was evicted at random; stores wait in the write buffer of a unit that has one. All
//! of that is drawn from one seed, and time is virtual, so that a run can be repeated.

#![warn(missing_docs)]

mod buffer;
mod clock;
mod complaints;
mod config;
mod context_cache;
mod device;
mod device_tlb;
mod dmar;
mod entries;
mod event;
mod faults;
mod interrupt_cache;
mod iotlb;
mod machine;
mod memory;
mod misbehaviour;
mod paging_cache;
mod pasid_cache;
mod pci;
mod platform;
mod random;
mod reason;
mod registers;
mod scalable_entries;
mod turn;
mod unit;
mod world;

pub use buffer::ModelBuffer;
pub use clock::Clock;
pub use complaints::{Complaint, Complaints, Rule};
pub use config::{
    FunctionConfig, FunctionKind, HpetConfig, IoApicConfig, Leftovers, MachineConfig, ReservedMemory,
    UnitConfig,
};
pub use device::Device;
pub use iotlb::Translation;
pub use machine::Machine;
pub use memory::MemoryMap;
pub use misbehaviour::Misbehaviour;
pub use platform::{InterruptGuard, ModelPlatform, ModelRegisters, ModelTables, become_cpu, in_interrupt};
pub use random::Random;
pub use reason::Reason;
pub use turn::in_model;
pub use unit::{Access, Delivered, Denied, InterruptOutcome, Reach};
