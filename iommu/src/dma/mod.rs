//! The DMA API that drivers use: the only way to a memory address that a device understands.
//!
//! Everything takes the device. A buffer moves into its [`Mapping`] and comes back from
//! [`unmap`](Mapping::unmap) once no unit can translate its address any more; in between the CPU cannot touch it.
//! Forgetting a mapping leaks its buffer and never exposes it; dropping one leaves the work to the reaper thread.

mod backlog;
mod batch;
mod buffer;
mod coherent;
pub(crate) mod device;
mod direction;
mod domain;
mod error;
mod grant;
mod limits;
mod list;
mod mapping;
mod page_buffer;
mod pool;
pub(crate) mod reaper;
mod reservation;
mod retired;
pub(crate) mod segment;
pub(crate) mod shared;
pub(crate) mod shared_bytes;
pub(crate) mod space;
mod synced;
pub(crate) mod tenure;

pub use batch::Unmapped;
pub use buffer::{DmaBuffer, RawBuffer};
pub use coherent::Coherent;
pub use device::DmaDevice;
pub use direction::{
    Access, Bidirectional, DeviceReads, DeviceWrites, Direction, FromDevice, ToDevice, Within,
};
pub use domain::{DmaDomain, DomainError};
pub(crate) use error::Unflushed;
pub use error::{DmaError, Rejected, Silent, Stuck};
pub use grant::Grant;
pub use limits::SegmentLimits;
pub use list::{DeviceSegment, ScatterList, ScatterMapping};
pub use mapping::Mapping;
pub use page_buffer::PageBuffer;
pub use pool::{Pool, PoolBuffer};
pub use reservation::Reservation;
pub use retired::{Late, Retired};
pub use shared::{NotShareable, SharedDomain, SharedTable};
pub use synced::Synced;
pub use tenure::FaultCounts;
