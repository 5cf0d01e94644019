//! Memory types: what an entry of the page-attribute table (PAT) says of the pages that choose it.
//!
//! Pages choose by the PWT and PCD bits of their leaves; the third bit, whose place depends on the leaf's size,
//! stays 0. Of the four entries that this leaves, one is not as after reset: what is left by PWT alone combines writes,
//! instead of writing through. No page has ever been mapped so when it is changed, so that no cache holds anything by
//! it.

use mm::table::x86::X86Access;
use x86::msr::{IA32_PAT, wrmsr};

const WRITE_BACK: u64 = 6;
const WRITE_COMBINED: u64 = 1;
/// Uncached, unless a range register of the CPU says that writes are combined.
const UNCACHED_MINUS: u64 = 7;
const UNCACHEABLE: u64 = 0;

/// Registers of devices: each access as it is, and in order.
pub const UNCACHED: X86Access = X86Access::CACHE_DISABLE.union(X86Access::WRITE_THROUGH);
/// Memory of devices: writes may be combined, and reads are not cached.
pub const WRITE_COMBINING: X86Access = X86Access::WRITE_THROUGH;

/// The entries, from the one without PWT and PCD on.
const ENTRIES: [u64; 4] = [WRITE_BACK, WRITE_COMBINED, UNCACHED_MINUS, UNCACHEABLE];

/// The whole table. Its upper half, which no page chooses, repeats the lower one.
pub const PAT: u64 = {
    let mut table = 0;
    let mut index = 0;
    while index < 2 * ENTRIES.len() {
        table |= ENTRIES[index % ENTRIES.len()] << (8 * index);
        index += 1;
    }
    table
};

const _: () = {
    // PWT is bit 0 of an entry's number, PCD is bit 1.
    assert!(ENTRIES[0b11] == UNCACHEABLE && ENTRIES[0b01] == WRITE_COMBINED);
    assert!(PAT == 0x0007_0106_0007_0106);
};

/// Gives this CPU the table. Every x86-64 CPU has one.
pub fn init() {
    // SAFETY: entries that are in use stay as they were after reset: see the module.
    unsafe { wrmsr(IA32_PAT, PAT) };
}
