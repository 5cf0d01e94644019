//! What a page costs that a program and its device both have: mapped for each by itself, or once in a table that both
//! walk.

use alloc::sync::Arc;
use core::{mem::ManuallyDrop, ptr::NonNull};

use harness::{Bencher, Failure, bench, failure};
use iommu::{Bidirectional, DmaDevice, Mapping, PageBuffer};
use mm::{PAGE_BYTES, PhysRange, table::x86::X86Access};
use suites::{Machine, lacks};

use crate::memory::{self, KernelTables, UserTable};

const NEIGHBOUR: u64 = abi::MEMORY.start;
const AT: u64 = NEIGHBOUR + PAGE_BYTES;
const ACCESS: X86Access = X86Access::NO_EXECUTE.union(X86Access::WRITE);

type Mapped = Mapping<PageBuffer, Bidirectional>;

/// A program's table, and the device that has what the program has.
struct Pair {
    /// Lost, with what it maps, unless `end` takes it.
    table: ManuallyDrop<UserTable<KernelTables>>,
    device: DmaDevice,
    /// Both have it all the time, so that the tables below the root are there.
    neighbour: Neighbour,
}

/// A page beside the one that is measured.
enum Neighbour {
    None,
    InTwoTables(Mapped),
    Shared(ManuallyDrop<PageBuffer>),
}

impl Pair {
    /// One table each. The device is an `edu` that the kernel has.
    fn separate(machine: &Machine) -> Result<Self, Failure> {
        let table = UserTable::new(KernelTables).ok_or(failure!("no table"))?;
        let (table, device) = (ManuallyDrop::new(table), machine.edu(0)?.dma.clone());
        let mut pair = Self { table, device, neighbour: Neighbour::None };
        let page = page()?;
        pair.map(NEIGHBOUR, &page)?;
        pair.neighbour = Neighbour::InTwoTables(pair.lend(page)?);
        Ok(pair)
    }

    /// One for both. The device is an `edu` that nobody has.
    fn shared(machine: &Machine) -> Result<Self, Failure> {
        let function = machine.idle_edu().ok_or(failure!("no edu"))?;
        let mut table = ManuallyDrop::new(UserTable::new(KernelTables).ok_or(failure!("no table"))?);
        // SAFETY: only `end` gives the table up, when the domain has ended.
        let shared = unsafe { table.to_share(memory::ram_bits(), Arc::new(())) };
        let domain = machine.iommu.share_table(&[function], shared)?;
        if !table.add_domain(domain.clone()) {
            return Err(failure!("no memory"));
        }
        let is_quiet = |member| machine.hotplug.is_quiet(&[function], member);
        let device = machine.iommu.assign(function, domain.domain(), is_quiet)?;
        let mut pair = Self { table, device, neighbour: Neighbour::None };
        let page = ManuallyDrop::new(page()?);
        pair.map(NEIGHBOUR, &page)?;
        pair.neighbour = Neighbour::Shared(page);
        Ok(pair)
    }

    fn lend(&self, page: PageBuffer) -> Result<Mapped, Failure> {
        Ok(self.device.dma_map(page, Bidirectional).map_err(|rejected| rejected.error)?)
    }

    fn map(&self, at: u64, page: &PageBuffer) -> Result<(), Failure> {
        let first = NonNull::from(&page[0]);
        let start = memory::physical(first, PAGE_BYTES as usize).ok_or_else(|| failure!("where is it?"))?;
        // SAFETY: in the lower half, and no CPU ever has this table.
        Ok(unsafe { self.table.map(at, PhysRange::new(start, PAGE_BYTES), ACCESS) }?)
    }

    fn unmap(&self) -> Result<(), Failure> {
        Ok(self.table.unmap(AT, PAGE_BYTES)?)
    }

    fn end(self, machine: &Machine) -> Result<(), Failure> {
        let Self { mut table, device, neighbour } = self;
        for domain in table.take_domains() {
            machine.release(device.function())?;
            domain.destroy()?;
        }
        // No device has it any more, and no CPU ever had.
        drop(ManuallyDrop::into_inner(table));
        match neighbour {
            Neighbour::None => {}
            Neighbour::InTwoTables(mapping) => drop(mapping.unmap()?),
            Neighbour::Shared(page) => drop(ManuallyDrop::into_inner(page)),
        }
        Ok(())
    }
}

fn page() -> Result<PageBuffer, Failure> {
    PageBuffer::zeroed(1).ok_or_else(|| failure!("no memory"))
}

/// Measures `work` between `prepare` and `undo` on what `make` makes.
fn measure<T, R>(
    bencher: &mut Bencher<'_>,
    make: fn(&Machine) -> Result<Pair, Failure>,
    prepare: impl Fn(&Pair) -> Result<T, Failure>,
    work: impl Fn(&Pair, T) -> Result<R, Failure>,
    undo: impl Fn(&Pair, R) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let machine = Machine::of(bencher.context())?;
    let pair = make(machine)?;
    let mut failed = None;
    bencher.measure_between(
        || prepare(&pair),
        |input| input.and_then(|input| work(&pair, input)),
        |output| failed = output.and_then(|output| undo(&pair, output)).err().or(failed.take()),
    );
    pair.end(machine)?;
    failed.map_or(Ok(()), Err)
}

fn map_both(pair: &Pair, page: PageBuffer) -> Result<Mapped, Failure> {
    pair.map(AT, &page)?;
    pair.lend(page)
}

fn unmap_both(pair: &Pair, mapping: Mapped) -> Result<(), Failure> {
    pair.unmap()?;
    mapping.unmap()?;
    Ok(())
}

fn map_once(pair: &Pair, page: PageBuffer) -> Result<PageBuffer, Failure> {
    pair.map(AT, &page)?;
    Ok(page)
}

bench! {
    lacks = lacks::isolated_edu,
    fn map_4k_in_two_tables(bencher) {
        measure(bencher, Pair::separate, |_| page(), map_both, unmap_both)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn unmap_4k_from_two_tables(bencher) {
        measure(bencher, Pair::separate, |pair| map_both(pair, page()?), unmap_both, |_, ()| Ok(()))?;
    }
}

bench! {
    lacks = lacks::shareable_spaces,
    fn map_4k_in_a_shared_table(bencher) {
        measure(bencher, Pair::shared, |_| page(), map_once, |pair, _page| pair.unmap())?;
    }
}

bench! {
    lacks = lacks::shareable_spaces,
    fn unmap_4k_from_a_shared_table(bencher) {
        let unmap = |pair: &Pair, page: PageBuffer| {
            pair.unmap()?;
            Ok(page)
        };
        measure(bencher, Pair::shared, |pair| map_once(pair, page()?), unmap, |_, _page| Ok(()))?;
    }
}
