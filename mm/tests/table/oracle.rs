//! Random sequences of all operations, against a plain map of what should be there.

use std::collections::BTreeMap;

use mm::table::{Format, LeafSizes, MapError, PageTable, Stale, x86::X86Access, x86::X86Format};

use super::arena::Arena;
use super::format::{BOTH, READ, Remap, Rights, WRITE};
use super::random::Random;
use super::walker::Walker;
use super::{G1, K4, M2, Tree, finish, flush, range};

/// Operations in each of the five tests.
const OPERATIONS: u32 = if cfg!(miri) { 24 } else { 300_000 };

/// What is mapped: first input to length, output and rights.
#[derive(Default)]
struct Spans(BTreeMap<u64, (u64, u64, u8)>);

impl Spans {
    fn find(&self, input: u64) -> Option<(u64, u8)> {
        let (first, (bytes, output, rights)) = self.0.range(..=input).next_back()?;
        (input - first < *bytes).then(|| (output + (input - first), *rights))
    }

    /// First mapped address from `first` on, before `end`.
    fn first_in(&self, first: u64, end: u64) -> Option<u64> {
        if self.find(first).is_some() { Some(first) } else { Some(*self.0.range(first..end).next()?.0) }
    }

    /// Makes a span end at `at`, and another start, if one reaches over it.
    fn cut(&mut self, at: u64) {
        if let Some((&first, &(bytes, output, rights))) = self.0.range(..at).next_back()
            && at - first < bytes
        {
            self.0.insert(first, (at - first, output, rights));
            self.0.insert(at, (bytes - (at - first), output + (at - first), rights));
        }
    }

    fn take(&mut self, first: u64, end: u64) -> Vec<(u64, (u64, u64, u8))> {
        self.cut(first);
        self.cut(end);
        let taken: Vec<_> = self.0.range(first..end).map(|(first, span)| (*first, *span)).collect();
        taken.iter().for_each(|(first, _)| {
            self.0.remove(first);
        });
        taken
    }

    /// Everything, with neighbours that continue each other made one.
    fn merged(&self) -> Vec<(u64, u64, u64, u8)> {
        let mut runs: Vec<(u64, u64, u64, u8)> = Vec::new();
        for (&first, &(bytes, output, rights)) in &self.0 {
            match runs.last_mut() {
                Some(last) if last.0 + last.2 == first && last.1 + last.2 == output && last.3 == rights => {
                    last.2 += bytes;
                }
                _ => runs.push((first, output, bytes, rights)),
            }
        }
        runs
    }
}

/// A tree, what should be in it, and tokens that wait for their flush.
struct Play<'a, F: Format> {
    tree: Tree<'a, F>,
    memory: &'a Arena,
    spans: Spans,
    waiting: Vec<Stale>,
    random: Random,
    walkers: Vec<Walker>,
    /// Where in the input space to play.
    places: Vec<(u64, u64)>,
    access: fn(u8) -> F::Access,
    rights: fn(F::Access) -> u8,
}

