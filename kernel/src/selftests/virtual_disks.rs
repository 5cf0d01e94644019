//! Virtual functions of an NVMe controller in the hands of processes, beside a process that has a disk of its own.

use alloc::vec::Vec;

use drivers::{
    block::{AtAddress, BlockDevice, BlockError, Completion, Completions, Operation, Request, Transfer},
    hotplug::VirtualError,
    nvme,
    pci::{Function, Sriov},
};
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::{ClaimError, Iova, PageBuffer, PciAddress};
use suites::{Expected, Machine, lacks, reports};

use super::{
    process::end_of,
    served_disk::{
        Neighbour, check_kept, check_refused, driver_of, end_with_requests, kill_with_requests, write_kept,
    },
};
use crate::{
    arch::clock::{self, NS_PER_S},
    process::{self, Driver, Ending, GiveError, NVME_DRIVER},
    shell::processes::giver,
};

const COUNT: u16 = 2;
/// Blocks of each request, and how many requests each disk has at a time.
const BLOCKS: u32 = 8;
const REQUESTS: u64 = 24;
/// By how much a driver's memory moves up for the controller for each number that it is started with, and where the
/// data of the first request are before that.
const STEP: u64 = 1 << 32;
const DATA_AT: u64 = 0x4000_0000;

/// Virtual functions that are on until this is dropped.
struct Virtual<'a> {
    machine: &'a Machine,
    physical: PciAddress,
    functions: Vec<Function>,
}

/// The controller that can have virtual functions.
fn physical(machine: &Machine) -> Result<PciAddress, Failure> {
    let functions = machine.hotplug.functions()?;
    let is_one = |function: &&Function| {
        function.class == nvme::CLASS && Sriov::open(&*machine.host, function).is_some()
    };
    let found = functions.iter().find(is_one).map(|function| function.address);
    found.ok_or(failure!("no controller has virtual functions"))
}

impl<'a> Virtual<'a> {
    fn enable(context: &'a Context<'_>) -> Result<Self, Failure> {
        let machine = Machine::of(context)?;
        let physical = physical(machine)?;
        let functions = machine.hotplug.enable_virtual(physical, COUNT)?;
        Ok(Self { machine, physical, functions })
    }

    fn address(&self, index: usize) -> Result<PciAddress, Failure> {
        Ok(self.functions.get(index).ok_or(failure!("no virtual function {index}"))?.address)
    }

    /// Starts a driver, with `number`, on one of them.
    fn start(&self, index: usize, number: u64) -> Result<Driver, Failure> {
        Ok(process::start_disk(&giver(self.machine), NVME_DRIVER, number, self.address(index)?)?)
    }

    fn disable(self) -> Result<(), Failure> {
        Ok(self.machine.hotplug.disable_virtual(self.physical)?)
    }
}

impl Drop for Virtual<'_> {
    fn drop(&mut self) {
        // Whoever wants to know whether that works has done it.
        let _ = self.machine.hotplug.disable_virtual(self.physical);
    }
}

/// Has all of `disks` do at once what `operation` makes for each and for each number of a request.
fn exchange(
    machine: &Machine,
    disks: &[&dyn BlockDevice],
    operation: impl Fn(usize, u64) -> Result<Operation, Failure>,
) -> Result<Vec<Completion>, Failure> {
    let total = disks.len() * REQUESTS as usize;
    let completions = Completions::new(&machine.host, total)?;
    for number in 0..REQUESTS {
        for (index, disk) in disks.iter().enumerate() {
            let request =
                Request { tag: index as u64 * REQUESTS + number, operation: operation(index, number)? };
            disk.submit(request, &completions).map_err(|rejected| rejected.reason)?;
        }
    }
    let next = || completions.wait(clock::now_ns() + 15 * NS_PER_S);
    (0..total).map(|_| next().ok_or(failure!("a request never completed"))).collect()
}

/// Where request `number` is on each disk, and what is there on disk `index`.
fn transfer_of(index: usize, number: u64, is_write: bool) -> Result<Transfer, Failure> {
    let mut buffer = PageBuffer::zeroed(1).ok_or(failure!("no memory"))?;
    if is_write {
        buffer.fill(value_of(index, number));
    }
    const AREA: u64 = 64 * 1024 + 44 * 1024;
    Ok(Transfer { first: AREA + number * u64::from(BLOCKS), blocks: BLOCKS, buffer })
}

fn value_of(index: usize, number: u64) -> u8 {
    (index as u64 * REQUESTS + number) as u8 + 1
}

