//! Map: fill empty entries with leaves.

use super::error::MapError;
use super::fill::Filled;
use super::format::{Entry, Format, LeafSizes, level_bytes};
use super::kept::Place;
use super::memory::{TABLE_ENTRIES, Table, TableMemory};
use super::stale::Stale;
use super::tree::{Detached, PageTable, index};
use super::{leaves, link};
use crate::machine::Ordering;
use crate::{PAGE_BYTES, PAGE_SHIFT, PhysAddr, PhysRange};

/// What is still to be mapped, and where. A copy of it is a place to come back to.
#[derive(Clone, Copy)]
struct Cursor<'s> {
    input: u64,
    output: u64,
    /// Bytes still to map of the segment that `output` is in; 0 when nothing is left.
    in_segment: u64,
    /// The segments after that.
    segments: &'s [PhysRange],
}

impl Cursor<'_> {
    fn advance(&mut self, bytes: u64) {
        // Wraps to 0 at the very end of the address space, where nothing is left.
        self.input = self.input.wrapping_add(bytes);
        self.output += bytes;
        self.in_segment -= bytes;
        while self.in_segment == 0
            && let Some((next, rest)) = self.segments.split_first()
        {
            self.output = next.start.as_u64();
            self.in_segment = next.bytes;
            self.segments = rest;
        }
    }
}

/// Why a map stops early, at the cursor.
#[derive(Clone, Copy)]
enum Stop {
    Unaligned,
    InputBeyondWidth,
    OutputBeyondWidth(PhysRange),
    AlreadyMapped,
    OutOfTables,
}

struct Job<'s, A> {
    cursor: Cursor<'s>,
    access: A,
    stop: Option<Stop>,
    /// Whether a spare page is in a table that is not linked yet.
    uses_spare: bool,
    detached: Detached,
}

impl<A> Job<'_, A> {
    fn goes_on(&self) -> bool {
        self.cursor.in_segment != 0 && self.stop.is_none()
    }

    /// Level of the largest leaf that can stand at the cursor.
    fn leaf_level(&self, sizes: LeafSizes) -> u8 {
        let fits = |level| {
            let bytes = level_bytes(level);
            (self.cursor.input | self.cursor.output) & (bytes - 1) == 0 && self.cursor.in_segment >= bytes
        };
        if !sizes.contains(LeafSizes::SIZE_2M) || !fits(2) {
            1
        } else if !sizes.contains(LeafSizes::SIZE_1G) || !fits(3) {
            2
        } else {
            3
        }
    }
}

impl<F: Format, M: TableMemory> PageTable<F, M> {
    /// Maps the inputs from `input` to `segments`, one after the other, with the largest leaves that alignment and
    /// hardware allow. Start and length of each segment are multiples of 4 KiB.
    ///
    /// A token comes back if tables have left the tree lately, on behalf of this call or of another one whose flush is
    /// not over: walkers in hardware may not see the mapping before it is flushed. Whether a mapping that was not there
    /// before needs a flush of its own is the hardware's affair (caching mode, write buffers).
    ///
    /// # Errors
    /// See [`MapError`]. The table then maps what it mapped before.
    ///
    /// # Safety
    /// - No other call maps, unmaps or protects any part of the input range at the same time.
    /// - Whoever walks the table can access the segments with `access`.
    #[inline(always)]
    pub unsafe fn map(
        &self,
        input: u64,
        segments: &[PhysRange],
        access: F::Access,
    ) -> Result<Option<Stale>, MapError> {
        match segments {
            [PhysRange { start, bytes: PAGE_BYTES }] if self.map_page(input, *start, access) => {
                if self.all_flushed() { Ok(None) } else { self.mapped_beside_unflushed(input, segments) }
            }
            [segment] => self.map_run(input, segment, access),
            _ => self.map_list(input, segments, access),
        }
    }

    #[inline(never)]
    fn map_run(&self, input: u64, segment: &PhysRange, access: F::Access) -> Result<Option<Stale>, MapError> {
        let filled = self.fill_one(input, segment, access);
        self.map_unless_filled(input, core::slice::from_ref(segment), access, filled)
    }

    #[inline(never)]
    fn map_list(
        &self,
        input: u64,
        segments: &[PhysRange],
        access: F::Access,
    ) -> Result<Option<Stale>, MapError> {
        let filled = self.fill_list(input, segments, access);
        self.map_unless_filled(input, segments, access, filled)
    }

    #[inline(always)]
    fn map_unless_filled(
        &self,
        input: u64,
        segments: &[PhysRange],
        access: F::Access,
        filled: Filled,
    ) -> Result<Option<Stale>, MapError> {
        if filled.pages != 0 && filled.segments == segments.len() {
            return if self.all_flushed() { Ok(None) } else { self.mapped_beside_unflushed(input, segments) };
        }
        self.map_rest(input, segments, access, filled)
    }

