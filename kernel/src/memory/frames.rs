//! The kernel's instance of `mm`'s frame allocator.
//!
//! Until it exists (the page tables that show all memory are needed first) pages come off the start of the largest
//! range below 4 GiB, and are never given back.

use core::{ptr, slice};

use iommu::platform::MAX_CPUS;
use mm::{
    PAGE_BYTES, PhysAddr,
    frames::{CpuCache, FrameAllocator, FrameRecord, LockClass, Processor, Statistics, Zone, record_count},
};
use spin::Once;

use super::{RangeSet, layout};
use crate::{
    arch::{Cpu, InterruptGuard},
    sync::{self, IrqMutex, Rank},
};

static ALLOCATOR: Once<FrameAllocator<'static, Processors>> = Once::new();
static CACHES: [CpuCache; MAX_CPUS] = [const { CpuCache::new() }; MAX_CPUS];
static EARLY: IrqMutex<Early> = IrqMutex::new(Rank::Frames, Early { start: 0, next: 0, end: 0 });

/// The range that the first pages come from: `start..next` is in use.
struct Early {
    start: u64,
    next: u64,
    end: u64,
}

struct Processors;

impl Processor for Processors {
    type Guard = InterruptGuard;

    fn guard(&self) -> InterruptGuard {
        InterruptGuard::new()
    }

    fn cpu(&self) -> usize {
        Cpu::current_index()
    }

    fn lock_taken(&self, class: LockClass) {
        sync::note_taken(sync::frames_class(class));
    }

    fn lock_released(&self, class: LockClass) {
        sync::note_released(sync::frames_class(class));
    }
}

/// Makes pages of `ram` below 4 GiB available. `None` if there are none.
///
/// # Safety
/// `ram` is memory that nothing uses, and the boot tables are active.
pub(super) unsafe fn init_early(ram: &RangeSet) -> Option<()> {
    const BOOT_MAPPED_END: u64 = 4 << 30;
    let low = ram.as_slice().iter().filter_map(|range| {
        let start = range.start.as_u64();
        let end = (start + range.bytes).min(BOOT_MAPPED_END);
        (start < end).then_some((start, end))
    });
    let (start, end) = low.max_by_key(|(start, end)| end - start)?;
    *EARLY.lock() = Early { start, next: start, end };
    Some(())
}

/// Gives all of `ram` that is not in use yet to the frame allocator. `None` if there is no memory for its records.
///
/// # Safety
/// As for [`init_early`], with the direct map complete now.
pub(super) unsafe fn init(ram: &RangeSet) -> Option<()> {
    let records = record_count(ram.as_slice());
    let bytes = records.checked_mul(size_of::<FrameRecord>())?;
    let first = allocate_zeroed(bytes.div_ceil(PAGE_BYTES as usize))?;
    let first = layout::direct(first) as *const FrameRecord;
    // SAFETY: the pages are new, for good, and large enough; zero bytes are an array of records.
    let records: &'static [FrameRecord] = unsafe { slice::from_raw_parts(first, records) };
    let mut free = RangeSet::new();
    for range in ram.as_slice() {
        free.add(range.start.as_u64(), range.start.as_u64() + range.bytes);
    }
    {
        let mut early = EARLY.lock();
        free.remove(early.start, early.next);
        early.end = early.next;
    }
    match FrameAllocator::new(Processors, &CACHES, free.as_slice(), records) {
        Ok(allocator) => {
            ALLOCATOR.call_once(|| allocator);
            Some(())
        }
        Err(error) => {
            log::error!("{error}");
            None
        }
    }
}

impl Early {
    fn allocate(&mut self, pages: usize) -> Option<PhysAddr> {
        let alignment = (pages.checked_next_power_of_two()? as u64).checked_mul(PAGE_BYTES)?;
        let start = self.next.checked_next_multiple_of(alignment)?;
        let end = start.checked_add(pages as u64 * PAGE_BYTES).filter(|&end| end <= self.end)?;
        self.next = end;
        PhysAddr::checked(start)
    }
}

/// A run of `pages` pages of any contents, aligned to its size rounded up to a power of two. `None` if there is none,
/// or `pages` is 0.
pub fn allocate(pages: usize) -> Option<PhysAddr> {
    match (ALLOCATOR.get(), pages) {
        (Some(frames), 1) => frames.allocate(Zone::Any),
        (Some(frames), _) => frames.allocate_run(pages, pages.checked_next_power_of_two()?, Zone::Any),
        (None, _) => EARLY.lock().allocate(pages),
    }
}

/// A zeroed run: see [`allocate`].
pub fn allocate_zeroed(pages: usize) -> Option<PhysAddr> {
    let first = allocate(pages)?;
    // SAFETY: the run is this call's alone, and the direct map shows it.
    unsafe { ptr::write_bytes(layout::direct(first) as *mut u8, 0, pages * PAGE_BYTES as usize) };
    Some(first)
}

/// Gives a run back.
///
/// # Safety
/// It came from [`allocate`] with the same number of pages, and nothing uses it any more: no CPU, no table, no device.
pub unsafe fn free(first: PhysAddr, pages: usize) {
    let Some(frames) = ALLOCATOR.get() else { return };
    let freed = if pages == 1 { frames.free(first) } else { frames.free_run(first, pages) };
    if let Err(error) = freed {
        // Nothing was changed: the memory is lost, not shared.
        log::error!("{error}");
    }
}

/// How much memory there is.
pub fn statistics() -> Statistics {
    ALLOCATOR.get().map(FrameAllocator::statistics).unwrap_or_default()
}
