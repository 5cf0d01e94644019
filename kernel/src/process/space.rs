//! What a program sees: the pages of its file, its stack, and memory that it asked for.
//!
//! The space belongs to the process's thread, as nobody else changes or reads it: there is no lock. The kernel follows no
//! pointer of a program. It looks the address up among the [`Region`]s, which it made itself, and copies by the direct map:
//! no access of it can fault, and SMAP is never lifted.

use alloc::sync::Arc;

use abi::Error;
use mm::{PAGE_BYTES, PhysAddr, PhysRange, table::x86::X86Access};
use program::{Access, Program};

use super::budget::{Budget, BudgetedTables, Pages};
use crate::memory::{UserTable, layout};

/// Most regions at a time.
const REGIONS_MAX: usize = 64;

/// An address space. The table goes before the pages that it maps.
pub struct Space {
    table: UserTable<BudgetedTables>,
    regions: [Option<Region>; REGIONS_MAX],
    /// Where the next memory that is asked for goes: no address is given out twice.
    next: u64,
    budget: Arc<Budget>,
}

/// Addresses that belong together.
struct Region {
    start: u64,
    pages: Pages,
    /// The program asked for it, and may give it back.
    is_memory: bool,
}

impl Region {
    fn bytes(&self) -> u64 {
        self.pages.range().bytes
    }

    fn contains(&self, address: u64) -> bool {
        address.checked_sub(self.start).is_some_and(|offset| offset < self.bytes())
    }
}

impl Space {
    /// A space with `program` and a stack in it. `None` if there is no memory within `budget`.
    pub fn load(program: &Program<'_>, budget: &Arc<Budget>) -> Option<Self> {
        let table = UserTable::new(BudgetedTables(budget.clone()))?;
        let regions = [const { None }; REGIONS_MAX];
        let mut space = Self { table, regions, next: abi::MEMORY.start, budget: budget.clone() };
        for segment in program.segments() {
            let mut pages = Pages::zeroed(budget, usize::try_from(segment.pages).ok()?)?;
            pages.fill(usize::try_from(segment.offset).ok()?, segment.bytes)?;
            space.add(segment.start, pages, segment.access, false)?;
        }
        let stack = Pages::zeroed(budget, (abi::STACK_BYTES / PAGE_BYTES) as usize)?;
        space.add(abi::STACK_TOP - abi::STACK_BYTES, stack, Access::Write, false)?;
        Some(space)
    }

    /// Physical address of its table's root.
    pub fn root(&self) -> PhysAddr {
        self.table.root()
    }

    /// Whether the kernel's half of it is the kernel's.
    pub fn has_kernels_half(&self) -> bool {
        self.table.has_kernels_half()
    }

    /// New memory for the program.
    ///
    /// # Errors
    /// The length is not one that is given out, or there is no memory, or no room for another region.
    pub fn map_memory(&mut self, bytes: u64) -> Result<u64, Error> {
        if bytes == 0 || bytes > abi::MEMORY_MAX {
            return Err(Error::BadLength);
        }
        let pages = bytes.div_ceil(PAGE_BYTES);
        // One page between two regions stays free.
        let (start, end) = (self.next, self.next + (pages + 1) * PAGE_BYTES);
        if end > abi::MEMORY.end {
            return Err(Error::OutOfMemory);
        }
        let pages = Pages::zeroed(&self.budget, pages as usize).ok_or(Error::OutOfMemory)?;
        self.add(start, pages, Access::Write, true).ok_or(Error::OutOfMemory)?;
        self.next = end;
        Ok(start)
    }

    /// Takes memory that starts at `start` back.
    ///
    /// # Errors
    /// None that the program asked for does.
    pub fn unmap_memory(&mut self, start: u64) -> Result<(), Error> {
        let is_it = |region: &Region| region.start == start && region.is_memory;
        let mut slots = self.regions.iter_mut();
        let slot = slots.find(|slot| slot.as_ref().is_some_and(is_it)).ok_or(Error::BadAddress)?;
        let Some(region) = slot.take() else { return Err(Error::BadAddress) };
        if let Err(error) = self.table.unmap(start, region.bytes()) {
            // It cannot be, as the table has just what the regions say. Pages that ring 3 may still reach are lost.
            log::error!("{error}");
            core::mem::forget(region);
        }
        Ok(())
    }

    /// Copies what the program has at `address`.
    ///
    /// # Errors
    /// It has not all of that.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        let mut at = address;
        for byte in into {
            let region = self.region(at).ok_or(Error::BadAddress)?;
            let PhysRange { start, .. } = region.pages.range();
            let from = layout::direct(start) + (at - region.start);
            // SAFETY: a byte of the region's pages, which the direct map shows. Others may be writing it.
            *byte = unsafe { (from as *const u8).read_volatile() };
            at = at.checked_add(1).ok_or(Error::BadAddress)?;
        }
        Ok(())
    }

    fn region(&self, address: u64) -> Option<&Region> {
        self.regions.iter().flatten().find(|region| region.contains(address))
    }

    /// Maps `pages` at `start`, where nothing is. `None` if there is no memory for tables, or no room.
    fn add(&mut self, start: u64, pages: Pages, access: Access, is_memory: bool) -> Option<()> {
        let slot = self.regions.iter_mut().find(|slot| slot.is_none())?;
        let permissions = match access {
            Access::Read => X86Access::NO_EXECUTE,
            Access::Write => X86Access::NO_EXECUTE | X86Access::WRITE,
            Access::Execute => X86Access::empty(),
        };
        // SAFETY: the loader and `map_memory` keep to the lower half, and the pages are reached by copying alone.
        match unsafe { self.table.map(start, pages.range(), permissions) } {
            Ok(()) => {
                *slot = Some(Region { start, pages, is_memory });
                Some(())
            }
            Err(error) => {
                log::debug!("{error}");
                None
            }
        }
    }
}
