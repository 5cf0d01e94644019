//! The life of a mapping: what it reaches, when that ends, and errors that leave nothing behind.

use alloc::vec::Vec;

use drivers::edu::{Transfer, Way};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Iova, Mapping, PageBuffer, ToDevice, dump::UnitReport,
};

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{Machine, lacks},
    pattern, reports,
};

test! {
    /// An unmap ends what the unit has just translated, and has cached.
    deadline_ms = 20_000,
    lacks = lacks::isolated_edu,
    fn after_unmap_a_warm_address_is_blocked(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        edu.load(1)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 2)?, Bidirectional, page)?;
        edu.push(page, 64)?;
        edu.pull(page, 64)?;
        let buffer = mapping.unmap()?;
        pattern::expect(&buffer[..64], 1, "the page while it was mapped")?;
        edu.load(3)?;
        edu.push(page, 64)?;
        Expected::write(edu.device.function(), page).await_recorded(machine)?;
        edu.pull(page, 64)?;
        Expected::read(edu.device.function(), page).await_recorded(machine)?;
        pattern::expect(&buffer[..64], 1, "the page after it was unmapped")?;
    }
}

test! {
    /// An address that is used again reaches the new buffer only.
    deadline_ms = 20_000,
    lacks = lacks::isolated_edu,
    fn an_address_used_again_reaches_the_new_buffer(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let page = machine.fresh_page();
        edu.load(1)?;
        let first = edu.dma.dma_map_at(pattern::pages(1, 2)?, FromDevice, page)?;
        edu.push(page, BYTES)?;
        let first = first.unmap()?;
        let second = edu.dma.dma_map_at(pattern::pages(1, 3)?, FromDevice, page)?;
        edu.load(4)?;
        edu.push(page, BYTES)?;
        pattern::expect(&second.unmap()?[..BYTES], 4, "the new buffer")?;
        pattern::expect(&first[..BYTES], 1, "the old buffer")?;
    }
}

test! {
    /// The same address means another buffer to another function.
    deadline_ms = 20_000,
    lacks = lacks::two_isolated_edus,
    fn one_address_reaches_two_buffers_from_two_functions(context) {
        let machine = Machine::of(context)?;
        let (mut one, mut other) = (machine.edu(0)?, machine.edu(1)?);
        one.load(1)?;
        other.load(2)?;
        let page = machine.fresh_page();
        let first = one.dma.dma_map_at(pattern::pages(1, 3)?, FromDevice, page)?;
        let second = other.dma.dma_map_at(pattern::pages(1, 4)?, FromDevice, page)?;
        one.push(page, BYTES)?;
        other.push(page, BYTES)?;
        pattern::expect(&first.unmap()?[..BYTES], 1, "the first function's buffer")?;
        pattern::expect(&second.unmap()?[..BYTES], 2, "the second function's buffer")?;
    }
}

test! {
    /// A buffer that is unmapped before the device fetches it is never touched, though the transfer has started.
    lacks = lacks::isolated_edu,
    fn a_buffer_unmapped_during_the_delay_is_not_touched(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        edu.load(1)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 2)?, FromDevice, page)?;
        edu.device.start(Transfer { way: Way::ToMemory, iova: page, offset: 0, bytes: BYTES })?;
        let buffer = mapping.unmap()?;
        pattern::expect(&buffer, 2, "the buffer right after it was unmapped")?;
        edu.device.finish()?;
        Expected::write(edu.device.function(), page).await_recorded(machine)?;
        pattern::expect(&buffer, 2, "the buffer after the transfer")?;
    }
}

test! {
    /// A mapping that is dropped is unmapped before its memory is used again.
    lacks = lacks::isolated_edu,
    fn a_dropped_mapping_is_unmapped(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let before = machine.iommu.live_mappings();
        let page = machine.fresh_page();
        drop(edu.dma.dma_map_at(pattern::pages(1, 1)?, FromDevice, page)?);
        await_live_mappings(machine, before)?;
        edu.push(page, 64)?;
        Expected::write(edu.device.function(), page).await_recorded(machine)?;
    }
}

