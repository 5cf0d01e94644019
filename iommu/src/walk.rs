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

/// Tables above the page table, at most.
const MAX_TABLES: usize = 4;

/// The entries of a page table for one address, the root's first.
pub(crate) type Steps<A> = [Option<Step<A>>; MAX_LEVELS];

/// Where the tables lead that say which domain a source translates through: their entries, in the order in which the
/// unit reads them, up to the first that is not present.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Path {
    entries: [Option<(TableKind, u128)>; MAX_TABLES],
    /// Root of the page table, if all of the entries are present.
    table: Option<PhysAddr>,
}

impl Path {
    /// The path with the entry `raw` of a further table.
    pub fn through(mut self, kind: TableKind, raw: u128) -> Self {
        let free = self.entries.iter_mut().find(|slot| slot.is_none());
        debug_assert!(free.is_some(), "more tables than there are");
        if let Some(free) = free {
            *free = Some((kind, raw));
        }
        self
    }

    /// The path that ends at the page table at `table`.
    pub fn to_page_table(self, table: PhysAddr) -> Self {
        Self { table: Some(table), ..self }
    }

    /// Root of the page table, if the path gets there.
    pub fn page_table(&self) -> Option<PhysAddr> {
        self.table
    }

    /// Each entry, and whether it leads on.
    fn entries(&self) -> impl Iterator<Item = (TableKind, u128, bool)> {
        let count = self.entries.iter().flatten().count();
        let leads_on = move |index: usize| index + 1 < count || self.table.is_some();
        let entries = self.entries.iter().flatten().enumerate();
        entries.map(move |(index, &(kind, raw))| (kind, raw, leads_on(index)))
    }
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
        for (kind, raw, leads_on) in self.path.entries() {
            show(kind, raw, if leads_on { Leads::On } else { Leads::Nowhere });
        }
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
        for (index, (kind, raw, leads_on)) in self.path.entries().enumerate() {
            let separator = if index > 0 { ", " } else { "" };
            let end = if leads_on { "" } else { ": not present" };
            write!(f, "{separator}{kind} entry {raw:#x}{end}")?;
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
