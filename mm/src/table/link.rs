//! The entry that points to a table: the pointer and the table's live count in one atomic word.
//!
//! The protocol is described at [the module](super).

use super::format::{Entry, Format};
use crate::PhysAddr;
use crate::machine::{AtomicU64, Ordering, relax};

const COUNT_SHIFT: u32 = 52;

/// One reference.
const ONE: u64 = 1 << COUNT_SHIFT;

/// The bit above the count. It is 0 in every link, so that it tells when a count has overflowed.
const OVERFLOW: u64 = 1 << 62;

/// Set in a link that the walker in hardware, which does not snoop, may not find in memory yet. Formats do not use the
/// bit in the entries that point to tables, and hardware ignores it there. (In VT-d's first stage it is EA, which
/// hardware looks at only if a PASID entry enables it by EAFE: none of ours does.)
pub const UNWRITTEN: u64 = 1 << 10;

/// Most references that the ten bits can hold.
const COUNT_MAX: u64 = 0x3ff;

// 512 entries, and one reference for each of up to 511 threads that are inside the table at the same time.
const _: () = assert!(COUNT_MAX >= super::memory::TABLE_ENTRIES as u64 + 511);

/// Number of references in the link `raw`: entries of the table that are not empty, and threads inside it.
#[inline]
pub const fn count(raw: u64) -> u64 {
    raw >> COUNT_SHIFT & COUNT_MAX
}

/// The link `pointer` (as the format encodes it) with `references`.
#[inline]
pub const fn with_count(pointer: u64, references: u64) -> u64 {
    pointer | references << COUNT_SHIFT
}

/// What [`pin`] found.
pub enum Seen<A> {
    /// Nothing.
    Empty,
    /// A leaf, as the entry `raw`; nothing is pinned.
    Leaf { raw: u64, output: PhysAddr, access: A },
    /// A table, which now stays in the tree, and in its place, until [`unpin`].
    Table(PhysAddr),
}

/// Takes a reference to the table that `link`, an entry at `level`, points to. A link that whoever set it has not
/// written back yet is written back by `write_back`: what is entered below is of no use to the hardware before that,
/// and what is taken away there may still be found in what the link has replaced.
#[inline]
pub fn pin<F: Format>(
    format: &F,
    level: u8,
    link: &AtomicU64,
    write_back: impl FnOnce(&AtomicU64),
) -> Seen<F::Access> {
    let mut raw = link.load(Ordering::Acquire);
    let page = loop {
        let page = match format.decode(level, raw) {
            Entry::Empty => return Seen::Empty,
            Entry::Leaf(output, access) => return Seen::Leaf { raw, output, access },
            Entry::Table(page) => page,
        };
        if (raw + ONE) & OVERFLOW != 0 {
            // More than 511 threads inside one table: wait for one to leave.
            relax();
            raw = link.load(Ordering::Acquire);
            continue;
        }
        match link.compare_exchange_weak(raw, raw + ONE, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => break page,
            Err(now) => raw = now,
        }
    };
    if raw & UNWRITTEN != 0 {
        // Pinned, so it stays this link.
        set_written(link, write_back);
    }
    Seen::Table(page)
}

/// Writes `link`, which stays what it is meanwhile, back, and says so.
#[cold]
pub fn set_written(link: &AtomicU64, write_back: impl FnOnce(&AtomicU64)) {
    write_back(link);
    link.fetch_and(!UNWRITTEN, Ordering::AcqRel);
}

/// As [`pin`] for a table. Returns its page and the number of references before. `None` if there is no table, no
/// reference to be had at the moment, or a link that is not written back.
#[inline(always)]
pub fn try_pin<F: Format>(format: &F, level: u8, link: &AtomicU64) -> Option<(PhysAddr, u64)> {
    match pin_seen(format, level, link, link.load(Ordering::Acquire))? {
        Ok(pinned) => Some(pinned),
        Err(now) => try_pin_again(format, level, link, now),
    }
}

/// Goes on with what another thread has made of the link.
#[cold]
#[inline(never)]
fn try_pin_again<F: Format>(
    format: &F,
    level: u8,
    link: &AtomicU64,
    mut raw: u64,
) -> Option<(PhysAddr, u64)> {
    loop {
        match pin_seen(format, level, link, raw)? {
            Ok(pinned) => return Some(pinned),
            Err(now) => raw = now,
        }
    }
}

/// [`try_pin`] as long as `link` is still `raw`; else says what it is now.
#[inline(always)]
fn pin_seen<F: Format>(
    format: &F,
    level: u8,
    link: &AtomicU64,
    raw: u64,
) -> Option<Result<(PhysAddr, u64), u64>> {
    let page = format.decode_table(level, raw)?;
    if (raw + ONE) & (OVERFLOW | UNWRITTEN) != 0 {
        return None;
    }
    let exchanged = link.compare_exchange_weak(raw, raw + ONE, Ordering::AcqRel, Ordering::Acquire);
    Some(exchanged.map(|_| (page, count(raw))))
}

/// Gives `references` of the table behind `link` back, and returns how many are left. Whoever sees 0 has to see to
/// the empty table.
///
/// Sequentially consistent, as are the accesses to the notes about empty tables: see [`Kept`](super::kept::Kept).
#[inline]
pub fn unpin(link: &AtomicU64, references: u64) -> u64 {
    let before = link.fetch_sub(references << COUNT_SHIFT, Ordering::SeqCst);
    debug_assert!(count(before) >= references, "table reference count underflow");
    count(before) - references
}

/// Turns the caller's reference into one for each of the `entries` (at least 1) that it has written.
#[inline]
pub fn settle(link: &AtomicU64, entries: u64) {
    if entries > 1 {
        link.fetch_add((entries - 1) << COUNT_SHIFT, Ordering::AcqRel);
    }
}

/// Empties `link`, in a table that is not linked itself, once it has no more than `references`.
///
/// If that table was a spare one, a thread that came upon it long ago may just be pinning what is linked there now. It
/// is about to find that it is in the wrong place, and to unpin again.
pub fn sever(link: &AtomicU64, references: u64) {
    let mut raw = link.load(Ordering::Acquire);
    loop {
        if count(raw) == references {
            match link.compare_exchange_weak(raw, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => raw = now,
            }
        } else {
            relax();
            raw = link.load(Ordering::Acquire);
        }
    }
}
