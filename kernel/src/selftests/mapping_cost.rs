//! What a mapping costs below the DMA API: the IOVA allocator and the page-table engine together, with the second-stage
//! format of a unit that does not snoop (ECAP.C is 0), and no invalidation.

use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use harness::{Bencher, Failure, bench};
use iommu::{
    Iova,
    iova::IovaSpace,
    vtd::{TableAccess, TableFormat},
};
use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{LeafSizes, PageTable},
};

use crate::{acpi, memory::KernelTables, platform::Kernel};

const ADDRESS_BITS: u32 = 48;
const LEVELS: u8 = 4;
/// Nothing walks these tables, so that what they lead to need not exist: an address aligned to 2 MiB.
const MEMORY: PhysAddr = PhysAddr::new(0x1_4000_0000);

/// A domain without hardware. Its table pages are lost with it: nothing but a benchmark makes one.
struct Bare {
    iovas: IovaSpace<Kernel>,
    table: PageTable<TableFormat, KernelTables>,
}

/// Something mapped; dropping it unmaps it.
struct Mapped<'a> {
    bare: &'a Bare,
    iova: Iova,
    pages: u64,
}

impl Bare {
    fn new() -> Result<Self, Failure> {
        let sizes = LeafSizes::all();
        let format = TableFormat::new(LEVELS, sizes, ADDRESS_BITS as u8, false, false);
        let format = format.ok_or_else(|| Failure::new("no such format"))?;
        let kernel = Kernel::new(&acpi::Tables::default());
        let iovas = IovaSpace::new(kernel, (1 << ADDRESS_BITS) - 1)?;
        Ok(Self { iovas, table: PageTable::new(format, KernelTables)? })
    }

    /// With so many pages mapped besides what is measured.
    fn with_others(pages: usize) -> Result<(Self, Vec<Iova>), Failure> {
        let bare = Self::new()?;
        let mut others = Vec::new();
        others.try_reserve_exact(pages)?;
        for _ in 0..pages {
            let mapped = bare
                .map(1, &[PhysRange::new(MEMORY, PAGE_BYTES)])
                .ok_or_else(|| Failure::new("no memory"))?;
            others.push(mapped.into_iova());
        }
        Ok((bare, others))
    }

    /// In the caller's frame, as a domain would do it.
    #[inline(always)]
    fn map(&self, pages: u64, segments: &[PhysRange]) -> Option<Mapped<'_>> {
        let iova = self.iovas.allocate(pages, u64::MAX).ok()?;
        // SAFETY: the range was just allocated, and no device walks the table.
        let emptied = unsafe { self.table.map(iova.as_u64(), segments, TableAccess::ReadWrite) }.ok()?;
        if let Some(stale) = emptied {
            // SAFETY: no hardware walks the table.
            self.table.redeem(unsafe { stale.assume_flushed() });
        }
        Some(Mapped { bare: self, iova, pages })
    }

    /// # Safety
    /// The pages were mapped, and are unmapped once.
    #[inline(always)]
    unsafe fn unmap(&self, iova: Iova, pages: u64) {
        // SAFETY: the range is the caller's, and no device walks the table.
        let Ok(stale) = (unsafe { self.table.unmap(iova.as_u64(), pages * PAGE_BYTES) }) else {
            return;
        };
        // SAFETY: no hardware walks the table.
        self.table.redeem(unsafe { stale.assume_flushed() });
        // What was never given back shows as a space that fills up.
        let _ = self.iovas.free(iova, pages);
    }
}

impl Mapped<'_> {
    /// The address, for [`Bare::unmap`].
    fn into_iova(self) -> Iova {
        ManuallyDrop::new(self).iova
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: the mapping ends with this.
        unsafe { self.bare.unmap(self.iova, self.pages) }
    }
}

/// One run of memory.
fn run(pages: u64) -> [PhysRange; 1] {
    [PhysRange::new(MEMORY, pages * PAGE_BYTES)]
}

/// Memory that does not allow a leaf above 4 KiB.
fn small_leaves(pages: u64) -> [PhysRange; 1] {
    [PhysRange::new(PhysAddr::new(MEMORY.as_u64() + PAGE_BYTES), pages * PAGE_BYTES)]
}

