//! Parts of superpages unmapped and protected while a unit remembers the whole, in one piece or in many: after the
//! flush that the token asks for, and no more, the device finds what the table says.

mod by_hand;

use std::collections::BTreeMap;

use by_hand::*;
use iommu::vtd::{TableAccess, TableFormat};
use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{LeafSizes, PageTable, Stale, TableMemory},
};
use vtd_model::{Access, Device, MachineConfig, Random};

const M2: u64 = 1 << 21;
const G1: u64 = 1 << 30;

const DOMAIN: u16 = 3;

/// Where all happens: what is mapped there leads to the same address plus `OFFSET`, which is nobody's memory.
const FIRST: u64 = 4 * G1;
const END: u64 = FIRST + 2 * G1;
const OFFSET: u64 = 64 * G1;

/// What is mapped, as runs: first address to end and rights. Whatever is not in a run is not mapped.
type Runs = BTreeMap<u64, (u64, TableAccess)>;

struct Play<'m, M: TableMemory> {
    bench: Bench,
    device: Device,
    table: PageTable<TableFormat, &'m M>,
    random: Random,
    runs: Runs,
}

impl<M: TableMemory> Play<'_, M> {
    /// A range within the space: pages at an end of a superpage, or some of them, or some in the midst.
    fn pick(&mut self) -> (u64, u64) {
        let unit = [PAGE_BYTES, PAGE_BYTES, M2, G1][self.random.index(4)];
        let step = [PAGE_BYTES, M2, G1][self.random.index(3)].max(unit);
        let first = FIRST + self.random.below(2 * G1) / step * step;
        let first = if self.random.once_in(4) && first >= FIRST + unit { first - unit } else { first };
        let bytes = unit * self.random.between(1, 3);
        (first, bytes.min(END - first))
    }

    fn rights(&mut self) -> TableAccess {
        [TableAccess::Read, TableAccess::Write, TableAccess::ReadWrite][self.random.index(3)]
    }

    /// Cuts the runs at the ends of a range, and takes those in it out.
    fn take(&mut self, first: u64, end: u64) -> Vec<(u64, u64)> {
        for at in [first, end] {
            if let Some((&start, &(run_end, rights))) = self.runs.range(..at).next_back()
                && at < run_end
            {
                self.runs.insert(start, (at, rights));
                self.runs.insert(at, (run_end, rights));
            }
        }
        let taken: Vec<_> = self.runs.range(first..end).map(|(start, run)| (*start, run.0)).collect();
        for (start, _) in &taken {
            self.runs.remove(start);
        }
        taken
    }

    fn map(&mut self, first: u64, bytes: u64) {
        let rights = self.rights();
        let memory = [PhysRange::new(PhysAddr::new(first + OFFSET), bytes)];
        // SAFETY: one thread, and no memory is behind what is mapped.
        match unsafe { self.table.map(first, &memory, rights) } {
            Ok(stale) => {
                self.runs.insert(first, (first + bytes, rights));
                stale.into_iter().for_each(|stale| self.flush(stale));
            }
            Err(error) => error.into_undone().into_iter().for_each(|stale| self.flush(stale)),
        }
    }

    fn unmap(&mut self, first: u64, bytes: u64) {
        // SAFETY: as in `map`.
        let stale = unsafe { self.table.unmap(first, bytes) }.unwrap();
        self.take(first, first + bytes);
        self.flush(stale);
    }

    fn protect(&mut self, first: u64, bytes: u64) {
        let rights = self.rights();
        // SAFETY: as in `map`.
        let stale = unsafe { self.table.protect(first, bytes, rights) }.unwrap();
        for (start, end) in self.take(first, first + bytes) {
            self.runs.insert(start, (end, rights));
        }
        self.flush(stale);
    }

    /// Invalidates exactly what the token says, in blocks of a power of two; the domain if that would take very many.
    fn flush(&mut self, stale: Stale) {
        const LARGEST: u32 = 18;
        const VERY_MANY: usize = 64;
        let (mut page, end) = (stale.first() >> 12, (stale.last() >> 12) + 1);
        let mut descriptors = Vec::new();
        while page < end && descriptors.len() <= VERY_MANY {
            let order = page.trailing_zeros().min((end - page).ilog2()).min(LARGEST);
            descriptors.push(iotlb_pages(DOMAIN, page << 12, order.into(), stale.only_leaves()));
            page += 1 << order;
        }
        if descriptors.len() > VERY_MANY {
            descriptors = vec![iotlb_domain(DOMAIN)];
        }
        self.bench.submit(&descriptors);
        // SAFETY: just invalidated.
        self.table.redeem(unsafe { stale.assume_flushed() });
    }

    /// What the device finds is what is mapped. It fills the caches for what comes next, too.
    fn probe(&self, iova: u64) {
        let run = self.runs.range(..=iova).next_back().map(|(_, run)| *run).filter(|run| iova < run.0);
        for (access, other) in [(Access::Read, TableAccess::Write), (Access::Write, TableAccess::Read)] {
            let allowed = run.is_some_and(|(_, rights)| rights != other);
            let found = self.device.probe(iova, access).ok();
            assert_eq!(found, allowed.then_some(iova + OFFSET), "{access:?} at {iova:#x}");
        }
    }

    fn probe_around(&mut self, first: u64, bytes: u64) {
        let (end, middle) = (first + bytes, first + self.random.below(bytes));
        let other = FIRST + self.random.below(2 * G1);
        let in_superpage = first & !(M2 - 1) | other & (M2 - 1);
        for iova in [first, middle, end - 1, first.saturating_sub(1), end, in_superpage, other] {
            if (FIRST..END).contains(&iova) {
                self.probe(iova);
            }
        }
    }
}

#[test]
fn parts_of_superpages_are_flushed_as_what_they_were_part_of() {
    for seed in 0..8 {
        let mut config = MachineConfig { seed, ..MachineConfig::plain(2) };
        config.host_address_bits = 46;
        let bench = Bench::new(config);
        let platform = bench.platform.clone();
        let format = TableFormat::new(4, LeafSizes::all(), 46, false, false).unwrap();
        let table = PageTable::new(format, iommu::Platform::tables(&*platform)).unwrap();
        bench.put_context(SOURCE, DOMAIN, table.root().as_u64());
        let (device, random) = (bench.device(), Random::new(seed));
        let mut play = Play { bench, device, table, random, runs: Runs::new() };
        for _ in 0..600 {
            let (first, bytes) = play.pick();
            match play.random.below(10) {
                0..4 => play.map(first, bytes),
                4..7 => play.protect(first, bytes),
                _ => play.unmap(first, bytes),
            }
            play.probe_around(first, bytes);
        }
        play.bench.assert_content();
    }
}
