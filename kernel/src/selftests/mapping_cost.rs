//! What a mapping costs below the DMA API: the IOVA allocator and the page-table engine together, with the second-stage
//! format of a unit that does not snoop (ECAP.C is 0), and no invalidation.

use alloc::vec::Vec;
use core::mem::ManuallyDrop;

use harness::{Bencher, Failure, bench};
use iommu::{
    Iova,
    iova::IovaSpace,
    vtd::{SecondStageAccess, SecondStageFormat},
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
    table: PageTable<SecondStageFormat, KernelTables>,
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
        let format = SecondStageFormat::new(LEVELS, sizes, ADDRESS_BITS as u8, false, false);
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
        let emptied =
            unsafe { self.table.map(iova.as_u64(), segments, SecondStageAccess::ReadWrite) }.ok()?;
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

bench! {
    /// What a magazine serves.
    fn iova_hit(bencher) {
        let bare = Bare::new()?;
        bencher.measure_with(|| (), |()| {
            let iova = bare.iovas.allocate(1, u64::MAX);
            iova.map(|iova| bare.iovas.free(iova, 1))
        });
    }
}

bench! {
    /// What no magazine serves: 4 MiB.
    fn iova_miss(bencher) {
        const PAGES: u64 = 1024;
        let bare = Bare::new()?;
        bencher.measure_with(|| (), |()| {
            let iova = bare.iovas.allocate(PAGES, u64::MAX);
            iova.map(|iova| bare.iovas.free(iova, PAGES))
        });
    }
}
