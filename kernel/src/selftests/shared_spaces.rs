//! Devices that have the address space of a program: the CPU's own table is theirs.

use alloc::vec::Vec;

use attacker::{Attack, DIRECT_MAP, LEFT};
use drivers::edu::{self, Transfer, Way};
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::{DmaDevice, DmaDomain, Iova, PageBuffer, dump::DomainKind};
use mm::PAGE_BYTES;
use suites::{Machine, lacks, reports};

use super::process_devices::{Edu, OUT_OF_REACH};
use crate::{
    arch::clock::{self, NS_PER_MS},
    memory::layout,
    process::{self, Ending, Space},
    threads,
};

const BYTES: usize = 64;

/// A space without a program, and an `edu` that has it.
struct Shared<'a> {
    machine: &'a Machine,
    space: Space,
    edu: edu::Edu,
    dma: DmaDevice,
    domain: DmaDomain,
}

impl<'a> Shared<'a> {
    fn of(context: &'a Context<'_>) -> Result<Self, Failure> {
        const PAGES: usize = 256;
        let machine = Machine::of(context)?;
        let function = machine.idle_edu().ok_or(failure!("no edu"))?;
        let mut space = Space::new(PAGES).ok_or(failure!("no memory"))?;
        let domain = space.share_with(&machine.iommu, function).map_err(|error| failure!("{error:?}"))?;
        let is_quiet = |member| machine.hotplug.is_quiet(&[function], member);
        let dma = machine.iommu.assign(function, &domain, is_quiet)?;
        let edu = edu::Edu::open_polled(&machine.host, machine.function(function)?)?;
        Ok(Self { machine, space, edu, dma, domain })
    }

    fn transfer(&mut self, way: Way, address: u64) -> Result<(), Failure> {
        Ok(self.edu.transfer(Transfer { way, iova: Iova::new(address), offset: 0, bytes: BYTES })?)
    }

    fn page(&mut self, value: u8) -> Result<u64, Failure> {
        let page = self.space.map_memory(PAGE_BYTES).map_err(|error| failure!("{error:?}"))?;
        self.space.write(page, &[value; BYTES]).map_err(|error| failure!("{error:?}"))?;
        Ok(page)
    }

    fn holds(&self, page: u64, value: u8) -> Result<bool, Failure> {
        let mut bytes = [0; BYTES];
        self.space.read(page, &mut bytes).map_err(|error| failure!("{error:?}"))?;
        Ok(bytes == [value; BYTES])
    }

    /// The reasons of the faults that `work` makes, newest first.
    fn faults_of(&mut self, work: impl FnOnce(&mut Self) -> Result<(), Failure>) -> Result<u64, Failure> {
        let before = self.dma.fault_counts().own;
        work(self)?;
        let deadline_ns = clock::now_ns() + 2000 * NS_PER_MS;
        while self.dma.fault_counts().own == before && clock::now_ns() < deadline_ns {
            threads::sleep_until(clock::now_ns() + NS_PER_MS);
        }
        Ok(self.dma.fault_counts().own - before)
    }

    /// Gives the device back, then the space.
    fn end(self) -> Result<(), Failure> {
        let Self { machine, space, edu, dma, domain } = self;
        drop(edu);
        machine.release(dma.function())?;
        domain.destroy()?;
        drop((dma, domain, space));
        check_eq!(process::total_pages(), 0, "pages of a space that has gone");
        Ok(())
    }
}

