//! Attacks on memory and on interrupts, by a device that can be aimed anywhere.

use drivers::{
    edu::{EduError, Transfer, Way},
    nvme::NvmeError,
};
use iommu::{
    Bidirectional, DmaError, Iova, PageBuffer, PciAddress, ToDevice,
    fault::{Fault, Reason},
    interrupts::Sender,
    platform::MsiMessage,
    vtd::spec::message,
};
use suites::{ClaimedEdu, Machine, reports};

use super::{Command, Shell, UsageError};
use crate::{
    arch::{Cpu, apic, clock, interrupts},
    println, threads,
};

pub(super) static COMMANDS: &[Command] = &[Command {
    name: "attack",
    arguments: "MODE [FUNCTION]",
    help: "have a device do what it may not: read | write | read-only | unmapped | interrupt | vector | storm",
    run: attack,
}];

/// Bytes that a device moves in an attack.
const BYTES: usize = 64;

/// What was tried by whom, and whether memory shows that it worked.
struct Outcome {
    attacker: PciAddress,
    got_through: bool,
    faults: u64,
}

fn attack(shell: &Shell<'_>, arguments: &[&str]) -> Result<(), UsageError> {
    let (mode, attacker) = match arguments {
        [mode] => (mode, None),
        [mode, name] => match shell.find(name) {
            Some(function) => (mode, Some(function)),
            None => {
                println!("there is no function {name}");
                return Ok(());
            }
        },
        _ => return Err(UsageError),
    };
    let machine = shell.machine;
    let before = reports::faults(&machine.iommu).last().copied();
    let tried = match *mode {
        "read" => with_edu(machine, attacker, |edu, page| rogue(edu, page, Way::FromMemory)),
        "write" => with_edu(machine, attacker, |edu, page| rogue(edu, page, Way::ToMemory)),
        "read-only" => with_edu(machine, attacker, write_to_read_only),
        "unmapped" => with_edu(machine, attacker, use_after_unmap),
        "interrupt" => with_edu(machine, attacker, |edu, _| anothers_interrupt(machine, edu)),
        "vector" => with_edu(machine, attacker, |edu, _| own_vector(machine, edu)),
        "storm" => storm(machine, attacker),
        _ => return Err(UsageError),
    };
    match tried {
        Ok(Outcome { got_through: true, faults, .. }) => {
            println!("IT GOT THROUGH; faults recorded: {faults}")
        }
        Ok(Outcome { attacker, faults, .. }) => {
            match blocked_for(machine, attacker, before).filter(|_| faults > 0) {
                Some(reason) => println!("blocked: {reason}; faults recorded: {faults}"),
                None => println!("blocked; faults recorded: {faults}"),
            }
        }
        Err(error) => println!("{error}"),
    }
    Ok(())
}

/// Why the last request of `attacker` was blocked. It was after `before` was the last fault of all, if it can be told:
/// a fault that is the same again is taken for that.
fn blocked_for(machine: &Machine, attacker: PciAddress, before: Option<Fault>) -> Option<Reason> {
    const POLL_NS: u64 = clock::NS_PER_S / 100;
    let deadline_ns = clock::now_ns() + INTERRUPT_WAIT_NS;
    loop {
        let faults = reports::faults(&machine.iommu);
        if faults.last().copied() != before || clock::now_ns() >= deadline_ns {
            let of_attacker = |fault: &&Fault| fault.source.function() == attacker;
            return faults.iter().rev().find(of_attacker).map(|fault| fault.reason);
        }
        threads::sleep_until(clock::now_ns() + POLL_NS);
    }
}

/// The fast attacker keeps its queue full, until somebody stops it.
fn storm(machine: &Machine, attacker: Option<PciAddress>) -> Result<Outcome, AttackError> {
    const COMMANDS: usize = 100_000;
    let mut nvme = machine.nvme_as_any_device().map_err(AttackError::Machine)?;
    let (function, target) = (nvme.dma().function(), machine.fresh_page());
    if let Some(wanted) = attacker.filter(|&wanted| wanted != function) {
        return Err(AttackError::NoAttacker(wanted));
    }
    println!("the attacker is {function} (nvme): {COMMANDS} writes to {target}, where nothing is mapped");
    let before = nvme.dma().fault_counts().own;
    let done = nvme.flood(target, COMMANDS)?;
    println!(
        "  it says that it has done {done}; `domains` shows where it is now, `release {function}` frees it"
    );
    let faults = nvme.dma().fault_counts().own - before;
    Ok(Outcome { attacker: function, got_through: faults == 0, faults })
}

/// Lets `attacker`, or the first `edu` that is claimed, try something.
fn with_edu(
    machine: &Machine,
    attacker: Option<PciAddress>,
    try_it: impl FnOnce(&mut ClaimedEdu, Iova) -> Result<Outcome, AttackError>,
) -> Result<Outcome, AttackError> {
    let mut edu = match attacker {
        None => machine.edu(0).map_err(AttackError::Machine)?,
        Some(function) => {
            let mut edus = (0..machine.edus()).filter_map(|index| machine.edu(index).ok());
            edus.find(|edu| edu.dma.function() == function).ok_or(AttackError::NoAttacker(function))?
        }
    };
    println!("the attacker is {} (edu)", edu.device.function());
    try_it(&mut edu, machine.fresh_page())
}

