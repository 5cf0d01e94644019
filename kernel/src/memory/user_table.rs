//! The page table of a process.
//!
//! The lower half of the addresses is its own, by the same engine as the kernel's. The upper half is the kernel's: the
//! entries of the kernel's root are copied when the table is made, and lead to the kernel's own tables. What the kernel
//! maps and unmaps later shows there too, as the tables behind its root's entries never leave: each has something in it
//! for good. The copies are for the supervisor, as is all that they lead to.
//!
//! Devices may walk it as well, and are users: they get no further than the root. Tables of the kernel's that go below
//! that are nothing else later ([`OwnTables`](super::own_tables)), as the kernel flushes the CPUs alone.

use alloc::{sync::Arc, vec::Vec};
use core::{fmt, mem::ManuallyDrop, sync::atomic::Ordering::Relaxed};

use iommu::{
    DmaError,
    dma::{SharedDomain, SharedTable},
};
use mm::{
    PhysAddr, PhysRange,
    table::{
        EditError, PageTable, Stale, TABLE_ENTRIES, Table, TableMemory,
        x86::{X86Access, X86Format},
    },
};

use super::address_space;

/// Entries of the root for the upper half.
const KERNELS: core::ops::Range<usize> = TABLE_ENTRIES / 2..TABLE_ENTRIES;

/// A table whose pages come from `M`. It goes with all that it maps when it is dropped.
pub struct UserTable<M: TableMemory> {
    table: ManuallyDrop<PageTable<X86Format, M>>,
    /// Whose devices walk it besides the CPUs.
    domains: Vec<SharedDomain>,
}

/// Why something was not mapped.
#[derive(Debug)]
pub enum UserMapError {
    /// There is no memory for tables, or something is mapped there. Nothing has changed.
    Refused,
    /// The same, but a device may reach some of it for ever.
    Exposed(DmaError),
}

/// Why something is not as it was asked to be.
#[derive(Debug)]
pub enum UserEditError {
    /// Not all of it is mapped. Nothing has changed.
    Edit(EditError),
    /// It is so for the CPUs, but a device may use what was there for ever.
    Exposed(DmaError),
}

impl fmt::Display for UserMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("no memory for tables, or something is mapped there"),
            Self::Exposed(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for UserMapError {}

impl core::error::Error for UserEditError {}

impl fmt::Display for UserEditError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edit(error) => error.fmt(f),
            Self::Exposed(error) => error.fmt(f),
        }
    }
}

impl<M: TableMemory> UserTable<M> {
    /// A table with nothing in its lower half. `None` if there is no page for its root.
    pub fn new(memory: M) -> Option<Self> {
        let kernel = address_space::table()?;
        let table = PageTable::new(*kernel.format(), memory).ok()?;
        // SAFETY: both roots live as long as their tables; the new one is used by nobody else.
        let (from, to) = unsafe { (kernel.memory().table(kernel.root()), root_of(&table)) };
        for index in KERNELS {
            to[index].store(from[index].load(Relaxed) & !(USER | UNWRITTEN), Relaxed);
        }
        table.memory().write_back(to.as_ptr().cast(), size_of_val(to));
        Some(Self { table: ManuallyDrop::new(table), domains: Vec::new() })
    }

    /// The table, for devices. What it maps has addresses of at most `physical_bits` bits.
    ///
    /// # Safety
    /// As long as `keeper` has an owner, the table and all that it maps are there. A domain that is made of it is
    /// [added](Self::add_domain), or has no device.
    pub unsafe fn to_share(&self, physical_bits: u8, keeper: Arc<dyn Send + Sync>) -> SharedTable {
        // SAFETY: `keeper` is what the caller says. Whatever leaves the table is flushed from the domains that it has,
        // all of them, and is used for something else only then. The kernel's half is the supervisor's, the rest the
        // engine's.
        unsafe { SharedTable::new(&self.table, physical_bits, keeper) }
    }

    /// From now on devices of `domain` walk it. False, and they are not to, if there is no memory.
    pub fn add_domain(&mut self, domain: SharedDomain) -> bool {
        let has_room = self.domains.try_reserve(1).is_ok();
        if has_room {
            self.domains.push(domain);
        }
        has_room
    }

    /// The domains whose devices walk it.
    pub fn domains(&self) -> &[SharedDomain] {
        &self.domains
    }

    /// No device walks it any more, or whoever keeps it for them has it from now on.
    pub fn take_domains(&mut self) -> Vec<SharedDomain> {
        core::mem::take(&mut self.domains)
    }

    /// Makes all who walk the table forget what `stale` speaks of.
    fn forget(&self, stale: Stale) -> Result<(), DmaError> {
        let forgotten = self.domains.iter().map(|domain| domain.flush(&stale)).fold(Ok(()), Result::and);
        let flushed = address_space::flush(stale);
        // The table pages in what a device did not forget are lost.
        forgotten.map(|()| self.table.redeem(flushed))
    }