    /// What a map that went the simple way comes to while a table that left the tree is not flushed yet.
    #[cold]
    #[inline(never)]
    fn mapped_beside_unflushed(&self, input: u64, segments: &[PhysRange]) -> Result<Option<Stale>, MapError> {
        Ok(self.visible(None, input, segments))
    }

    /// Maps what is left of `segments` at `input` after `filled`, and undoes it all if that fails.
    #[inline(never)]
    fn map_rest(
        &self,
        input: u64,
        segments: &[PhysRange],
        access: F::Access,
        filled: Filled,
    ) -> Result<Option<Stale>, MapError> {
        let mut cursor = Cursor { input, output: 0, in_segment: 0, segments };
        let checked = self.check(&cursor);
        let mut job =
            Job { cursor, access, stop: checked.err(), uses_spare: false, detached: Detached::new() };
        cursor.advance(0);
        let mut pages = filled.pages as u64;
        while pages != 0 {
            let bytes = (pages << PAGE_SHIFT).min(cursor.in_segment);
            cursor.advance(bytes);
            pages -= bytes >> PAGE_SHIFT;
        }
        job.cursor = cursor;
        self.fill(&mut job, self.root_table(), self.format.levels(), true);
        match job.stop {
            None => Ok(self.visible(self.stale_of(job.detached), input, segments)),
            Some(stop) => Err(self.roll_back((input, segments), stop, job.cursor.input, job.detached)),
        }
    }

    /// Checks a map that is to start at `cursor`.
    fn check(&self, cursor: &Cursor<'_>) -> Result<(), Stop> {
        let mut bytes = 0_u64;
        let mut alignment = cursor.input;
        for range in cursor.segments {
            let start = range.start.as_u64();
            if start.checked_add(range.bytes).is_none_or(|end| end > 1 << self.format.output_bits()) {
                return Err(Stop::OutputBeyondWidth(*range));
            }
            alignment |= start | range.bytes;
            bytes = bytes.saturating_add(range.bytes);
        }
        if alignment & (PAGE_BYTES - 1) != 0 || bytes == 0 {
            return Err(Stop::Unaligned);
        }
        let last = cursor.input.checked_add(bytes - 1);
        let is_covered = last.is_some_and(|last| self.format.covers(cursor.input, last));
        if is_covered { Ok(()) } else { Err(Stop::InputBeyondWidth) }
    }

    /// Takes away what was mapped up to `end`, and says why.
    #[cold]
    fn roll_back(
        &self,
        (first, segments): (u64, &[PhysRange]),
        stop: Stop,
        end: u64,
        mut detached: Detached,
    ) -> MapError {
        let mut removed = 0;
        if end != first {
            let levels = self.format.levels();
            removed = self.clear(self.root_table(), levels, (first, end - 1), false, &mut detached).bytes;
        }
        let undone = if removed == 0 {
            self.stale_of(detached)
        } else {
            Some(self.stale_for(first, end - 1, removed, detached))
        };
        match stop {
            Stop::Unaligned => MapError::Unaligned { input: first, undone },
            Stop::InputBeyondWidth => {
                let bytes = segments.iter().fold(0_u64, |sum, range| sum.saturating_add(range.bytes));
                MapError::InputBeyondWidth { input: first, bytes, undone }
            }
            Stop::OutputBeyondWidth(range) => MapError::OutputBeyondWidth { range, undone },
            Stop::AlreadyMapped => MapError::AlreadyMapped { input: end, undone },
            Stop::OutOfTables => MapError::OutOfTables { input: end, undone },
        }
    }

    /// Writes leaves into `table`, and into the tables below it, from the cursor to the end of `table` or of the job.
    /// Returns how many entries of `table` are in use now that were not.
    ///
    /// `linked`: others see the table (and the caller has pinned it); else it is this thread's alone.
    fn fill(&self, job: &mut Job<'_, F::Access>, table: &Table, level: u8, linked: bool) -> u64 {
        let table_last = job.cursor.input | (level_bytes(level + 1) - 1);
        let mut added = 0;
        while job.goes_on() && job.cursor.input <= table_last {
            let written = if job.leaf_level(self.format.leaf_sizes()) >= level {
                self.write_leaves(job, table, level, linked)
            } else {
                0
            };
            added += written;
            if written == 0 {
                added += self.fill_below(job, table, level, linked);
            }
        }
        added
    }

