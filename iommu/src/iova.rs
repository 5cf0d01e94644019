//! IOVA allocator: which addresses of a domain are free.
//!
//! ```text
//!   allocate / free            each CPU                 all CPUs, one lock
//!  ----------------->  magazines, two for each  ----->  depot  ----->  holes
//!                      size and mask                   (full magazines)  (trees)
//! ```
//!
//! A length is counted in pages of 4 KiB, an address in bytes; `last` is inclusive.
//!
//! **Magazines** (`iova/magazine.rs`) hold blocks of 1 to 512 pages (2 MiB), in powers of two and naturally aligned.
//! What they serve takes the lock of this CPU's magazines, with interrupts off, and nothing else: no lock that another
//! CPU wants (except to empty them), no memory, no search. Nothing here is lock-free: the lock of a CPU's own magazines
//! is hardly ever contended, and it makes it possible to take back what another CPU keeps.
//!
//! **Holes** (`iova/holes.rs`) are the free addresses, in an intrusive tree by address and in trees by the largest
//! aligned block that they can hold. The search takes the lowest of the smallest holes that will do, so large aligned
//! ones last. Requests that can lie above 4 GiB do so as long as there is room, and leave what is below to devices with
//! a 32-bit mask.
//!
//! **Exhaustion.** When no hole fits, all magazines of all CPUs are emptied into the holes and the search starts again,
//! a bounded number of times. Where no aligned block is left, any run that is long enough will do.
//!
//! **Memory.** Nodes, magazines and records are cut from table pages of the host (`slab.rs`). Whatever a later free
//! will need is set aside when the range is handed out: giving back cannot fail for want of memory.
//!
//! **Trust.** What a free gives back follows from its address and length, so the caller must free what it allocated,
//! once: the domain does, whose mappings are freed by being consumed. A [checked](IovaSpace::new_checked) space writes
//! everything down and refuses anything else, at the price of its magazines.
//!
//! Locks: the magazines of a CPU, then what all CPUs share; never the magazines of two CPUs.

mod central;
mod error;
mod holes;
mod ledger;
mod magazine;
mod request;
#[cfg(test)]
mod tests;

use alloc::{sync::Arc, vec::Vec};
use core::{
    fmt,
    ops::RangeInclusive,
    sync::atomic::{AtomicBool, Ordering},
};

use mm::{PAGE_BYTES, PAGE_SHIFT};

use central::Central;
pub use error::{FreeError, IovaError};
use holes::{Run, limit};
use magazine::{KINDS, Kind, MAX_DEPOT_MAGAZINES, MAX_MAGAZINES, Rack};
pub use request::IovaRequest;
use request::whole_pages;

use crate::{
    Iova, Platform,
    platform::{LockClass, MAX_CPUS},
    sync::{InterruptsOff, IrqLock},
};

/// Where a device writes to raise an interrupt: never remapped as memory, so never an IOVA.
pub const INTERRUPT_RANGE: RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// How often all magazines are emptied for one request before it fails.
const MAX_DRAINS: usize = 2;

/// How much of a space is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct IovaStatistics {
    /// Pages handed out and not given back; a length up to 512 pages counts as the next power of two.
    pub allocated_pages: u64,
    /// Pages given back and kept in magazines for the next request.
    pub cached_pages: u64,
    /// Pages of the host's memory that hold the bookkeeping.
    pub memory_pages: usize,
}

/// One CPU's magazines of all kinds, on cache lines of their own.
#[repr(align(64))]
struct Cache(IrqLock<[Rack; KINDS]>);

/// The addresses of one domain.
pub struct IovaSpace<P: Platform> {
    platform: Arc<P>,
    /// Last address.
    last: u64,
    /// By CPU. A checked space has none.
    caches: Vec<Cache>,
    /// [`Central::has_exceptions`], to be read without the lock.
    has_exceptions: AtomicBool,
    central: IrqLock<Central>,
}

