//! What the DMA API costs, whole: checks, IOVAs, tables, bookkeeping, and the unit's invalidation, by the handle that a
//! driver has. The device is an `edu`, which nobody asks to do anything.
//!
//! Instructions by the counter of `mapping_cost`; what is written to units, by theirs: a doorbell is a register write,
//! and the only one of an invalidation by the queue.

use alloc::vec::Vec;

use harness::{Bencher, Failure, bench, failure};
use iommu::{
    DmaDevice, DmaError, FromDevice, Mapping, PageBuffer, ToDevice,
    dma::{Retired, ScatterList, ScatterMapping},
};
use suites::{Machine, lacks, reports};

/// Pages of a list, and mappings of a batch.
const PIECES: usize = 16;

/// Calls over which doorbells and descriptors are counted.
const CALLS: u64 = 1000;

type Page = Mapping<PageBuffer, FromDevice>;
type List = ScatterMapping<PageBuffer, ToDevice>;

fn pages(count: usize) -> Result<PageBuffer, DmaError> {
    PageBuffer::zeroed(count).ok_or(DmaError::OutOfMemory)
}

fn list() -> Result<ScatterList<PageBuffer>, DmaError> {
    let mut list = ScatterList::with_capacity(PIECES)?;
    for _ in 0..PIECES {
        list.push(pages(1)?)?;
    }
    Ok(list)
}

/// Measures `work` on what `prepare` makes of a device's handle; `undo` ends what it began. None of them may fail.
fn measure<T, R, U>(
    bencher: &mut Bencher<'_>,
    prepare: impl Fn(&DmaDevice) -> Result<T, DmaError>,
    work: impl Fn(&DmaDevice, T) -> Result<R, DmaError>,
    undo: impl Fn(R) -> Result<U, DmaError>,
) -> Result<(), Failure> {
    let machine = Machine::of(bencher.context())?;
    let edu = machine.edu(0)?;
    let mut failed = None;
    bencher.measure_between(
        || prepare(&edu.dma),
        |input| input.and_then(|input| work(&edu.dma, input)),
        |output| {
            if let Err(error) = output.and_then(&undo) {
                failed = Some(error);
            }
        },
    );
    if let Some(error) = failed {
        return Err(failure!("{error}"));
    }
    let (doorbells, descriptors) = count(machine, &edu.dma, prepare, work, undo)?;
    bencher.report("doorbells/1000", [doorbells].into());
    bencher.report("descriptors/1000", [descriptors].into());
    Ok(())
}

/// What units are told meanwhile: doorbells and descriptors in [`CALLS`] calls.
fn count<T, R, U>(
    machine: &Machine,
    dma: &DmaDevice,
    prepare: impl Fn(&DmaDevice) -> Result<T, DmaError>,
    work: impl Fn(&DmaDevice, T) -> Result<R, DmaError>,
    undo: impl Fn(R) -> Result<U, DmaError>,
) -> Result<(u64, u64), DmaError> {
    let (mut doorbells, mut descriptors) = (0, 0);
    for _ in 0..CALLS {
        let input = prepare(dma)?;
        let before = told(machine);
        let output = work(dma, input)?;
        let after = told(machine);
        undo(output)?;
        doorbells += after.0 - before.0;
        descriptors += after.1 - before.1;
    }
    Ok((doorbells, descriptors))
}

/// Doorbells and descriptors so far, of all units.
fn told(machine: &Machine) -> (u64, u64) {
    let units = reports::units(&machine.iommu);
    units.iter().fold((0, 0), |(doorbells, descriptors), unit| {
        (doorbells + unit.doorbells, descriptors + unit.descriptors)
    })
}

fn measure_map(bencher: &mut Bencher<'_>, count: usize) -> Result<(), Failure> {
    measure(bencher, |_| pages(count), |dma, page| Ok(dma.dma_map(page, FromDevice)?), Mapping::unmap)
}

fn measure_unmap(bencher: &mut Bencher<'_>, count: usize) -> Result<(), Failure> {
    let prepare = |dma: &DmaDevice| Ok(dma.dma_map(pages(count)?, FromDevice)?);
    measure(bencher, prepare, |_, mapping| mapping.unmap(), Ok)
}