    /// Writes leaves of `level` into `table` from the cursor on, as many as the segment has for this table, or up to
    /// the first entry that is in use. Returns how many.
    fn write_leaves(&self, job: &mut Job<'_, F::Access>, table: &Table, level: u8, linked: bool) -> u64 {
        let bytes = level_bytes(level);
        let first = index(job.cursor.input, level);
        let wanted = usize::try_from(job.cursor.in_segment / bytes).unwrap_or(usize::MAX);
        let entries = &table[first..TABLE_ENTRIES.min(first.saturating_add(wanted))];
        let raw = self.format.encode_leaf(level, PhysAddr::new(job.cursor.output), job.access);
        let written = leaves::fill_run(entries, raw, bytes, !linked);
        if linked {
            self.write_back(&entries[..written]);
        }
        job.cursor.advance(written as u64 * bytes);
        written as u64
    }

    /// Goes on in the table below the entry of `table` at the cursor, which is made if it is missing. Returns 1 if the
    /// entry is in use now and was not, else 0.
    fn fill_below(&self, job: &mut Job<'_, F::Access>, table: &Table, level: u8, linked: bool) -> u64 {
        let entry = &table[index(job.cursor.input, level)];
        let place = Place::new(job.cursor.input, level - 1);
        loop {
            let raw = entry.load(Ordering::Acquire);
            match self.format.decode(level, raw) {
                Entry::Leaf(..) => {
                    job.stop = Some(Stop::AlreadyMapped);
                    return 0;
                }
                Entry::Empty => {
                    let before = job.cursor;
                    let Some((page, new)) = self.build(job, level - 1) else { return 0 };
                    let is_ours = if linked {
                        self.link(entry, raw, new)
                    } else {
                        entry.compare_exchange(raw, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
                    };
                    if is_ours {
                        job.uses_spare &= !linked;
                        return 1;
                    }
                    // Another thread linked a table first: ours was never seen.
                    self.dismantle(page, level - 1, job.uses_spare);
                    job.cursor = before;
                }
                Entry::Table(page)
                    if job.leaf_level(self.format.leaf_sizes()) >= level && link::count(raw) == 0 =>
                {
                    let leaf = self.format.encode_leaf(level, PhysAddr::new(job.cursor.output), job.access);
                    if self.unlink(entry, (raw, leaf), (page, place), &mut job.detached).is_ok() {
                        job.cursor.advance(level_bytes(level));
                        return 0;
                    }
                }
                Entry::Table(_) => {
                    let link::Seen::Table(page) = self.pin(level, entry) else { continue };
                    // SAFETY: pinned in the line above.
                    let added = self.fill(job, unsafe { self.table(page) }, level - 1, true);
                    if added != 0 {
                        link::settle(entry, added);
                    } else if link::unpin(entry, 1) == 0 {
                        self.emptied(place, true, &mut job.detached);
                    }
                    return 0;
                }
            }
        }
    }

    /// Makes a table of `level` that maps what the job has for it. Returns its page and the entry that links it, or
    /// `None` if there are not enough pages; the cursor is then where it was.
    fn build(&self, job: &mut Job<'_, F::Access>, level: u8) -> Option<(PhysAddr, u64)> {
        let before = job.cursor;
        let Some((page, was_spare)) = self.allocate(level) else {
            job.stop = Some(Stop::OutOfTables);
            return None;
        };
        job.uses_spare |= was_spare;
        // SAFETY: not linked yet.
        let table = unsafe { self.table(page) };
        let added = self.fill(job, table, level, false);
        if job.stop.is_some() {
            self.dismantle(page, level, job.uses_spare);
            job.cursor = before;
            return None;
        }
        self.write_back(table);
        Some((page, link::with_count(self.format.encode_table(page), added)))
    }

    /// Frees a table of `level` that was never linked, and those below it.
    fn dismantle(&self, page: PhysAddr, level: u8, keep_upper: bool) {
        self.dismantle_below(page, level, keep_upper);
        self.discard(page, level, keep_upper);
    }

    /// Empties such a table. Returns how many entries were in use.
    fn dismantle_below(&self, page: PhysAddr, level: u8, keep_upper: bool) -> u64 {
        let mut used = 0;
        // SAFETY: not linked.
        for entry in unsafe { self.table(page) } {
            match self.format.decode(level, entry.load(Ordering::Relaxed)) {
                Entry::Empty => continue,
                Entry::Leaf(..) => entry.store(0, Ordering::Relaxed),
                Entry::Table(below) => {
                    let references = self.dismantle_below(below, level - 1, keep_upper);
                    link::sever(entry, references);
                    self.discard(below, level - 1, keep_upper);
                }
            }
            used += 1;
        }
        used
    }
}
