//! Resets that take a function's driver away, and give the function to the next.

use alloc::vec::Vec;

use drivers::{
    edu::Edu,
    pci::{Config, ResetError, reset_bus, reset_by_power, reset_function},
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{FromDevice, PciAddress};

use crate::{
    edu::BYTES,
    machine::{ClaimedEdu, Lent, Machine, lacks},
    pattern,
};

/// The first claimed `edu` that is behind a bridge, and the bridge.
fn edu_behind_a_bridge(machine: &Machine) -> Result<(Lent<'_, ClaimedEdu>, PciAddress), Failure> {
    for index in 0..machine.edus() {
        let edu = machine.edu(index)?;
        let is_it = |found: &&drivers::pci::Function| found.address == edu.dma.function();
        if let Some(bridge) = machine.functions.iter().find(is_it).and_then(|found| found.parent) {
            return Ok((edu, bridge));
        }
    }
    Err(failure!("no edu is behind a bridge"))
}

test! {
    /// An `edu` has no reset but that of its bus, which brings its registers back and leaves it without rights. Nobody
    /// else's function is reset with it.
    lacks = lacks::two_isolated_edus,
    fn a_bus_reset_hands_a_function_on(context) {
        let machine = Machine::of(context)?;
        let (edu, bridge) = edu_behind_a_bridge(machine)?;
        let function = edu.dma.function();
        let group = machine.iommu.group(function)?;
        let found = machine.function(function)?;
        let registers = || (0..6).map(|index| Config::new(&*machine.host, function).read32(0x10 + 4 * index));
        let bars: Vec<u32> = registers().collect();
        check_eq!(reset_function(&*machine.host, function), Err(ResetError::NoMethod));
        check_eq!(reset_by_power(&*machine.host, function), Err(ResetError::NoMethod));
        check_eq!(reset_bus(&*machine.host, bridge, &[]), Err(ResetError::Shared { with: function }));
        let mapping = edu.dma.dma_map(pattern::pages(1, 1)?, FromDevice)?;
        let mut reset = Err(ResetError::NoMethod);
        machine.iommu.release(function, |_| {
            reset = reset_bus(&*machine.host, bridge, &group);
            reset.is_ok()
        })?;
        check_eq!(reset, Ok(()));
        check!(registers().eq(bars), "another BAR");
        pattern::expect(&mapping.unmap()?, 1, "the old driver's page")?;
        // A reset device has no bus mastering until a driver turns it on.
        let before = edu.dma.fault_count();
        Edu::open_polled(&machine.host, found)?.check_liveness(0x5a)?;
        check_eq!(edu.dma.fault_count(), before);
        machine.reopen_edu(edu)?;
        let (mut edu, _) = edu_behind_a_bridge(machine)?;
        check_eq!(edu.dma.function(), function);
        let mapping = edu.dma.dma_map(pattern::pages(1, 2)?, FromDevice)?;
        edu.load(3)?;
        edu.push(mapping.iova(), BYTES)?;
        pattern::expect(&mapping.unmap()?[..BYTES], 3, "the new driver's page")?;
    }
}
