//! Virtual functions of a device: each its own group, domain, registers and interrupts.

use alloc::vec::Vec;

use drivers::{
    hotplug::VirtualError,
    mmio::{ReadOnly, Register},
    pci::{Config, Device, Function, Msix, ResetError, Slot, Sriov, SriovError},
    quiet::{NotQuiet, Target, quieten},
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{Bidirectional, ClaimError, DmaDevice, PciAddress};

use crate::{
    hotplug::{balance, is_back},
    machine::{Machine, lacks},
    pattern, reports,
    storm::wait,
};

const COUNT: u16 = 2;

/// A virtual function in the hands of a driver.
struct Claimed {
    dma: DmaDevice,
    device: Device,
    msix: Msix,
}

/// The function that can have virtual ones, and how many.
fn physical(machine: &Machine) -> Result<(PciAddress, u16), Failure> {
    let functions = machine.hotplug.functions()?;
    let offered =
        |function: &Function| Some((function.address, Sriov::open(&*machine.host, function)?.offered()));
    functions.iter().find_map(offered).ok_or_else(|| failure!("nothing has virtual functions"))
}

/// The port above `function`.
fn parent(machine: &Machine, function: PciAddress) -> Option<PciAddress> {
    machine.hotplug.function(function)?.parent
}

fn claim(machine: &Machine, function: &Function) -> Result<Claimed, Failure> {
    let address = function.address;
    let dma = machine.iommu.claim(address)?;
    let opened = Device::open(machine.host.clone(), function);
    let device = opened.ok_or_else(|| failure!("{address} does not answer"))?;
    let mut msix = Msix::open(&device)?;
    msix.set(0, machine.host.allocate_interrupt(address, machine.host.event())?)?;
    Ok(Claimed { dma, device, msix })
}

/// Address and data of the message in entry 0 of a function's MSI-X table, which is at the start of BAR 3.
fn message(device: &Device) -> Result<(u32, u32), Failure> {
    let table = device.map_bar(3)?;
    let read = |offset| {
        Ok::<_, Failure>(
            table.register::<u32, ReadOnly>(offset).map(|register: Register<u32, _>| register.read())?,
        )
    };
    Ok((read(0)?, read(8)?))
}

test! {
    /// They appear with ids, groups, domains, registers and interrupts of their own. Turned off under their drivers,
    /// they are gone, and all that they had comes back; so it is the second time.
    deadline_ms = 90_000,
    lacks = lacks::virtual_functions,
    fn each_has_rights_of_its_own_and_gives_all_back(context) {
        let machine = Machine::of(context)?;
        let (physical, _) = physical(machine)?;
        let before = (balance(machine), machine.hotplug.functions()?);
        let interrupts = reports::interrupts(&machine.iommu).len();
        let mut last = None;
        for seed in 1..=2 {
            let found = machine.hotplug.enable_virtual(physical, COUNT)?;
            check_eq!(found.len(), usize::from(COUNT));
            let addresses: Vec<_> = found.iter().map(|function| function.address).collect();
            check!(last.replace(addresses.clone()).is_none_or(|last| last == addresses), "they are somewhere else");
            let mut claimed = Vec::new();
            for function in &found {
                check_eq!(machine.iommu.group(function.address)?, [function.address]);
                claimed.push(claim(machine, function)?);
            }
            let [first, second] = &claimed[..] else { return Err(failure!("not {COUNT} functions")) };
            let sources = addresses.iter().map(|&function| reports::group(&machine.iommu, function).map(|group| group.sources));
            for (sources, function) in sources.zip(&addresses) {
                check_eq!(sources, Some([function.source_id()].to_vec()));
            }
            check_eq!(reports::interrupts(&machine.iommu).len(), interrupts + 2);
            check!(first.msix.entries() > 0 && message(&first.device)? != message(&second.device)?, "one table for two");
            check_eq!(
                machine.hotplug.enable_virtual(physical, COUNT).map(drop),
                Err(VirtualError::Sriov(SriovError::On { count: COUNT }))
            );
            let mapping = first.dma.dma_map(pattern::pages(1, seed)?, Bidirectional)?;
            // The neighbour may have the same address, and other memory there.
            let page = mapping.iova();
            let neighbour = second.dma.dma_map_at(pattern::pages(1, seed + 10)?, Bidirectional, page)?;
            machine.hotplug.disable_virtual(physical)?;
            for (function, claimed) in addresses.iter().zip(claimed) {
                check!(!Config::new(&*machine.host, *function).is_present(), "{function} is still there");
                check!(claimed.dma.was_taken_back(), "{function} still has its rights");
            }
            pattern::expect(&mapping.unmap()?, seed, "what a virtual function had")?;
            drop(neighbour.unmap()?);
            for function in addresses {
                check_eq!(machine.iommu.claim(function).map(drop), Err(ClaimError::Unknown { function }));
            }
        }
        wait(machine, "the return of all that was mapped", || is_back(machine, before.0))?;
        check_eq!(reports::interrupts(&machine.iommu).len(), interrupts);
        check!(machine.hotplug.functions()? == before.1, "other functions than before");
    }
}

test! {
    /// What it cannot have it says, and has none.
    lacks = lacks::virtual_functions,
    fn more_than_there_can_be_are_refused(context) {
        let machine = Machine::of(context)?;
        let (physical, offered) = physical(machine)?;
        for wanted in [0, offered + 1, u16::MAX] {
            let refused = Err(VirtualError::Sriov(SriovError::Count { wanted, offered }));
            check_eq!(machine.hotplug.enable_virtual(physical, wanted).map(drop), refused);
        }
        let host = machine.functions.iter().find(|function| function.parent.is_none());
        let function = host.ok_or_else(|| failure!("no function on a root bus"))?.address;
        check_eq!(
            machine.hotplug.enable_virtual(function, 1).map(drop),
            Err(VirtualError::NoCapability { function })
        );
        check_eq!(machine.hotplug.enable_virtual(physical, offered)?.len(), usize::from(offered));
        machine.hotplug.disable_virtual(physical)?;
    }
}

test! {
    /// A reset of the physical function, which would end them under their drivers, is refused for as long as they are
    /// on.
    deadline_ms = 60_000,
    lacks = lacks::virtual_functions,
    fn a_reset_that_would_end_them_is_refused(context) {
        let machine = Machine::of(context)?;
        let (physical, _) = physical(machine)?;
        let group = [physical];
        let found = machine.function(physical)?;
        let reset = || quieten(&machine.host, Target { function: found, bridge: found.parent, group: &group });
        for _ in 0..2 {
            let with = machine.hotplug.enable_virtual(physical, COUNT)?[0].address;
            check_eq!(reset(), Err(NotQuiet::Reset(ResetError::Shared { with })));
            let config = Config::new(&*machine.host, with);
            check!(config.is_present(), "it is gone all the same");
            machine.hotplug.disable_virtual(physical)?;
            // What the reset takes away is there again the next time.
            reset()?;
        }
    }
}

test! {
    /// The slot of the physical function loses its power while they are on and have drivers: all of them are gone, and
    /// what they had mapped comes back.
    deadline_ms = 90_000,
    lacks = |context| lacks::virtual_functions(context).or_else(|| lacks::plugs(context)),
    fn pulled_out_of_their_slot_they_give_all_back(context) {
        let machine = Machine::of(context)?;
        let (physical, _) = physical(machine)?;
        let port = parent(machine, physical).ok_or_else(|| failure!("it is in no slot"))?;
        let slot = machine.hotplug.function(port).and_then(|port| Slot::open(&machine.host, &port));
        let slot = slot.ok_or_else(|| failure!("{port} has no slot"))?;
        let before = balance(machine);
        let interrupts = reports::interrupts(&machine.iommu).len();
        let found = machine.hotplug.enable_virtual(physical, COUNT)?;
        let claimed = found.iter().map(|function| claim(machine, function)).collect::<Result<Vec<_>, _>>()?;
        let map = |claimed: &Claimed| claimed.dma.dma_map(pattern::pages(1, 7)?, Bidirectional).map_err(Failure::from);
        let mappings = claimed.iter().map(map).collect::<Result<Vec<_>, _>>()?;
        slot.power_off()?;
        let is_gone = || !machine.hotplug.each().any(|function| function.parent == Some(port));
        wait(machine, "an empty slot", is_gone)?;
        for (claimed, function) in claimed.into_iter().zip(&found) {
            check!(claimed.dma.was_taken_back(), "{} still has its rights", function.address);
        }
        for mapping in mappings {
            pattern::expect(&mapping.unmap()?, 7, "what a virtual function had")?;
        }
        for function in found.iter().map(|function| function.address).chain([physical]) {
            check_eq!(machine.iommu.claim(function).map(drop), Err(ClaimError::Unknown { function }));
        }
        check_eq!(
            machine.hotplug.enable_virtual(physical, COUNT).map(drop),
            Err(VirtualError::Unknown { function: physical })
        );
        wait(machine, "the return of all that was mapped", || is_back(machine, before))?;
        // The port takes another one for itself meanwhile.
        wait(machine, "the return of their interrupts", || reports::interrupts(&machine.iommu).len() == interrupts)?;
    }
}