fn check_own_data(machine: &Machine, disks: &[&dyn BlockDevice]) -> Result<(), Failure> {
    for done in
        exchange(machine, disks, |index, number| Ok(Operation::Read(transfer_of(index, number, false)?)))?
    {
        let (index, number) = ((done.tag / REQUESTS) as usize, done.tag % REQUESTS);
        check_eq!(done.result, Ok(()), "request {number} of disk {index}");
        let buffer = done.buffer.ok_or(failure!("the buffer did not come back"))?;
        let is_right = buffer.iter().all(|&byte| byte == value_of(index, number));
        check!(is_right, "disk {index} has other bytes at {number}: {}", buffer[0]);
    }
    Ok(())
}

test! {
    /// Three processes drive a controller and two virtual functions of another one at once, each by the same addresses
    /// in a domain of its own, and each finds on its disk what was written there.
    deadline_ms = 120_000,
    lacks = lacks::virtual_disks,
    fn three_processes_have_three_disks(context) {
        let machine = Machine::of(context)?;
        let functions = Virtual::enable(context)?;
        let (first, second) = (functions.start(0, 0)?, functions.start(1, 0)?);
        let served = machine.disk()?;
        let disks: [&dyn BlockDevice; 3] = [&*served, &*first.disk, &*second.disk];
        let mut domains = Vec::new();
        for disk in disks {
            let function = disk.dma().function();
            check_eq!(disk.info().driver, "nvme-driver");
            check_eq!(machine.iommu.group(function)?, [function]);
            let group = reports::group(&machine.iommu, function).ok_or(failure!("no group"))?;
            check_eq!(group.sources, [function.source_id()]);
            let domain = group.domain.ok_or(failure!("{function} has no domain"))?.number;
            check!(!domains.contains(&domain), "{function} shares its domain");
            domains.push(domain);
            check!(machine.disks.of(function).is_some(), "{function} is no disk of the kernel's");
        }
        let written = exchange(machine, &disks, |index, number| Ok(Operation::Write(transfer_of(index, number, true)?)))?;
        for done in written {
            check_eq!(done.result, Ok(()), "request {}", done.tag);
        }
        check_own_data(machine, &disks)?;
        functions.disable()?;
    }
}

/// What becomes of a transfer between `disk` and `iova`, which no request's own memory is at.
fn transfer_at(
    machine: &Machine,
    disk: &dyn BlockDevice,
    iova: u64,
    writable: bool,
) -> Result<Result<(), BlockError>, Failure> {
    let completions = Completions::new(&machine.host, 1)?;
    const SPARE: u64 = 64 * 1024 + 60 * 1024;
    let request = AtAddress { tag: 0, first: SPARE, blocks: BLOCKS, iova: Iova::new(iova), writable };
    disk.submit_at(request, &completions)?;
    let done = completions.wait(clock::now_ns() + 15 * NS_PER_S);
    Ok(done.ok_or(failure!("a request never completed"))?.result)
}

test! {
    /// A virtual function that is told to reach the memory that another process has shared with another one, or that
    /// one's registers, is blocked, under its own id; the other one reaches its memory, and its requests go on.
    deadline_ms = 120_000,
    lacks = lacks::virtual_disks,
    fn what_others_have_is_out_of_reach(context) {
        let machine = Machine::of(context)?;
        let functions = Virtual::enable(context)?;
        let (first, second) = (functions.start(0, 1)?, functions.start(1, 2)?);
        let served = machine.disk()?;
        let disks: [&dyn BlockDevice; 3] = [&*served, &*first.disk, &*second.disk];
        exchange(machine, &disks, |index, number| Ok(Operation::Write(transfer_of(index, number, true)?)))?;
        let neighbour = Neighbour::start(machine, second.disk.clone())?;
        let bar = functions.functions[1].bars.and_then(|bars| bars[0]);
        let bar = bar.ok_or(failure!("no registers"))?.base;
        let others = [DATA_AT, 2 * STEP + DATA_AT, bar];
        for (at, writable) in others.iter().flat_map(|&at| [(at, true), (at, false)]) {
            let reads = neighbour.reads();
            let result = transfer_at(machine, &*first.disk, at, writable)?;
            check_eq!(result, Err(BlockError::Blocked), "at {at:#x}");
            let (function, page) = (functions.address(0)?, Iova::new(at));
            let expected = if writable { Expected::write(function, page) } else { Expected::read(function, page) };
            expected.await_recorded(machine)?;
            neighbour.goes_on(reads)?;
        }
        neighbour.stop()?;
        // The same addresses are good for those that have them.
        check_eq!(transfer_at(machine, &*second.disk, 2 * STEP + DATA_AT, true)?, Ok(()));
        check_eq!(transfer_at(machine, &*served, DATA_AT, true)?, Ok(()));
        check_own_data(machine, &disks)?;
        functions.disable()?;
    }
}

