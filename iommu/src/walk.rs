//! The way of a request through the tables, for fault reports: where its translation ended.

use core::fmt;

use mm::{
    PhysAddr,
    table::{Entry, Step},
};

use crate::{
    dma::Access,
    dump::{Leads, StepReport, TableKind, Visitor},
};

/// Levels of the deepest page table.
pub(crate) const MAX_LEVELS: usize = 5;

/// The entries of a page table for one address, the root's first.
pub(crate) type Steps<A> = [Option<Step<A>>; MAX_LEVELS];

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
    /// Through the page table, if that is one that the group has.
    pub steps: Steps<A>,
}

impl<A: Copy> Walk<A> {
    /// Shows the entries. `rights` is what the permissions of a leaf allow.
    pub fn visit(&self, rights: impl Fn(A) -> Access, visitor: &mut dyn Visitor) {
        let mut show = |table, raw, leads| visitor.step(&StepReport { table, raw, leads });
        let (bus, source) = match self.path {
            Path::NoBus { bus } => (bus, None),
            Path::Blocked { bus, source } => (bus, Some((source, Leads::Nowhere))),
            Path::Translated { bus, source, .. } => (bus, Some((source, Leads::On))),
        };
        let Some((source, leads)) = source else { return show(TableKind::Root, bus, Leads::Nowhere) };
        show(TableKind::Root, bus, Leads::On);
        show(TableKind::Context, source, leads);
        for &Step { level, index, raw, entry } in self.steps.iter().flatten() {
            let leads = match entry {
                Entry::Empty => Leads::Nowhere,
                Entry::Table(_) => Leads::On,
                Entry::Leaf(start, access) => {
                    let Access { read, write } = rights(access);
                    Leads::Memory { start, read, write }
                }
            };
            show(TableKind::Page { level, index }, raw.into(), leads);
        }
    }
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
        for step in self.steps.iter().flatten() {
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
