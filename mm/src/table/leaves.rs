//! Runs of leaves in one table: the innermost loops, a cache line of eight entries at a time.

use crate::machine::{AtomicU64, Ordering};
use crate::{PAGE_BYTES, PhysRange};

/// Entries in a cache line.
const LINE: usize = 8;

/// Entries that a loop without a question takes at a time.
const LINES: usize = 2 * LINE;

/// Segments that are looked at together.
const GROUP: usize = 4;

/// Writes `raw`, `raw + step`, `raw + 2 * step` ... into `entries`, up to the first that is in use. Returns how many
/// were written. The caller may know that all are unused.
#[inline(always)]
pub fn fill_run(entries: &[AtomicU64], raw: u64, step: u64, all_unused: bool) -> usize {
    match entries {
        [] => 0,
        [entry] => fill_each(core::slice::from_ref(entry), raw, step),
        _ if all_unused => {
            fill_lines(entries, raw, step);
            entries.len()
        }
        _ => fill_unused(entries, raw, step),
    }
}

/// Writes `leaf` plus the start of a segment into each of `entries`, up to the first segment that is not one page or
/// has a bit of `no_output` in its start, and to the first entry that is in use. Returns how many were written. The
/// caller may know that `ALL_UNUSED`.
///
/// A function of its own, so that the loop has the registers that it needs.
#[inline(never)]
pub fn fill_scattered<const ALL_UNUSED: bool>(
    entries: &[AtomicU64],
    segments: &[PhysRange],
    leaf: u64,
    no_output: u64,
) -> usize {
    let groups = entries.as_chunks::<GROUP>().0.iter().zip(segments.as_chunks::<GROUP>().0);
    let mut written = 0;
    for (entries, segments) in groups {
        if !are_pages(segments, no_output) || !ALL_UNUSED && !is_unused(entries) {
            break;
        }
        for (entry, segment) in entries.iter().zip(segments) {
            entry.store(leaf + segment.start.as_u64(), Ordering::Release);
        }
        written += GROUP;
    }
    if written == segments.len() {
        return written;
    }
    written + fill_scattered_rest::<ALL_UNUSED>(&entries[written..], &segments[written..], leaf, no_output)
}

/// What [`fill_scattered`] does with the last few, one at a time.
#[inline(never)]
fn fill_scattered_rest<const ALL_UNUSED: bool>(
    entries: &[AtomicU64],
    segments: &[PhysRange],
    leaf: u64,
    no_output: u64,
) -> usize {
    let mut written = 0;
    for (entry, segment) in entries.iter().zip(segments) {
        let is_page = are_pages(core::slice::from_ref(segment), no_output);
        if !is_page || !ALL_UNUSED && entry.load(Ordering::Relaxed) != 0 {
            break;
        }
        entry.store(leaf + segment.start.as_u64(), Ordering::Release);
        written += 1;
    }
    written
}

/// Whether each of `segments` is one page, without a bit of `no_output` in its start.
#[inline(always)]
fn are_pages(segments: &[PhysRange], no_output: u64) -> bool {
    segments.iter().all(|segment| segment.bytes == PAGE_BYTES)
        && segments.iter().fold(0, |any, segment| any | segment.start.as_u64()) & no_output == 0
}

#[inline(always)]
fn is_unused(entries: &[AtomicU64]) -> bool {
    entries.iter().fold(0, |any, entry| any | entry.load(Ordering::Relaxed)) == 0
}

#[inline(always)]
fn fill_lines(entries: &[AtomicU64], mut raw: u64, step: u64) {
    let (lines, rest) = entries.as_chunks::<LINES>();
    for lines in lines {
        fill_line(lines, raw, step);
        raw += LINES as u64 * step;
    }
    for entry in rest {
        entry.store(raw, Ordering::Release);
        raw += step;
    }
}

#[inline]
fn fill_unused(entries: &[AtomicU64], mut raw: u64, step: u64) -> usize {
    let (lines, rest) = entries.as_chunks::<LINE>();
    for (index, line) in lines.iter().enumerate() {
        if !is_unused(line) {
            return index * LINE + fill_each(line, raw, step);
        }
        fill_line(line, raw, step);
        raw += LINE as u64 * step;
    }
    lines.len() * LINE + fill_each(rest, raw, step)
}

#[inline(always)]
fn fill_line<const N: usize>(line: &[AtomicU64; N], raw: u64, step: u64) {
    for (offset, entry) in (0..).zip(line) {
        entry.store(raw + offset * step, Ordering::Release);
    }
}

#[inline(always)]
fn fill_each(entries: &[AtomicU64], mut raw: u64, step: u64) -> usize {
    for (written, entry) in entries.iter().enumerate() {
        if entry.load(Ordering::Relaxed) != 0 {
            return written;
        }
        entry.store(raw, Ordering::Release);
        raw += step;
    }
    entries.len()
}

/// Empties `entries`. Returns how many of them were in use.
#[inline(always)]
pub fn clear(entries: &[AtomicU64]) -> u64 {
    let (lines, rest) = entries.as_chunks::<LINES>();
    let mut used = clear_each(rest);
    for line in lines {
        // Leaves of one mapping have permission bits in common: that none is 0 can be seen of all at once.
        if line.iter().fold(u64::MAX, |common, entry| common & entry.load(Ordering::Relaxed)) != 0 {
            line.iter().for_each(|entry| entry.store(0, Ordering::Release));
            used += LINES as u64;
        } else {
            used += clear_each(line);
        }
    }
    used
}

fn clear_each(entries: &[AtomicU64]) -> u64 {
    let mut used = 0;
    for entry in entries {
        used += u64::from(entry.load(Ordering::Relaxed) != 0);
        entry.store(0, Ordering::Release);
    }
    used
}

/// Empties `entries` of an upper table up to the first that is a table. Returns how many it passed, and how many of
/// these were in use. Unused ones are not written: only a part of the first or the last may be the caller's, and
/// another thread may link a table there.
#[inline]
pub fn clear_leaves(entries: &[AtomicU64], is_table: impl Fn(u64) -> bool) -> (usize, u64) {
    let mut used = 0;
    for (passed, entry) in entries.iter().enumerate() {
        let raw = entry.load(Ordering::Acquire);
        if is_table(raw) {
            return (passed, used);
        }
        if raw != 0 {
            used += 1;
            entry.store(0, Ordering::Release);
        }
    }
    (entries.len(), used)
}
