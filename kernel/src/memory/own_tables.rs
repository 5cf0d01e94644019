//! Table pages of the kernel's own tree.
//!
//! The kernel's half is in the table of each process, and units walk that for devices. They block what is the
//! supervisor's, which the entries of a process's root say already, but a unit may read ahead, and remember a table on
//! its way for as long as the domain lives, whose flushes are for the process's half. So a page that was a table of
//! this tree stays one: whatever a unit still takes it for, it leads to the kernel's, and to nothing for a user.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use mm::{
    PhysAddr,
    table::{Table, TableMemory},
};

use super::{KernelTables, frames};
use crate::sync::{IrqMutex, Rank};

/// The page that left the tree last, and is not in it again. Each has the address of the next in its first entry, which
/// is none that is present.
static LEFT: IrqMutex<Option<PhysAddr>> = IrqMutex::new(Rank::OwnTables, None);

/// Pages from the frame allocator, which never gets them back.
#[derive(Clone, Copy, Debug)]
pub struct OwnTables;

// SAFETY: as `KernelTables`. A page that was freed is zeroed when it is given out again.
unsafe impl TableMemory for OwnTables {
    fn allocate(&self) -> Option<PhysAddr> {
        let mut left = LEFT.lock();
        let Some(page) = *left else {
            drop(left);
            return frames::allocate_zeroed(1);
        };
        // SAFETY: it was freed, and is given out once, below.
        let table = unsafe { KernelTables.table(page) };
        let next = table[0].load(Relaxed);
        *left = (next != 0).then_some(PhysAddr::new(next));
        drop(left);
        table.iter().for_each(|entry| entry.store(0, Relaxed));
        Some(page)
    }

    unsafe fn free(&self, page: PhysAddr) {
        let mut left = LEFT.lock();
        // SAFETY: the caller's promise: it is nobody's any more.
        let table = unsafe { KernelTables.table(page) };
        table[0].store(left.map_or(0, PhysAddr::as_u64), Relaxed);
        *left = Some(page);
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the caller's promise.
        unsafe { KernelTables.table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        KernelTables.write_back(first, bytes);
    }

    #[inline]
    fn write_back_entry(&self, entry: &AtomicU64) {
        KernelTables.write_back_entry(entry);
    }
}
