//! Look at a table without changing it: one address, the way to it, or everything.

use super::format::{Entry, Format, level_bytes};
use super::kept::Place;
use super::link::{self, Seen};
use super::memory::{Table, TableMemory};
use super::tree::{PageTable, index};
use crate::PhysAddr;
use crate::machine::{AtomicU64, Ordering};

/// Most levels that a table has.
const MAX_LEVELS: usize = 5;

/// Where one input address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation<A> {
    /// The output for exactly this input, not for the start of its leaf.
    pub output: PhysAddr,
    /// Permissions and memory type.
    pub access: A,
    /// Size of the leaf: 4 KiB, 2 MiB or 1 GiB.
    pub leaf_bytes: u64,
}

/// One entry on the way from the root to a leaf.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Step<A> {
    /// Level of the table that the entry is in; leaves of 4 KiB are at level 1.
    pub level: u8,
    /// The entry's index in its table.
    pub index: usize,
    /// The entry as the walker in hardware reads it. Bits 61:52 of one that points to a table are the engine's.
    pub raw: u64,
    /// What it says.
    pub entry: Entry<A>,
}

/// The entries that a walker reads for one input address, from the root to the leaf or to the first empty entry.
#[derive(Clone, Copy, Debug)]
pub struct Trace<A> {
    steps: [Option<Step<A>>; MAX_LEVELS],
}

impl<A: Copy> Trace<A> {
    /// The entries, the root's first.
    pub fn steps(&self) -> impl Iterator<Item = Step<A>> {
        self.steps.iter().copied().flatten()
    }
}

/// A run of inputs that are mapped to a run of outputs with the same permissions, in leaves of whatever size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run<A> {
    /// First input address.
    pub input: u64,
    /// Its output.
    pub output: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
    /// Permissions and memory type.
    pub access: A,
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Where `input` leads at this moment.
    #[must_use]
    pub fn lookup(&self, input: u64) -> Option<Translation<F::Access>> {
        let step = self.trace(input).steps().last()?;
        let Entry::Leaf(start, access) = step.entry else { return None };
        let leaf_bytes = level_bytes(step.level);
        let output = start.checked_add(input & (leaf_bytes - 1))?;
        Some(Translation { output, access, leaf_bytes })
    }

    /// The entries that a walker reads for `input`; none if the table does not translate such an address.
    #[must_use]
    pub fn trace(&self, input: u64) -> Trace<F::Access> {
        let mut steps = [None; MAX_LEVELS];
        if !self.format.covers(input, input) {
            return Trace { steps };
        }
        let mut table = self.root_table();
        // The link of `table`, which is pinned; the root has none.
        let mut held: Option<(&AtomicU64, Place)> = None;
        for (slot, level) in steps.iter_mut().zip((1..=self.format.levels()).rev()) {
            let index = index(input, level);
            let link = &table[index];
            let seen = self.pin(level, link);
            let (raw, entry) = match seen {
                Seen::Empty => (0, Entry::Empty),
                Seen::Leaf { raw, output, access } => (raw, Entry::Leaf(output, access)),
                Seen::Table(page) => (link.load(Ordering::Relaxed), Entry::Table(page)),
            };
            *slot = Some(Step { level, index, raw, entry });
            let Seen::Table(page) = seen else { break };
            // The table that holds the link is in use: this is not its last reference.
            if let Some((above, _)) = held {
                link::unpin(above, 1);
            }
            held = Some((link, Place::new(input, level - 1)));
            // SAFETY: pinned above.
            table = unsafe { self.table(page) };
        }
        if let Some((link, place)) = held {
            self.leave(link, place);
        }
        Trace { steps }
    }

    /// Gives back the reference with which a reader has pinned the table at `place`.
    fn leave(&self, link: &AtomicU64, place: Place) {
        if link::unpin(link, 1) == 0 {
            self.emptied_without_token(place);
        }
    }

    /// First leaf in `first..=last` (which lies within `table`, pinned by the caller) and below it.
    fn first_leaf(&self, table: &Table, level: u8, first: u64, last: u64) -> Option<Run<F::Access>> {
        let span = level_bytes(level);
        let mut input = first;
        loop {
            let entry = &table[index(input, level)];
            let entry_last = input | (span - 1);
            match self.pin(level, entry) {
                Seen::Empty => {}
                Seen::Leaf { output, access, .. } => {
                    return Some(Run { input: input & !(span - 1), output, bytes: span, access });
                }
                Seen::Table(page) => {
                    // SAFETY: pinned in the match.
                    let below = unsafe { self.table(page) };
                    let found = self.first_leaf(below, level - 1, input, last.min(entry_last));
                    self.leave(entry, Place::new(input, level - 1));
                    if found.is_some() {
                        return found;
                    }
                }
            }
            if entry_last >= last {
                return None;
            }
            input = entry_last + 1;
        }
    }

    /// What is mapped in `first..=last`, in order. Neighbours with contiguous outputs and the same permissions are one
    /// run. The first and the last run may reach beyond the range, to the ends of their leaves.
    ///
    /// Each step looks anew: what changes meanwhile is seen before or after the change. A step visits each entry in the
    /// rest of the range at most once.
    #[must_use]
    pub fn runs(&self, first: u64, last: u64) -> Runs<'_, F, M> {
        let next = self.format.covers(first, last).then_some(first);
        Runs { tree: self, next, last }
    }
}

/// Iterator over what is mapped: see [`PageTable::runs`].
pub struct Runs<'t, F: Format, M: TableMemory> {
    tree: &'t PageTable<F, M>,
    /// Where to look on; `None` at the end.
    next: Option<u64>,
    last: u64,
}

impl<F: Format, M: TableMemory> Iterator for Runs<'_, F, M> {
    type Item = Run<F::Access>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut merged: Option<Run<F::Access>> = None;
        while let Some(from) = self.next {
            let levels = self.tree.format.levels();
            let Some(leaf) = self.tree.first_leaf(self.tree.root_table(), levels, from, self.last) else {
                self.next = None;
                break;
            };
            if let Some(run) = &mut merged {
                if !continues(run, &leaf) {
                    break;
                }
                run.bytes += leaf.bytes;
            } else {
                merged = Some(leaf);
            }
            self.next = leaf.input.checked_add(leaf.bytes).filter(|next| *next <= self.last);
        }
        merged
    }
}

fn continues<A: PartialEq>(run: &Run<A>, leaf: &Run<A>) -> bool {
    run.input.checked_add(run.bytes) == Some(leaf.input)
        && run.output.checked_add(run.bytes) == Some(leaf.output)
        && run.access == leaf.access
}
