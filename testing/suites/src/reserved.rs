//! Memory that firmware reserves for a device (RMRR): reached at all times, and by nobody else.

use alloc::{format, vec::Vec};

use drivers::edu::{Edu, Transfer, Way};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{Bidirectional, ClaimError, Iova, PciAddress};

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{ClaimedEdu, Machine, lacks},
    pattern, reports,
};

/// What is mapped for `function`: addresses, and memory.
fn mapped(machine: &Machine, function: PciAddress) -> Vec<(u64, u64, u64)> {
    let group = reports::group(&machine.iommu, function).unwrap_or_default();
    group.mappings.iter().map(|run| (run.iova.as_u64(), run.output.as_u64(), run.bytes)).collect()
}

fn claim(machine: &Machine, function: PciAddress) -> Result<ClaimedEdu, Failure> {
    let dma = machine.iommu.claim(function)?;
    Ok(ClaimedEdu { device: Edu::open(&machine.host, &dma, machine.function(function)?)?, dma })
}

test! {
    /// Unclaimed, claimed, in quarantine and released the device reaches what firmware reserved for it, and of that not
    /// what is the kernel's; and nothing beside it. It is not assigned to another owner.
    deadline_ms = 60_000,
    lacks = lacks::reserved_edu,
    fn firmwares_memory_is_reached_at_all_times(context) {
        let machine = Machine::of(context)?;
        let function = machine.idle_edu().ok_or_else(|| failure!("no edu is idle"))?;
        let group = reports::group(&machine.iommu, function).ok_or_else(|| failure!("no group"))?;
        let region = *group.reserved.first().ok_or_else(|| failure!("nothing is reserved"))?;
        check_eq!(group.reserved.len(), 1);
        let (first, bytes) = (region.start.as_u64(), region.bytes);
        let (memory, beyond) = (Iova::new(first), Iova::new(first + bytes));
        let alone = [(first, first, bytes)];
        check_eq!(mapped(machine, function)[..], alone);
        let mut edu = Edu::open_polled(&machine.host, machine.function(function)?)?;
        let pull = |iova| Transfer { way: Way::FromMemory, iova, offset: 0, bytes: BYTES };
        edu.transfer(pull(memory))?;
        edu.transfer(pull(beyond))?;
        Expected::read(function, beyond).await_recorded(machine)?;
        drop(edu);
        machine.release(function)?;
        check_eq!(mapped(machine, function)[..], alone);

        let mut edu = claim(machine, function)?;
        edu.load(1)?;
        edu.pull(memory, BYTES)?;
        let wanted = edu.contents()?[..BYTES].to_vec();
        check!(!pattern::matches(&wanted, 1), "it was not read");
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 2)?, Bidirectional, page)?;
        check_eq!(mapped(machine, function).len(), 2);
        edu.load(1)?;
        machine.iommu.quarantine(function)?;
        check_eq!(mapped(machine, function)[..], alone);
        drop(edu);
        let mut edu = Edu::open_polled(&machine.host, machine.function(function)?)?;
        edu.transfer(pull(memory))?;
        edu.transfer(Transfer { way: Way::ToMemory, iova: page, offset: 0, bytes: BYTES })?;
        drop(edu);
        machine.release(function)?;
        pattern::expect(&mapping.unmap()?, 2, "what was mapped before the quarantine")?;
        check_eq!(mapped(machine, function)[..], alone);

        let mut edu = claim(machine, function)?;
        check!(edu.contents()?[..BYTES] == wanted[..], "it did not reach it in quarantine");
        drop(edu);
        machine.release(function)?;
        let domain = machine.iommu.create_domain(&[function])?;
        let refused = machine.iommu.assign(function, &domain, |_| true).map(drop);
        check_eq!(refused, Err(ClaimError::Reserved { function }));
        // Whoever assigns what nobody has finds the same, and that it was left alone.
        let faults = reports::group(&machine.iommu, function).map(|group| group.faults);
        let refused = machine.assign(function, &domain).map(drop);
        check!(refused.is_err_and(|failure| format!("{failure}").contains("firmware reserves memory")), "assigned");
        check_eq!(reports::group(&machine.iommu, function).map(|group| group.faults), faults);
        check_eq!(mapped(machine, function)[..], alone);
        domain.destroy()?;
    }
}
