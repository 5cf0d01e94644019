//! Devices that the host plugs in and pulls out while the kernel runs, always in the same slot.

use alloc::{sync::Arc, vec::Vec};

use drivers::{
    block::{BlockError, Completions, Operation, Request, Transfer, transfer},
    edu::{self, Edu},
    pci::{Function, Slot},
};
use harness::{Context, Failure, check, check_eq, failure, test};
use iommu::{ClaimError, DmaError, FromDevice, PageBuffer};

use crate::{
    edu::BYTES,
    machine::{ClaimedEdu, Machine, lacks},
    pattern,
    storm::wait,
};

const SECTORS: u32 = 8;
/// Requests that are in flight when the slot loses its power.
const IN_FLIGHT: u64 = 4;

/// The slot that things are plugged into: the one hot-plug port without anything behind it.
fn empty_slot(machine: &Machine) -> Result<Slot, Failure> {
    let functions = machine.hotplug.functions()?;
    let is_empty = |port: &&Function| !functions.iter().any(|other| other.parent == Some(port.address));
    let mut ports = functions.iter().filter(is_empty);
    let slot = ports.find_map(|port| Slot::open(&machine.host, port));
    slot.ok_or_else(|| failure!("no slot is empty"))
}

/// Waits until there is a function behind `slot`, and its driver has started.
fn await_function(machine: &Machine, slot: &Slot) -> Result<Function, Failure> {
    wait(machine, "a function in the slot", || behind(machine, slot).is_some())?;
    behind(machine, slot).ok_or_else(|| failure!("it is gone again"))
}

fn behind(machine: &Machine, slot: &Slot) -> Option<Function> {
    machine.hotplug.each().find(|function| function.parent == Some(slot.port()))
}

fn await_nothing(machine: &Machine, slot: &Slot) -> Result<(), Failure> {
    let is_empty = || !machine.hotplug.each().any(|function| function.parent == Some(slot.port()));
    wait(machine, "an empty slot", || is_empty() && !slot.is_occupied())
}

/// Has what is called `name` plugged in, which is an `edu` or has one behind it.
fn plug_edu(
    context: &Context<'_>,
    machine: &Machine,
    slot: &Slot,
    name: &str,
) -> Result<ClaimedEdu, Failure> {
    context.plug(name);
    await_function(machine, slot)?;
    let mut edu = None;
    wait(machine, "the driver of an edu", || {
        edu = machine.plugged.take_edu();
        edu.is_some()
    })?;
    edu.ok_or_else(|| failure!("no edu"))
}

/// What is held: mappings and domain ids.
pub fn balance(machine: &Machine) -> (usize, u64) {
    let domains = crate::reports::units(&machine.iommu).iter().map(|unit| unit.domains as u64).sum();
    (machine.iommu.live_mappings(), domains)
}

/// Whether no more is held than at `before`, when something of an earlier test may have been on its way back.
pub fn is_back(machine: &Machine, before: (usize, u64)) -> bool {
    let (mappings, domains) = balance(machine);
    mappings <= before.0 && domains <= before.1
}

test! {
    /// An `edu` is plugged in, works, and is taken out in order; the next one at the same address finds nothing of the
    /// rights that the first one had, though the unit has cached them. Each is put in quarantine, and its driver
    /// started anew.
    deadline_ms = 90_000,
    lacks = lacks::plugs,
    fn the_next_device_has_none_of_the_rights_of_the_last(context) {
        come_and_go(context, "edu", 2, |machine, _, edu| {
            let function = edu.dma.function();
            machine.plugged.put_edu(edu);
            machine.iommu.quarantine(function)?;
            check!(machine.restart(function)?, "it has no driver");
            machine.plugged.take_edu().ok_or_else(|| failure!("no driver for it started"))
        })?;
    }
}