impl<P: Platform> IovaSpace<P> {
    /// The addresses `0..=last`, all free but page 0, which is handed out by address only, and the
    /// [`INTERRUPT_RANGE`]. Addresses above 57 bits are left out.
    ///
    /// # Errors
    /// [`IovaError::OutOfMemory`].
    pub fn new(platform: Arc<P>, last: u64) -> Result<Self, IovaError> {
        let mut caches = Vec::new();
        caches.try_reserve_exact(MAX_CPUS).map_err(|_| IovaError::OutOfMemory)?;
        caches.extend((0..MAX_CPUS).map(|_| Cache(IrqLock::new(LockClass::IovaCache, Default::default()))));
        Self::with(platform, last, caches)
    }

    /// The same, but with a record of everything that is handed out, so that a range which is freed twice, with another
    /// length, or without having been allocated is refused.
    ///
    /// # Errors
    /// [`IovaError::OutOfMemory`].
    pub fn new_checked(platform: Arc<P>, last: u64) -> Result<Self, IovaError> {
        Self::with(platform, last, Vec::new())
    }

    /// A space that has no addresses, and takes no memory.
    pub(crate) fn empty(platform: Arc<P>) -> Self {
        Self::bare(platform, 0, Vec::new())
    }

    fn with(platform: Arc<P>, last: u64, caches: Vec<Cache>) -> Result<Self, IovaError> {
        let space = Self::bare(platform, last, caches);
        let all = Run { first: 0, end: limit(last) };
        space.with_central(|central, tables| central.add(tables, all))?;
        if last >= *INTERRUPT_RANGE.end() {
            space.reserve(*INTERRUPT_RANGE.start(), *INTERRUPT_RANGE.end())?;
        }
        Ok(space)
    }

    fn bare(platform: Arc<P>, last: u64, caches: Vec<Cache>) -> Self {
        // SAFETY: the space has one platform, and its `drop` is the last to use the holes and the magazines.
        let central = IrqLock::new(LockClass::IovaSpace, unsafe { Central::new(caches.is_empty()) });
        Self { platform, last, caches, has_exceptions: AtomicBool::new(false), central }
    }

    /// `pages` pages up to address `last`. Up to 512 pages are aligned to their number rounded up to a power of two,
    /// as long as there is such room.
    ///
    /// # Errors
    /// [`IovaError::Exhausted`], [`IovaError::OutOfMemory`], [`IovaError::NotWholePages`] for no pages.
    #[inline(always)]
    pub fn allocate(&self, pages: u64, last: u64) -> Result<Iova, IovaError> {
        match self.pop(pages, last) {
            Some(iova) => Ok(iova),
            None => self.allocate_pages_missed(pages, last),
        }
    }

    #[cold]
    #[inline(never)]
    fn allocate_pages_missed(&self, pages: u64, last: u64) -> Result<Iova, IovaError> {
        self.allocate_missed(&IovaRequest::new(pages, last))
    }

    /// Pages that lie as `request` says.
    ///
    /// # Errors
    /// As [`allocate`](Self::allocate), and [`IovaError::Impossible`].
    pub fn allocate_with(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        request.shape()?;
        let cached = if request.is_block() { self.pop(request.pages, request.last) } else { None };
        cached.map_or_else(|| self.allocate_missed(request), Ok)
    }

    /// Exactly the `pages` pages at `iova`, which are given back by [`free`](Self::free).
    ///
    /// # Errors
    /// [`IovaError::Taken`] if one of them is in use, reserved or outside the space, [`IovaError::OutOfMemory`],
    /// [`IovaError::NotWholePages`].
    pub fn allocate_at(&self, iova: Iova, pages: u64) -> Result<(), IovaError> {
        let run = whole_pages(iova.as_u64(), pages.saturating_mul(PAGE_BYTES))?;
        self.fixed(run, false)
    }

    /// Withholds the addresses `first..=last` for as long as the space lives.
    ///
    /// # Errors
    /// As [`allocate_at`](Self::allocate_at).
    pub fn reserve(&self, first: u64, last: u64) -> Result<(), IovaError> {
        let run = whole_pages(first, last.wrapping_sub(first).wrapping_add(1))?;
        self.fixed(run, true)
    }

