//! The page-table engine.
//!
//! One walker for every kind of table: the CPU's and an IOMMU's. A [`Format`] says what entries look like, a
//! [`TableMemory`] where table pages come from, and [`PageTable`] maps, unmaps, protects and looks up ranges.
//!
//! # Who may do what at the same time
//!
//! Changes of *disjoint* input ranges go on in parallel, on any number of CPUs, without a lock. That two calls never
//! change overlapping ranges at the same time is the caller's promise: it is what makes them `unsafe`. Looking at the
//! table is always allowed.
//!
//! # The protocol
//!
//! The entry that points to a table (its *link*) holds, in bits 61:52 that the hardware ignores, the number of
//! references to that table: one for each of its entries that is not empty, and one for each thread inside it. As
//! pointer and count are one atomic word, four rules are enough:
//!
//! 1. **Pin.** A thread adds its reference to the link by compare-exchange before it touches the table, and walks
//!    hand over hand: it has pinned the table that holds a link when it pins the table behind it.
//! 2. **Settle.** References of entries that a thread fills in or clears are added or removed together with its own
//!    when it leaves the table. So the count is never below the number of entries in use.
//! 3. **Link.** A table is put into an empty entry by compare-exchange, when the thread has written everything that it
//!    wants to see below it, and (where the hardware does not snoop) has written that back. A thread that comes second
//!    takes its own table apart again, which nobody has seen, and uses the winner's. Where the hardware does not snoop,
//!    the link itself bears a mark (bit 10) until it is written back, and whoever pins the table meanwhile writes it
//!    back as well: what he does below is of no use to the hardware, or even hidden from it by what was there before,
//!    until the link is in memory.
//! 4. **Detach.** The thread that brings the count to 0 sees to the empty table: it stays, noted in one of a few slots,
//!    or leaves the tree by compare-exchange of *this pointer with count 0* to empty. Nobody is inside then, and nobody
//!    can get in. Detaching empties an entry of the table above, which has lost a reference in turn.
//!
//! A pinned table cannot be detached, its link is an entry in use, which keeps the table above it, and so on up to the
//! root: what is pinned stays where it is.
//!
//! A detached page may still be in the caches of walkers in hardware. It goes into the [`Stale`] token of the change
//! and is freed when the token is redeemed. Until then, whoever maps gets a token too: a walker that remembers the page
//! would not find what is mapped in its successor.
//!
//! A superpage that is split maps what it mapped, by other entries: the token is for all of it. Who owns another part
//! and finds it split already gets a token for that part alone.
//!
//! Looking pins as well. A table that is emptied while somebody looks into it is seen to by who looks, and what has to
//! leave the tree then waits for the next token: a map's, or that of a change by the long way. The short way, which
//! only clears leaves, does not look for such tables.
//!
//! The usual change, of a few pages in tables that are there, pins the lowest table only (`lowest.rs`): upper tables
//! that have left a tree are used for tables of their level in this tree again and for nothing else, so they can be
//! read at any time, and a count of those that left tells whether the way led to the right place.

mod edit;
mod error;
mod fill;
mod format;
mod hint;
mod kept;
mod leaves;
mod link;
mod lowest;
mod map;
mod memory;
mod pages;
mod read;
mod reclaim;
mod split;
mod stale;
mod tree;
pub mod x86;

pub use error::{EditError, MapError, OutOfTables};
pub use format::{Entry, Format, LeafSizes, level_bytes, level_shift};
pub use memory::{LEVEL_BITS, TABLE_ENTRIES, Table, TableMemory};
pub use read::{Run, Runs, Step, Trace, Translation};
pub use stale::{Flushed, Stale};
pub use tree::PageTable;
