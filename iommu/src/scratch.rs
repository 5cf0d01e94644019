//! Where every address leads for a group that is in quarantine on a scratch page: to one page of the group's own.
//!
//! Some devices take a blocked request badly: they ask again for ever, or raise errors that platforms make more of. On
//! a scratch page they read zeros, or what they wrote themselves, and write where it does no harm.
//!
//! The tables are a chain of one page a level: all entries of a table lead to the one table of the level below, those
//! of the lowest to the page. Only the way to reserved memory has tables beside the chain. They are written once,
//! before anything walks them, and the page-table engine has no part in them: it counts the entries of a table, and
//! would free one that 512 entries lead to as often.

use alloc::{sync::Arc, vec::Vec};
use core::{mem::ManuallyDrop, sync::atomic::Ordering};

use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{Entry, Format, LeafSizes, Step, TABLE_ENTRIES, Table, TableMemory, level_bytes, level_shift},
};

use crate::{
    Platform, SourceId,
    backend::{Backend, UnitSet},
    dma::{Access, DmaBuffer, DmaError, PageBuffer, RawBuffer, Stuck},
    reach::{HostWidth, TableError, TableKind},
    walk::{MAX_LEVELS, Steps},
};

/// One scratch page with its tables.
pub(crate) struct Scratch<B: Backend> {
    backend: Arc<B>,
    tags: B::Tags,
    format: B::Format,
    root: PhysAddr,
    /// Taken by `drop` alone.
    memory: ManuallyDrop<Memory<B::Platform>>,
}

/// What a scratch domain is made of. Dropping it gives it back: nothing may walk it any more.
struct Memory<P: Platform> {
    platform: Arc<P>,
    page: ManuallyDrop<RawBuffer>,
    tables: Vec<PhysAddr>,
}

impl<B: Backend> Scratch<B> {
    /// A zeroed page, and tables that all of `units` can walk, with `reserved` mapped one to one.
    pub fn new(backend: Arc<B>, units: UnitSet, reserved: &[PhysRange]) -> Result<Self, DmaError> {
        let format = backend.format(units).ok_or(DmaError::NoCommonFormat)?;
        let page = PageBuffer::zeroed(1).ok_or(DmaError::OutOfMemory)?.into_raw();
        let (first, bytes) = (page.first, page.bytes);
        let platform = backend.platform().clone();
        let mut memory = Memory { platform, page: ManuallyDrop::new(page), tables: Vec::new() };
        let physical = memory.platform.physical(first, bytes);
        let address = first.as_ptr().addr();
        let page = physical.ok_or(DmaError::NotMappable { address, bytes })?;
        let access = backend.access(Access { read: true, write: true });
        if page.as_u64() >> format.output_bits() != 0 {
            return Err(DmaError::OutOfRange { memory: PhysRange::new(page, PAGE_BYTES) });
        }
        let mut builder = Builder { memory: &mut memory, format, access, page, chain: [page; MAX_LEVELS] };
        let root = builder.root(reserved)?;
        let tags = backend.new_tags(root, format);
        Ok(Self { backend, tags, format, root, memory: ManuallyDrop::new(memory) })
    }

    /// Root of the tables.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// The entries that a walker reads for `input`; none if the tables do not translate such an address.
    pub fn steps(&self, input: u64) -> Steps<<B::Format as Format>::Access> {
        let mut steps = [None; MAX_LEVELS];
        if !self.format.covers(input, input) {
            return steps;
        }
        let mut table = self.root;
        for (slot, level) in steps.iter_mut().zip((1..=self.format.levels()).rev()) {
            let index = (input >> level_shift(level)) as usize % TABLE_ENTRIES;
            let raw = self.memory.table(table)[index].load(Ordering::Relaxed);
            let entry = self.format.decode(level, raw);
            *slot = Some(Step { level, index, raw, entry });
            let Entry::Table(below) = entry else { break };
            table = below;
        }
        steps
    }

    /// Makes `source`, which reaches nothing, reach the page. Its faults stay as loud as they were.
    pub fn attach(&self, unit: usize, source: SourceId) -> Result<(), DmaError> {
        self.backend.attach(&self.tags, unit, source, None)
    }

    /// Makes `source` reach nothing.
    pub fn block(&self, unit: usize, source: SourceId) -> Result<(), Stuck> {
        self.backend.block(&self.tags, unit, source)
    }
}

impl<B: Backend> Drop for Scratch<B> {
    fn drop(&mut self) {
        if !self.backend.is_unused(&self.tags) {
            log::error!("a unit may still walk the tables of a scratch page: they are lost");
            return;
        }
        // SAFETY: `drop` alone takes it, and once.
        drop(unsafe { ManuallyDrop::take(&mut self.memory) });
    }
}

