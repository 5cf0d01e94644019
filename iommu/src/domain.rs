//! A DMA address space: a page table, the IOVAs that are free in it, and the groups that translate through it.
//!
//! The order of things is what makes it safe. Mapping reserves everything that can fail first (IOVA, table pages, the
//! reaper's slot), then writes leaves. Unmapping clears the leaves, flushes every cache that may hold them, and only
//! then gives back table pages, then the IOVA, then (to the caller) the buffer.

mod addresses;
mod bounce;
mod identity;
mod members;
mod owed;
mod ragged;
mod shared;
mod space;
mod standing;

use alloc::sync::Arc;
use core::{
    mem::ManuallyDrop,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use bounce::Bounce;
use members::Members;
use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{EditError, Format, MapError, PageTable, Stale, TableMemory},
};
use owed::OwedFlushes;
use standing::Standing;

use crate::{
    Iova, Platform, SourceId,
    ats::DeviceTlb,
    backend::{Backend, Formats, UnitSet},
    dma::{Access, DmaError, Stuck, Unflushed, reaper::Reaper, space::NotMapped},
    dump::{DomainKind, DomainReport, MappingReport, Visitor},
    iova::IovaSpace,
    platform::LockClass,
    reach::{HostWidth, TableKind},
    registers::Registers,
    stale_ranges::StaleRanges,
    sync::{IrqLock, atomic::fence},
};

#[cfg(all(test, loom))]
mod interleavings;

/// Table pages of the host kernel, as the engine takes them.
pub(crate) struct PlatformTables<P> {
    platform: Arc<P>,
    /// What the units that walk the table reach.
    width: HostWidth,
}

// SAFETY: every call goes to the platform's own table memory, which keeps the contract.
unsafe impl<P: Platform> TableMemory for PlatformTables<P> {
    #[inline]
    fn allocate(&self) -> Option<PhysAddr> {
        self.width.page(self.platform.tables(), TableKind::PageTable).ok()
    }

    #[inline]
    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: passed on to the caller.
        unsafe { self.platform.tables().free(page) }
    }

    #[inline]
    unsafe fn table(&self, page: PhysAddr) -> &mm::table::Table {
        // SAFETY: passed on to the caller.
        unsafe { self.platform.tables().table(page) }
    }

    #[inline]
    fn write_back(&self, first: *const u8, bytes: usize) {
        self.platform.tables().write_back(first, bytes);
    }

    #[inline]
    fn write_back_entry(&self, entry: &AtomicU64) {
        self.platform.tables().write_back_entry(entry);
    }
}

type Table<B> = PageTable<<B as Formats>::Format, PlatformTables<<B as Backend>::Platform>>;

/// One DMA address space.
pub(crate) struct Domain<B: Backend> {
    number: u64,
    backend: Arc<B>,
    units: UnitSet,
    table: ManuallyDrop<Table<B>>,
    iovas: IovaSpace<B::Platform>,
    /// Last address that all its units translate.
    last: u64,
    tags: B::Tags,
    reaper: Arc<Reaper<B::Platform>>,
    bounce: Bounce<B::Platform>,
    owed: OwedFlushes,
    mapped_pages: AtomicU64,
    kind: Kind,
    is_identity: AtomicBool,
    standing: Standing,
    members: IrqLock<Members>,
    /// What answers at addresses of its own, which are never handed out.
    registers: Arc<Registers>,
}

/// Whose a domain is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A group's own: it ends when the group is taken back.
    Own,
    /// Made by itself, for groups that come and go.
    Assigned,
    /// The same, over a table of the CPU's, in which it maps nothing.
    Shared,
}

/// Who makes a domain, and of what.
pub(crate) struct Making<B: Backend> {
    /// Its number.
    pub number: u64,
    pub backend: Arc<B>,
    pub reaper: Arc<Reaper<B::Platform>>,
    /// The units that are to walk its table.
    pub units: UnitSet,
    /// What answers at addresses of its own.
    pub registers: Arc<Registers>,
}

impl<B: Backend> Domain<B> {
    /// An empty domain that all units can walk.
    pub fn new(making: Making<B>, kind: Kind) -> Result<Self, DmaError> {
        let format = making.backend.format(making.units).ok_or(DmaError::NoCommonFormat)?;
        Self::over(making, kind, format, |tables| {
            PageTable::new(format, tables).map_err(|_| DmaError::OutOfMemory)
        })
    }