/// Runs a transfer, and counts the faults that it causes.
fn transfer(edu: &mut ClaimedEdu, way: Way, iova: Iova) -> Result<u64, AttackError> {
    let verb = if way == Way::ToMemory { "writes" } else { "reads" };
    println!("  it {verb} {BYTES} bytes at {iova}");
    let before = edu.dma.fault_count();
    edu.device.transfer(Transfer { way, iova, offset: 0, bytes: BYTES })?;
    Ok(edu.dma.fault_count() - before)
}

fn page(fill: u8) -> Result<PageBuffer, AttackError> {
    let mut page = PageBuffer::zeroed(1).ok_or(AttackError::Dma(DmaError::OutOfMemory))?;
    page.fill(fill);
    Ok(page)
}

/// An address that nothing is mapped at: there is no memory to look at, so a fault is what tells.
fn rogue(edu: &mut ClaimedEdu, target: Iova, way: Way) -> Result<Outcome, AttackError> {
    println!("nothing is mapped at {target}");
    let faults = transfer(edu, way, target)?;
    Ok(Outcome { attacker: edu.device.function(), got_through: faults == 0, faults })
}

fn write_to_read_only(edu: &mut ClaimedEdu, at: Iova) -> Result<Outcome, AttackError> {
    let mapping = edu.dma.dma_map_at(page(0x5a)?, ToDevice, at).map_err(DmaError::from)?;
    println!("a page is mapped at {at} for the device to read");
    let faults = transfer(edu, Way::ToMemory, at)?;
    let page = mapping.unmap()?;
    Ok(Outcome {
        attacker: edu.device.function(),
        got_through: page.iter().any(|&byte| byte != 0x5a),
        faults,
    })
}

fn use_after_unmap(edu: &mut ClaimedEdu, at: Iova) -> Result<Outcome, AttackError> {
    let mapping = edu.dma.dma_map_at(page(0)?, Bidirectional, at).map_err(DmaError::from)?;
    println!("a page is mapped at {at} for the device to read and write");
    let allowed = transfer(edu, Way::ToMemory, at)?;
    println!("  faults recorded: {allowed}; the translation is cached now");
    let mut page = mapping.unmap()?;
    println!("the page is unmapped and in use for something else");
    page.fill(0xa5);
    let faults = transfer(edu, Way::ToMemory, at)?;
    let attacker = edu.device.function();
    Ok(Outcome { attacker, got_through: page.iter().any(|&byte| byte != 0xa5), faults })
}

/// How long an interrupt or a fault is waited for.
const INTERRUPT_WAIT_NS: u64 = clock::NS_PER_S / 5;

/// Sends `message`, and counts what arrives on `vector` and the faults.
fn forge(
    machine: &Machine,
    edu: &mut ClaimedEdu,
    message: MsiMessage,
    vector: u8,
) -> Result<Outcome, AttackError> {
    println!("  it writes {:#x} at {:#x}", message.data, message.address);
    let (arrived, faults) = (interrupts::arrived(vector), edu.dma.fault_count());
    edu.forge(machine, message)?;
    threads::sleep_until(clock::now_ns() + INTERRUPT_WAIT_NS);
    let arrived = interrupts::arrived(vector) - arrived;
    println!("  vector {vector:#x} arrived {arrived} times since");
    let faults = edu.dma.fault_count() - faults;
    Ok(Outcome { attacker: edu.device.function(), got_through: arrived > 0, faults })
}

/// The entry of somebody else: the first one that the attacker may not use.
fn anothers_interrupt(machine: &Machine, edu: &mut ClaimedEdu) -> Result<Outcome, AttackError> {
    let own = Sender::Function(edu.device.function().source_id());
    let entries = reports::interrupts(&machine.iommu);
    let victim = entries.iter().find(|entry| entry.sender != Some(own)).ok_or(AttackError::NoVictim)?;
    let owner = victim.sender.map_or("anybody".into(), |sender| alloc::format!("{sender}"));
    println!("interrupt entry {} is for {owner} alone", victim.index);
    forge(machine, edu, message(victim.index, false), victim.vector)
}

/// A message that names a vector, and no entry. QEMU's unit lets it through, real ones do not.
fn own_vector(machine: &Machine, edu: &mut ClaimedEdu) -> Result<Outcome, AttackError> {
    let free = (interrupts::LEGACY_BASE..=u8::MAX).rev().find(|&vector| !interrupts::is_used(vector));
    let vector = free.ok_or(AttackError::NoVictim)?;
    println!("vector {vector:#x} was given to nobody; QEMU's unit does not block messages that name one");
    let message = apic::message(Cpu::first().apic_id(), vector).ok_or(AttackError::NoVictim)?;
    forge(machine, edu, message, vector)
}

/// Why an attack could not be tried.
enum AttackError {
    NoVictim,
    NoAttacker(PciAddress),
    Machine(harness::Failure),
    Device(EduError),
    Controller(NvmeError),
    Dma(DmaError),
}

impl core::fmt::Display for AttackError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::NoVictim => f.write_str("there is nobody to attack: no interrupt is remapped"),
            Self::NoAttacker(function) => write!(f, "{function} is no device that can do that"),
            Self::Machine(error) => error.fmt(f),
            Self::Device(error) => error.fmt(f),
            Self::Controller(error) => error.fmt(f),
            Self::Dma(error) => error.fmt(f),
        }
    }
}

impl From<EduError> for AttackError {
    fn from(error: EduError) -> Self {
        Self::Device(error)
    }
}

impl From<NvmeError> for AttackError {
    fn from(error: NvmeError) -> Self {
        Self::Controller(error)
    }
}

impl From<DmaError> for AttackError {
    fn from(error: DmaError) -> Self {
        Self::Dma(error)
    }
}
