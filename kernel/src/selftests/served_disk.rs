//! Disks whose drivers are processes: what becomes of requests when these end, lie or say nothing.

use alloc::{boxed::Box, sync::Arc, vec};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

use attacker::{Attack, DISK_BYTE, DISK_REQUESTS, LEFT};
use drivers::{
    block::{
        BlockDevice, BlockError, Completion, Completions, Operation, Reason, Request, Transfer,
        TransferError, transfer,
    },
    host::Host,
};
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::PageBuffer;
use suites::{Machine, lacks, reports};

use super::process::end_of;
use crate::{
    arch::{
        clock::{self, NS_PER_MS, NS_PER_S},
        random,
    },
    process::{self, Ending, Process},
    shell::processes::giver,
    threads,
};

/// Blocks of each request.
const BLOCKS: u32 = 8;
/// Where nobody else writes.
const AREA: u64 = 64 * 1024 + 40 * 1024;
/// Requests that are in flight when a driver is killed: reads of what must stay, and writes behind it.
const IN_FLIGHT: u64 = 48;
/// How many of these are for what must stay.
const KEPT: u64 = 16;

fn page(value: u8) -> Result<PageBuffer, Failure> {
    let mut buffer = PageBuffer::zeroed(1).ok_or(failure!("no memory"))?;
    buffer.fill(value);
    Ok(buffer)
}

fn at(number: u64, value: u8) -> Result<Transfer, Failure> {
    Ok(Transfer { first: AREA + number * u64::from(BLOCKS), blocks: BLOCKS, buffer: page(value)? })
}

/// What is on the disk at `number`, for as long as the test goes on.
fn value_of(number: u64) -> u8 {
    number as u8 + 1
}

pub(super) fn driver_of(disk: &dyn BlockDevice) -> Result<Arc<Process>, Failure> {
    let function = disk.dma().function();
    process::all().find(|process| process.drives(function)).ok_or(failure!("{function} has no process"))
}

/// Somebody who reads a disk all the time, and wants the same bytes each time, until this is dropped.
pub(super) struct Neighbour(Arc<Reads>);

struct Reads {
    disk: Arc<dyn BlockDevice>,
    right: AtomicU64,
    wrong: AtomicU64,
    stop: AtomicBool,
    has_stopped: AtomicBool,
}

impl Reads {
    fn read(&self, host: &Arc<dyn Host>) -> Option<PageBuffer> {
        let buffer = PageBuffer::zeroed(1)?;
        let operation = Operation::Read(Transfer { first: 0, blocks: BLOCKS, buffer });
        transfer(host, &*self.disk, operation).ok().flatten()
    }
}

impl Neighbour {
    pub(super) fn start(machine: &Machine, disk: Arc<dyn BlockDevice>) -> Result<Self, Failure> {
        let none = || AtomicU64::new(0);
        let (stop, has_stopped) = (AtomicBool::new(false), AtomicBool::new(false));
        let reads = Arc::new(Reads { disk, right: none(), wrong: none(), stop, has_stopped });
        let (reader, host) = (reads.clone(), machine.host.clone());
        let wanted = reads.read(&host).ok_or(failure!("the other disk cannot be read"))?;
        let read = move || {
            while !reader.stop.load(SeqCst) {
                let is_right = reader.read(&host).is_some_and(|buffer| buffer[..] == wanted[..]);
                if is_right { &reader.right } else { &reader.wrong }.fetch_add(1, SeqCst);
            }
            reader.has_stopped.store(true, SeqCst);
        };
        threads::spawn("neighbour", Box::new(read))?;
        Ok(Self(reads))
    }

    /// How often it has read something.
    pub(super) fn reads(&self) -> u64 {
        self.0.right.load(SeqCst)
    }

    /// It has read something since it had read `before` times.
    pub(super) fn goes_on(&self, before: u64) -> Result<(), Failure> {
        let deadline_ns = clock::now_ns() + 10 * NS_PER_S;
        while self.reads() <= before && clock::now_ns() < deadline_ns {
            threads::sleep_until(clock::now_ns() + NS_PER_MS);
        }
        check!(self.reads() > before, "another disk is not read any more");
        check_eq!(self.0.wrong.load(SeqCst), 0, "errors of another disk");
        Ok(())
    }

    pub(super) fn stop(self) -> Result<(), Failure> {
        self.0.stop.store(true, SeqCst);
        let deadline_ns = clock::now_ns() + 20 * NS_PER_S;
        while !self.0.has_stopped.load(SeqCst) && clock::now_ns() < deadline_ns {
            threads::sleep_until(clock::now_ns() + NS_PER_MS);
        }
        check!(self.0.has_stopped.load(SeqCst), "a read of another disk does not end");
        Ok(())
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        self.0.stop.store(true, SeqCst);
    }
}

