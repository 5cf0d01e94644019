//! The kernel's own page table, built by `mm`'s engine.
//!
//! | addresses                   | what                                     | how                          |
//! |-----------------------------|------------------------------------------|------------------------------|
//! | [`layout::DIRECT_MAP`]      | RAM, without the kernel's image          | writable, no execution       |
//! | [`layout::WINDOW`]          | device registers; firmware's tables      | uncached; read-only          |
//! | [`layout::STACKS`]          | stacks                                   | writable, no execution       |
//! | [`layout::KERNEL_BASE`]     | code; constants; variables, boot stack   | execute; read; write         |

use core::{
    fmt,
    mem::ManuallyDrop,
    ptr::{self, NonNull},
    sync::atomic::AtomicU64,
};

use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{
        Flushed, LeafSizes, MapError, OutOfTables, PageTable, Runs, Stale, Table, TableMemory, Translation,
        x86::{X86Access, X86Format},
    },
};
use spin::Once;
use x86::{controlregs, cpuid::CpuId};

use super::{RangeSet, frames, layout, own_tables::OwnTables, window::Window};
use crate::{
    arch::{cache, memory_types},
    smp,
    sync::{IrqMutex, Rank},
};

const READ_ONLY: X86Access = X86Access::NO_EXECUTE;
const READ_WRITE: X86Access = X86Access::NO_EXECUTE.union(X86Access::WRITE);
const EXECUTE: X86Access = X86Access::empty();
const REGISTERS: X86Access = READ_WRITE.union(memory_types::UNCACHED);
const DEVICE_MEMORY: X86Access = READ_WRITE.union(memory_types::WRITE_COMBINING);

static TABLE: Once<PageTable<X86Format, OwnTables>> = Once::new();
static WINDOW: IrqMutex<Window> = IrqMutex::new(Rank::AddressSpace, Window::new());

/// How many bytes of the window are in use, or lost.
pub fn window_bytes() -> u64 {
    WINDOW.lock().used_bytes()
}

/// Table pages from the frame allocator, reached through the direct map.
#[derive(Clone, Copy, Debug)]
pub struct KernelTables;

// SAFETY: frames are given out once until they are freed, and the direct map shows them at `direct`.
unsafe impl TableMemory for KernelTables {
    fn allocate(&self) -> Option<PhysAddr> {
        frames::allocate_zeroed(1)
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller's promise; `allocate` got it as a run of one page.
        unsafe { frames::free(page, 1) }
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the page belongs to the caller and is mapped; any contents are valid atomics.
        unsafe { &*(layout::direct(page) as *const Table) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        cache::write_back(first, bytes);
    }

    #[inline]
    fn write_back_entry(&self, entry: &AtomicU64) {
        cache::write_back_line(ptr::from_ref(entry).cast());
    }
}

/// Why the address space could not be built.
#[derive(Debug)]
pub enum BuildError {
    /// CPUID reports a physical address width that the engine does not know.
    AddressWidth(u8),
    /// No page for the root.
    NoRoot(OutOfTables),
    /// A mapping failed.
    Map(MapError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressWidth(bits) => write!(f, "physical addresses of {bits} bits"),
            Self::NoRoot(error) => write!(f, "{error}"),
            Self::Map(error) => write!(f, "{error}"),
        }
    }
}

impl core::error::Error for BuildError {}