    /// A domain of `kind` for what `table` makes.
    fn over(
        making: Making<B>,
        kind: Kind,
        format: B::Format,
        table: impl FnOnce(PlatformTables<B::Platform>) -> Result<Table<B>, DmaError>,
    ) -> Result<Self, DmaError> {
        let Making { number, backend, reaper, units, registers } = making;
        let platform = backend.platform().clone();
        let last = backend.last_iova(units, format);
        let (iovas, standing);
        // Filled in place: a space moved through a `Result` of both is a few kilobytes of stack more.
        match kind {
            Kind::Own | Kind::Assigned => {
                iovas = IovaSpace::new(platform.clone(), last).map_err(|_| DmaError::OutOfMemory)?;
                addresses::withhold(&iovas, registers.below(last))?;
                standing = Standing::new();
            }
            Kind::Shared => {
                iovas = IovaSpace::empty(platform.clone());
                standing = Standing::of_shared();
            }
        }
        let bounce = Bounce::new(platform.clone());
        let tables = PlatformTables { platform, width: HostWidth(Format::output_bits(&format)) };
        // The last that may fail: dropped on the way out, it would lose its root.
        let table = table(tables)?;
        let tags = backend.new_tags(table.root(), format);
        Ok(Self {
            number,
            backend,
            units,
            table: ManuallyDrop::new(table),
            iovas,
            last,
            tags,
            reaper,
            bounce,
            owed: OwedFlushes::new(),
            mapped_pages: AtomicU64::new(0),
            kind,
            is_identity: AtomicBool::new(false),
            standing,
            members: IrqLock::new(LockClass::Members, Members::default()),
            registers,
        })
    }

    /// Number of the domain, for people.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whose it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The table, to look at, if it is the domain's own.
    pub fn table(&self) -> Option<&Table<B>> {
        (self.kind != Kind::Shared).then_some(&*self.table)
    }

    /// Shows what is mapped.
    pub fn visit_mappings(&self, visitor: &mut dyn Visitor) {
        for run in self.table().into_iter().flat_map(|table| table.runs(0, self.last)) {
            let Access { read, write } = self.backend.rights(run.access);
            let iova = Iova::new(run.input);
            visitor.mapping(&MappingReport { iova, output: run.output, bytes: run.bytes, read, write });
        }
    }

    /// What it is.
    pub fn report(&self) -> DomainReport {
        let kind = match self.kind {
            Kind::Own if self.is_identity() => DomainKind::Identity,
            Kind::Own => DomainKind::Kernel,
            Kind::Assigned => DomainKind::Assigned,
            Kind::Shared => DomainKind::Shared,
        };
        DomainReport {
            number: self.number,
            kind,
            root: self.table.root(),
            levels: Format::levels(self.table.format()),
            mapped_pages: self.mapped_pages.load(Ordering::Relaxed),
            table_pages: self.table.pages(),
        }
    }

    /// Makes `source` translate through this domain, by way of its own TLB if it has one.
    pub fn attach(
        &self,
        unit: usize,
        source: SourceId,
        device_tlb: Option<DeviceTlb>,
    ) -> Result<(), DmaError> {
        self.backend.attach(&self.tags, unit, source, device_tlb)
    }

    /// Whether a device did not empty its TLB, so that everything mapped stays pinned.
    pub fn is_silent(&self) -> bool {
        self.backend.check_devices(&self.tags).is_err()
    }

    /// Makes `source` reach nothing.
    pub fn block(&self, unit: usize, source: SourceId) -> Result<(), Stuck> {
        self.backend.block(&self.tags, unit, source)
    }

    /// Whether anything may be mapped.
    #[inline]
    fn admit(&self) -> Result<(), DmaError> {
        self.backend.check(self.units)?;
        self.backend.check_devices(&self.tags).map_err(DmaError::Silent)?;
        self.standing.check_map()
    }

    /// Writes the leaves of a range; a unit need not see them before they are [published](Self::publish).
    #[inline(always)]
    fn write_leaves(
        &self,
        iova: Iova,
        memory: &[PhysRange],
        bytes: u64,
        access: Access,
    ) -> Result<(), NotMapped> {
        // SAFETY: the range was allocated for this mapping alone, and the caller lends the memory for this access.
        let mapped = unsafe { self.table.map(iova.as_u64(), memory, self.backend.access(access)) };
        let emptied = mapped.map_err(|error| self.undo(iova, error))?;
        self.mapped_pages.fetch_add(bytes / PAGE_BYTES, Ordering::Relaxed);
        // A unit or device that does not answer here, or when the leaves are published, is dead, and stopped. The
        // mapping stands: the next map is refused, and the unmap of this one pins the buffer.
        if let Some(stale) = emptied {
            self.flush_tables(stale);
        }
        Ok(())
    }

