//! Runs of leaves in one table: the innermost loops, a cache line of eight entries at a time.

use crate::machine::{AtomicU64, Ordering};

/// Entries in a cache line.
const LINE: usize = 8;

/// Writes `raw`, `raw + step`, `raw + 2 * step` ... into `entries`, none of which is in use.
#[inline]
pub fn fill(entries: &[AtomicU64], mut raw: u64, step: u64) {
    let (lines, rest) = entries.as_chunks::<LINE>();
    for line in lines {
        for (offset, entry) in (0..).zip(line) {
            entry.store(raw + offset * step, Ordering::Release);
        }
        raw += LINE as u64 * step;
    }
    for entry in rest {
        entry.store(raw, Ordering::Release);
        raw += step;
    }
}

/// As [`fill`], up to the first entry in use. Returns how many were written.
#[inline]
pub fn fill_unused(entries: &[AtomicU64], mut raw: u64, step: u64) -> usize {
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
#[inline]
pub fn clear(entries: &[AtomicU64]) -> u64 {
    let (lines, rest) = entries.as_chunks::<LINE>();
    let mut used = 0;
    let mut clear_one = |entry: &AtomicU64| {
        used += u64::from(entry.load(Ordering::Relaxed) != 0);
        entry.store(0, Ordering::Release);
    };
    lines.iter().for_each(|line| line.iter().for_each(&mut clear_one));
    rest.iter().for_each(&mut clear_one);
    used
}