    /// Physical address of the root.
    pub fn root(&self) -> PhysAddr {
        self.table.root()
    }

    /// Maps `range` at `input`, open to ring 3 and to devices, which may do what `access` says.
    ///
    /// # Errors
    /// See [`UserMapError`].
    ///
    /// # Safety
    /// The addresses are in the lower half, and nothing that Rust knows of is in `range`.
    pub unsafe fn map(&self, input: u64, range: PhysRange, access: X86Access) -> Result<(), UserMapError> {
        // SAFETY: the caller's promise; `self` is borrowed by one thread, that of the process.
        match unsafe { self.table.map(input, &[range], access | X86Access::USER) } {
            Ok(emptied) => {
                // A unit that does not answer here, or below, is dead. The mapping stands, and does its devices no
                // good.
                let _lost = emptied.map_or(Ok(()), |stale| self.forget(stale));
                for domain in &self.domains {
                    let _lost = domain.publish(input, range.bytes);
                }
                Ok(())
            }
            Err(error) => {
                log::debug!("{error}");
                let undone = error.into_undone().map_or(Ok(()), |stale| self.forget(stale));
                Err(undone.map_or_else(UserMapError::Exposed, |()| UserMapError::Refused))
            }
        }
    }

    /// Unmaps `bytes` bytes at `input`. When this returns `Ok`, neither a CPU nor a device can use the mapping any
    /// more.
    ///
    /// # Errors
    /// See [`UserEditError`].
    pub fn unmap(&self, input: u64, bytes: u64) -> Result<(), UserEditError> {
        // SAFETY: the process's thread alone changes the table, and the kernel does not use what it maps.
        let stale = unsafe { self.table.unmap(input, bytes) }.map_err(UserEditError::Edit)?;
        self.forget(stale).map_err(UserEditError::Exposed)
    }

    /// Changes what ring 3 and devices may do with `bytes` bytes at `input`, which are mapped. When this returns `Ok`,
    /// neither can do more.
    ///
    /// # Errors
    /// See [`UserEditError`].
    pub fn protect(&self, input: u64, bytes: u64, access: X86Access) -> Result<(), UserEditError> {
        // SAFETY: as in `unmap`.
        let stale = unsafe { self.table.protect(input, bytes, access | X86Access::USER) };
        self.forget(stale.map_err(UserEditError::Edit)?).map_err(UserEditError::Exposed)
    }

    /// What ring 3 may do at `input`, and how it is cached, if anything is mapped there.
    pub fn access_at(&self, input: u64) -> Option<X86Access> {
        self.table.lookup(input).map(|found| found.access)
    }

    /// Whether the upper half is the kernel's own, apart from the bits that hardware ignores, and for nobody else.
    pub fn has_kernels_half(&self) -> bool {
        let Some(kernel) = address_space::table() else { return false };
        // SAFETY: both roots live as long as their tables.
        let (kernels, own) = unsafe { (kernel.memory().table(kernel.root()), root_of(&self.table)) };
        let pointer = |table: &Table, index: usize| table[index].load(Relaxed) & !IGNORED;
        let is_kernels = |index: usize| {
            let own = pointer(own, index);
            own == pointer(kernels, index) & !USER && own & USER == 0
        };
        KERNELS.into_iter().all(is_kernels)
    }
}

/// U/S.
const USER: u64 = 1 << 2;
/// The engine's note that a pointer is not written back yet.
const UNWRITTEN: u64 = 1 << 10;
/// What may differ between two pointers to one table: the engine's counts and note, and what the hardware notes.
const IGNORED: u64 = 0x3ff << 52 | UNWRITTEN | 1 << 5;

impl<M: TableMemory> Drop for UserTable<M> {
    fn drop(&mut self) {
        debug_assert!(self.domains.is_empty(), "devices walk it");
        // SAFETY: taken out once, here.
        let table = unsafe { ManuallyDrop::take(&mut self.table) };
        // SAFETY: as in `new`. The kernel's tables are not this one's to free.
        let root = unsafe { root_of(&table) };
        for index in KERNELS {
            root[index].store(0, Relaxed);
        }
        // SAFETY: the CPUs have the root only in ring 3, and nobody is there, as it would be borrowed (see
        // `arch::user`). Loading another root made them forget what they had of it: there are no global pages.
        unsafe { table.destroy() };
    }
}

/// # Safety
/// The result is used only while `table` lives.
unsafe fn root_of<M: TableMemory>(table: &PageTable<X86Format, M>) -> &Table {
    // SAFETY: the root is allocated with the table and lives as long (the caller's promise).
    unsafe { table.memory().table(table.root()) }
}
