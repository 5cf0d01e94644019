//! What a program sees: the pages of its file, its stack, and memory that it asked for.
//!
//! The space belongs to the process's thread, as nobody else changes or reads it: there is no lock. The kernel follows
//! no pointer of a program. It looks the address up among the [`Region`]s, which it made itself, and copies by the
//! direct map: no access of it can fault, and SMAP is never lifted.
//!
//! Devices of the process may walk its table, and have the program's own addresses then. What the program gives back
//! stays the process's, for its next memory, until they are quiet; and what of the space devices may still use when it
//! goes, goes with the last of their domains.

mod copying;
mod sharing;

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::mem::ManuallyDrop;

use abi::Error;
use drivers::pci::{self, Lendable};
use iommu::dma::SharedDomain;
use mm::{PAGE_BYTES, PhysAddr, PhysRange, table::x86::X86Access};
use program::{Access, Program};

use super::budget::{Budget, BudgetedTables, Pages};
use crate::{
    arch::memory_types,
    memory::{UserMapError, UserTable},
};
use sharing::Estate;
pub use sharing::ShareError;

/// Most regions at a time.
const REGIONS_MAX: usize = 64;

/// An address space.
pub struct Space {
    contents: ManuallyDrop<Box<Contents>>,
    /// Where the next memory that is asked for goes: no address is given out twice.
    next: u64,
    budget: Arc<Budget>,
    /// Where the contents go at the end, if devices walk the table.
    estate: Option<Arc<Estate>>,
}

/// What is in a space. The table goes before the pages that it maps.
struct Contents {
    table: UserTable<BudgetedTables>,
    regions: [Option<Region>; REGIONS_MAX],
    /// What the program gave back of the memory that a device had. A device may have translated before it was taken
    /// away and still be writing: this goes with the space, which goes after the devices, as they are quiet then. Or
    /// the program gets it again.
    kept: Vec<Pages>,
}

/// Addresses that belong together, and what is there: one run of memory.
struct Region {
    start: u64,
    range: PhysRange,
    /// The program may write it.
    is_writable: bool,
    backing: Backing,
}

/// Whose the run is.
enum Backing {
    /// The program's file's, or the stack's.
    Program(#[expect(dead_code, reason = "they go with the region")] Pages),
    /// Memory that the program asked for, and may give back.
    Memory(Pages),
    /// The same while a device of the process has it: whoever lent it has the pages.
    Lent,
    /// The same after that.
    Returned(Pages),
    /// Registers or memory of a device.
    Device,
}

impl Region {
    fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.start).is_some_and(|offset| offset < self.range.bytes)
    }
}

impl Space {
    /// A space with nothing in it, which may take at most `pages` pages. `None` if there is no memory for its table.
    pub fn new(pages: usize) -> Option<Self> {
        let budget = Arc::new(Budget::new(pages));
        let table = UserTable::new(BudgetedTables(budget.clone()))?;
        let regions = [const { None }; REGIONS_MAX];
        let contents = Box::new(Contents { table, regions, kept: Vec::new() });
        let contents = ManuallyDrop::new(contents);
        Some(Self { contents, next: abi::MEMORY.start, budget, estate: None })
    }

    /// Puts `program` and a stack into it. `None` if there is no memory within its budget.
    pub fn load(&mut self, program: &Program<'_>) -> Option<()> {
        for segment in program.segments() {
            let mut pages = Pages::zeroed(&self.budget, usize::try_from(segment.pages).ok()?)?;
            pages.fill(usize::try_from(segment.offset).ok()?, segment.bytes)?;
            let access = access_of(segment.access);
            self.add_pages(segment.start, pages, access, Backing::Program).ok()?;
        }
        let stack = Pages::zeroed(&self.budget, (abi::STACK_BYTES / PAGE_BYTES) as usize)?;
        self.add_pages(abi::STACK_TOP - abi::STACK_BYTES, stack, READ_WRITE, Backing::Program).ok()
    }

    /// What it has, and may have.
    pub fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    /// Physical address of its table's root.
    pub fn root(&self) -> PhysAddr {
        self.contents.table.root()
    }

    /// Whether the kernel's half of it is the kernel's.
    pub fn has_kernels_half(&self) -> bool {
        self.contents.table.has_kernels_half()
    }

    /// New memory for the program.
    ///
    /// # Errors
    /// The length is not one that is given out, or there is no memory, or no room for another region.
    pub fn map_memory(&mut self, bytes: u64) -> Result<u64, Error> {
        if bytes == 0 || bytes > abi::MEMORY_MAX {
            return Err(Error::BadLength);
        }
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let start = self.reserve(bytes)?;
        if let Some(index) = self.contents.kept.iter().position(|pages| pages.range().bytes == bytes) {
            self.map_again(start, index)?;
        } else {
            let pages = Pages::zeroed(&self.budget, (bytes / PAGE_BYTES) as usize);
            self.add_pages(start, pages.ok_or(Error::OutOfMemory)?, READ_WRITE, Backing::Memory)?;
        }
        Ok(start)
    }

