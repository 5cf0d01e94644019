//! A host kernel and one unit of registers for the unit tests of this folder.
//!
//! The unit obeys, refuses, dawdles or dies as a test asks; it panics when the driver does what hardware leaves
//! undefined. It caches nothing: what must be invalidated when is proved elsewhere, against a full model.

mod memory;
mod platform;
mod registers;

pub(crate) use memory::FakeMemory;
pub(crate) use platform::FakePlatform;
pub(crate) use registers::{Executed, FakeUnit, Manner};