/// Has `name` plugged in, an `edu` or something with one behind it, and taken out, so many times. `prepare` is shown
/// each.
pub fn come_and_go(
    context: &Context<'_>,
    name: &str,
    times: u64,
    prepare: impl Fn(&Machine, &Slot, ClaimedEdu) -> Result<ClaimedEdu, Failure>,
) -> Result<(), Failure> {
    let machine = Machine::of(context)?;
    let slot = empty_slot(machine)?;
    let before = balance(machine);
    let mut last = None;
    for seed in 1..=times {
        let edu = plug_edu(context, machine, &slot, name)?;
        let function = edu.dma.function();
        check!(last.is_none_or(|(before, _)| before == function), "the device is somewhere else");
        let mut edu = prepare(machine, &slot, edu)?;
        edu.load(seed)?;
        let unmapped = last.map_or_else(|| machine.fresh_page(), |(_, page)| page);
        let faults = edu.dma.fault_count();
        edu.push(unmapped, BYTES)?;
        check!(edu.dma.fault_count() > faults, "the new device reaches what it has not mapped");
        let page = machine.fresh_page();
        let mapping = edu.dma.dma_map_at(pattern::pages(1, seed + 10)?, FromDevice, page)?;
        edu.push(page, BYTES)?;
        // Unmapped only after the device is gone: the unit has it cached until then.
        machine.plugged.put_edu(edu);
        context.unplug(name);
        await_nothing(machine, &slot)?;
        pattern::expect(&mapping.unmap()?[..BYTES], seed, "the page that was written")?;
        check_eq!(machine.iommu.claim(function).map(drop), Err(ClaimError::Unknown { function }));
        last = Some((function, page));
    }
    wait(machine, "the return of all that was mapped", || is_back(machine, before))
}

test! {
    /// The slot loses its power behind the driver's back while a transfer is on its way: nothing arrives, the memory
    /// comes back, and the next device works.
    deadline_ms = 90_000,
    lacks = lacks::plugs,
    fn a_transfer_ends_with_the_power(context) {
        let machine = Machine::of(context)?;
        let slot = empty_slot(machine)?;
        let before = balance(machine);
        for seed in 1..=2 {
            let mut edu = plug_edu(context, machine, &slot, "edu")?;
            let function = behind(machine, &slot).ok_or_else(|| failure!("it is gone again"))?;
            edu.load(seed)?;
            let mapping = edu.dma.dma_map(pattern::pages(1, 20)?, FromDevice)?;
            edu.device.start(drivers::edu::Transfer { way: edu::Way::ToMemory, iova: mapping.iova(), offset: 0, bytes: BYTES })?;
            slot.power_off()?;
            await_nothing(machine, &slot)?;
            check!(Edu::open_polled(&machine.host, &function).is_err(), "it is still there");
            check!(edu.dma.was_taken_back(), "its driver still has it");
            pattern::expect(&mapping.unmap()?, 20, "the page that was to be written")?;
            drop(edu);
        }
        wait(machine, "the return of all that was mapped", || is_back(machine, before))?;
    }
}

test! {
    /// A disk is plugged in, read and taken out, twice; then one that takes seconds loses its power with requests in
    /// flight: each of them ends, done or not, and every buffer comes back.
    deadline_ms = 120_000,
    lacks = lacks::plugs,
    fn disks_come_and_go_with_requests_in_flight(context) {
        let machine = Machine::of(context)?;
        let slot = empty_slot(machine)?;
        let before = balance(machine);
        for _ in 0..2 {
            context.plug("disk");
            await_function(machine, &slot)?;
            wait(machine, "the disk's driver", || machine.plugged.disk(0).is_some())?;
            let disk = machine.plugged.disk(0).ok_or_else(|| failure!("no disk"))?;
            let buffer = pattern::pages(1, 1)?;
            let read = Operation::Read(Transfer { first: 0, blocks: SECTORS, buffer });
            let buffer = transfer(&machine.host, &*disk, read).map_err(|error| failure!("{error}"))?;
            check!(buffer.is_some_and(|buffer| buffer.iter().all(|&byte| byte == 0)), "it reads something else");
            context.unplug("disk");
            await_nothing(machine, &slot)?;
            let buffer = PageBuffer::zeroed(1).ok_or_else(|| failure!("no memory"))?;
            let read = Operation::Read(Transfer { first: 0, blocks: SECTORS, buffer });
            check!(transfer(&machine.host, &*disk, read).is_err(), "a disk that is gone was read");
        }
        lose_a_disk(context, machine, &slot)?;
        wait(machine, "the return of all that was mapped", || is_back(machine, before))?;
    }
}

