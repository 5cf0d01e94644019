//! Intel VT-d.

mod capability;
mod domain_ids;
mod error;
mod fault;
mod flush;
mod format;
mod hardware;
mod mode;
mod queue;
mod registers;
mod remap;
pub mod spec;
mod tables;
mod tags;
#[cfg(test)]
pub(crate) mod testing;
mod unit;

pub use capability::{Capability, CapabilityError};
pub use error::VtdError;
pub use fault::Drained;
pub use format::{TableAccess, TableFormat};
pub(crate) use hardware::{Discovered, InterruptControllers, Vtd};
pub use mode::TranslationMode;
pub use queue::{
    CachingDevice, ContextScope, InterruptScope, Invalidation, InvalidationError, IotlbScope,
    MAX_DEVICE_DESCRIPTORS, MAX_PAGE_DESCRIPTORS, PasidScope, Plan, QueueReport, QueueStatistics, Ticket,
};
pub use registers::Bank;
pub use remap::{
    InterruptBlock, InterruptTable, MAX_BLOCK_ORDER, MAX_TABLE_ORDER, MIN_TABLE_ORDER, Route, RouteError,
};
pub use unit::{BringUp, BringUpError, CommandError, DiscoverError, InterruptSetup, Location, Unit};
