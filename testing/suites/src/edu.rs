//! DMA inside of mappings moves the right bytes.

use drivers::edu::{TRANSFER_LIMIT_BYTES, Transfer, Way};
use harness::{Failure, check_eq, failure, test};
use iommu::{FromDevice, Iova, Mapping, PageBuffer, ToDevice};

use crate::{
    machine::{ClaimedEdu, Machine, lacks},
    pattern, reports,
};

/// What one transfer moves at most.
pub const BYTES: usize = TRANSFER_LIMIT_BYTES;

impl ClaimedEdu {
    /// Has the device copy `bytes` bytes from `iova` to the start of its buffer.
    pub fn pull(&mut self, iova: Iova, bytes: usize) -> Result<(), Failure> {
        Ok(self.device.transfer(Transfer { way: Way::FromMemory, iova, offset: 0, bytes })?)
    }

    /// Has the device copy the first `bytes` bytes of its buffer to `iova`.
    pub fn push(&mut self, iova: Iova, bytes: usize) -> Result<(), Failure> {
        Ok(self.device.transfer(Transfer { way: Way::ToMemory, iova, offset: 0, bytes })?)
    }

    /// Puts what belongs to `seed` into the device's buffer.
    pub fn load(&mut self, seed: u64) -> Result<(), Failure> {
        let mapping = self.dma.dma_map(pattern::pages(1, seed)?, ToDevice)?;
        self.pull(mapping.iova(), BYTES)?;
        mapping.unmap()?;
        Ok(())
    }

    /// What is in the device's buffer.
    pub fn contents(&mut self) -> Result<PageBuffer, Failure> {
        let mapping = self.dma.dma_map(pattern::pages(1, 0)?, FromDevice)?;
        self.push(mapping.iova(), BYTES)?;
        Ok(mapping.unmap()?)
    }
}

/// Has the device read a page at `iova` and write it to the page after the next, and compares.
fn round_trip(edu: &mut ClaimedEdu, iova: Iova, seed: u64) -> Result<(), Failure> {
    let source = edu.dma.dma_map_at(pattern::pages(1, seed)?, ToDevice, iova)?;
    let beyond = Iova::new(iova.as_u64() + 0x2000);
    let target = edu.dma.dma_map_at(pattern::pages(1, seed + 1)?, FromDevice, beyond)?;
    let faults = edu.dma.fault_count();
    edu.pull(source.iova(), BYTES)?;
    edu.push(target.iova(), BYTES)?;
    check_eq!(edu.dma.fault_count(), faults);
    let (source, target) = (source.unmap()?, target.unmap()?);
    pattern::expect(&source, seed, "the page that was read")?;
    pattern::expect(&target[..BYTES], seed, "the page that was written")
}

fn unmap_equals(mapping: Mapping<PageBuffer, FromDevice>, seed: u64) -> Result<(), Failure> {
    pattern::expect(&mapping.unmap()?[..BYTES], seed, "the page that was written")
}

test! {
    /// The device is there: it answers, computes, and raises its interrupt.
    lacks = lacks::edu,
    fn answers_and_interrupts(context) {
        let machine = Machine::of(context)?;
        for index in 0..machine.edus() {
            let mut edu = machine.edu(index)?;
            edu.device.check_liveness(0x1234_5678)?;
            check_eq!(edu.device.factorial(10)?, 3_628_800);
            edu.device.raise_interrupt(0x5a)?;
        }
    }
}

test! {
    /// Both directions, at addresses of the subsystem's choice.
    lacks = lacks::edu,
    fn moves_bytes_both_ways(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let source = edu.dma.dma_map(pattern::pages(1, 11)?, ToDevice)?;
        let target = edu.dma.dma_map(pattern::pages(1, 12)?, FromDevice)?;
        edu.pull(source.iova(), BYTES)?;
        edu.push(target.iova(), BYTES)?;
        pattern::expect(&source.unmap()?, 11, "the page that was read")?;
        unmap_equals(target, 11)?;
    }
}

test! {
    /// A transfer across the boundary of two pages.
    lacks = lacks::edu,
    fn crosses_a_page_boundary(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        edu.load(21)?;
        let target = edu.dma.dma_map(pattern::pages(2, 22)?, FromDevice)?;
        edu.push(Iova::new(target.iova().as_u64() + 4096 - 100), 200)?;
        let pages = target.unmap()?;
        pattern::expect(&pages[4096 - 100..4096 + 100], 21, "what was written")?;
        let mut untouched = pattern::pages(2, 22)?;
        untouched[4096 - 100..4096 + 100].copy_from_slice(&pages[4096 - 100..4096 + 100]);
        check_eq!(pages[..] == untouched[..], true);
    }
}

test! {
    /// Addresses of 32 bits.
    lacks = lacks::isolated_edu,
    fn moves_bytes_below_4_gib(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        round_trip(&mut edu, Iova::new(0x1234_5000), 31)?;
    }
}

test! {
    /// Addresses of more than 32 bits, which every width has.
    lacks = lacks::isolated_edu,
    fn moves_bytes_above_4_gib(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        round_trip(&mut edu, Iova::new(0x12_3456_7000), 41)?;
    }
}

/// Highest address bits that all units have.
fn address_bits(machine: &Machine) -> u32 {
    reports::units(&machine.iommu).iter().map(|unit| unit.address_bits).min().unwrap_or(0)
}

test! {
    /// The last pages that the units' width allows, and nothing beyond.
    lacks = lacks::isolated_edu,
    fn moves_bytes_at_the_top_of_the_width(context) {
        let machine = Machine::of(context)?;
        let limit = 1_u64 << address_bits(machine);
        let mut edu = machine.edu(0)?;
        round_trip(&mut edu, Iova::new(limit - 0x3000), 51)?;
        if edu.dma.dma_map_at(pattern::pages(1, 52)?, ToDevice, Iova::new(limit)).is_ok() {
            return Err(failure!("a page beyond {limit:#x} was mapped"));
        }
    }
}
