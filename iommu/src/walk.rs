//! The way of a request through the tables, for fault reports: where its translation ended.

use core::fmt;

use mm::{
    PhysAddr,
    table::{Entry, Trace},
};

/// Where the tables lead that say which domain a source translates through.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Path {
    /// The source's bus has no table.
    NoBus {
        /// The entry of the bus.
        bus: u128,
    },
    /// The source's entry is not present: it may reach nothing.
    Blocked {
        /// The entry of the bus.
        bus: u128,
        /// The entry of the source.
        source: u128,
    },
    /// The source translates through the page table at `table`.
    Translated {
        /// The entry of the bus.
        bus: u128,
        /// The entry of the source.
        source: u128,
        /// Root of the page table.
        table: PhysAddr,
    },
}

/// The entries that the hardware reads for one request, as they are now, from the root down to the one that ends it.
pub(crate) struct Walk<A> {
    pub path: Path,
    /// Through the domain's table, if that is the one that the path leads to.
    pub trace: Option<Trace<A>>,
}

impl<A: Copy + fmt::Debug> fmt::Display for Walk<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path {
            Path::NoBus { bus } => return write!(f, "root entry {bus:#x}: not present"),
            Path::Blocked { bus, source } => {
                return write!(f, "root entry {bus:#x}, context entry {source:#x}: not present");
            }
            Path::Translated { bus, source, .. } => {
                write!(f, "root entry {bus:#x}, context entry {source:#x}")?;
            }
        }
        for step in self.trace.iter().flat_map(Trace::steps) {
            write!(f, ", level {} entry {} {:#x}", step.level, step.index, step.raw)?;
            match step.entry {
                Entry::Empty => f.write_str(": not present")?,
                Entry::Leaf(_, access) => write!(f, ": a leaf, {access:?}")?,
                Entry::Table(_) => {}
            }
        }
        Ok(())
    }
}
