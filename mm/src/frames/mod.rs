//! The frame allocator: who has which page of physical memory.
//!
//! It deals in numbers and never touches the memory that it hands out. What it knows about each frame stands in one
//! [`FrameRecord`], in memory that the kernel sets aside at boot.
//!
//! - Free memory is held in blocks of 2^n frames, each aligned to its size (a buddy system), in two [zones](Zone).
//! - Single frames come from a small cache of the CPU at hand, filled and emptied half at a time.
//! - Everything that is given back is checked against its record: a frame that is free already, that is part of
//!   something larger, or that was never given out, is refused.
//!
//! Locks: a CPU's cache, then a zone; never two of a kind. Both are held with interrupts off ([`Processor::guard`]),
//! for a bounded time.

mod buddy;
mod cache;
mod error;
mod lock;
mod map;
mod record;

use buddy::Buddy;
pub use cache::CpuCache;
pub use error::{FreeError, SetupError};
use lock::Lock;
pub use lock::LockClass;
use map::MemoryMap;
pub use map::record_count;
pub use record::FrameRecord;
use record::State;

use crate::{PAGE_SHIFT, PhysAddr, PhysRange};

/// log2 of the frames in the largest block: 1 GiB.
pub const MAX_ORDER: u8 = 18;

/// Where memory is wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Zone {
    /// Below 4 GiB, for hardware whose address registers have 32 bits.
    Below4G,
    /// Anywhere; above 4 GiB as long as there is any.
    Any,
}

/// What the allocator asks of the kernel.
pub trait Processor: Send + Sync {
    /// Interrupts (and with them preemption) stay off on this CPU while it lives.
    type Guard;

    /// Turns interrupts off until the guard is dropped; guards nest.
    fn guard(&self) -> Self::Guard;

    /// Number of the CPU that this runs on. Called under a guard. A wrong answer costs time, nothing else.
    fn cpu(&self) -> usize;

    /// A lock of `class` is taken: called under a guard, before it is waited for, in debug builds. A host that checks
    /// the order in which locks nest hears of the allocator's here (see [`lock_order`](crate::lock_order)).
    fn lock_taken(&self, class: LockClass) {
        let _ = class;
    }

    /// The lock of `class` was given back: see [`lock_taken`](Self::lock_taken).
    fn lock_released(&self, class: LockClass) {
        let _ = class;
    }
}

/// How much memory there is, in frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Statistics {
    /// Frames that the allocator was given.
    pub total: usize,
    /// Frames that are not allocated, those in the CPUs' caches included.
    pub free: usize,
    /// Of the free ones, those below 4 GiB.
    pub free_below_4g: usize,
    /// Of the free ones, those in the CPUs' caches.
    pub cached: usize,
    /// Frames in the largest block that is free.
    pub largest_free: usize,
}

/// The allocator. It is shared by reference; every method may be called from any CPU.
pub struct FrameAllocator<'m, P> {
    processor: P,
    map: MemoryMap<'m>,
    /// Below 4 GiB, above.
    zones: [Lock<Buddy>; 2],
    caches: &'m [CpuCache],
}

const LOW: usize = 0;
const HIGH: usize = 1;

impl Zone {
    /// The zones to try, in order.
    const fn order(self) -> &'static [usize] {
        match self {
            Self::Below4G => &[LOW],
            Self::Any => &[HIGH, LOW],
        }
    }
}

impl<'m, P: Processor> FrameAllocator<'m, P> {
    /// An allocator over `regions`, all of them free. Partial pages at the ends of a region are left out.
    ///
    /// `records` has [`record_count`] elements, all new. `caches` has one element for each CPU; a CPU beyond them does
    /// without.
    ///
    /// # Errors
    /// [`SetupError`] if the regions overlap, are too many or too large, or `records` is too short.
    pub fn new(
        processor: P,
        caches: &'m [CpuCache],
        regions: &[PhysRange],
        records: &'m [FrameRecord],
    ) -> Result<Self, SetupError> {
        let map = MemoryMap::new(regions, records)?;
        let zones = [const { Lock::new(LockClass::Zone, Buddy::new()) }; 2];
        let allocator = Self { processor, map, zones, caches };
        for region in allocator.map.regions() {
            let _guard = allocator.processor.guard();
            let mut zone = allocator.zones[region.zone()].lock(&allocator.processor);
            zone.free_frames(&allocator.map, region.first, region.frames);
        }
        Ok(allocator)
    }

    /// One frame. Its contents are whatever they were.
    #[must_use]
    pub fn allocate(&self, zone: Zone) -> Option<PhysAddr> {
        let guard = self.processor.guard();
        let frame = self.allocate_cached(zone);
        drop(guard);
        let frame = frame.or_else(|| self.allocate_drained(1, 0, zone))?;
        Some(address(frame))
    }

    /// Gives a frame back that [`allocate`](Self::allocate) returned (or a run of one).
    ///
    /// # Errors
    /// [`FreeError`] if it is not allocated, or not alone. Nothing is changed then.
    pub fn free(&self, frame: PhysAddr) -> Result<(), FreeError> {
        let (frame, record, zone) = self.find(frame)?;
        take_back(record, address(frame), 1)?;
        let _guard = self.processor.guard();
        let Some(cache) = self.caches.get(self.processor.cpu()) else {
            self.zones[zone].lock(&self.processor).free_frames(&self.map, frame, 1);
            return Ok(());
        };
        let mut magazines = cache.lock(&self.processor);
        let magazine = &mut magazines[zone];
        if magazine.is_full() {
            let mut buddy = self.zones[zone].lock(&self.processor);
            magazine.take_half(|frame| buddy.free_frames(&self.map, frame, 1));
        }
        magazine.push(frame);
        Ok(())
    }

