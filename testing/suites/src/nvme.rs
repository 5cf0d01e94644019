//! The fast attacker: an admin queue that writes a page wherever it is told to.

use drivers::nvme::IDENTIFY_BYTES;
use harness::{check, check_eq, failure, test};
use iommu::{Bidirectional, FromDevice, Iova, ToDevice};

use crate::{
    faults::Expected,
    machine::{Machine, lacks},
    pattern,
};

test! {
    /// The controller says who it is, into memory of its driver's.
    lacks = lacks::nvme,
    fn identifies_itself(context) {
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let identity = nvme.identify()?;
        check_eq!(identity.model(), "QEMU NVMe Ctrl");
        check!(!identity.serial().is_empty(), "the serial number is empty");
        check!(nvme.version() >= 0x0001_0000, "version {:#x}", nvme.version());
    }
}

test! {
    /// Blocked transfers are recorded, and what the controller says about them counts for nothing.
    lacks = lacks::isolated_nvme,
    fn a_blocked_transfer_is_not_believed(context) {
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let function = nvme.dma().function();
        let before = nvme.dma().fault_count();
        let page = machine.fresh_page();
        nvme.write_at(page)?;
        check!(nvme.dma().fault_count() > before, "the fault count did not grow with the transfer");
        Expected::write(function, page).await_recorded(machine)?;
        let page = machine.fresh_page();
        nvme.read_at(page)?;
        Expected::read(function, page).await_recorded(machine)?;
        nvme.identify()?;
    }
}

test! {
    /// Over and over: mapped and warm, then unmapped, then the same address for another buffer.
    deadline_ms = 20_000,
    lacks = lacks::isolated_nvme,
    fn an_address_follows_its_mapping(context) {
        const ROUNDS: u64 = 100;
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let dma = nvme.dma().clone();
        let page = machine.fresh_page();
        for round in 0..ROUNDS {
            let mapping = dma.dma_map_at(pattern::pages(1, round)?, FromDevice, page)?;
            let before = dma.fault_count();
            nvme.write_at(page)?;
            check_eq!(dma.fault_count(), before, "a fault in round {round}");
            let mut buffer = mapping.unmap()?;
            check_eq!(buffer[..2], [0x36, 0x1b], "vendor id in round {round}");
            pattern::fill(&mut buffer, round);
            nvme.write_at(page)?;
            check!(dma.fault_count() > before, "no fault in round {round}");
            pattern::expect(&buffer, round, "the buffer after its unmap")?;
        }
    }
}

test! {
    /// What another function has mapped is out of reach, at its address there and around it.
    lacks = lacks::isolated_nvme,
    fn other_functions_mappings_are_out_of_reach(context) {
        const PAGES: u64 = 8;
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let edu = machine.edu(0)?;
        let page = machine.fresh_page();
        let owner = edu.dma.dma_map_at(pattern::pages(PAGES as usize, 1)?, Bidirectional, page)?;
        for at in 0..PAGES + 2 {
            let target = Iova::new(page.as_u64() + at * 4096 - 4096);
            let before = nvme.dma().fault_count();
            nvme.write_at(target)?;
            check!(nvme.dma().fault_count() > before, "a write to {target} was not blocked");
        }
        pattern::expect(&owner.unmap()?, 1, "the pages of the other function")?;
    }
}

test! {
    /// A sweep over addresses that mean something to the machine, not to the device.
    deadline_ms = 20_000,
    lacks = lacks::isolated_nvme,
    fn a_sweep_of_memory_reaches_nothing(context) {
        /// In steps that come by page 0, the kernel image, the PCI hole and memory above 4 GiB.
        const STEP: u64 = 0x0234_5000;
        const LIMIT: u64 = 0x1_8000_0000;
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let dma = nvme.dma().clone();
        let own = crate::reports::group(&machine.iommu, dma.function()).unwrap_or_default().mappings;
        let mut target = 0;
        let mut tried = 0;
        while target < LIMIT {
            // Not what is the controller's own, its queues, nor the window that writes as interrupts.
            let owned = own.iter().any(|mapping| {
                (mapping.iova.as_u64()..mapping.iova.as_u64() + mapping.bytes).contains(&target)
            });
            if !owned && !(0xfee0_0000..0xfef0_0000).contains(&target) {
                let before = dma.fault_count();
                nvme.write_at(Iova::new(target))?;
                check!(dma.fault_count() > before, "a write to {target:#x} was not blocked");
                tried += 1;
            }
            target += STEP;
        }
        check!(tried > 100, "only {tried} addresses were tried");
    }
}

test! {
    /// The controller reads where it may read, and only there.
    lacks = lacks::isolated_nvme,
    fn reads_what_is_mapped_to_it(context) {
        let machine = Machine::of(context)?;
        let mut nvme = machine.nvme()?;
        let dma = nvme.dma().clone();
        let mut clock = pattern::pages(1, 0)?;
        let wanted = 0x0000_1234_5678_0000_u64;
        clock[..8].copy_from_slice(&wanted.to_le_bytes());
        let source = dma.dma_map(clock, ToDevice)?;
        check!(nvme.read_at(source.iova())?.is_success(), "the controller refused its clock");
        source.unmap()?;
        let target = dma.dma_map(pattern::pages(1, 1)?, FromDevice)?;
        check!(nvme.timestamp_to(target.iova())?.is_success(), "the controller does not tell its clock");
        let page = target.unmap()?;
        let bytes: [u8; 8] = page[..8].try_into().map_err(|_| failure!("a page is shorter than 8 bytes"))?;
        // Milliseconds in bits 47:0; a few have passed.
        let got = u64::from_le_bytes(bytes) & 0xffff_ffff_ffff;
        check!((wanted..wanted + 60_000).contains(&got), "the clock reads {got:#x}, was set to {wanted:#x}");
        check_eq!(page.len(), IDENTIFY_BYTES);
    }
}
