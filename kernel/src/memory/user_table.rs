//! The page table of a process.
//!
//! The lower half of the addresses is its own, by the same engine as the kernel's. The upper half is the kernel's: the
//! entries of the kernel's root are copied when the table is made, and lead to the kernel's own tables. What the kernel maps
//! and unmaps later shows there too, as the tables behind its root's entries never leave: each has something in it for good.

use core::{mem::ManuallyDrop, sync::atomic::Ordering::Relaxed};

use mm::{
    PhysAddr, PhysRange,
    table::{
        EditError, PageTable, TABLE_ENTRIES, Table, TableMemory,
        x86::{X86Access, X86Format},
    },
};

use super::address_space;

/// Entries of the root for the upper half.
const KERNELS: core::ops::Range<usize> = TABLE_ENTRIES / 2..TABLE_ENTRIES;

/// A table whose pages come from `M`. It goes with all that it maps when it is dropped.
pub struct UserTable<M: TableMemory> {
    table: ManuallyDrop<PageTable<X86Format, M>>,
}

impl<M: TableMemory> UserTable<M> {
    /// A table with nothing in its lower half. `None` if there is no page for its root.
    pub fn new(memory: M) -> Option<Self> {
        let kernel = address_space::table()?;
        let table = PageTable::new(*kernel.format(), memory).ok()?;
        // SAFETY: both roots live as long as their tables; the new one is used by nobody else.
        let (from, to) = unsafe { (kernel.memory().table(kernel.root()), root_of(&table)) };
        for index in KERNELS {
            to[index].store(from[index].load(Relaxed), Relaxed);
        }
        Some(Self { table: ManuallyDrop::new(table) })
    }

    /// Physical address of the root.
    pub fn root(&self) -> PhysAddr {
        self.table.root()
    }

    /// Maps `range` at `input`, open to ring 3, which may do what `access` says. False if there is no memory for tables, or
    /// something is mapped there; then nothing has changed.
    ///
    /// # Safety
    /// The addresses are in the lower half, and nothing that Rust knows of is in `range`.
    pub unsafe fn map(&self, input: u64, range: PhysRange, access: X86Access) -> bool {
        // SAFETY: the caller's promise; `self` is borrowed by one thread, that of the process.
        let (stale, mapped) = match unsafe { self.table.map(input, &[range], access | X86Access::USER) } {
            Ok(stale) => (stale, true),
            Err(error) => {
                log::debug!("{error}");
                (error.into_undone(), false)
            }
        };
        if let Some(stale) = stale {
            self.table.redeem(address_space::flush(stale));
        }
        mapped
    }

    /// Unmaps `bytes` bytes at `input`. When this returns, no CPU can use the mapping any more.
    ///
    /// # Errors
    /// As of the engine: not all of it is mapped.
    pub fn unmap(&self, input: u64, bytes: u64) -> Result<(), EditError> {
        // SAFETY: the process's thread alone changes the table, and the kernel does not use what it maps.
        let stale = unsafe { self.table.unmap(input, bytes) }?;
        self.table.redeem(address_space::flush(stale));
        Ok(())
    }

    /// What ring 3 may do at `input`, and how it is cached, if anything is mapped there.
    pub fn access_at(&self, input: u64) -> Option<X86Access> {
        self.table.lookup(input).map(|found| found.access)
    }

    /// Whether the upper half is the kernel's own, apart from the bits that hardware ignores.
    pub fn has_kernels_half(&self) -> bool {
        let Some(kernel) = address_space::table() else { return false };
        // SAFETY: both roots live as long as their tables.
        let (kernels, own) = unsafe { (kernel.memory().table(kernel.root()), root_of(&self.table)) };
        let pointer = |table: &Table, index: usize| table[index].load(Relaxed) & !IGNORED;
        KERNELS.into_iter().all(|index| pointer(kernels, index) == pointer(own, index))
    }
}

/// What may differ between two pointers to one table: the engine's counts, and what the hardware notes.
const IGNORED: u64 = 0x3ff << 52 | 1 << 5;

impl<M: TableMemory> Drop for UserTable<M> {
    fn drop(&mut self) {
        // SAFETY: taken out once, here.
        let table = unsafe { ManuallyDrop::take(&mut self.table) };
        // SAFETY: as in `new`. The kernel's tables are not this one's to free.
        let root = unsafe { root_of(&table) };
        for index in KERNELS {
            root[index].store(0, Relaxed);
        }
        // SAFETY: the CPUs have the root only in ring 3, and nobody is there, as it would be borrowed (see `arch::user`).
        // Loading another root made them forget what they had of it: there are no global pages.
        unsafe { table.destroy() };
    }
}

/// # Safety
/// The result is used only while `table` lives.
unsafe fn root_of<M: TableMemory>(table: &PageTable<X86Format, M>) -> &Table {
    // SAFETY: the root is allocated with the table and lives as long (the caller's promise).
    unsafe { table.memory().table(table.root()) }
}