/// Builds the address space and switches to it.
///
/// # Errors
/// See [`BuildError`].
///
/// # Safety
/// Called once, on the boot tables; `ram` is all memory that the kernel uses besides its image.
pub(super) unsafe fn build(ram: &RangeSet) -> Result<(), BuildError> {
    let cpuid = CpuId::new();
    let has_huge = cpuid.get_extended_processor_and_feature_identifiers().is_some_and(|f| f.has_1gib_pages());
    let huge = if has_huge { LeafSizes::SIZE_1G } else { LeafSizes::empty() };
    let sizes = LeafSizes::SIZE_4K | LeafSizes::SIZE_2M | huge;
    let bits = cpuid.get_processor_capacity_feature_info().map_or(36, |info| info.physical_address_bits());
    // Its upper half is in every process's table, which units may walk that do not snoop: so it is in memory at all
    // times.
    let format = X86Format::new(4, sizes, bits).ok_or(BuildError::AddressWidth(bits))?.written_back();
    let table = PageTable::new(format, OwnTables).map_err(BuildError::NoRoot)?;

    let map = |input: u64, range: PhysRange, access| {
        // SAFETY: the table is not in use yet, and each range is mapped with what its contents need.
        let stale = unsafe { table.map(input, &[range], access) }.map_err(BuildError::Map)?;
        debug_assert!(stale.is_none(), "nothing was ever unmapped from this table");
        Ok(())
    };
    for &range in ram.as_slice() {
        map(layout::direct(range.start), range, READ_WRITE)?;
    }
    let data = layout::data().start..layout::boot_stack_guard().start;
    let above_guard = layout::boot_stack().start..layout::data().end;
    for (section, access) in [
        (layout::text(), EXECUTE),
        (layout::rodata(), READ_ONLY),
        (data, READ_WRITE),
        (above_guard, READ_WRITE),
    ] {
        let physical = PhysAddr::new(section.start - layout::KERNEL_BASE);
        map(section.start, PhysRange::new(physical, section.end - section.start), access)?;
    }
    let root = table.root();
    TABLE.call_once(|| table);
    // SAFETY: the new table maps the code that runs, its stack and all memory that is in use, at the same addresses.
    unsafe { controlregs::cr3_write(root.as_u64()) };
    Ok(())
}

/// What a piece of the window shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Device registers: uncached.
    Registers,
    /// Memory of the firmware: read-only.
    Firmware,
}

/// Maps the pages of `range` somewhere in the window, for good, and returns where its first byte is. Registers that are
/// shown already are not shown again: drivers come and go.
pub(super) fn map_window(range: PhysRange, kind: Kind) -> Option<NonNull<u8>> {
    let offset = range.start.as_u64() % PAGE_BYTES;
    let first = PhysAddr::new(range.start.as_u64() - offset);
    let pages = PhysRange::new(first, (range.bytes + offset).next_multiple_of(PAGE_BYTES));
    let at = |input| NonNull::new((input + offset) as *mut u8);
    let access = match kind {
        Kind::Registers => REGISTERS,
        Kind::Firmware => READ_ONLY,
    };
    if kind == Kind::Registers {
        let shown = WINDOW.lock().find(pages);
        if let Some(input) = shown {
            return at(input);
        }
    }
    // SAFETY: the caller checked that the range is not RAM that Rust knows of.
    let shown = unsafe { Alias::in_window(pages, access) }?;
    if kind == Kind::Registers {
        // The lock is free again when what cannot be noted goes.
        WINDOW.lock().note(pages, shown.input).then_some(())?;
    }
    at(ManuallyDrop::new(shown).input)
}

/// Maps `range` at `input`. False if there is no memory for tables, or something is mapped there.
///
/// # Safety
/// The addresses belong to the caller, and memory that Rust knows of is not made accessible twice.
unsafe fn map(input: u64, range: PhysRange, access: X86Access) -> bool {
    let Some(table) = TABLE.get() else { return false };
    // SAFETY: the caller's promise.
    let (stale, mapped) = match unsafe { table.map(input, &[range], access) } {
        Ok(stale) => (stale, true),
        Err(error) => {
            log::warn!("{error}");
            (error.into_undone(), false)
        }
    };
    if let Some(stale) = stale {
        table.redeem(flush(stale));
    }
    mapped
}

/// Maps `pages` zeroed frames for a stack at `input`.
///
/// # Safety
/// The addresses belong to the caller.
pub(super) unsafe fn map_stack(input: u64, pages: usize) -> bool {
    let Some(first) = frames::allocate_zeroed(pages) else { return false };
    // SAFETY: the caller owns the addresses; the frames are new, and reached through this mapping only.
    let mapped = unsafe { map(input, PhysRange::new(first, pages as u64 * PAGE_BYTES), READ_WRITE) };
    if !mapped {
        // SAFETY: the run was allocated above and is not mapped.
        unsafe { frames::free(first, pages) };
    }
    mapped
}