    /// `frames` frames in one contiguous run, the first of them aligned to `alignment` frames (a power of two).
    /// `None` if there is no such run, or if it or its alignment is larger than the largest block, or 0.
    #[must_use]
    pub fn allocate_run(&self, frames: usize, alignment: usize, zone: Zone) -> Option<PhysAddr> {
        let size = frames.max(alignment).checked_next_power_of_two()?;
        let order = u8::try_from(size.ilog2()).ok().filter(|order| *order <= MAX_ORDER)?;
        if frames == 0 || !alignment.is_power_of_two() {
            return None;
        }
        let frames = u32::try_from(frames).ok()?;
        let first = self
            .allocate_block(frames, order, zone)
            .or_else(|| self.allocate_drained(frames, order, zone))?;
        Some(address(first))
    }

    /// Gives the run of `frames` frames from `start` back, as a whole.
    ///
    /// # Errors
    /// [`FreeError`] if it is not exactly what [`allocate_run`](Self::allocate_run) returned. Nothing is changed then.
    pub fn free_run(&self, start: PhysAddr, frames: usize) -> Result<(), FreeError> {
        let (first, record, zone) = self.find(start)?;
        let frames = u32::try_from(frames).map_err(|_| FreeError::WrongSize { start, allocated: None })?;
        take_back(record, start, frames)?;
        let _guard = self.processor.guard();
        self.zones[zone].lock(&self.processor).free_frames(&self.map, first, frames);
        Ok(())
    }

    /// How much memory there is now. Frames that move while this counts may be missed.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let mut statistics = Statistics { total: self.map.frames(), ..Statistics::default() };
        for (zone, buddy) in self.zones.iter().enumerate() {
            let cached: usize = self
                .caches
                .iter()
                .map(|cache| self.guarded(|| cache.lock(&self.processor)[zone].len()))
                .sum();
            let (free, largest) = self.guarded(|| {
                let buddy = buddy.lock(&self.processor);
                (buddy.free(), buddy.largest())
            });
            statistics.cached += cached;
            statistics.free += free + cached;
            statistics.largest_free = statistics.largest_free.max(largest);
            if zone == LOW {
                statistics.free_below_4g = free + cached;
            }
        }
        statistics
    }

    fn guarded<R>(&self, run: impl FnOnce() -> R) -> R {
        let _guard = self.processor.guard();
        run()
    }

    /// A frame from this CPU's cache, which is filled if it is empty. Called under a guard.
    fn allocate_cached(&self, zone: Zone) -> Option<u32> {
        let Some(cache) = self.caches.get(self.processor.cpu()) else {
            return self.allocate_block(1, 0, zone);
        };
        let mut magazines = cache.lock(&self.processor);
        for &zone in zone.order() {
            let magazine = &mut magazines[zone];
            if magazine.is_empty() {
                let mut buddy = self.zones[zone].lock(&self.processor);
                magazine.fill_half(|| buddy.allocate(&self.map, 0));
            }
            if let Some(frame) = magazine.pop() {
                self.map.record_of(frame)?.set(State::Used { frames: 1 });
                return Some(frame);
            }
        }
        None
    }

    /// A run of `frames` frames out of a block of `order`; the rest of the block stays free.
    fn allocate_block(&self, frames: u32, order: u8, zone: Zone) -> Option<u32> {
        zone.order().iter().find_map(|&zone| {
            let _guard = self.processor.guard();
            let mut buddy = self.zones[zone].lock(&self.processor);
            let first = buddy.allocate(&self.map, order)?;
            buddy.free_frames(&self.map, first + frames, (1 << order) - frames);
            self.map.record_of(first)?.set(State::Used { frames });
            Some(first)
        })
    }

    /// As [`allocate_block`](Self::allocate_block), for one that has failed: what is left may sit in the CPUs' caches.
    /// The zone is looked at whether or not anything was found there, because somebody else may have emptied them
    /// meanwhile.
    fn allocate_drained(&self, frames: u32, order: u8, zone: Zone) -> Option<u32> {
        self.drain();
        self.allocate_block(frames, order, zone)
    }

    /// Puts the frames in all caches back into their zones, so that they can be part of larger blocks.
    fn drain(&self) {
        for cache in self.caches {
            let _guard = self.processor.guard();
            let mut magazines = cache.lock(&self.processor);
            for (magazine, zone) in magazines.iter_mut().zip(&self.zones) {
                let mut buddy = zone.lock(&self.processor);
                while let Some(frame) = magazine.pop() {
                    buddy.free_frames(&self.map, frame, 1);
                }
            }
        }
    }

    /// The frame at `address`, its record, and its zone.
    fn find(&self, address: PhysAddr) -> Result<(u32, &FrameRecord, usize), FreeError> {
        let foreign = FreeError::Foreign { start: address };
        if !address.is_aligned(crate::PAGE_BYTES) {
            return Err(foreign);
        }
        let frame = u32::try_from(address.as_u64() >> PAGE_SHIFT).map_err(|_| foreign)?;
        let region = self.map.region_of(frame).ok_or(foreign)?;
        let record = self.map.record_of(frame).ok_or(foreign)?;
        Ok((frame, record, region.zone()))
    }
}

/// The address of frame number `frame`.
fn address(frame: u32) -> PhysAddr {
    PhysAddr::new(u64::from(frame) << PAGE_SHIFT)
}

/// Takes the run of `frames` frames at `start`, whose record is `record`, back from whoever had it.
fn take_back(record: &FrameRecord, start: PhysAddr, frames: u32) -> Result<(), FreeError> {
    record.take_back(frames).map_err(|found| match found {
        State::Used { frames } => FreeError::WrongSize { start, allocated: Some(frames as usize) },
        State::Inside | State::Free { .. } | State::Held => FreeError::NotAllocated { start },
    })
}