    /// Maps number `index` of what the program has given back at `start`, zeroed. It stays where it is if that fails.
    fn map_again(&mut self, start: u64, index: usize) -> Result<(), Error> {
        self.contents.kept[index].clear();
        let range = self.contents.kept[index].range();
        self.add(start, range, READ_WRITE, Backing::Device)?;
        let pages = self.contents.kept.swap_remove(index);
        if let Some(region) = self.contents.regions.iter_mut().flatten().find(|region| region.start == start)
        {
            // As it was before: devices may still be writing to it.
            region.backing = Backing::Returned(pages);
        }
        Ok(())
    }

    /// Shows the program what of a device's BAR may be lent. Returns where the first of the BAR's bytes would be.
    ///
    /// # Errors
    /// There is no memory for tables, or no room. Nothing is mapped then.
    ///
    /// # Safety
    /// It is of a device that is the process's, and no RAM.
    pub unsafe fn map_bar(&mut self, lendable: &Lendable) -> Result<u64, Error> {
        let bytes = lendable.range.bytes;
        let access = match lendable.contents {
            pci::Contents::Registers => REGISTERS,
            pci::Contents::Memory => DEVICE_MEMORY,
        };
        let start = self.reserve(bytes)?;
        for (at, range) in lendable.pieces() {
            let added = self.add(start + at, range, access, Backing::Device).map(drop);
            if let Err(error) = added {
                let is_piece = |region: &Region| (start..start + bytes).contains(&region.start);
                while self.remove(is_piece).is_some() {}
                return Err(error);
            }
        }
        Ok(start)
    }

    /// Addresses for `bytes` bytes, whole pages, and a page behind them that stays free. They are not where somebody
    /// else would answer to its devices: other functions' memory is at such addresses, in a few places, each of which
    /// is stepped over in ever longer steps.
    fn reserve(&mut self, bytes: u64) -> Result<u64, Error> {
        const FIRST_STEP: u64 = 1 << 30;
        const STEPS: u32 = 16;
        let domains = self.contents.table.domains();
        let is_reached =
            |start: &u64| domains.iter().all(|domain: &SharedDomain| domain.reaches(*start, bytes));
        let mut steps = (0..STEPS).map(|step| self.next + ((FIRST_STEP << step) - FIRST_STEP));
        let start = steps.find(is_reached).ok_or(Error::OutOfMemory)?;
        let end = start.checked_add(bytes + PAGE_BYTES).filter(|&end| end <= abi::MEMORY.end);
        self.next = end.ok_or(Error::OutOfMemory)?;
        Ok(start)
    }

    /// Takes memory that starts at `start` back.
    ///
    /// # Errors
    /// None that the program asked for does, or a device has it. There is no memory to note it.
    pub fn unmap_memory(&mut self, start: u64) -> Result<(), Error> {
        let region = self.contents.regions.iter().flatten().find(|region| region.start == start);
        match region.map(|region| &region.backing) {
            Some(Backing::Memory(_) | Backing::Returned(_)) => {}
            Some(Backing::Lent) => return Err(Error::InUse),
            Some(Backing::Program(_) | Backing::Device) | None => return Err(Error::BadAddress),
        }
        self.contents.kept.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
        let removed = self.remove(|region| region.start == start).ok_or(Error::DeviceLost)?;
        match removed.backing {
            Backing::Memory(pages) if !self.is_shared() => drop(pages),
            Backing::Memory(pages) | Backing::Returned(pages) => self.contents.kept.push(pages),
            Backing::Program(_) | Backing::Lent | Backing::Device => {}
        }
        Ok(())
    }

    /// Lets the program, and devices that have its addresses, write the memory that starts at `start`, or not.
    ///
    /// # Errors
    /// It is none that the program asked for. A device may be able to write it for ever: it is lost.
    pub fn protect_memory(&mut self, start: u64, is_writable: bool) -> Result<(), Error> {
        let Contents { table, regions, .. } = &mut **self.contents;
        let is_it = |region: &&mut Region| {
            let is_memory = !matches!(region.backing, Backing::Program(_) | Backing::Device);
            region.start == start && is_memory
        };
        let region = regions.iter_mut().flatten().find(is_it).ok_or(Error::BadAddress)?;
        let access = if is_writable { READ_WRITE } else { X86Access::NO_EXECUTE };
        region.is_writable = is_writable;
        // That a unit has failed was logged when it did. A program may ask as often as it likes.
        table.protect(start, region.range.bytes, access).map_err(|error| {
            log::debug!("{error}");
            Error::DeviceLost
        })
    }