/// Unmaps `bytes` bytes at `input`. When this returns true, no CPU can use the mapping any more; otherwise it is still
/// there.
///
/// # Safety
/// The addresses belong to the caller, and nothing relies on the mapping.
unsafe fn unmap(input: u64, bytes: u64) -> bool {
    let Some(table) = TABLE.get() else { return false };
    // SAFETY: the caller's promise.
    match unsafe { table.unmap(input, bytes) } {
        Ok(stale) => {
            table.redeem(flush(stale));
            true
        }
        Err(error) => {
            log::error!("{error}");
            false
        }
    }
}

/// Takes what `stale` speaks of out of the TLBs of all CPUs.
pub(super) fn flush(stale: Stale) -> Flushed {
    smp::flush_all_cpus();
    // SAFETY: every CPU that uses this table has flushed its whole TLB since; no global pages are in use.
    unsafe { stale.assume_flushed() }
}

/// The kernel's table, whose upper half is in that of each process.
pub(super) fn table() -> Option<&'static PageTable<X86Format, OwnTables>> {
    TABLE.get()
}

/// Physical address of the root, for CPUs that start.
pub fn root() -> Option<PhysAddr> {
    TABLE.get().map(PageTable::root)
}

/// A mapping of memory besides the direct map's: for a while, and gone from every CPU when it is dropped.
#[derive(Debug)]
pub struct Alias {
    input: u64,
    bytes: u64,
}

impl Alias {
    /// The pages of `range`, writable, in the window. `None` if there is no memory for tables.
    ///
    /// # Safety
    /// Nothing that Rust knows of is in `range`, or the alias is used as Rust allows.
    pub unsafe fn writable(range: PhysRange) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::in_window(range, READ_WRITE) }
    }

    /// The pages of `range`, memory of a device, writable, in the window. `None` if there is no memory for tables.
    ///
    /// # Safety
    /// They are not RAM.
    pub unsafe fn of_device(range: PhysRange) -> Option<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::in_window(range, DEVICE_MEMORY) }
    }

    /// # Safety
    /// As [`map`], but for the addresses.
    unsafe fn in_window(range: PhysRange, access: X86Access) -> Option<Self> {
        let input = WINDOW.lock().reserve(range)?;
        // SAFETY: the addresses were given out to this call alone; the rest is the caller's promise.
        if !unsafe { map(input, range, access) } {
            WINDOW.lock().give_back(input, range.bytes);
            return None;
        }
        Some(Self { input, bytes: range.bytes })
    }

    /// The pages of `range` at their own addresses, executable and read-only. `None` if there is no memory for tables.
    ///
    /// # Safety
    /// They hold code, and nothing else is mapped there.
    pub unsafe fn executable_in_place(range: PhysRange) -> Option<Self> {
        let input = range.start.as_u64();
        // SAFETY: the caller's promise; the low half is used for nothing else.
        unsafe { map(input, range, EXECUTE) }.then(|| Self { input, bytes: range.bytes })
    }

    /// Where the first byte is.
    pub fn as_ptr(&self) -> *mut u8 {
        self.input as *mut u8
    }
}

impl Drop for Alias {
    fn drop(&mut self) {
        // SAFETY: the addresses are this alias's own, and nobody has it any more.
        let is_gone = unsafe { unmap(self.input, self.bytes) };
        if is_gone && layout::WINDOW.contains(&self.input) {
            WINDOW.lock().give_back(self.input, self.bytes);
        }
    }
}

/// What the kernel's table says about `address`.
pub fn lookup(address: u64) -> Option<Translation<X86Access>> {
    TABLE.get()?.lookup(address)
}

/// What is mapped in `first..=last`.
pub fn runs(first: u64, last: u64) -> Option<Runs<'static, X86Format, OwnTables>> {
    Some(TABLE.get()?.runs(first, last))
}