impl<F: Format> Play<'_, F> {
    fn run(mut self, operations: u32) {
        for operation in 0..operations {
            let (first, bytes) = self.pick();
            match self.random.below(100) {
                0..40 => self.map(first, bytes),
                40..80 => self.unmap(first, bytes),
                80..95 => self.protect(first, bytes),
                95..97 => self.waiting.extend(self.tree.trim()),
                _ => self.merge_two(),
            }
            self.probe(first, bytes);
            while self.random.below(6) != 0 && !self.waiting.is_empty() {
                let stale = self.waiting.swap_remove(self.random.below(self.waiting.len() as u64) as usize);
                self.tree.redeem(flush(stale));
            }
            if operation % 4096 == 0 {
                self.compare();
            }
        }
        self.compare();
        while let Some((&first, &(bytes, ..))) = self.spans.0.first_key_value() {
            self.unmap(first, bytes);
        }
        self.compare();
        self.waiting.extend(self.tree.trim());
        for stale in std::mem::take(&mut self.waiting) {
            self.tree.redeem(flush(stale));
        }
        self.tree.release_spare();
        assert_eq!(self.memory.used(), 1, "only the root is left of an empty tree");
        finish(self.tree);
    }

    /// A range: often what is mapped, or a part of it.
    fn pick(&mut self) -> (u64, u64) {
        let (first, end) = self.places[self.random.below(self.places.len() as u64) as usize];
        let unit = [K4, K4, K4, K4, K4, M2, M2, G1][self.random.below(8) as usize].min(end - first);
        let start = (first + self.random.below(end - first)) & !(unit - 1);
        let count = match self.random.below(10) {
            0..6 => 1 + self.random.below(16),
            6..8 => 1 + self.random.below(600),
            _ => 1,
        };
        let bytes = (unit * if unit == K4 { count } else { 1 + count % 4 }).min(end - start);
        if self.random.below(2) == 0
            && let Some((&mapped, &(mapped_bytes, ..))) = self.spans.0.range(start..end).next()
        {
            return if self.random.below(2) == 0 {
                (mapped, mapped_bytes)
            } else {
                (mapped, bytes.min(mapped_bytes))
            };
        }
        (start, bytes)
    }

    fn map(&mut self, first: u64, bytes: u64) {
        let rights = 1 + self.random.below(3) as u8;
        let mut segments = Vec::new();
        let mut done = 0;
        while done < bytes {
            let bytes = if self.random.below(2) == 0 { bytes - done } else { (bytes - done).min(16 * K4) };
            let output = self.random.below(1 << 33) & !(K4 - 1);
            // Often with an alignment that suits the input.
            let modulus = [K4, M2, G1][self.random.below(3) as usize];
            let output = output & !(modulus - 1) | first.wrapping_add(done) & (modulus - 1);
            segments.push((first + done, bytes, output));
            done += bytes;
        }
        let ranges: Vec<_> = segments.iter().map(|(_, bytes, output)| range(*output, *bytes)).collect();
        // SAFETY: no other thread changes the tree.
        let result = unsafe { self.tree.map(first, &ranges, (self.access)(rights)) };
        match (result, self.spans.first_in(first, first + bytes)) {
            (Ok(stale), None) => {
                self.waiting.extend(stale);
                segments.iter().for_each(|(first, bytes, output)| {
                    self.spans.0.insert(*first, (*bytes, *output, rights));
                });
            }
            (Err(MapError::AlreadyMapped { input, undone }), Some(occupied)) => {
                assert!(input <= occupied && occupied - input < G1, "{input:#x} reported for {occupied:#x}");
                assert_eq!(undone.as_ref().map_or(0, Stale::changed_bytes), input - first);
                self.waiting.extend(undone);
            }
            (result, occupied) => panic!("map of {first:#x}, occupied {occupied:x?}: {result:?}"),
        }
    }

    fn unmap(&mut self, first: u64, bytes: u64) {
        // SAFETY: no other thread changes the tree.
        let stale = unsafe { self.tree.unmap(first, bytes) }.unwrap();
        let removed: u64 = self.spans.take(first, first + bytes).iter().map(|(_, span)| span.0).sum();
        assert_eq!(stale.changed_bytes(), removed);
        assert!(stale.first() <= first && stale.last() >= first + bytes - 1);
        self.waiting.push(stale);
    }

    fn protect(&mut self, first: u64, bytes: u64) {
        let rights = 1 + self.random.below(3) as u8;
        // SAFETY: no other thread changes the tree.
        let stale = unsafe { self.tree.protect(first, bytes, (self.access)(rights)) }.unwrap();
        let mut changed = 0;
        for (first, (bytes, output, before)) in self.spans.take(first, first + bytes) {
            changed += if before == rights { 0 } else { bytes };
            self.spans.0.insert(first, (bytes, output, rights));
        }
        assert_eq!(stale.changed_bytes(), changed);
        self.waiting.push(stale);
    }

    fn merge_two(&mut self) {
        if self.waiting.len() >= 2
            && let (Some(mut stale), Some(other)) = (self.waiting.pop(), self.waiting.pop())
        {
            let (first, last) = (stale.first().min(other.first()), stale.last().max(other.last()));
            let bytes = stale.changed_bytes() + other.changed_bytes();
            let tables = stale.holds_tables() || other.holds_tables();
            let only_leaves = stale.only_leaves() && other.only_leaves();
            self.tree.merge(&mut stale, other).unwrap();
            assert_eq!((stale.first(), stale.last(), stale.changed_bytes()), (first, last, bytes));
            assert_eq!((stale.holds_tables(), stale.only_leaves()), (tables, only_leaves));
            self.waiting.push(stale);
        }
    }

    /// Hardware, the engine and the oracle agree about the ends of a range and what is next to them.
    fn probe(&mut self, first: u64, bytes: u64) {
        let middle = first + self.random.below(bytes);
        for input in [first.wrapping_sub(1), first, middle, first + bytes - 1, first + bytes] {
            if input >> (12 + 9 * self.walkers[0].levels) != 0 {
                continue;
            }
            let expected = self.spans.find(input);
            for walker in &self.walkers {
                let found = walker.walk(self.memory, input).map(|found| (found.output, found.bits as u8 & 3));
                assert_eq!(
                    found.map(|found| found.0),
                    expected.map(|found| found.0),
                    "hardware at {input:#x}"
                );
            }
            let found =
                self.tree.lookup(input).map(|found| (found.output.as_u64(), (self.rights)(found.access)));
            assert_eq!(found, expected, "engine at {input:#x}");
        }
    }

    fn compare(&self) {
        let last = u64::MAX >> (64 - 12 - 9 * self.walkers[0].levels);
        let runs: Vec<_> = self
            .tree
            .runs(0, if self.tree.format().covers(0, last) { last } else { last >> 1 })
            .map(|run| (run.input, run.output.as_u64(), run.bytes, (self.rights)(run.access)))
            .collect();
        assert_eq!(runs, self.spans.merged());
        assert_eq!(self.tree.pages(), self.memory.used());
        self.walkers[0].audit(self.memory);
    }
}