    /// The pages of the memory that starts at `start`, for a device. The program goes on seeing them.
    ///
    /// # Errors
    /// It is no memory that the program asked for, or a device has it.
    pub fn lend(&mut self, start: u64) -> Result<Pages, Error> {
        let region = self.contents.regions.iter_mut().flatten().find(|region| region.start == start);
        let region = region.ok_or(Error::BadAddress)?;
        match core::mem::replace(&mut region.backing, Backing::Lent) {
            Backing::Memory(pages) | Backing::Returned(pages) => Ok(pages),
            other => {
                let error = if matches!(other, Backing::Lent) { Error::InUse } else { Error::BadAddress };
                region.backing = other;
                Err(error)
            }
        }
    }

    /// What a device had is the program's alone again.
    pub fn take_back(&mut self, pages: Pages) {
        let was_it =
            |region: &&mut Region| region.range == pages.range() && matches!(region.backing, Backing::Lent);
        if let Some(region) = self.contents.regions.iter_mut().flatten().find(was_it) {
            region.backing = Backing::Returned(pages);
        }
    }

    /// Removes a region that is so. `None` if there is none.
    fn remove(&mut self, is_so: impl Fn(&Region) -> bool) -> Option<Region> {
        let Contents { table, regions, .. } = &mut **self.contents;
        let mut slots = regions.iter_mut();
        let region = slots.find(|slot| slot.as_ref().is_some_and(&is_so))?.take()?;
        match table.unmap(region.start, region.range.bytes) {
            Ok(()) => Some(region),
            Err(error) => {
                // Of the CPUs it cannot be, as the table has just what the regions say; and a unit that does not answer
                // may let its devices use for ever what they used. Pages that somebody may still reach are lost.
                log::error!("{error}");
                core::mem::forget(region);
                None
            }
        }
    }

    /// How the program sees what it has at `address`.
    pub fn access_at(&self, address: u64) -> Option<X86Access> {
        self.contents.table.access_at(address)
    }

    fn region(&self, address: u64) -> Option<&Region> {
        self.contents.regions.iter().flatten().find(|region| region.contains(address))
    }

    /// Maps new pages at `start`, where nothing is.
    fn add_pages(
        &mut self,
        start: u64,
        pages: Pages,
        access: X86Access,
        backing: fn(Pages) -> Backing,
    ) -> Result<(), Error> {
        // Before a device can see them.
        self.contents.kept.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
        match self.add(start, pages.range(), access, Backing::Device) {
            Ok(region) => region.backing = backing(pages),
            Err(error) => {
                // A device may have seen them before it failed.
                if self.is_shared() {
                    self.contents.kept.push(pages);
                }
                return Err(error);
            }
        }
        Ok(())
    }

    /// Maps `range` at `start`, where nothing is.
    fn add(
        &mut self,
        start: u64,
        range: PhysRange,
        access: X86Access,
        backing: Backing,
    ) -> Result<&mut Region, Error> {
        let Contents { table, regions, .. } = &mut **self.contents;
        let slot = regions.iter_mut().find(|slot| slot.is_none()).ok_or(Error::OutOfMemory)?;
        // SAFETY: the loader and `reserve` keep to the lower half; memory is the backing's, and the kernel reaches it
        // by copying alone; what is a device's is what the caller of `map_bar` says.
        unsafe { table.map(start, range, access) }.map_err(|error| {
            if let UserMapError::Exposed(error) = error {
                // As in `protect_memory`.
                log::debug!("{error}");
            }
            Error::OutOfMemory
        })?;
        let is_writable = access.contains(X86Access::WRITE);
        Ok(slot.insert(Region { start, range, is_writable, backing }))
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // SAFETY: once, here.
        let mut contents = unsafe { ManuallyDrop::take(&mut self.contents) };
        // Nothing leaves the table any more. A domain keeps the estate: in the other direction there is nobody.
        drop(contents.table.take_domains());
        if let Some(estate) = self.estate.take() {
            estate.0.call_once(|| contents);
        }
    }
}

const READ_WRITE: X86Access = X86Access::NO_EXECUTE.union(X86Access::WRITE);
const REGISTERS: X86Access = READ_WRITE.union(memory_types::UNCACHED);
const DEVICE_MEMORY: X86Access = READ_WRITE.union(memory_types::WRITE_COMBINING);

/// What the pages of a file are mapped with.
fn access_of(access: Access) -> X86Access {
    match access {
        Access::Read => X86Access::NO_EXECUTE,
        Access::Write => READ_WRITE,
        Access::Execute => X86Access::empty(),
    }
}
