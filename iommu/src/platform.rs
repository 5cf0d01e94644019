//! What the subsystem asks of the kernel that hosts it.
//!
//! One instance of [`Platform`] is handed over at bring-up; the crate has no global of its own. Everything below the
//! DMA API is compiled for the platform's type, so that none of these calls is dynamic.

use core::{fmt, ptr::NonNull};

use mm::{PhysAddr, PhysRange, table::TableMemory};

use crate::PciAddress;

/// The host kernel.
///
/// # Safety
/// [`physical`](Self::physical), [`map_registers`](Self::map_registers) and
/// [`allocate_contiguous`](Self::allocate_contiguous) are trusted: a wrong answer lets a device reach memory that was
/// not meant for it.
pub unsafe trait Platform: Send + Sync + 'static {
    /// Where table pages come from.
    type Tables: TableMemory;
    /// Access to the registers of one remapping unit.
    type Registers: Registers;
    /// Interrupts stay off on this CPU while it lives.
    type InterruptGuard;

    /// Where table pages come from.
    fn tables(&self) -> &Self::Tables;

    /// `pages` zeroed table pages in one physically contiguous run, aligned to its size rounded up to a power of two.
    /// Each page of it may be given to [`TableMemory::table`]. They are never given back: invalidation queues and
    /// interrupt-remapping tables live as long as their unit.
    fn allocate_contiguous(&self, pages: usize) -> Option<PhysAddr>;

    /// Maps `bytes` bytes of registers from `base`, uncached. A second call for the same base with a larger size is
    /// how a unit whose register set exceeds one page is mapped.
    fn map_registers(&self, base: PhysAddr, bytes: usize) -> Option<Self::Registers>;

    /// Monotonic time in nanoseconds.
    ///
    /// Deadlines of devices are measured by it. It had better not count time in which the host of a virtual machine
    /// keeps all of it, devices included, from running.
    fn now_ns(&self) -> u64;

    /// Number of the CPU that this runs on: below [`MAX_CPUS`]. Stable only under an interrupt guard.
    fn cpu(&self) -> usize;

    /// Turns interrupts off on this CPU until the guard is dropped; guards nest.
    fn interrupt_guard(&self) -> Self::InterruptGuard;

    /// Whether this runs in a hard interrupt handler, where nothing may be mapped or unmapped.
    fn in_interrupt(&self) -> bool;

    /// A lock of `class` is taken on this CPU: called before it is waited for, in debug builds, by whoever turned
    /// interrupts off. A host that checks the order in which locks nest hears of the crate's here (see
    /// [`mm::lock_order`]).
    fn lock_taken(&self, class: LockClass) {
        let _ = class;
    }

    /// The lock of `class` was given back: see [`lock_taken`](Self::lock_taken).
    fn lock_released(&self, class: LockClass) {
        let _ = class;
    }

    /// Called in each round of a bounded busy wait: for hardware, or for another thread that waits for hardware. A host
    /// whose threads have priorities lets those run here that have a lower one.
    fn relax(&self);

    /// A vector for `event`, as the message that raises it: the host calls
    /// [`Iommu::handle_event`](crate::Iommu::handle_event) with the same value when it arrives.
    fn allocate_vector(&self, event: Event) -> Option<MsiMessage>;

    /// Reads the aligned dword at `offset` of `function`'s configuration space; all ones if there is none.
    fn read_config(&self, function: PciAddress, offset: u16) -> u32;

    /// Writes the aligned dword at `offset` of `function`'s configuration space.
    fn write_config(&self, function: PciAddress, offset: u16, value: u32);

    /// Clears and sets bits of the aligned dword at `offset` of `function`'s configuration space; the others are
    /// written as they read. No other change by this call comes in between, whoever makes it: the Command register has
    /// two writers, this crate and the function's driver, and neither may undo what the other has done.
    fn change_config(&self, function: PciAddress, offset: u16, clear: u32, set: u32);

    /// Makes the thread that does `work` run soon. Callable in an interrupt; wakes are not counted.
    fn wake(&self, work: Work);

    /// Physical address of the `bytes` bytes at `first`, or `None` if they are not contiguous in physical memory, or
    /// not memory that may be shared with a device (stack, kernel image).
    fn physical(&self, first: NonNull<u8>, bytes: usize) -> Option<PhysAddr>;

    /// What lies in the `bytes` bytes at `first`, for which [`physical`](Self::physical) says `None`: asked when a
    /// driver wants to map them and [`checks`](crate::checks) are on.
    fn unshareable(&self, first: NonNull<u8>, bytes: usize) -> Unshareable {
        let _ = (first, bytes);
        Unshareable::Other
    }

    /// Whether the kernel has any of `range` as memory of its own: in use, or to be handed out. Firmware may say that a
    /// device needs such memory (RMRR); it does not get it.
    fn is_own_memory(&self, range: PhysRange) -> bool;

    /// Whether the memory map has all of `range` as reserved, or as firmware's. It is asked to report what firmware
    /// says of memory that it does not say there; a host that does not know says yes.
    fn is_firmware_memory(&self, range: PhysRange) -> bool {
        let _ = range;
        true
    }
}

