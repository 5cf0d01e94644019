//! A device that is trusted with all of RAM: an address is a physical address, and the device is taken back like any
//! other.

use drivers::edu::{Transfer, Way};
use harness::{check, check_eq, failure, test};
use iommu::{FromDevice, Iova, dump::DomainKind};

use crate::{
    edu::BYTES,
    machine::{Machine, lacks},
    pattern, reports,
};

test! {
    /// It writes where its driver's memory is, whether that is lent at the moment or not; and not where no RAM is.
    deadline_ms = 30_000,
    lacks = lacks::trusted_edu,
    fn a_trusted_device_reaches_memory_where_it_is(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let function = edu.dma.function();
        let group = reports::group(&machine.iommu, function).ok_or_else(|| failure!("no group"))?;
        check_eq!(group.domain.map(|domain| domain.kind), Some(DomainKind::Identity));
        check!(group.mappings.iter().all(|run| run.iova.as_u64() == run.output.as_u64()), "not one to one");
        edu.load(1)?;
        let mapping = edu.dma.dma_map(pattern::pages(1, 2)?, FromDevice)?;
        let iova = mapping.iova();
        let page = mapping.unmap()?;
        pattern::expect(&page, 2, "a page that was only lent")?;
        edu.push(iova, BYTES)?;
        pattern::expect(&page[..BYTES], 1, "what was written beside a mapping")?;
        let faults = edu.dma.fault_count();
        // Registers of a unit, which are no RAM.
        edu.push(Iova::new(0xfed9_0000), 64)?;
        check!(edu.dma.fault_count() > faults, "it reaches what is no RAM");
    }
}

test! {
    /// In quarantine it reaches nothing, in the middle of a transfer; then its driver starts anew.
    deadline_ms = 60_000,
    lacks = lacks::trusted_edu,
    fn a_trusted_device_is_taken_back(context) {
        let machine = Machine::of(context)?;
        let function = {
            let mut edu = machine.edu(0)?;
            edu.load(1)?;
            let mapping = edu.dma.dma_map(pattern::pages(1, 2)?, FromDevice)?;
            let transfer = Transfer { way: Way::ToMemory, iova: mapping.iova(), offset: 0, bytes: BYTES };
            machine.iommu.quarantine(edu.dma.function())?;
            edu.device.start(transfer)?;
            check!(mapping.unmap().is_err(), "it came back before the device is quiet");
            edu.dma.function()
        };
        check!(machine.restart(function)?, "it has no driver");
        let mut edu = machine.edu(0)?;
        edu.load(3)?;
        let mapping = edu.dma.dma_map(pattern::pages(1, 4)?, FromDevice)?;
        edu.push(mapping.iova(), BYTES)?;
        pattern::expect(&mapping.unmap()?[..BYTES], 3, "after the new start")?;
    }
}
