//! Mappings that are given up without waiting, in whichever mode the kernel was started.

use alloc::vec::Vec;

use harness::{check, check_eq, test};
use iommu::{FromDevice, dma::ScatterList};

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{Machine, lacks},
    mapping::await_live_mappings,
    pattern,
};

/// More than one deferred flush gathers.
const MANY: usize = 300;

test! {
    /// The bytes are there at once, the buffer after the flush, and then the device does not reach it.
    lacks = lacks::isolated_edu,
    fn a_retired_buffer_comes_back_out_of_reach(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let before = machine.iommu.live_mappings();
        edu.load(1)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 2)?, FromDevice, page)?;
        edu.push(page, BYTES)?;
        let mut retired = mapping.retire();
        let mut copy = [0; 64];
        retired.copy_to(0, &mut copy);
        pattern::expect(&copy, 1, "the copy")?;
        let buffer = retired.wait()?;
        pattern::expect(&buffer[..BYTES], 1, "the buffer")?;
        edu.load(3)?;
        edu.push(page, 64)?;
        Expected::write(edu.device.function(), page).await_recorded(machine)?;
        pattern::expect(&buffer[..BYTES], 1, "the buffer after the blocked transfer")?;
        await_live_mappings(machine, before)?;
    }
}

test! {
    /// Nobody waits for them: the reaper flushes and frees them, by count or by time.
    deadline_ms = 20_000,
    lacks = lacks::isolated_edu,
    fn retired_buffers_that_nobody_waits_for_are_freed(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let before = machine.iommu.live_mappings();
        for count in [1, MANY] {
            for seed in 0..count {
                drop(edu.dma.dma_map(pattern::pages(1, seed as u64)?, FromDevice)?.retire());
            }
            await_live_mappings(machine, before)?;
        }
    }
}

test! {
    /// A list is one range for the device, and a batch of mappings comes back as it was.
    lacks = lacks::isolated_edu,
    fn lists_and_batches_move_the_right_bytes(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let before = machine.iommu.live_mappings();
        let mut list = ScatterList::with_capacity(3)?;
        for seed in 1..=3 {
            list.push(pattern::pages(1, seed)?)?;
        }
        let mapping = edu.dma.dma_map_sg(list, iommu::Bidirectional)?;
        let runs: Vec<_> = mapping.segments().collect();
        let bytes: u64 = runs.iter().map(|run| run.bytes).sum();
        check_eq!(bytes, 3 * 4096);
        edu.pull(runs[0].iova, BYTES)?;
        pattern::expect(&edu.contents()?[..BYTES], 1, "what the device read")?;
        let mut list = mapping.unmap()?;
        for seed in [3, 2, 1] {
            match list.pop() {
                Some(page) => pattern::expect(&page, seed, "a page of the list")?,
                None => check!(false, "a page is missing"),
            }
        }
        let mut mappings = Vec::new();
        for seed in 0..20 {
            mappings.push(edu.dma.dma_map(pattern::pages(1, seed)?, FromDevice)?);
        }
        for (seed, page) in (0..).zip(edu.dma.unmap_batch(mappings)?) {
            pattern::expect(&page, seed, "a page of the batch")?;
        }
        await_live_mappings(machine, before)?;
    }
}
