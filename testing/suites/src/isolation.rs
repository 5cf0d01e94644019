//! What is outside of a mapping, or of a claim, is blocked, and recorded exactly.

use alloc::vec::Vec;

use drivers::edu::{Edu, Transfer, Way};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{Bidirectional, FromDevice, Iova, ToDevice};

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{ClaimedEdu, Machine, lacks},
    pattern, reports,
};

const PAGE: u64 = 4096;

fn page_at(iova: Iova, pages: i64) -> Iova {
    Iova::new(iova.as_u64().wrapping_add_signed(pages * PAGE as i64))
}

/// Has the device write to and read from `page`, and waits for both faults.
fn expect_blocked(machine: &Machine, edu: &mut ClaimedEdu, page: Iova) -> Result<(), Failure> {
    let (function, before) = (edu.device.function(), edu.dma.fault_count());
    edu.push(page, 64)?;
    Expected::write(function, page).await_recorded(machine)?;
    edu.pull(page, 64)?;
    Expected::read(function, page).await_recorded(machine)?;
    check!(edu.dma.fault_count() > before, "the device's fault count did not grow");
    Ok(())
}

test! {
    /// The pages next to a mapping, while the mapping works.
    deadline_ms = 20_000,
    lacks = lacks::isolated_edu,
    fn the_pages_around_a_mapping_are_blocked(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        edu.load(1)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 2)?, Bidirectional, page)?;
        edu.push(mapping.iova(), 64)?;
        expect_blocked(machine, &mut edu, page_at(page, -1))?;
        expect_blocked(machine, &mut edu, page_at(page, 1))?;
        let buffer = mapping.unmap()?;
        let mut wanted = pattern::pages(1, 2)?;
        pattern::fill(&mut wanted[..64], 1);
        check!(buffer[..] == wanted[..], "only the first 64 bytes of the mapping were to change");
    }
}

test! {
    /// A transfer that begins inside of a mapping and ends outside of it does not get out.
    lacks = lacks::isolated_edu,
    fn a_transfer_over_the_end_is_blocked(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 3)?, FromDevice, page)?;
        edu.push(Iova::new(page.as_u64() + PAGE - 64), 128)?;
        Expected::write(edu.device.function(), page_at(page, 1)).await_recorded(machine)?;
        pattern::expect(&mapping.unmap()?[..PAGE as usize - 64], 3, "the mapped page before the transfer")?;
    }
}

test! {
    /// A device that knows where memory is cannot get at it: physical addresses mean nothing to it.
    deadline_ms = 20_000,
    lacks = lacks::two_isolated_edus,
    fn a_physical_address_reaches_nothing(context) {
        let machine = Machine::of(context)?;
        let (owner, mut attacker) = (machine.edu(0)?, machine.edu(1)?);
        let secret = owner.dma.dma_map(pattern::pages(1, 4)?, Bidirectional)?;
        let mappings = reports::group(&machine.iommu, owner.device.function()).unwrap_or_default().mappings;
        let output = mappings.iter().find(|mapping| {
            (mapping.iova.as_u64()..mapping.iova.as_u64() + mapping.bytes).contains(&secret.iova().as_u64())
        });
        let output = output.ok_or_else(|| failure!("the mapping at {} is not shown", secret.iova()))?;
        let physical = output.output.as_u64() + (secret.iova().as_u64() - output.iova.as_u64());
        attacker.load(5)?;
        let before = attacker.dma.fault_count();
        attacker.push(Iova::new(physical), BYTES)?;
        check!(attacker.dma.fault_count() > before, "a write to physical address {physical:#x} was not blocked");
        let before = attacker.dma.fault_count();
        attacker.pull(Iova::new(physical), BYTES)?;
        check!(attacker.dma.fault_count() > before, "a read of physical address {physical:#x} was not blocked");
        let stolen = attacker.contents()?;
        pattern::expect(&secret.unmap()?, 4, "the secret page")?;
        check!(!pattern::matches(&stolen[..BYTES], 4), "the device has read the secret page");
    }
}

test! {
    /// What a device only reads it cannot write.
    lacks = lacks::isolated_edu,
    fn a_page_to_the_device_cannot_be_written(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        edu.load(6)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 7)?, ToDevice, page)?;
        edu.push(page, BYTES)?;
        Expected::write(edu.device.function(), page).await_recorded(machine)?;
        pattern::expect(&mapping.unmap()?, 7, "the page to be read only")?;
    }
}

test! {
    /// What a device only writes it cannot read, where a table can say so.
    lacks = lacks::write_only_edu,
    fn a_page_from_the_device_cannot_be_read(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, 8)?, FromDevice, page)?;
        edu.pull(page, BYTES)?;
        Expected::read(edu.device.function(), page).await_recorded(machine)?;
        let stolen = edu.contents()?;
        check!(!pattern::matches(&stolen[..BYTES], 8), "the device has read the page");
        mapping.unmap()?;
    }
}

test! {
    /// A function that nobody has claimed reaches nothing, not even what others have mapped at the same address.
    deadline_ms = 20_000,
    lacks = lacks::idle_edu,
    fn an_unclaimed_function_reaches_nothing(context) {
        let machine = Machine::of(context)?;
        let function = machine.idle_edu().ok_or_else(|| Failure::new("no unclaimed edu"))?;
        let group = reports::group(&machine.iommu, function).unwrap_or_default();
        check!(group.domain.is_none(), "{function} has a domain");
        let owner = machine.edu(0)?;
        let page = machine.fresh_page();
        let mapping = owner.dma.dma_map_at(pattern::pages(1, 9)?, Bidirectional, page)?;
        let mut attacker = Edu::open_polled(&machine.host, machine.function(function)?)?;
        attacker.transfer(Transfer { way: Way::ToMemory, iova: page, offset: 0, bytes: BYTES })?;
        Expected::write(function, page).unclaimed().await_recorded(machine)?;
        attacker.transfer(Transfer { way: Way::FromMemory, iova: page, offset: 0, bytes: BYTES })?;
        Expected::read(function, page).unclaimed().await_recorded(machine)?;
        pattern::expect(&mapping.unmap()?, 9, "the page of another function")?;
    }
}

test! {
    /// Each function has a domain of its own, with nothing of another's in it.
    lacks = lacks::two_isolated_edus,
    fn functions_have_domains_of_their_own(context) {
        let machine = Machine::of(context)?;
        let (one, other) = (machine.edu(0)?, machine.edu(1)?);
        let domains: Vec<_> = [&*one, &*other]
            .iter()
            .filter_map(|edu| reports::group(&machine.iommu, edu.device.function())?.domain)
            .collect();
        check_eq!(domains.len(), 2);
        check!(domains[0].number != domains[1].number, "both functions are in domain {}", domains[0].number);
        check!(domains[0].root != domains[1].root, "both domains have their table at {}", domains[0].root);
    }
}
