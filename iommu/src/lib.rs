//! DMA remapping for Rust kernels: no device reaches memory that its driver has not handed it.
//!
//! # A tour
//!
//! A kernel implements [`Platform`], hands an instance, the bytes of the ACPI DMAR table and the PCI functions it found
//! to [`Iommu::start`], and gets a handle. From then on every function is blocked, but for memory that firmware
//! reserved for it (RMRR). A driver [claims](Iommu::claim) a function and gets a [`DmaDevice`]; what it maps with it is
//! what the function reaches.
//!
//! ```text
//!   driver          DmaDevice -> Mapping / Coherent / Pool         dma/        knows neither platform nor vendor
//!                       |  one dynamic call per operation
//!   host            MessageInterrupts / WiredInterrupt             interrupts  who may raise which vector where
//!   front           Domain = page table + IOVAs + tags             domain.rs   generic over the vendor
//!                   Group  = functions that share a domain         group.rs
//!                   Protection = units, groups, faults             protection.rs
//!                       |  trait Backend                           backend.rs
//!   VT-d            Vtd -> ContextTables, DomainIds, planner       vtd/
//!                   Unit -> registers, invalidation queue, faults  vtd/unit, vtd/queue, vtd/fault
//!                   register and structure layouts, values only    vtd/spec/
//!                       |  trait Platform                          platform.rs
//!   host kernel     memory, registers, clock, vectors, configuration space, threads
//! ```
//!
//! What comes from outside is read once, into types that cannot be wrong: firmware's table by [`dmar`], the hierarchy
//! of bridges by [`topology`], the capability registers by `vtd::Capability`.
//!
//! # Unmapping
//!
//! `mm`'s engine clears leaves and returns a `Stale` token: the range, and the table pages that came off. The
//! invalidation queue turns it into descriptors for every place that may hold a translation, waits, and returns
//! `Flushed`. Only that frees the table pages, then the IOVA, and gives the buffer back. There is no way around: the
//! token has no other way on than a flush, and no constructor but the change that made it stale.
//!
//! A domain can walk a table of the CPU's instead of one of its own ([`Iommu::share_table`], `domain/shared.rs`): then
//! whoever has that table maps, has the domain [flushed](dma::SharedDomain::flush) by the same token before the CPUs
//! are, and keeps it until the last device is quiet.
//!
//! # Interrupts
//!
//! A write to 0xFEEx_xxxx is an interrupt, whatever the page tables say. With interrupt remapping it names an entry,
//! and the entry says who may use it: see [`interrupts`]. An entry is given to somebody else only after its unit has
//! confirmed that it has forgotten it.
//!
//! # Faults
//!
//! A blocked request is judged where its record is read, by [`policy`]: logged, counted, or the last one that its group
//! has for free. Quarantine and [`Iommu::release`] take a group back in one order (`group/revoke.rs`): stopped,
//! blocked, flushed, made quiet, and only then its memory returns.
//!
//! # Functions that come and go
//!
//! [`Iommu::functions_gone`] takes a group from its drivers as a release does, and ends it;
//! [`Iommu::functions_appeared`] stops a new one, and leaves it blocked, as its place was left, until it is claimed.
//! Which groups there are is a snapshot (`protection/layout.rs`) that is replaced as a whole: a group that a change
//! does not concern is the same in the next one, and one that somebody has cannot change.
//!
//! # Memory
//!
//! After bring-up memory is asked for so that it can be refused (what is shared is in a `TryArc`, `arc.rs`), and map
//! and unmap take none from the heap: bookkeeping is cut from table pages (`slab.rs`). Only what stands in for the ends
//! of buffers that are not whole pages is made when there is none to spare. A refusal is an error, and leaves
//! everything as it was. What must not fail, taking a device away, goes on without: in doubt its group is blocked.
//!
//! # Locks
//!
//! [`LockClass`](platform::LockClass) has all of them, in the order in which they nest; inside any of them comes what
//! the host's frame allocator takes. They are `IrqLock`s (`sync.rs`), held for a bounded number of steps; page tables
//! are changed without a lock. Nothing allocates or waits in an interrupt, and no lock is held while waiting for a
//! unit. Debug builds tell the platform of each lock, so that it can check their order.
#![no_std]
#![warn(missing_docs)]
// For loom some lengths are as small as they can be.
#![cfg_attr(loom, allow(clippy::modulo_one))]

extern crate alloc;
#[cfg(any(test, loom))]
extern crate std;

mod address;
mod arc;
mod ats;
mod backend;
mod budget;
pub mod checks;
mod direct;
pub mod dma;
pub mod dmar;
mod domain;
pub mod dump;
pub mod fault;
mod fault_log;
mod group;
pub mod interrupts;
pub mod iova;
pub mod options;
pub mod platform;
pub mod policy;
mod protection;
mod reach;
mod registers;
mod scratch;
mod slab;
mod stale_ranges;
mod strangers;
mod subsystem;
mod sync;
pub mod topology;
pub mod vtd;
mod walk;

pub use address::{Iova, PciAddress, SourceId};
pub use dma::{
    Bidirectional, Coherent, DmaBuffer, DmaDevice, DmaDomain, DmaError, DomainError, FromDevice, Grant,
    Mapping, PageBuffer, Pool, PoolBuffer, Rejected, ToDevice,
};
pub use group::{ClaimError, Incident, ReleaseError};
pub use options::Options;
pub use platform::Platform;
pub use protection::{HotplugError, StartError};
pub use reach::{TableKind, Unreachable};
pub use subsystem::{Iommu, Machine};