/// Waits until the reaper has left no more than `wanted` mappings: it may still have some of an earlier test to free.
pub(crate) fn await_live_mappings(machine: &Machine, wanted: usize) -> Result<(), Failure> {
    const DEADLINE_NS: u64 = 10_000_000_000;
    let deadline_ns = machine.host.now_ns().saturating_add(DEADLINE_NS);
    while machine.iommu.live_mappings() > wanted {
        if machine.host.now_ns() >= deadline_ns {
            return Err(failure!(
                "{} mappings are live, not {wanted} or fewer",
                machine.iommu.live_mappings()
            ));
        }
        machine.host.relax();
    }
    Ok(())
}

test! {
    /// Long-lived shared memory: the device sees what the CPU writes, and the other way round, until it is dropped.
    lacks = lacks::edu,
    fn coherent_memory_is_shared(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let live = machine.iommu.live_mappings();
        let mut memory = edu.dma.alloc_coherent::<u64>(512)?;
        check_eq!(memory.read(511), 0);
        memory.write(7, 0x1122_3344_5566_7788);
        edu.pull(memory.iova_of(7), 8)?;
        edu.push(memory.iova_of(100), 8)?;
        check_eq!(memory.read(100), 0x1122_3344_5566_7788);
        check_eq!(memory.read(101), 0);
        drop(memory);
        await_live_mappings(machine, live)?;
    }
}

/// Pages of the long run.
const LONG_PAGES: usize = 2048;
const LARGE_LEAF: u64 = 2 << 20;

/// Maps `buffer` at `iova`, and returns how many pages of tables that took.
fn map_long(
    machine: &Machine,
    dma: &DmaDevice,
    buffer: PageBuffer,
    iova: Iova,
) -> Result<(Mapping<PageBuffer, FromDevice>, u64), Failure> {
    let before = machine.memory.free_frames();
    let mapping = dma.dma_map_at(buffer, FromDevice, iova)?;
    Ok((mapping, before.saturating_sub(machine.memory.free_frames())))
}

/// Where in a large leaf the memory of `mapping` begins.
fn offset_in_leaf(
    machine: &Machine,
    mapping: &Mapping<PageBuffer, FromDevice>,
    dma: &DmaDevice,
) -> Option<u64> {
    let mappings = reports::group(&machine.iommu, dma.function())?.mappings;
    let report = mappings.iter().find(|report| report.iova == mapping.iova())?;
    Some(report.output.as_u64() % LARGE_LEAF)
}

test! {
    /// A run that is long and aligned enough takes large leaves where the units have them, and is reached at both ends
    /// and in between, and gone as a whole.
    deadline_ms = 20_000,
    lacks = lacks::isolated_edu,
    fn a_long_run_takes_large_leaves(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let dma = edu.dma.clone();
        edu.load(1)?;
        let start = machine.fresh_page().as_u64() & !(LARGE_LEAF - 1);
        let buffer = PageBuffer::zeroed(LONG_PAGES).ok_or_else(|| failure!("no memory for a long buffer"))?;
        // Where memory begins shows only when it is mapped; and the first mapping of a region takes more than others.
        let (mapping, _) = map_long(machine, &dma, buffer, Iova::new(start))?;
        let offset = offset_in_leaf(machine, &mapping, &dma).ok_or_else(|| failure!("the mapping is not shown"))?;
        let (mapping, small) = map_long(machine, &dma, mapping.unmap()?, Iova::new(start + offset + 4096))?;
        let (mapping, large) = map_long(machine, &dma, mapping.unmap()?, Iova::new(start + offset))?;
        // The first stage has them always, the second if the unit says so.
        let has_large = |unit: &UnitReport| unit.first_stage || unit.capability >> 34 & 1 != 0;
        let reported = reports::units(&machine.iommu).iter().all(has_large);
        if reported && machine.options.superpages {
            check!(large + 2 <= small, "{large} table pages where leaves can be large, {small} where they cannot");
        } else {
            check!(small.abs_diff(large) <= 1, "{large} and {small} table pages, with leaves of 4 KiB only");
        }
        let pages = [0, LONG_PAGES / 2, LONG_PAGES - 1];
        let address = |page: usize| Iova::new(start + offset + page as u64 * 4096);
        for page in pages {
            edu.push(address(page), 64)?;
        }
        let buffer = mapping.unmap()?;
        for page in pages {
            pattern::expect(&buffer[page * 4096..][..64], 1, "a page of the long run")?;
            edu.push(address(page), 64)?;
            Expected::write(edu.device.function(), address(page)).await_recorded(machine)?;
        }
    }
}