    /// Takes `pages` pages at `iova` back.
    ///
    /// # Errors
    /// If they are seen not to be allocated; nothing has changed then. A space that is not
    /// [checked](Self::new_checked) sees that only of ranges beyond the magazines.
    #[inline(always)]
    pub fn free(&self, iova: Iova, pages: u64) -> Result<(), FreeError> {
        if let Some(kind) = Kind::of_block(iova.as_u64(), pages)
            && !self.has_exceptions.load(Ordering::Relaxed)
        {
            let interrupts = InterruptsOff::new(&*self.platform);
            if let Some(cache) = self.caches.get(interrupts.cpu())
                && cache.0.lock_under(&interrupts)[kind.index()].push(iova.as_u64())
            {
                return Ok(());
            }
        }
        self.free_missed(iova, pages)
    }
}

impl<P: Platform> IovaSpace<P> {
    /// Gives the memory back that nothing needs now, after emptying all magazines.
    pub fn trim(&self) {
        self.drain();
        self.with_central(Central::trim);
    }

    /// How much of the space is used. Counted while others go on, so not exact to the page.
    pub fn statistics(&self) -> IovaStatistics {
        let in_magazines: u64 = self.caches.iter().map(|cache| self.cached_pages(cache)).sum();
        let central = self.central.lock(&*self.platform);
        let cached_pages = in_magazines + central.depot_pages();
        IovaStatistics {
            allocated_pages: central.taken_pages().saturating_sub(cached_pages),
            cached_pages,
            memory_pages: central.memory_pages(),
        }
    }

    fn cached_pages(&self, cache: &Cache) -> u64 {
        let racks = cache.0.lock(&*self.platform);
        let pages = |(kind, rack): (Kind, &Rack)| {
            rack.magazines().map(|m| m.len() as u64 * kind.pages()).sum::<u64>()
        };
        Kind::all().zip(racks.iter()).map(pages).sum()
    }

    /// The block on top of this CPU's magazine, if there is one and it fits.
    #[inline(always)]
    fn pop(&self, pages: u64, last: u64) -> Option<Iova> {
        let kind = Kind::for_request(pages, last)?;
        let interrupts = InterruptsOff::new(&*self.platform);
        let cache = self.caches.get(interrupts.cpu())?;
        let first = cache.0.lock_under(&interrupts)[kind.index()].pop(pages * PAGE_BYTES, last)?;
        Some(Iova::new(first))
    }

    /// What [`pop`](Self::pop) could not serve.
    #[cold]
    fn allocate_missed(&self, request: &IovaRequest) -> Result<Iova, IovaError> {
        let shape = request.shape()?;
        let &IovaRequest { pages, last, .. } = request;
        if request.is_block()
            && let Some(kind) = Kind::for_request(pages, last.min(self.last))
            && let Some(iova) = self.refill(kind, pages * PAGE_BYTES, last)
        {
            return Ok(iova);
        }
        let run = self.take_from_holes(|central, tables| central.allocate(tables, &shape));
        run.unwrap_or(Err(IovaError::Exhausted { pages, last }))
    }

    /// Takes exactly `run`.
    fn fixed(&self, run: Run, lasting: bool) -> Result<(), IovaError> {
        let Run { first, end } = run;
        let taken =
            IovaError::Taken { first: first << PAGE_SHIFT, last: (end << PAGE_SHIFT).wrapping_sub(1) };
        self.take_from_holes(|central, tables| central.take_fixed(tables, run, lasting)).unwrap_or(Err(taken))
    }

    /// What `take` finds in the holes, if need be after emptying all magazines.
    fn take_from_holes<T>(&self, mut take: impl FnMut(&mut Central, &P::Tables) -> Option<T>) -> Option<T> {
        for _ in 0..MAX_DRAINS {
            let found = self.with_central(&mut take);
            if found.is_some() {
                return found;
            }
            self.drain();
        }
        self.with_central(take)
    }