fn scattered() -> [PhysRange; 16] {
    core::array::from_fn(|index| {
        PhysRange::new(PhysAddr::new(MEMORY.as_u64() + 3 * index as u64 * PAGE_BYTES), PAGE_BYTES)
    })
}

fn measure_map(
    bencher: &mut Bencher<'_>,
    others: usize,
    pages: u64,
    memory: &[PhysRange],
) -> Result<(), Failure> {
    let (bare, _others) = Bare::with_others(others)?;
    bencher.measure(|| bare.map(pages, memory));
    Ok(())
}

fn measure_unmap(
    bencher: &mut Bencher<'_>,
    others: usize,
    pages: u64,
    memory: &[PhysRange],
) -> Result<(), Failure> {
    let (bare, _others) = Bare::with_others(others)?;
    bencher.measure_with(
        || bare.map(pages, memory).map(Mapped::into_iova),
        |iova| {
            if let Some(iova) = iova {
                // SAFETY: mapped in the line above, for this one time.
                unsafe { bare.unmap(iova, pages) }
            }
        },
    );
    Ok(())
}

/// A benchmark of mapping and one of unmapping the same.
macro_rules! map_and_unmap {
    ($($map:ident, $unmap:ident: $others:expr, $pages:expr, $memory:expr;)+) => {$(
        bench! {
            fn $map(bencher) {
                measure_map(bencher, $others, $pages, &$memory)?;
            }
        }

        bench! {
            fn $unmap(bencher) {
                measure_unmap(bencher, $others, $pages, &$memory)?;
            }
        }
    )+};
}

map_and_unmap! {
    map_4k, unmap_4k: 0, 1, run(1);
    map_64k, unmap_64k: 0, 16, small_leaves(16);
    map_1m, unmap_1m: 0, 256, small_leaves(256);
    map_2m, unmap_2m: 0, 512, run(512);
    map_16_scattered, unmap_16_scattered: 0, 16, scattered();
    map_4k_beside_1000, unmap_4k_beside_1000: 1_000, 1, run(1);
    map_4k_beside_100000, unmap_4k_beside_100000: 100_000, 1, run(1);
}

/// An IOVA; dropping it frees it.
struct Held<'a> {
    bare: &'a Bare,
    iova: Iova,
    pages: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let _ = self.bare.iovas.free(self.iova, self.pages);
    }
}

/// A size that magazines hold.
const HIT: u64 = 1;
/// 4 MiB, which they do not.
const MISS: u64 = 1024;

/// `before` comes before each of the allocations, and does not count.
fn measure_allocate(bencher: &mut Bencher<'_>, pages: u64, before: fn(&Bare)) -> Result<(), Failure> {
    let bare = Bare::new()?;
    let allocate = || bare.iovas.allocate(pages, u64::MAX);
    bencher.measure_with(|| before(&bare), |()| allocate().map(|iova| Held { bare: &bare, iova, pages }));
    Ok(())
}

fn measure_free(bencher: &mut Bencher<'_>, pages: u64) -> Result<(), Failure> {
    let bare = Bare::new()?;
    let allocate = || bare.iovas.allocate(pages, u64::MAX).ok();
    bencher.measure_with(allocate, |iova| {
        if let Some(iova) = iova {
            let _ = bare.iovas.free(iova, pages);
        }
    });
    Ok(())
}

bench! {
    fn iova_allocate_hit(bencher) {
        measure_allocate(bencher, HIT, |_| ())?;
    }
}

bench! {
    fn iova_free_hit(bencher) {
        measure_free(bencher, HIT)?;
    }
}

bench! {
    fn iova_allocate_miss(bencher) {
        measure_allocate(bencher, MISS, |_| ())?;
    }
}

bench! {
    fn iova_free_miss(bencher) {
        measure_free(bencher, MISS)?;
    }
}

bench! {
    /// A page, while all magazines are empty: a new one is filled.
    fn iova_allocate_refill(bencher) {
        measure_allocate(bencher, HIT, |bare| bare.iovas.trim())?;
    }
}