/// A disk that is not `disk`.
fn other_disk(machine: &Machine, disk: &dyn BlockDevice) -> Result<Arc<dyn BlockDevice>, Failure> {
    let function = disk.dma().function();
    let mut disks = (0..).map_while(|number| machine.disk_at(number));
    disks.find(|disk| disk.dma().function() != function).ok_or(failure!("there is one disk"))
}

/// Submits everything, kills the driver, and looks that everything comes back. Returns how many requests the kill
/// ended.
pub(super) fn kill_with_requests(machine: &Machine, disk: &dyn BlockDevice) -> Result<usize, Failure> {
    let process = driver_of(disk)?;
    let ended = end_with_requests(machine, disk, || {
        process.kill();
        Ok(())
    })?;
    check_eq!(end_of(&process)?, Ending::Killed);
    Ok(ended)
}

/// Submits everything, ends the driver by `end`, and looks that everything comes back. Returns how many requests that
/// ended.
pub(super) fn end_with_requests(
    machine: &Machine,
    disk: &dyn BlockDevice,
    end: impl FnOnce() -> Result<(), Failure>,
) -> Result<usize, Failure> {
    let completions = Completions::new(&machine.host, IN_FLIGHT as usize)?;
    for tag in 0..IN_FLIGHT {
        let operation =
            if tag < KEPT { Operation::Read(at(tag, 0)?) } else { Operation::Write(at(tag, value_of(tag))?) };
        disk.submit(Request { tag, operation }, &completions).map_err(|rejected| rejected.reason)?;
    }
    threads::sleep_until(clock::now_ns() + random::seed() % (2 * NS_PER_MS));
    end()?;
    let mut ended = 0;
    for _ in 0..IN_FLIGHT {
        let done = completions.wait(clock::now_ns() + 5 * NS_PER_S);
        let Completion { tag, result, buffer } = done.ok_or(failure!("a request waits for its deadline"))?;
        check!(matches!(result, Ok(()) | Err(BlockError::Gone)), "request {tag}: {result:?}");
        ended += usize::from(result.is_err());
        let buffer = buffer.ok_or(failure!("request {tag} keeps its buffer"))?;
        let is_right = |byte: &u8| *byte == value_of(tag);
        check!(
            result.is_err() || tag >= KEPT || buffer.iter().all(is_right),
            "request {tag} reads other bytes"
        );
    }
    Ok(ended)
}

/// Writes what must stay.
pub(super) fn write_kept(machine: &Machine, disk: &dyn BlockDevice) -> Result<(), Failure> {
    for number in 0..KEPT {
        transfer(&machine.host, disk, Operation::Write(at(number, value_of(number))?))?;
    }
    transfer(&machine.host, disk, Operation::Flush)?;
    Ok(())
}

/// What must stay is there.
pub(super) fn check_kept(machine: &Machine, disk: &dyn BlockDevice) -> Result<(), Failure> {
    for number in 0..KEPT {
        let buffer = transfer(&machine.host, disk, Operation::Read(at(number, 0)?))?;
        let buffer = buffer.ok_or(failure!("the buffer did not come back"))?;
        check!(buffer.iter().all(|&byte| byte == value_of(number)), "the data at {number} are others");
    }
    Ok(())
}

test! {
    /// A disk's driver is killed with requests in flight: all of them end at once, with their buffers, others' requests
    /// go on, the device is free, and the next process finds on it what was there. As often as `kills=` says.
    deadline_ms = 900_000,
    lacks = lacks::served_disk,
    fn a_killed_driver_takes_nothing_along(context) {
        let machine = Machine::of(context)?;
        let disk = machine.disk()?;
        write_kept(machine, &*disk)?;
        let neighbour = Neighbour::start(machine, other_disk(machine, &*disk)?)?;
        let function = disk.dma().function();
        drop(disk);
        let faults = || reports::group(&machine.iommu, function).map_or(u64::MAX, |group| group.faults);
        let (pages, faults_before) = (process::total_pages(), faults());
        let mut ended = 0;
        for _ in 0..machine.kills {
            let (disk, reads) = (machine.disk()?, neighbour.reads());
            ended += kill_with_requests(machine, &*disk)?;
            let group = reports::group(&machine.iommu, function).ok_or(failure!("no group"))?;
            check!(group.domain.is_none(), "the device has a domain");
            check_eq!(process::total_pages(), 0, "pages of a process that has ended");
            check_refused(machine, &*disk)?;
            neighbour.goes_on(reads)?;
            drop(disk);
            machine.reopen_disk(0)?;
            check_kept(machine, &*machine.disk()?)?;
        }
        check!(ended > 0, "no kill found a request in flight");
        neighbour.stop()?;
        check_eq!(faults(), faults_before, "faults of a device that did nothing wrong");
        check_eq!(process::total_pages(), pages);
    }
}