    /// Flushes what a map has left behind, as `write_leaves` says.
    #[cold]
    #[inline(never)]
    fn flush_tables(&self, stale: Stale) {
        let _ = self.flush(stale);
    }

    /// Makes every unit see leaves that were written, where that takes anything.
    #[inline]
    fn publish(&self, iova: Iova, bytes: u64) {
        // Why nobody has to know is said in `write_leaves`.
        let _ = self.backend.publish(&self.tags, iova, bytes);
    }

    #[inline(always)]
    fn map_leaves(
        &self,
        iova: Iova,
        memory: &[PhysRange],
        bytes: u64,
        access: Access,
    ) -> Result<(), NotMapped> {
        self.write_leaves(iova, memory, bytes, access)?;
        self.publish(iova, bytes);
        Ok(())
    }

    /// The engine took a partial mapping back; what a unit may have seen of it is flushed before anything is reused.
    #[cold]
    fn undo(&self, iova: Iova, error: MapError) -> NotMapped {
        let reason = match error {
            MapError::OutOfTables { .. } => DmaError::OutOfMemory,
            MapError::OutputBeyondWidth { range, .. } => DmaError::OutOfRange { memory: range },
            _ => DmaError::IovaTaken { iova },
        };
        match error.into_undone().map(|stale| self.flush(stale)) {
            Some(Err(unflushed)) => NotMapped::Exposed(unflushed),
            _ => NotMapped::Untouched(reason),
        }
    }

    /// Flushes what `stale` speaks of and frees the table pages in it.
    #[inline(always)]
    fn flush(&self, stale: Stale) -> Result<(), Unflushed> {
        // Leaves are cleared before the tags are read: a group that attaches in between walks the cleared table.
        fence(Ordering::SeqCst);
        let flushed = self.backend.flush(&self.tags, stale)?;
        self.table.redeem(flushed);
        Ok(())
    }

    /// As [`flush`](Self::flush), for what was unmapped together.
    fn flush_ranges(&self, mut stale: StaleRanges) -> Result<(), Unflushed> {
        if let Some(only) = stale.take_only() {
            return self.flush(only);
        }
        if stale.is_empty() {
            return Ok(());
        }
        fence(Ordering::SeqCst);
        self.backend.flush_ranges(&self.tags, stale)?.for_each(|flushed| self.table.redeem(flushed));
        Ok(())
    }

    /// Maps into a range that is reserved for it; gives the range back if no device can have seen it.
    #[inline(always)]
    fn map_at(
        &self,
        iova: Iova,
        memory: &[PhysRange],
        bytes: u64,
        access: Access,
    ) -> Result<Iova, NotMapped> {
        let result = self.map_leaves(iova, memory, bytes, access);
        if let Err(NotMapped::Untouched(_)) = result {
            self.free(iova, bytes / PAGE_BYTES);
        }
        result.map(|()| iova)
    }

    /// A mapping's range covers whole leaves, so that unmapping it splits nothing and cannot fail.
    #[cold]
    fn not_mapped(&self, iova: Iova, error: EditError) -> DmaError {
        log::error!("domain {}: {error}", self.number);
        DmaError::NotMapped { iova }
    }
}

impl<B: Backend> Drop for Domain<B> {
    fn drop(&mut self) {
        // SAFETY: the table is not used after `drop`, and this is the only place that takes it.
        let table = unsafe { ManuallyDrop::take(&mut self.table) };
        if !self.backend.is_unused(&self.tags) {
            // Its pages stay as they are: dropping the table gives none of them back.
            log::error!(
                "domain {} goes while a unit may still walk its table: the table is lost",
                self.number
            );
            core::mem::forget(self.take_keeper());
            return;
        }
        if self.kind == Kind::Shared {
            // The table is its owner's, and nothing was mapped.
            return;
        }
        // SAFETY: the domain has no tag left: every source was blocked, and its domain ids were flushed. The last
        // mapping went before.
        unsafe {
            table.destroy();
            self.bounce.destroy();
        }
    }
}
