//! Virtio over PCI, modern interface, with every address translated by the IOMMU.
//!
//! ```text
//!   blk, net ──── requests and frames
//!     │
//!   SplitQueue ── descriptor chains, free list, used ring; knows no device and no memory
//!     │
//!   Rings ─────── coherent memory        Transport ── registers, features, MSI-X, reset
//! ```
//!
//! `VIRTIO_F_ACCESS_PLATFORM` is required: a device without it uses physical addresses and goes around the IOMMU.
//! Indices and lengths that a device writes are checked against what was submitted; one that lies is reset.

/// Vendor id of virtio devices.
pub const VENDOR: u16 = 0x1af4;

pub mod blk;
pub mod net;
mod queue;
mod registers;
mod rings;
mod transport;

pub use queue::{QueueError, Segment, SplitQueue};
pub use rings::{Descriptor, RingMemory, Rings, UsedElement};
pub use transport::{
    Doorbell, EVENT_INDEX, INDIRECT_DESCRIPTORS, QueueAddresses, Transport, TransportError, await_quiet,
};