/// What a lock of this crate protects, in the order in which locks nest: who holds one takes later ones only, and then
/// those of the host (its frame allocator's, its scheduler's).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum LockClass {
    /// The domain that a group is attached to, and who claimed it.
    Group,
    /// Which domains were created.
    Domains,
    /// The groups of a domain.
    Members,
    /// The units and domain ids by which hardware may have cached a domain's translations.
    Tags,
    /// Context tables and domain ids of a unit.
    UnitTables,
    /// A CPU's store of IOVAs.
    IovaCache,
    /// The IOVAs of a domain.
    IovaSpace,
    /// What was dropped while mapped.
    Reaper,
    /// The pages that stand in for the ends of a domain's buffers.
    Bounce,
    /// What retired mappings wait for.
    Owed,
    /// What is checked of drivers.
    Checks,
    /// The interrupt-remapping table of a unit.
    Remapping,
    /// The fault records of a unit.
    FaultRecords,
    /// Which groups there are.
    Layout,
    /// How many faults are put up with.
    FaultLimits,
    /// What a group is judged by.
    GroupRecord,
    /// The invalidation queue of a unit.
    Queue,
    /// Faults that nobody has read.
    FaultRing,
    /// Faults that were logged.
    FaultLog,
}

impl LockClass {
    /// Number of classes.
    pub const COUNT: u8 = Self::FaultLog as u8 + 1;
}

/// What no device may have, by what it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unshareable {
    /// Code of the kernel.
    Code,
    /// Constants of the kernel.
    Constants,
    /// Variables of the kernel.
    Variables,
    /// A stack.
    Stack,
    /// Something else: not memory, not in one piece, or not the kernel's to give.
    Other,
}

impl fmt::Display for Unshareable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Code => "code of the kernel",
            Self::Constants => "constants of the kernel",
            Self::Variables => "variables of the kernel",
            Self::Stack => "a stack",
            Self::Other => "which is no memory to share",
        })
    }
}

/// Highest number of CPUs, and so of per-CPU caches.
// Under Miri fewer: an allocator that drains its CPUs' magazines looks at all of them.
pub const MAX_CPUS: usize = if cfg!(miri) { 8 } else { 64 };

/// The registers of one unit, by byte offset.
///
/// An implementation does exactly one access of exactly the width asked for: hardware leaves anything else undefined.
/// Offsets are aligned to the width and lie inside the mapped size.
pub trait Registers: Send + Sync {
    /// Number of bytes mapped.
    fn bytes(&self) -> usize;
    /// Reads a 32-bit register.
    fn read32(&self, offset: usize) -> u32;
    /// Writes a 32-bit register.
    fn write32(&self, offset: usize, value: u32);
    /// Reads a 64-bit register.
    fn read64(&self, offset: usize) -> u64;
    /// Writes a 64-bit register.
    fn write64(&self, offset: usize, value: u64);
}

/// A message-signalled interrupt: what a device writes where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiMessage {
    /// Address, 0xFEEx_xxxx in the low half.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// An interrupt of a remapping unit. `unit` is its position in [`Dmar::units`](crate::dmar::Dmar::units).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The unit recorded a fault.
    Fault {
        /// Index of the unit.
        unit: usize,
    },
}

/// Work that the subsystem does in a thread of the host, never in an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// [`Iommu::process_faults`](crate::Iommu::process_faults): log faults, stop what is behind a dead unit.
    Faults,
    /// [`Iommu::reap`](crate::Iommu::reap): flush and free what was dropped while mapped.
    Reap,
}