    fn with_central<T>(&self, change: impl FnOnce(&mut Central, &P::Tables) -> T) -> T {
        let mut central = self.central.lock(&*self.platform);
        let result = change(&mut central, self.platform.tables());
        self.has_exceptions.store(central.has_exceptions(), Ordering::Relaxed);
        result
    }

    /// Brings blocks into this CPU's magazines and takes one, if there are any.
    fn refill(&self, kind: Kind, bytes: u64, last: u64) -> Option<Iova> {
        let interrupts = InterruptsOff::new(&*self.platform);
        let mut racks = self.caches.get(interrupts.cpu())?.0.lock_under(&interrupts);
        let rack = &mut racks[kind.index()];
        let first = rack.pop_any(bytes, last).or_else(|| {
            let mut central = self.central.lock_under(&interrupts);
            central.refill(self.platform.tables(), rack, kind, last);
            rack.pop_any(bytes, last)
        });
        first.map(Iova::new)
    }

    /// [`free`](Self::free), when there is no room on top of this CPU's magazine.
    #[cold]
    #[inline(never)]
    fn free_missed(&self, iova: Iova, pages: u64) -> Result<(), FreeError> {
        let error = FreeError::NotAllocated { iova, pages };
        let run = whole_pages(iova.as_u64(), pages.saturating_mul(PAGE_BYTES)).map_err(|_| error)?;
        if run.end > limit(self.last) {
            return Err(error);
        }
        let block = Kind::of_block(iova.as_u64(), pages);
        let is_exception = !block.is_some_and(|kind| kind.is_block(run));
        let may_be_written_down =
            self.caches.is_empty() || (is_exception && self.has_exceptions.load(Ordering::Relaxed));
        if may_be_written_down && self.with_central(|central, tables| central.strike(tables, run, pages))? {
            return Ok(());
        }
        if block.is_some_and(|kind| !run.first.is_multiple_of(kind.pages())) {
            return Err(error);
        }
        if block.is_some_and(|kind| self.stow(kind, iova.as_u64())) {
            return Ok(());
        }
        let run = block.map_or(run, |kind| kind.run(iova.as_u64()));
        if self.with_central(|central, tables| central.give(tables, run)) { Ok(()) } else { Err(error) }
    }

    /// Puts a block into this CPU's magazines, after making room if need be. `false` if there is none.
    fn stow(&self, kind: Kind, first: u64) -> bool {
        let interrupts = InterruptsOff::new(&*self.platform);
        let Some(cache) = self.caches.get(interrupts.cpu()) else { return false };
        let rack = &mut cache.0.lock_under(&interrupts)[kind.index()];
        if rack.push(first) {
            return true;
        }
        if !rack.make_room() {
            self.central.lock_under(&interrupts).make_room(self.platform.tables(), rack, kind);
        }
        rack.push(first)
    }

    /// Empties all magazines into the holes.
    ///
    /// A magazine is in its place until its blocks are in the holes, for whoever else looks for them. Between two
    /// magazines interrupts are on.
    fn drain(&self) {
        for cache in &self.caches {
            for _ in 0..MAX_MAGAZINES {
                let interrupts = InterruptsOff::new(&*self.platform);
                let mut racks = cache.0.lock_under(&interrupts);
                let mut magazines = Kind::all().zip(racks.iter_mut());
                let Some((kind, magazine)) = magazines.find_map(|(kind, rack)| Some((kind, rack.take()?)))
                else {
                    break;
                };
                self.central.lock_under(&interrupts).retire(self.platform.tables(), magazine, kind);
            }
        }
        for _ in 0..MAX_DEPOT_MAGAZINES {
            if !self.with_central(Central::retire_from_depot) {
                break;
            }
        }
    }
}

impl<P: Platform> Drop for IovaSpace<P> {
    fn drop(&mut self) {
        self.with_central(Central::release);
    }
}

impl<P: Platform> fmt::Debug for IovaSpace<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.statistics().fmt(f)
    }
}