/// Writes the tables, the lowest first, so that nothing is linked before it is written back.
struct Builder<'a, P: Platform, F: Format> {
    memory: &'a mut Memory<P>,
    format: F,
    access: F::Access,
    page: PhysAddr,
    /// The table of each level, from 1 on, that all entries of the one above lead to.
    chain: [PhysAddr; MAX_LEVELS],
}

impl<P: Platform, F: Format> Builder<'_, P, F> {
    /// The root of the whole.
    fn root(&mut self, reserved: &[PhysRange]) -> Result<PhysAddr, TableError> {
        let levels = self.format.levels();
        for level in 1..=levels {
            let entry = self.to_chain(level);
            let table = self.memory.write_table(&self.format, |_| entry)?;
            self.chain[usize::from(level) - 1] = table;
        }
        match reserved {
            [] => Ok(self.chain[usize::from(levels) - 1]),
            _ => self.carve(levels, 0, reserved),
        }
    }

    /// An entry of a table of `level` behind which there is no reserved memory.
    fn to_chain(&self, level: u8) -> u64 {
        match usize::from(level).checked_sub(2).and_then(|below| self.chain.get(below)) {
            Some(&below) => self.format.encode_table(below),
            None => self.format.encode_leaf(1, self.page, self.access),
        }
    }

    /// Whether the entry of `level` for `input`, where there is reserved memory, is a leaf: as large a one as there can
    /// be.
    fn is_leaf(&self, level: u8, input: u64, reserved: &[PhysRange]) -> bool {
        let sizes = self.format.leaf_sizes();
        let possible = match level {
            1 => return true,
            2 => sizes.contains(LeafSizes::SIZE_2M),
            3 => sizes.contains(LeafSizes::SIZE_1G),
            _ => false,
        };
        possible && reserved.iter().any(|range| covers(range, input, level_bytes(level)))
    }

    /// A table of `level` for the inputs from `first` on, some of which are reserved memory. It calls itself once a
    /// level.
    fn carve(&mut self, level: u8, first: u64, reserved: &[PhysRange]) -> Result<PhysAddr, TableError> {
        let (bytes, mut entries) = (level_bytes(level), Vec::new());
        entries.try_reserve_exact(TABLE_ENTRIES).map_err(|_| TableError::OutOfMemory)?;
        for index in 0..TABLE_ENTRIES as u64 {
            let input = first + index * bytes;
            entries.push(match reserved.iter().any(|range| overlaps(range, input, bytes)) {
                false => self.to_chain(level),
                true if self.is_leaf(level, input, reserved) => {
                    self.format.encode_leaf(level, PhysAddr::new(input), self.access)
                }
                true => {
                    let below = self.carve(level - 1, input, reserved)?;
                    self.format.encode_table(below)
                }
            });
        }
        self.memory.write_table(&self.format, |index| entries[index])
    }
}

/// Whether `range` has all of the `bytes` bytes from `input`.
fn covers(range: &PhysRange, input: u64, bytes: u64) -> bool {
    let (start, end) = (range.start.as_u64(), range.start.as_u64().saturating_add(range.bytes));
    start <= input && input < end && end - input >= bytes
}

/// Whether `range` has a part in the `bytes` bytes from `input`.
fn overlaps(range: &PhysRange, input: u64, bytes: u64) -> bool {
    let start = range.start.as_u64();
    start <= input + (bytes - 1) && input < start.saturating_add(range.bytes)
}

impl<P: Platform> Memory<P> {
    /// A new table with what `entry` says of each index, written back if hardware does not snoop.
    fn write_table<F: Format>(
        &mut self,
        format: &F,
        entry: impl Fn(usize) -> u64,
    ) -> Result<PhysAddr, TableError> {
        self.tables.try_reserve(1).map_err(|_| TableError::OutOfMemory)?;
        let page = HostWidth(format.output_bits()).page(self.platform.tables(), TableKind::PageTable)?;
        self.tables.push(page);
        let table = self.table(page);
        for (index, slot) in table.iter().enumerate() {
            slot.store(entry(index), Ordering::Relaxed);
        }
        if !format.is_coherent() {
            self.platform.tables().write_back(table.as_ptr().cast(), PAGE_BYTES as usize);
        }
        Ok(page)
    }

    fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: only pages of the list get here, and they are freed by `drop` alone.
        unsafe { self.platform.tables().table(page) }
    }
}

impl<P: Platform> Drop for Memory<P> {
    fn drop(&mut self) {
        for &page in &self.tables {
            // Pages go back as they came.
            self.table(page).iter().for_each(|entry| entry.store(0, Ordering::Relaxed));
            // SAFETY: the page came from here. Either nothing ever walked it, or the owner has seen to it that all
            // units forgot the domain.
            unsafe { self.platform.tables().free(page) };
        }
        // SAFETY: taken once; the buffer was taken apart in `Scratch::new`, and nothing leads a device to it any more.
        drop(unsafe { PageBuffer::from_raw(ManuallyDrop::take(&mut self.page)) });
    }
}
