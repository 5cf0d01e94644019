//! Tables written by hand, entry by entry.

use std::sync::{Arc, atomic::Ordering};

use mm::{PhysAddr, table::TableMemory};
use vtd_model::ModelPlatform;

pub const RW: u64 = 3;

/// The tables below one root table.
pub struct Hand {
    pub platform: Arc<ModelPlatform>,
    pub root: u64,
}

impl Hand {
    /// A page of zeroes, written back.
    pub fn page(&self) -> u64 {
        let page = iommu::Platform::tables(&*self.platform).allocate().unwrap();
        // SAFETY: just allocated.
        let table = unsafe { iommu::Platform::tables(&*self.platform).table(page) };
        iommu::Platform::tables(&*self.platform).write_back(table.as_ptr().cast(), 4096);
        page.as_u64()
    }

    /// Stores a word of a table page, without writing it back.
    pub fn store(&self, physical: u64, value: u64) {
        // SAFETY: a page that `page` gave out.
        let table =
            unsafe { iommu::Platform::tables(&*self.platform).table(PhysAddr::new(physical & !0xfff)) };
        table[(physical & 0xfff) as usize / 8].store(value, Ordering::Release);
    }

    pub fn load(&self, physical: u64) -> u64 {
        // SAFETY: as in `store`.
        let table =
            unsafe { iommu::Platform::tables(&*self.platform).table(PhysAddr::new(physical & !0xfff)) };
        table[(physical & 0xfff) as usize / 8].load(Ordering::Acquire)
    }

    pub fn write_back(&self, physical: u64) {
        // SAFETY: as in `store`.
        let table =
            unsafe { iommu::Platform::tables(&*self.platform).table(PhysAddr::new(physical & !0xfff)) };
        let first = &raw const table[(physical & 0xfff) as usize / 8];
        iommu::Platform::tables(&*self.platform).write_back(first.cast(), 8);
    }

    pub fn put(&self, physical: u64, value: u64) {
        self.store(physical, value);
        self.write_back(physical);
    }

    /// The context entry of a source behind `root`; makes the context table.
    pub fn context_slot(&self, source: u16) -> u64 {
        let slot = self.root + u64::from(source >> 8) * 16;
        if self.load(slot) & 1 == 0 {
            let table = self.page();
            self.put(slot, table | 1);
        }
        (self.load(slot) & !0xfff) + u64::from(source & 0xff) * 16
    }

    /// A present 48-bit context: high word first.
    pub fn put_context(&self, source: u16, domain: u16, table: u64) {
        self.put_context_words(source, table | 1, u64::from(domain) << 8 | 2);
    }

    pub fn put_context_words(&self, source: u16, low: u64, high: u64) {
        let slot = self.context_slot(source);
        self.put(slot + 8, high);
        self.put(slot, low);
    }

    /// Maps one page in a 4-level table and gives the tables on the way, from level 3 to 1.
    pub fn map(&self, top: u64, iova: u64, leaf: u64) -> [u64; 3] {
        let mut table = top;
        let mut path = [0; 3];
        for (step, shift) in [39, 30, 21].into_iter().enumerate() {
            let slot = table + (iova >> shift & 511) * 8;
            if self.load(slot) & RW == 0 {
                let lower = self.page();
                self.put(slot, lower | RW);
            }
            table = self.load(slot) & 0x000f_ffff_ffff_f000;
            path[step] = table;
        }
        self.put(leaf_slot(table, iova), leaf);
        path
    }
}

pub fn leaf_slot(table: u64, iova: u64) -> u64 {
    table + (iova >> 12 & 511) * 8
}
