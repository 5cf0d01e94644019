//! Where the memory may lie that units read by physical address: their tables, their queues, and what they write to.
//!
//! A host may have memory beyond the addresses that a unit can put out. A table there would be read somewhere else, so
//! each is asked for here, and refused by name if it is beyond.

use core::fmt;

use mm::{PhysAddr, table::TableMemory};

use crate::Platform;

/// What a unit reads in memory, or writes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableKind {
    /// The root table.
    Root,
    /// A context table.
    Context,
    /// A PASID directory.
    PasidDirectory,
    /// A PASID table.
    Pasid,
    /// A page of a page table.
    PageTable,
    /// The invalidation queue.
    Queue,
    /// Where the unit writes that a wait is done.
    Status,
    /// The interrupt-remapping table.
    Interrupts,
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root table",
            Self::Context => "context table",
            Self::PasidDirectory => "PASID directory",
            Self::Pasid => "PASID table",
            Self::PageTable => "page table",
            Self::Queue => "invalidation queue",
            Self::Status => "page of wait statuses",
            Self::Interrupts => "interrupt-remapping table",
        })
    }
}

/// A table that lies beyond the host address width.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// What it is.
    pub table: TableKind,
    /// Where it lies.
    pub address: PhysAddr,
    /// The host address width, in bits.
    pub width: u8,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, address, width } = self;
        write!(f, "the {table} at {address} lies beyond the {width} address bits of the machine")
    }
}

/// Why there is no memory for a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TableError {
    /// There is none.
    OutOfMemory,
    /// What there is, no unit reaches.
    Unreachable(Unreachable),
}

/// The addresses that units can put out: those of the host address width (DMAR table), in bits, 64 at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostWidth(pub u8);

impl HostWidth {
    /// A zeroed page for `table`.
    pub fn page(self, tables: &impl TableMemory, table: TableKind) -> Result<PhysAddr, TableError> {
        let page = tables.allocate().ok_or(TableError::OutOfMemory)?;
        self.check(table, page).inspect_err(|_| {
            // SAFETY: it came from there just now, and nothing leads to it.
            unsafe { tables.free(page) }
        })?;
        Ok(page)
    }

    /// `pages` zeroed pages in a row for `table`. Those that are beyond are lost: the host takes none back. They are
    /// aligned to their size, so that all of them are beyond or none.
    pub fn run<P: Platform>(
        self,
        platform: &P,
        table: TableKind,
        pages: usize,
    ) -> Result<PhysAddr, TableError> {
        let first = platform.allocate_contiguous(pages).ok_or(TableError::OutOfMemory)?;
        self.check(table, first)?;
        Ok(first)
    }

    fn check(self, table: TableKind, address: PhysAddr) -> Result<(), TableError> {
        if address.as_u64().unbounded_shr(self.0.into()) == 0 {
            return Ok(());
        }
        Err(TableError::Unreachable(Unreachable { table, address, width: self.0 }))
    }
}