test! {
    /// The device uses the addresses of the space, with the rights that these have, and whatever becomes of them is so
    /// for the device at once.
    lacks = lacks::shareable_spaces,
    fn a_device_has_the_addresses_of_a_space(context) {
        let mut shared = Shared::of(context)?;
        let group = reports::group(&shared.machine.iommu, shared.dma.function()).ok_or(failure!("no group"))?;
        let domain = group.domain.ok_or(failure!("no domain"))?;
        check_eq!((domain.kind, domain.root, domain.table_pages), (DomainKind::Shared, shared.space.root(), 0));
        let (from, to) = (shared.page(0x3c)?, shared.page(0)?);
        let faults = shared.dma.fault_counts().own;
        shared.transfer(Way::FromMemory, from)?;
        shared.transfer(Way::ToMemory, to)?;
        check!(shared.holds(to, 0x3c)?, "the device did not write what it read");
        check_eq!(shared.dma.fault_counts().own, faults);
        shared.space.protect_memory(to, false).map_err(|error| failure!("{error:?}"))?;
        let other = shared.page(0x11)?;
        shared.transfer(Way::FromMemory, other)?;
        let faults = shared.faults_of(|shared| shared.transfer(Way::ToMemory, to))?;
        check!(faults > 0 && shared.holds(to, 0x3c)?, "what is read only was written, {faults} faults");
        shared.space.protect_memory(to, true).map_err(|error| failure!("{error:?}"))?;
        shared.transfer(Way::ToMemory, to)?;
        check!(shared.holds(to, 0x11)?, "what may be written again was not");
        shared.space.unmap_memory(to).map_err(|error| failure!("{error:?}"))?;
        let faults = shared.faults_of(|shared| shared.transfer(Way::ToMemory, to))?;
        check!(faults > 0, "what is not mapped was written");
        shared.end()?;
    }
}

test! {
    /// What the device may be told to write stays the space's, whatever fails.
    lacks = lacks::shareable_spaces,
    fn nothing_leaves_a_space_while_its_device_is_there(context) {
        let mut shared = Shared::of(context)?;
        let mut pieces = Vec::new();
        while let Ok(piece) = shared.space.map_memory(PAGE_BYTES) {
            pieces.push(piece);
        }
        let last = pieces.pop().ok_or(failure!("there is no room at all"))?;
        let used = shared.space.budget().used();
        shared.space.unmap_memory(last).map_err(|error| failure!("{error:?}"))?;
        check_eq!(shared.space.budget().used(), used, "pages after one was given back");
        shared.space.map_memory(2 * PAGE_BYTES).map_err(|error| failure!("{error:?}"))?;
        for _ in 0..4 {
            check!(shared.space.map_memory(PAGE_BYTES).is_err(), "there is room for one more region");
            check_eq!(shared.space.budget().used(), used + 2, "pages after a refusal");
        }
        shared.end()?;
    }
}

test! {
    /// Whoever has the space may end while somebody else is at its device: then it goes with that.
    lacks = lacks::shareable_spaces,
    fn a_space_may_end_before_its_device_is_given_back(context) {
        let mut shared = Shared::of(context)?;
        let page = shared.page(0x5a)?;
        let Shared { machine, space, mut edu, dma, domain } = shared;
        domain.destroy()?;
        drop(space);
        check!(process::total_pages() > 0, "a device has what is somebody else's");
        let faults = dma.fault_counts().own;
        edu.transfer(Transfer { way: Way::FromMemory, iova: Iova::new(page), offset: 0, bytes: BYTES })?;
        check_eq!(dma.fault_counts().own, faults);
        drop(edu);
        machine.release(dma.function())?;
        check_eq!(process::total_pages(), 0, "pages of a space that has gone");
    }
}

test! {
    /// The kernel's half of the table is there, and is the supervisor's: no device sees any of it.
    lacks = lacks::shareable_spaces,
    fn the_kernels_half_is_out_of_reach(context) {
        let mut shared = Shared::of(context)?;
        check!(shared.space.has_kernels_half(), "it is not the kernel's");
        let mut secret = PageBuffer::zeroed(1).ok_or(failure!("no memory"))?;
        secret.fill(0x77);
        let (copy, filler) = (shared.page(0)?, shared.page(0x22)?);
        shared.transfer(Way::FromMemory, filler)?;
        let address = secret.as_ptr() as u64;
        check!(address >= DIRECT_MAP & !0xffff_ffff, "{address:#x} is not in the direct map");
        for kernels in [address, layout::text().start] {
            let faults = shared.faults_of(|shared| shared.transfer(Way::ToMemory, kernels))?;
            check!(faults > 0, "a write to {kernels:#x} made no fault");
            let faults = shared.faults_of(|shared| shared.transfer(Way::FromMemory, kernels))?;
            check!(faults > 0, "a read of {kernels:#x} made no fault");
        }
        check!(secret.iter().all(|&byte| byte == 0x77), "memory of the kernel was written");
        shared.transfer(Way::ToMemory, copy)?;
        check!(!shared.holds(copy, 0x77)?, "memory of the kernel was read");
        const USER_SUPERVISOR: u8 = 0x81;
        let faults = reports::faults(&shared.machine.iommu);
        let told = faults.iter().any(|fault| fault.reason.code == USER_SUPERVISOR);
        check!(told, "no fault says that it was for the supervisor");
        shared.end()?;
    }
}