fn lose_a_disk(context: &Context<'_>, machine: &Machine, slot: &Slot) -> Result<(), Failure> {
    context.plug("slow");
    await_function(machine, slot)?;
    wait(machine, "the disk's driver", || machine.plugged.disk(0).is_some())?;
    let disk = machine.plugged.disk(0).ok_or_else(|| failure!("no disk"))?;
    let completions = Completions::new(&machine.host, IN_FLIGHT as usize)?;
    for tag in 0..IN_FLIGHT {
        let transfer =
            Transfer { first: tag * u64::from(SECTORS), blocks: SECTORS, buffer: pattern::pages(1, tag)? };
        let request = Request { tag, operation: Operation::Read(transfer) };
        disk.submit(request, &completions).map_err(|rejected| failure!("{}", rejected.reason))?;
    }
    slot.power_off()?;
    await_nothing(machine, slot)?;
    let mut tags = Vec::new();
    for _ in 0..IN_FLIGHT {
        let deadline_ns = machine.host.now_ns() + 30_000_000_000;
        let completion = completions.wait(deadline_ns).ok_or_else(|| failure!("a request did not end"))?;
        let expected = matches!(
            completion.result,
            // QEMU may finish what it has before it lets the disk go.
            Ok(()) | Err(BlockError::Gone | BlockError::Reset | BlockError::TimedOut | BlockError::Blocked)
        );
        // One that it finishes while the disk is being taken away is unmapped too late: its buffer is the system's.
        let is_kept = matches!(completion.result, Err(BlockError::Pinned(DmaError::Revoked)));
        check!(expected || is_kept, "request {} ended with {:?}", completion.tag, completion.result);
        let is_back = completion.buffer.is_some();
        check!(is_back != is_kept, "request {}: whether its buffer came back: {is_back}", completion.tag);
        tags.push(completion.tag);
    }
    tags.sort_unstable();
    check!(tags.into_iter().eq(0..IN_FLIGHT), "not every request ended once");
    check_eq!(Arc::strong_count(&completions), 1, "somebody still owes a completion");
    Ok(())
}

test! {
    /// A device that needs more addresses than the port has is given some by the kernel.
    deadline_ms = 90_000,
    lacks = lacks::plugs,
    fn a_large_device_gets_addresses(context) {
        const LARGE: u64 = 16 << 20;
        let machine = Machine::of(context)?;
        let slot = empty_slot(machine)?;
        for _ in 0..2 {
            context.plug("large");
            let function = await_function(machine, &slot)?;
            let device = drivers::pci::Device::open(machine.host.clone(), &function);
            let device = device.ok_or_else(|| failure!("it does not answer"))?;
            let bar = device.bar(2)?;
            check_eq!(bar.bytes, LARGE);
            check!(bar.base != 0 && bar.base.is_multiple_of(LARGE), "it is at {:#x}", bar.base);
            let window = device.map_bar(2)?;
            check!(window.bytes() as u64 == LARGE, "only {:#x} bytes are mapped", window.bytes());
            context.unplug("large");
            await_nothing(machine, &slot)?;
        }
    }
}

test! {
    /// Without memory a list of all functions is refused, and each is found all the same, as by the thread that
    /// serves slots.
    fn without_memory_functions_are_found_one_by_one(context) {
        let machine = Machine::of(context)?;
        let known = machine.hotplug.functions()?.len();
        let exhausted = machine.memory.exhaust();
        let (list, found) = (machine.hotplug.functions().map(drop), machine.hotplug.each().count());
        drop(exhausted);
        // A shorter one is had from what the heap has already.
        check!(list.is_err() || known * size_of::<Function>() < mm::PAGE_BYTES as usize, "there was memory");
        check_eq!(found, known);
    }
}
