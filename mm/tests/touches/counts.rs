//! A tree, and what an operation does to each of its entries.

use std::collections::BTreeMap;

use crate::PhysAddr;
use crate::machine::{Access, AtomicU64, Ordering, take_accesses};
use crate::memory::Memory;
use crate::table::x86::{X86Access, X86Format};
use crate::table::{Entry, Flushed, Format, LeafSizes, PageTable, Stale, TableMemory, level_bytes};

pub const LEVELS: u8 = 4;

pub type Tree<'m> = PageTable<X86Format, &'m Memory>;

pub fn tree(memory: &Memory) -> Tree<'_> {
    PageTable::new(X86Format::new(LEVELS, LeafSizes::all(), 46).unwrap(), memory).unwrap()
}

/// Flushes for hardware that there is none of.
pub fn flush(stale: Stale) -> Flushed {
    // SAFETY: nothing walks the tables of these tests.
    unsafe { stale.assume_flushed() }
}

/// An entry by what it translates: its level, and its first input.
pub type At = (u8, u64);

/// How often an entry was read, written, and both at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Touched {
    pub reads: usize,
    pub writes: usize,
    pub updates: usize,
}

pub const fn touched(reads: usize, writes: usize, updates: usize) -> Touched {
    Touched { reads, writes, updates }
}

/// The accesses of one operation.
pub struct Touches(BTreeMap<At, Touched>);

impl Touches {
    /// Of `operation` on `tree`. A token that comes of it is redeemed afterwards.
    pub fn of(tree: &Tree<'_>, operation: impl FnOnce() -> Option<Stale>) -> Self {
        let mut tables = BTreeMap::new();
        enter_tables(tree, tree.root(), (LEVELS, 0), &mut tables);
        take_accesses();
        let stale = operation();
        let accesses = take_accesses();
        enter_tables(tree, tree.root(), (LEVELS, 0), &mut tables);
        stale.into_iter().for_each(|stale| tree.redeem(flush(stale)));
        let mut touches = BTreeMap::new();
        for (address, access) in accesses {
            // What is not an entry belongs to the tree as a whole.
            let Some((page, index)) = tree.memory().entry_at(address) else { continue };
            let (level, first) = tables[&page.as_u64()];
            let at = (level, first + index as u64 * level_bytes(level));
            let touched: &mut Touched = touches.entry(at).or_default();
            match access {
                Access::Read => touched.reads += 1,
                Access::Write => touched.writes += 1,
                Access::Update => touched.updates += 1,
            }
        }
        Self(touches)
    }

    /// What was done to the entries of `level`.
    pub fn at_level(&self, level: u8) -> BTreeMap<u64, Touched> {
        self.0.iter().filter(|(at, _)| at.0 == level).map(|(at, touched)| (at.1, *touched)).collect()
    }

    /// Sees that of `level` just the entries for `bytes` bytes from `input` were touched, each of them as `expected`.
    pub fn assert_each(&self, level: u8, (input, bytes): (u64, u64), expected: Touched) {
        let step = level_bytes(level);
        let first = input & !(step - 1);
        let all = (first..input + bytes).step_by(step as usize).map(|input| (input, expected)).collect();
        assert_eq!(self.at_level(level), all, "level {level}");
    }
}

/// Enters the table `page` and those below it: the level of each, and its first input.
fn enter_tables(tree: &Tree<'_>, page: PhysAddr, (level, first): At, tables: &mut BTreeMap<u64, At>) {
    tables.insert(page.as_u64(), (level, first));
    // SAFETY: a table of the tree, which nobody changes meanwhile.
    let table = unsafe { tree.memory().table(page) };
    for (entry, input) in table.iter().zip((first..).step_by(level_bytes(level) as usize)) {
        if let Entry::Table(below) = tree.format().decode(level, entry.load(Ordering::Relaxed)) {
            enter_tables(tree, below, (level - 1, input), tables);
        }
    }
}
