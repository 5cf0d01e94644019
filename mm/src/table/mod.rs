//! The page-table engine.

mod format;
mod memory;

pub use format::{Entry, Format, LeafSizes};
pub use memory::{TABLE_ENTRIES, Table, TableMemory};