fn play_remap(format: Remap, places: &[(u64, u64)], seed: u64) {
    let memory = Arena::new(if cfg!(miri) { 2048 } else { 8192 });
    if !format.coherent {
        memory.evict_at_random(seed);
    }
    let tree = PageTable::new(format, &memory).unwrap();
    let walker = |snoops| Walker { root: tree.root(), levels: format.levels.into(), snoops, present: 3 };
    let walkers = if format.coherent { vec![walker(true)] } else { vec![walker(true), walker(false)] };
    Play {
        walkers,
        tree,
        memory: &memory,
        spans: Spans::default(),
        waiting: Vec::new(),
        random: Random::new(seed),
        places: places.to_vec(),
        access: Rights,
        rights: |rights| rights.0,
    }
    .run(OPERATIONS);
}

/// The last pages, and both sides of the first border between two entries of the root.
#[test]
fn three_levels() {
    let format = Remap { levels: 3, sizes: LeafSizes::all(), output_bits: 39, coherent: false };
    play_remap(format, &[(G1 - 64 * K4, G1 + 64 * K4), ((1 << 39) - G1 - M2, 1 << 39)], 1);
}

#[test]
fn four_levels_without_1g_leaves() {
    let sizes = LeafSizes::SIZE_4K | LeafSizes::SIZE_2M;
    let format = Remap { levels: 4, sizes, output_bits: 46, coherent: false };
    play_remap(format, &[(0, 4 * M2), ((1 << 39) - 3 * M2, (1 << 39) + G1 + M2)], 2);
}

#[test]
fn five_levels_with_4k_leaves_only() {
    let format = Remap { levels: 5, sizes: LeafSizes::SIZE_4K, output_bits: 52, coherent: true };
    play_remap(format, &[((1 << 48) - 2 * M2, (1 << 48) + 2 * M2), ((1 << 57) - 300 * K4, 1 << 57)], 3);
}

fn play_x86(levels: u8, places: &[(u64, u64)], seed: u64) {
    let memory = Arena::new(if cfg!(miri) { 2048 } else { 8192 });
    let tree = PageTable::new(X86Format::new(levels, LeafSizes::all(), 46).unwrap(), &memory).unwrap();
    let access = |rights: u8| match Rights(rights) {
        READ => X86Access::NO_EXECUTE,
        WRITE => X86Access::WRITE | X86Access::USER,
        rights => {
            assert_eq!(rights, BOTH);
            X86Access::GLOBAL
        }
    };
    Play {
        walkers: vec![Walker { root: tree.root(), levels: levels.into(), snoops: true, present: 1 }],
        tree,
        memory: &memory,
        spans: Spans::default(),
        waiting: Vec::new(),
        random: Random::new(seed),
        places: places.to_vec(),
        access,
        rights: |found| match found {
            X86Access::NO_EXECUTE => READ.0,
            X86Access::GLOBAL => BOTH.0,
            _ => WRITE.0,
        },
    }
    .run(OPERATIONS);
}

#[test]
fn x86_four_levels() {
    play_x86(4, &[(M2, 5 * M2), ((1 << 39) - 2 * G1, (1 << 39) + 2 * G1)], 4);
}

/// Both sides of a border between entries of the root, and the end of the lower half of the canonical addresses.
#[test]
fn x86_five_levels() {
    play_x86(5, &[((1 << 48) - 2 * G1, (1 << 48) + 2 * G1), ((1 << 56) - 300 * K4, 1 << 56)], 5);
}