test! {
    /// The driver of a virtual function is killed with requests in flight, and then that of the disk: all of its
    /// requests end, those of the others go on, its function is free and given to the next process, which finds what
    /// was there. As often as `kills=` says.
    deadline_ms = 900_000,
    lacks = lacks::virtual_disks,
    fn a_killed_driver_leaves_the_others_alone(context) {
        let machine = Machine::of(context)?;
        let functions = Virtual::enable(context)?;
        let (mut first, second) = (functions.start(0, 0)?, functions.start(1, 0)?);
        write_kept(machine, &*first.disk)?;
        write_kept(machine, &*machine.disk()?)?;
        let beside = Neighbour::start(machine, second.disk.clone())?;
        let mut ended = 0;
        for _ in 0..machine.kills {
            let neighbour = Neighbour::start(machine, machine.disk()?)?;
            let (pages, reads) = (process::total_pages() - first.process.pages(), [&beside, &neighbour].map(Neighbour::reads));
            ended += kill_with_requests(machine, &*first.disk)?;
            let group = reports::group(&machine.iommu, functions.address(0)?).ok_or(failure!("no group"))?;
            check!(group.domain.is_none(), "a virtual function that nobody drives has a domain");
            check_eq!(process::total_pages(), pages, "pages of processes");
            check_refused(machine, &*first.disk)?;
            beside.goes_on(reads[0])?;
            neighbour.goes_on(reads[1])?;
            neighbour.stop()?;
            first = functions.start(0, 0)?;
            check_kept(machine, &*first.disk)?;

            let neighbour = Neighbour::start(machine, first.disk.clone())?;
            let (disk, reads) = (machine.disk()?, [&beside, &neighbour].map(Neighbour::reads));
            ended += kill_with_requests(machine, &*disk)?;
            beside.goes_on(reads[0])?;
            neighbour.goes_on(reads[1])?;
            neighbour.stop()?;
            drop(disk);
            machine.reopen_disk(0)?;
            check_kept(machine, &*machine.disk()?)?;
        }
        check!(ended > 0, "no kill found a request in flight");
        beside.stop()?;
        check!(second.process.wait(0).is_none(), "the driver of the other virtual function has ended");
        functions.disable()?;
    }
}

test! {
    /// Virtual functions are turned off under processes that have requests in flight: they end, all of their requests
    /// with them, their memory is free, and nothing is left of their disks; the disk of another process does not
    /// notice. So it is the second time.
    deadline_ms = 300_000,
    lacks = lacks::virtual_disks,
    fn turned_off_they_take_their_drivers_along(context) {
        let machine = Machine::of(context)?;
        let (pages, mappings) = (process::total_pages(), machine.iommu.live_mappings());
        let neighbour = Neighbour::start(machine, machine.disk()?)?;
        for is_first in [true, false] {
            let functions = Virtual::enable(context)?;
            let (first, second) = (functions.start(0, 0)?, functions.start(1, 0)?);
            let addresses = [functions.address(0)?, functions.address(1)?];
            if is_first {
                write_kept(machine, &*first.disk)?;
            } else {
                check_kept(machine, &*first.disk)?;
            }
            let reads = neighbour.reads();
            end_with_requests(machine, &*first.disk, || functions.disable())?;
            for (driver, function) in [first, second].iter().zip(addresses) {
                check_eq!(end_of(&driver.process)?, Ending::Killed);
                check_refused(machine, &*driver.disk)?;
                check!(driver_of(&*driver.disk).is_err(), "{function} has a driver");
                check!(machine.disks.of(function).is_none(), "{function} is a disk");
                check_eq!(machine.iommu.claim(function).map(drop), Err(ClaimError::Unknown { function }));
            }
            check_eq!(process::total_pages(), pages, "pages of processes");
            neighbour.goes_on(reads)?;
        }
        neighbour.stop()?;
        check!(machine.iommu.live_mappings() <= mappings, "something is still mapped");
    }
}

test! {
    /// A physical function is the kernel's for as long as it has virtual ones: no process gets it, and none that has it
    /// has virtual functions made of it.
    deadline_ms = 60_000,
    lacks = lacks::virtual_disks,
    fn nobody_else_has_their_physical_function(context) {
        let machine = Machine::of(context)?;
        let physical = physical(machine)?;
        let functions = Virtual::enable(context)?;
        let given = giver(machine).give(physical).map(drop);
        check!(matches!(given, Err(GiveError::Claim(ClaimError::Claimed { .. }))), "{given:?}");
        functions.disable()?;
        let given = giver(machine).give(physical)?;
        let enabled = machine.hotplug.enable_virtual(physical, COUNT).map(drop);
        check_eq!(enabled, Err(VirtualError::Claim(ClaimError::Claimed { function: physical })));
        drop(given);
        Virtual::enable(context)?.disable()?;
    }
}
