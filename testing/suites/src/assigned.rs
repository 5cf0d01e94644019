//! Domains of other owners: what an `edu` reaches that is assigned to one, and then to another.

use drivers::edu::Edu;
use harness::{Failure, check, check_eq, failure, test};
use iommu::{Bidirectional, ClaimError, DmaDomain, DomainError, FromDevice, Iova, PciAddress, ToDevice};

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{ClaimedEdu, Machine, lacks},
    pattern, reports,
};

/// The `edu` that nobody has, for as long as this lives.
struct Idle<'a> {
    machine: &'a Machine,
    function: PciAddress,
}

impl<'a> Idle<'a> {
    fn of(machine: &'a Machine) -> Result<Self, Failure> {
        let function = machine.idle_edu().ok_or_else(|| failure!("no edu is idle"))?;
        Ok(Self { machine, function })
    }

    fn create(&self) -> Result<DmaDomain, Failure> {
        Ok(self.machine.iommu.create_domain(&[self.function])?)
    }

    /// Gives it to the owner of `domain`.
    fn assign(&self, domain: &DmaDomain) -> Result<ClaimedEdu, Failure> {
        let dma = self.machine.assign(self.function, domain)?;
        let device = Edu::open(&self.machine.host, &dma, self.machine.function(self.function)?)?;
        Ok(ClaimedEdu { device, dma })
    }

    /// The domain that it is in.
    fn domain(&self) -> Option<u64> {
        Some(reports::group(&self.machine.iommu, self.function)?.domain?.number)
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.machine.release(self.function) {
            log::error!("{}: {error}", self.function);
        }
    }
}

/// Has the device write to `page`, where nothing is mapped for it.
fn expect_blocked(machine: &Machine, edu: &mut ClaimedEdu, page: Iova) -> Result<(), Failure> {
    edu.push(page, BYTES)?;
    Expected::write(edu.device.function(), page).await_recorded(machine)
}

test! {
    /// The device reaches what its owner has mapped, at the same address what the next one has, and what neither maps
    /// for it not at all.
    deadline_ms = 60_000,
    lacks = lacks::idle_edu,
    fn a_device_reaches_what_its_owner_maps(context) {
        let machine = Machine::of(context)?;
        let idle = Idle::of(machine)?;
        let (first, second) = (idle.create()?, idle.create()?);
        let (page, other) = (machine.fresh_page(), machine.fresh_page());
        let of_first = first.dma_map_at(pattern::pages(1, 10)?, Bidirectional, page)?;
        let kept = first.dma_map_at(pattern::pages(1, 11)?, Bidirectional, other)?;
        let of_second = second.dma_map_at(pattern::pages(1, 12)?, FromDevice, page)?;
        let mut edu = idle.assign(&first)?;
        check_eq!(idle.domain(), Some(first.number()));
        edu.load(1)?;
        edu.push(page, BYTES)?;
        edu.push(other, BYTES)?;
        let stale = edu;
        let mut edu = idle.assign(&second)?;
        check_eq!(idle.domain(), Some(second.number()));
        check!(stale.dma.was_taken_back() && !edu.dma.was_taken_back(), "the old owner's handle is still good");
        edu.load(2)?;
        edu.push(page, BYTES)?;
        expect_blocked(machine, &mut edu, other)?;
        pattern::expect(&of_first.unmap()?[..BYTES], 1, "what it wrote for the first owner")?;
        pattern::expect(&kept.unmap()?[..BYTES], 1, "what the first owner had beside it")?;
        pattern::expect(&of_second.unmap()?[..BYTES], 2, "what it wrote for the second owner")?;
        expect_blocked(machine, &mut edu, page)?;
        let number = second.number();
        check_eq!(second.destroy(), Err(DomainError::InUse { number, groups: 1 }));
        let refused = machine.iommu.claim(idle.function).map(drop);
        check_eq!(refused, Err(ClaimError::Claimed { function: idle.function }));
        drop(idle);
        first.destroy()?;
        second.destroy()?;
        check!(machine.iommu.domain(number).is_none(), "it is destroyed and still there");
    }
}

test! {
    /// What a device has begun for one owner does not arrive when the device is another's: it ends before the memory is
    /// free.
    deadline_ms = 60_000,
    lacks = lacks::idle_edu,
    fn a_transfer_ends_with_its_owner(context) {
        let machine = Machine::of(context)?;
        let idle = Idle::of(machine)?;
        let (first, second) = (idle.create()?, idle.create()?);
        for seed in 1..=3 {
            let mut edu = idle.assign(&first)?;
            edu.load(seed)?;
            let mapping = edu.dma.dma_map(pattern::pages(1, 20)?, FromDevice)?;
            let transfer = drivers::edu::Transfer {
                way: drivers::edu::Way::ToMemory, iova: mapping.iova(), offset: 0, bytes: BYTES,
            };
            edu.device.start(transfer)?;
            drop(idle.assign(&second)?);
            let memory = mapping.unmap()?;
            let as_it_was = memory.to_vec();
            let is_whole = pattern::matches(&memory[..BYTES], seed) || pattern::matches(&memory, 20);
            check!(is_whole, "half of a transfer");
            // Longer than a transfer takes.
            let end_ns = machine.host.now_ns() + 200_000_000;
            while machine.host.now_ns() < end_ns {
                machine.host.relax();
            }
            check!(memory[..] == as_it_was[..], "it goes on after its owner");
        }
        drop(idle);
        first.destroy()?;
        second.destroy()?;
    }
}

test! {
    /// A page of the kernel's driver is granted to another owner, and revoked while both go on.
    deadline_ms = 60_000,
    lacks = lacks::idle_edu,
    fn granted_memory_is_reached_until_it_is_revoked(context) {
        let machine = Machine::of(context)?;
        let mut owner = machine.edu(0)?;
        let idle = Idle::of(machine)?;
        let domain = idle.create()?;
        let mut guest = idle.assign(&domain)?;
        let (page, there) = (machine.fresh_page(), machine.fresh_page());
        owner.load(1)?;
        guest.load(2)?;
        let mapping = owner.dma.dma_map_at(pattern::pages(1, 3)?, Bidirectional, page)?;
        let read_only = mapping.grant_at(&domain, ToDevice, there)?;
        expect_blocked(machine, &mut guest, there)?;
        owner.push(page, BYTES)?;
        guest.pull(there, BYTES)?;
        pattern::expect(&guest.contents()?[..BYTES], 1, "what the guest read of the owner's page")?;
        guest.load(2)?;
        let both = read_only.revoke()?.grant_at(&domain, Bidirectional, there)?;
        guest.push(there, BYTES)?;
        owner.pull(page, BYTES)?;
        pattern::expect(&owner.contents()?[..BYTES], 2, "what the owner read of what the guest wrote")?;
        let mapping = both.revoke()?;
        expect_blocked(machine, &mut guest, there)?;
        owner.load(4)?;
        owner.push(page, BYTES)?;
        pattern::expect(&mapping.unmap()?[..BYTES], 4, "the page after it was revoked")?;
        drop((guest, idle));
        domain.destroy()?;
    }
}
