//! Intel VT-d.

mod capability;
mod domain_ids;
mod error;
mod fault;
mod hardware;
mod queue;
mod registers;
mod remap;
mod second_stage;
pub mod spec;
mod tables;
#[cfg(test)]
mod testing;
mod unit;

pub use capability::{Capability, CapabilityError};
pub use error::VtdError;
pub(crate) use hardware::Vtd;
pub use registers::Bank;
pub use second_stage::{SecondStageAccess, SecondStageFormat};
