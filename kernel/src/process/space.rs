//! What a program sees: the pages of its file, its stack, and memory that it asked for.
//!
//! The space belongs to the process's thread, as nobody else changes or reads it: there is no lock. The kernel follows no
//! pointer of a program. It looks the address up among the [`Region`]s, which it made itself, and copies by the direct map:
//! no access of it can fault, and SMAP is never lifted.

use alloc::{sync::Arc, vec::Vec};

use abi::Error;
use drivers::pci::{Contents, Lendable};
use mm::{PAGE_BYTES, PhysAddr, PhysRange, table::x86::X86Access};
use program::{Access, Program};

use super::{
    budget::{Budget, BudgetedTables, Pages},
    copy,
};
use crate::{
    arch::memory_types,
    memory::{UserTable, layout},
};

/// Most regions at a time.
const REGIONS_MAX: usize = 64;

/// An address space. The table goes before the pages that it maps.
pub struct Space {
    table: UserTable<BudgetedTables>,
    regions: [Option<Region>; REGIONS_MAX],
    /// Where the next memory that is asked for goes: no address is given out twice.
    next: u64,
    budget: Arc<Budget>,
    /// What the program gave back of the memory that a device had. A device may have translated before it was taken away and
    /// still be writing: this goes with the space, which goes after the devices, as they are quiet then.
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
    /// A space with `program` and a stack in it. `None` if there is no memory within `budget`.
    pub fn load(program: &Program<'_>, budget: &Arc<Budget>) -> Option<Self> {
        let table = UserTable::new(BudgetedTables(budget.clone()))?;
        let regions = [const { None }; REGIONS_MAX];
        let (next, budget) = (abi::MEMORY.start, budget.clone());
        let mut space = Self { table, regions, next, budget, kept: Vec::new() };
        for segment in program.segments() {
            let mut pages = Pages::zeroed(&space.budget, usize::try_from(segment.pages).ok()?)?;
            pages.fill(usize::try_from(segment.offset).ok()?, segment.bytes)?;
            let access = access_of(segment.access);
            space.add(segment.start, pages.range(), access, Backing::Program(pages)).ok()?;
        }
        let stack = Pages::zeroed(&space.budget, (abi::STACK_BYTES / PAGE_BYTES) as usize)?;
        let start = abi::STACK_TOP - abi::STACK_BYTES;
        space.add(start, stack.range(), READ_WRITE, Backing::Program(stack)).ok()?;
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
        let bytes = bytes.next_multiple_of(PAGE_BYTES);
        let start = self.reserve(bytes)?;
        let pages = Pages::zeroed(&self.budget, (bytes / PAGE_BYTES) as usize).ok_or(Error::OutOfMemory)?;
        self.add(start, pages.range(), READ_WRITE, Backing::Memory(pages))?;
        Ok(start)
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
            Contents::Registers => REGISTERS,
            Contents::Memory => DEVICE_MEMORY,
        };
        let start = self.reserve(bytes)?;
        for (at, range) in lendable.pieces() {
            let added = self.add(start + at, range, access, Backing::Device);
            if let Err(error) = added {
                let is_piece = |region: &Region| (start..start + bytes).contains(&region.start);
                while self.remove(is_piece).is_some() {}
                return Err(error);
            }
        }
        Ok(start)
    }

    /// Addresses for `bytes` bytes, whole pages, and a page behind them that stays free.
    fn reserve(&mut self, bytes: u64) -> Result<u64, Error> {
        let (start, end) = (self.next, self.next + bytes + PAGE_BYTES);
        if end > abi::MEMORY.end {
            return Err(Error::OutOfMemory);
        }
        self.next = end;
        Ok(start)
    }

    /// Takes memory that starts at `start` back.
    ///
    /// # Errors
    /// None that the program asked for does, or a device has it. There is no memory to note it.
    pub fn unmap_memory(&mut self, start: u64) -> Result<(), Error> {
        let region = self.regions.iter().flatten().find(|region| region.start == start);
        match region.map(|region| &region.backing) {
            Some(Backing::Memory(_)) => {
                self.remove(|region| region.start == start);
                Ok(())
            }
            Some(Backing::Returned(_)) => {
                self.kept.try_reserve(1).map_err(|_| Error::OutOfMemory)?;
                let removed = self.remove(|region| region.start == start);
                if let Some(Region { backing: Backing::Returned(pages), .. }) = removed {
                    self.kept.push(pages);
                }
                Ok(())
            }
            Some(Backing::Lent) => Err(Error::InUse),
            Some(Backing::Program(_) | Backing::Device) | None => Err(Error::BadAddress),
        }
    }

    /// The pages of the memory that starts at `start`, for a device. The program goes on seeing them.
    ///
    /// # Errors
    /// It is no memory that the program asked for, or a device has it.
    pub fn lend(&mut self, start: u64) -> Result<Pages, Error> {
        let region = self.regions.iter_mut().flatten().find(|region| region.start == start);
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
        if let Some(region) = self.regions.iter_mut().flatten().find(was_it) {
            region.backing = Backing::Returned(pages);
        }
    }

    /// Removes a region that is so. `None` if there is none.
    fn remove(&mut self, is_so: impl Fn(&Region) -> bool) -> Option<Region> {
        let mut slots = self.regions.iter_mut();
        let region = slots.find(|slot| slot.as_ref().is_some_and(&is_so))?.take()?;
        if let Err(error) = self.table.unmap(region.start, region.range.bytes) {
            // It cannot be, as the table has just what the regions say. Pages that ring 3 may still reach are lost.
            log::error!("{error}");
            core::mem::forget(region);
            return None;
        }
        Some(region)
    }

    /// Copies what the program has at `address`.
    ///
    /// # Errors
    /// It has not all of that.
    pub fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        let (mut at, mut rest) = (address, into);
        while !rest.is_empty() {
            let (from, bytes) = self.piece(at, rest.len(), false)?;
            let (now, later) = rest.split_at_mut(bytes);
            // SAFETY: bytes of the region's pages, which the direct map shows.
            unsafe { copy::from_shared(from, now) };
            (at, rest) = (at + bytes as u64, later);
        }
        Ok(())
    }

    /// How the program sees what it has at `address`.
    pub fn access_at(&self, address: u64) -> Option<X86Access> {
        self.table.access_at(address)
    }

    /// Copies `bytes` to what the program has at `address`, and may write itself.
    ///
    /// # Errors
    /// It has not all of that. Some of it may have been written.
    pub fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Error> {
        let (mut at, mut rest) = (address, bytes);
        while !rest.is_empty() {
            let (to, bytes) = self.piece(at, rest.len(), true)?;
            let (now, later) = rest.split_at(bytes);
            // SAFETY: as in `read`. No Rust value lies there.
            unsafe { copy::to_shared(now, to) };
            (at, rest) = (at + bytes as u64, later);
        }
        Ok(())
    }

    /// The words that the program has at `address`.
    ///
    /// # Errors
    /// It has not all of them.
    pub fn read_words<const N: usize>(&self, address: u64) -> Result<[u64; N], Error> {
        let mut words = [0; N];
        for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
            let mut bytes = [0; 8];
            self.read(address.checked_add(at).ok_or(Error::BadAddress)?, &mut bytes)?;
            *word = u64::from_le_bytes(bytes);
        }
        Ok(words)
    }

    /// Puts words to what the program has at `address`.
    ///
    /// # Errors
    /// As for [`write`](Self::write).
    pub fn write_words(&mut self, address: u64, words: &[u64]) -> Result<(), Error> {
        for (word, at) in words.iter().zip((0..).step_by(8)) {
            self.write(address.checked_add(at).ok_or(Error::BadAddress)?, &word.to_le_bytes())?;
        }
        Ok(())
    }

    /// Where the kernel sees the memory that the program has at `address`, and how much of `bytes` bytes is there in one piece: at
    /// least one.
    fn piece(&self, address: u64, bytes: usize, is_written: bool) -> Result<(*mut u8, usize), Error> {
        let is_memory = |region: &&Region| {
            !matches!(region.backing, Backing::Device) && (region.is_writable || !is_written)
        };
        let region = self.region(address).filter(is_memory).ok_or(Error::BadAddress)?;
        let offset = address - region.start;
        let left = region.range.bytes - offset;
        let at = layout::direct(region.range.start) + offset;
        Ok((at as *mut u8, usize::try_from(left).map_or(bytes, |left| left.min(bytes))))
    }

    fn region(&self, address: u64) -> Option<&Region> {
        self.regions.iter().flatten().find(|region| region.contains(address))
    }

    /// Maps `range` at `start`, where nothing is.
    fn add(
        &mut self,
        start: u64,
        range: PhysRange,
        access: X86Access,
        backing: Backing,
    ) -> Result<(), Error> {
        let slot = self.regions.iter_mut().find(|slot| slot.is_none()).ok_or(Error::OutOfMemory)?;
        // SAFETY: the loader and `reserve` keep to the lower half; memory is the backing's, and the kernel reaches it by
        // copying alone; what is a device's is what the caller of `map_bar` says.
        if !unsafe { self.table.map(start, range, access) } {
            return Err(Error::OutOfMemory);
        }
        let is_writable = access.contains(X86Access::WRITE);
        *slot = Some(Region { start, range, is_writable, backing });
        Ok(())
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