/// Nobody drives `disk` any more.
pub(super) fn check_refused(machine: &Machine, disk: &dyn BlockDevice) -> Result<(), Failure> {
    let refused = transfer(&machine.host, disk, Operation::Flush);
    let is_gone =
        matches!(&refused, Err(TransferError::Rejected(rejected)) if rejected.reason == Reason::Gone);
    check!(is_gone, "a disk without a driver is there: {refused:?}");
    Ok(())
}

/// Starts an attacker that makes a disk of the `edu` that nobody has, as it may.
fn attack(context: &Context<'_>, attack: Attack) -> Result<(Arc<Process>, Arc<dyn BlockDevice>), Failure> {
    let machine = Machine::of(context)?;
    let function = machine.idle_edu().ok_or(failure!("no edu"))?;
    let devices = vec![giver(machine).give(function)?.for_disk()];
    let process = process::start("attacker", attack as u64, devices)?;
    let disk = process.await_disk(clock::now_ns() + 10 * NS_PER_S);
    Ok((process, disk.ok_or(failure!("the attacker makes no disk"))?))
}

fn check_gone(machine: &Machine, disk: &dyn BlockDevice) -> Result<(), Failure> {
    let function = disk.dma().function();
    drop(machine.disks.remove(function));
    let group = reports::group(&machine.iommu, function).ok_or(failure!("no group"))?;
    check!(group.domain.is_none(), "{function} has a domain");
    let refused = transfer(&machine.host, disk, Operation::Flush);
    check!(matches!(refused, Err(TransferError::Rejected(_))), "a disk without a driver takes requests");
    Ok(())
}

test! {
    /// Answers to no request, twice, and from memory that the program does not have are none; offers that make no sense
    /// are refused.
    lacks = lacks::idle_remapped_edu,
    fn answers_that_are_lies_are_none(context) {
        let machine = Machine::of(context)?;
        let (process, disk) = attack(context, Attack::DiskLies)?;
        check_eq!(disk.info().driver, "attacker");
        for number in 0..DISK_REQUESTS {
            let transferred = Transfer { first: number, blocks: 1, buffer: page(0)? };
            let is_read = number % 2 == 0;
            let operation = if is_read { Operation::Read(transferred) } else { Operation::Write(transferred) };
            let buffer = transfer(&machine.host, &*disk, operation)?;
            let buffer = buffer.ok_or(failure!("the buffer did not come back"))?;
            let expected = if is_read { DISK_BYTE } else { 0 };
            check!(buffer[..512].iter().all(|&byte| byte == expected), "request {number}: other bytes");
            check!(buffer[512..].iter().all(|&byte| byte == 0), "request {number}: bytes behind it");
        }
        check_eq!(end_of(&process)?, Ending::Exited(LEFT));
        check_gone(machine, &*disk)?;
    }
}

test! {
    /// A process that was given a device for something else makes no disk of it.
    lacks = lacks::idle_remapped_edu,
    fn only_who_was_started_for_it_makes_a_disk(context) {
        let machine = Machine::of(context)?;
        let function = machine.idle_edu().ok_or(failure!("no edu"))?;
        let devices = vec![giver(machine).give(function)?];
        let process = process::start("attacker", Attack::DiskUninvited as u64, devices)?;
        check_eq!(end_of(&process)?, Ending::Exited(LEFT));
        check!(process.await_disk(0).is_none() && machine.disks.of(function).is_none(), "there is a disk");
    }
}

test! {
    /// A driver that takes a request and says nothing is ended when its time is over, and whoever waits is told.
    deadline_ms = 60_000,
    lacks = lacks::served_disk,
    fn a_driver_that_says_nothing_is_ended(context) {
        let machine = Machine::of(context)?;
        let (process, disk) = attack(context, Attack::DiskNeverAnswers)?;
        let read = Operation::Read(Transfer { first: 0, blocks: 1, buffer: page(0)? });
        let failed = transfer(&machine.host, &*disk, read);
        check!(matches!(failed, Err(TransferError::Failed(BlockError::TimedOut, Some(_)))), "{failed:?}");
        check_eq!(end_of(&process)?, Ending::Killed);
        check_gone(machine, &*disk)?;
    }
}