test! {
    /// A process and its device use the same pointers, for code, data and stack alike, and what is not the process's is
    /// not the device's.
    lacks = lacks::shareable_spaces,
    fn a_process_and_its_device_share_pointers(context) {
        let edu = Edu::of(context)?.sharing(true);
        let before = edu.faults();
        check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
        check_eq!(edu.faults(), before, "faults of a device that did nothing wrong");
        edu.check_free()?;
        edu.expect_blocked(&OUT_OF_REACH)?;
        edu.expect_blocked(&[Attack::EduWritesCode])?;
    }
}

test! {
    /// What a program gives back it can have again, however often, although its device may have used it.
    deadline_ms = 60_000,
    lacks = lacks::shareable_spaces,
    fn memory_is_given_back_and_taken_again(context) {
        let edu = Edu::of(context)?.sharing(true);
        check_eq!(edu.run(Attack::EduChurns)?, Ending::Exited(LEFT));
        edu.check_free()?;
    }
}

test! {
    /// Killed in the middle of a transfer, taken by somebody else, or put in quarantine: the device is quiet before
    /// anything of the space is somebody else's.
    lacks = lacks::shareable_spaces,
    fn a_space_goes_after_its_device(context) {
        let edu = Edu::of(context)?.sharing(true);
        type End = fn(&Edu<'_>, &process::Process) -> Result<(), Failure>;
        let ends: [End; 3] = [
            |_, process| {
                process.kill();
                Ok(())
            },
            |edu, _| Ok(edu.machine.iommu.quarantine(edu.function)?),
            |edu, _| edu.machine.release(edu.function),
        ];
        for end in ends {
            let process = edu.start(Attack::EduWritesForEver)?;
            threads::sleep_until(clock::now_ns() + 30 * NS_PER_MS);
            check_eq!(process.wait(0), None);
            end(&edu, &process)?;
            edu.expect_loss(&process)?;
            edu.check_free()?;
        }
        check_eq!(edu.run(Attack::EduCopies)?, Ending::Exited(LEFT));
    }
}

test! {
    /// A table that both walk is there once: what the process has is all.
    lacks = lacks::shareable_spaces,
    fn a_shared_table_is_counted_once(context) {
        let mut figures = [(0, 0); 2];
        for (figure, shares_spaces) in figures.iter_mut().zip([false, true]) {
            let edu = Edu::of(context)?.sharing(shares_spaces);
            let process = edu.start(Attack::EduWritesForEver)?;
            threads::sleep_until(clock::now_ns() + 50 * NS_PER_MS);
            let group = reports::group(&edu.machine.iommu, edu.function).ok_or(failure!("no group"))?;
            let domain = group.domain.ok_or(failure!("no domain"))?;
            *figure = (process.pages(), domain.table_pages);
            process.kill();
            edu.expect_loss(&process)?;
            edu.check_free()?;
        }
        let [(separate, of_domain), (shared, none)] = figures;
        log::info!("a process with its table: {separate} pages, and {of_domain} of its device's table; {shared} shared");
        check_eq!((shared, none), (separate, 0));
        // A root and a table of each level below, for one page.
        check!(of_domain >= 4, "the device's own table has {of_domain} pages");
    }
}