/// What must be the same before and after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    free_frames: u64,
    mapped_pages: u64,
    live_mappings: usize,
}

impl Held {
    fn now(machine: &Machine, dma: &DmaDevice) -> Self {
        let group = reports::group(&machine.iommu, dma.function()).unwrap_or_default();
        Self {
            mapped_pages: group.domain.map_or(0, |domain| domain.mapped_pages),
            live_mappings: machine.iommu.live_mappings(),
            // Last, because the report itself takes memory for a moment.
            free_frames: machine.memory.free_frames(),
        }
    }
}

/// Rounds of work among which one must leave nothing behind.
const ROUNDS_MAX: usize = 8;

/// Fails unless one round of `work` in [`ROUNDS_MAX`] leaves everything as it was.
///
/// What leaks, leaks in every round. What a round may take for good is bounded instead: a CPU that the test has not run
/// on yet brings addresses of its own, whose table stays; and other threads take a frame now and then.
fn leaves_nothing_behind(
    machine: &Machine,
    dma: &DmaDevice,
    mut work: impl FnMut() -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut before = Held::now(machine, dma);
    for round in 1.. {
        work()?;
        let after = Held::now(machine, dma);
        if after == before {
            break;
        }
        check!(
            round < ROUNDS_MAX,
            "each of {ROUNDS_MAX} rounds changed what is held: the last one from {before:?} to {after:?}"
        );
        before = after;
    }
    Ok(())
}

test! {
    /// Mapping and unmapping gives everything back: frames, addresses, table pages.
    lacks = lacks::isolated_edu,
    fn unmap_gives_everything_back(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        leaves_nothing_behind(machine, &edu.dma, || {
            let mut mappings = Vec::new();
            for pages in 1..32 {
                mappings.push(edu.dma.dma_map(pattern::pages(pages, 1)?, ToDevice)?);
                mappings.push(edu.dma.dma_map_at(pattern::pages(pages, 2)?, ToDevice, machine.fresh_page())?);
            }
            for mapping in mappings {
                mapping.unmap()?;
            }
            Ok(())
        })?;
    }
}

/// Maps `buffer` and expects exactly `error`, and the buffer back.
fn expect_rejected<B: iommu::DmaBuffer>(
    result: Result<iommu::Mapping<B, ToDevice>, iommu::Rejected<B>>,
    is_expected: impl Fn(DmaError) -> bool,
) -> Result<B, Failure> {
    match result {
        Ok(mapping) => Err(failure!("mapped at {}", mapping.iova())),
        Err(rejected) if is_expected(rejected.error) => {
            rejected.buffer.ok_or_else(|| failure!("the buffer did not come back"))
        }
        Err(rejected) => Err(failure!("the error is {:?}", rejected.error)),
    }
}

test! {
    /// A length of nothing, and lengths that do not fit into an address space.
    lacks = lacks::isolated_edu,
    fn a_bad_length_is_an_error(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        leaves_nothing_behind(machine, &edu.dma, || {
            let result = edu.dma.dma_map(alloc::vec::Vec::new(), ToDevice);
            expect_rejected(result, |error| error == DmaError::BadLength { count: 0 })?;
            check_eq!(edu.dma.alloc_coherent::<u64>(0).err(), Some(DmaError::BadLength { count: 0 }));
            let too_many = usize::MAX / 4;
            check_eq!(edu.dma.alloc_coherent::<u64>(too_many).err(), Some(DmaError::BadLength { count: too_many }));
            Ok(())
        })?;
    }
}