/// A buffer with an end on another page than it begins on: two pages stand in for it.
fn ragged() -> Result<Vec<u8>, DmaError> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(6000).map_err(|_| DmaError::OutOfMemory)?;
    bytes.resize(6000, 0);
    Ok(bytes)
}

bench! {
    lacks = lacks::isolated_edu,
    fn map_4k(bencher) {
        measure_map(bencher, 1)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn unmap_4k(bencher) {
        measure_unmap(bencher, 1)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn map_1m(bencher) {
        measure_map(bencher, 256)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn unmap_1m(bencher) {
        measure_unmap(bencher, 256)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn map_list_16(bencher) {
        let map = |dma: &DmaDevice, list| Ok(dma.dma_map_sg(list, ToDevice)?);
        measure(bencher, |_| list(), map, List::unmap)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn unmap_list_16(bencher) {
        let prepare = |dma: &DmaDevice| Ok(dma.dma_map_sg(list()?, ToDevice)?);
        measure(bencher, prepare, |_, mapping: List| mapping.unmap(), Ok)?;
    }
}

bench! {
    /// The address, sixteen pages one by one, and the sync.
    lacks = lacks::isolated_edu,
    fn reserve_link_sync_16(bencher) {
        let prepare = |_: &DmaDevice| (0..PIECES).map(|_| pages(1)).collect::<Result<Vec<_>, _>>();
        let work = |dma: &DmaDevice, pieces: Vec<PageBuffer>| {
            let mut request = dma.dma_reserve(PIECES, PIECES * 4096, ToDevice)?;
            for piece in pieces {
                request.link(piece)?;
            }
            Ok(request.sync())
        };
        measure(bencher, prepare, work, List::unmap)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn map_ragged_6000(bencher) {
        let map = |dma: &DmaDevice, bytes| Ok(dma.dma_map(bytes, FromDevice)?);
        measure(bencher, |_| ragged(), map, Mapping::unmap)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn unmap_ragged_6000(bencher) {
        let prepare = |dma: &DmaDevice| Ok(dma.dma_map(ragged()?, FromDevice)?);
        measure(bencher, prepare, |_, mapping| mapping.unmap(), Ok)?;
    }
}

bench! {
    /// Sixteen pages that were mapped one by one.
    lacks = lacks::isolated_edu,
    fn unmap_batch_16(bencher) {
        let prepare = |dma: &DmaDevice| {
            (0..PIECES).map(|_| Ok(dma.dma_map(pages(1)?, FromDevice)?)).collect::<Result<Vec<Page>, DmaError>>()
        };
        measure(bencher, prepare, |dma, mappings| dma.unmap_batch(mappings), Ok)?;
    }
}

bench! {
    lacks = lacks::isolated_edu,
    fn retire_4k(bencher) {
        let prepare = |dma: &DmaDevice| Ok(dma.dma_map(pages(1)?, FromDevice)?);
        measure(bencher, prepare, |_, mapping: Page| Ok(mapping.retire()), Retired::wait)?;
    }
}

bench! {
    /// While others wait for the same flush: what each but the first costs.
    lacks = lacks::isolated_edu,
    fn retire_4k_among_others(bencher) {
        let prepare = |dma: &DmaDevice| {
            let first = dma.dma_map(pages(1)?, FromDevice)?.retire();
            Ok((first, dma.dma_map(pages(1)?, FromDevice)?))
        };
        let work = |_: &DmaDevice, (first, mapping): (Retired<_, _>, Page)| Ok((first, mapping.retire()));
        measure(bencher, prepare, work, |(first, second)| {
            first.wait()?;
            second.wait()
        })?;
    }
}

bench! {
    /// Taken and given back.
    lacks = lacks::isolated_edu,
    fn pool_buffer(bencher) {
        let machine = Machine::of(bencher.context())?;
        let pool = machine.edu(0)?.dma.dma_pool(2048, 64, FromDevice)?;
        bencher.measure_with(|| (), |()| drop(pool.take()));
    }
}