test! {
    /// A device that cannot send an address as high as it would take.
    lacks = lacks::isolated_edu,
    fn a_mask_that_is_too_small_is_an_error(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        edu.dma.set_address_bits(13);
        let result = leaves_nothing_behind(machine, &edu.dma, || {
            let result = edu.dma.dma_map(pattern::pages(3, 1)?, ToDevice);
            let buffer = expect_rejected(result, |error| matches!(error, DmaError::NoIova { pages: 3, .. }))?;
            pattern::expect(&buffer, 1, "the rejected buffer")
        });
        edu.dma.set_address_bits(32);
        let below = edu.dma.dma_map(pattern::pages(3, 1)?, ToDevice)?;
        edu.dma.set_address_bits(64);
        result?;
        check!(below.iova().as_u64() + 3 * 4096 <= 1 << 32, "{} is beyond 32 bits", below.iova());
        below.unmap()?;
    }
}

test! {
    /// Addresses that are taken, misaligned, reserved for interrupts, or beyond the width.
    lacks = lacks::isolated_edu,
    fn an_address_that_is_not_free_is_an_error(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let page = machine.fresh_page();
        let taken = edu.dma.dma_map_at(pattern::pages(2, 1)?, ToDevice, page)?;
        let inside = Iova::new(page.as_u64() + 4096);
        let before = Iova::new(page.as_u64() - 4096);
        let misaligned = Iova::new(machine.fresh_page().as_u64() + 8);
        let (interrupts, across) = (Iova::new(0xfee0_0000), Iova::new(0xfedf_f000));
        let wrong = [
            (inside, DmaError::IovaTaken { iova: inside }),
            (before, DmaError::IovaTaken { iova: before }),
            (misaligned, DmaError::IovaUnaligned { iova: misaligned }),
            (interrupts, DmaError::IovaReserved { iova: interrupts }),
            (across, DmaError::IovaReserved { iova: across }),
        ];
        leaves_nothing_behind(machine, &edu.dma, || {
            for (iova, expected) in wrong {
                let result = edu.dma.dma_map_at(pattern::pages(2, 2)?, ToDevice, iova);
                expect_rejected(result, |error| error == expected)?;
            }
            let result = edu.dma.dma_map_at(pattern::pages(2, 2)?, ToDevice, Iova::new(1 << 62));
            expect_rejected(result, |error| matches!(error, DmaError::IovaBeyond { .. }))?;
            Ok(())
        })?;
        pattern::expect(&taken.unmap()?, 1, "what was mapped all along")?;
    }
}

test! {
    /// No memory for table pages.
    deadline_ms = 60_000,
    lacks = lacks::isolated_edu,
    fn no_memory_is_an_error(context) {
        /// Each in a region of its own, so that each needs table pages.
        const BUFFERS: u64 = 32;
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let mut refused = 0;
        leaves_nothing_behind(machine, &edu.dma, || {
            let mut buffers = Vec::new();
            for _ in 0..BUFFERS {
                buffers.push((pattern::pages(1, 1)?, machine.fresh_page()));
            }
            let mut mappings = Vec::with_capacity(buffers.len());
            let mut rejected = Vec::with_capacity(buffers.len());
            let everything = machine.memory.exhaust();
            for (buffer, page) in buffers {
                match edu.dma.dma_map_at(buffer, ToDevice, page) {
                    Ok(mapping) => mappings.push(mapping),
                    Err(error) => rejected.push(error),
                }
            }
            drop(everything);
            refused = rejected.len();
            for rejected in rejected {
                let buffer = expect_rejected(Err(rejected), |error| error == DmaError::OutOfMemory)?;
                pattern::expect(&buffer, 1, "the rejected buffer")?;
            }
            for mapping in mappings {
                mapping.unmap()?;
            }
            Ok(())
        })?;
        check!(refused > 0, "{BUFFERS} mappings found memory where there was none");
        edu.dma.dma_map(pattern::pages(1, 1)?, ToDevice)?.unmap()?;
    }
}
