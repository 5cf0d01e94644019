//! What QEMU's unit lets through and real ones block, remapping or not: messages that name CPU and vector themselves
//! (compatibility format), whether a device sends them as its interrupt or as a DMA write to 0xFEEx_xxxx.
//!
//! These tests pass on either kind. Where such a message is blocked, its record has to say why. Where it is not, as in
//! QEMU, they say so in the log, and show that it does no harm. That it is blocked where the hardware does what it
//! should is shown on the model: `testing/vtd-model/tests/fault_reasons.rs` and `interrupts.rs`.

use drivers::edu::{Transfer, Way};
use harness::{Context, Failure, check_eq, failure, test};
use iommu::{
    Iova, PageBuffer, ToDevice,
    fault::{Fault, FaultTarget},
    platform::MsiMessage,
};
use suites::{ClaimedEdu, Machine, lacks, reports};

use crate::{
    arch::{Cpu, apic, clock, interrupts},
    platform::interrupts::cpus,
};

const COMPATIBILITY_BLOCKED: u8 = 0x25;

/// What became of a message.
#[derive(Debug)]
enum Fate {
    Blocked(Fault),
    Arrived,
}

/// How a device sends a message.
type Send = fn(&Machine, &mut ClaimedEdu, MsiMessage) -> Result<(), Failure>;

/// As its interrupt.
fn as_interrupt(machine: &Machine, edu: &mut ClaimedEdu, message: MsiMessage) -> Result<(), Failure> {
    edu.forge(machine, message)?;
    Ok(())
}

/// As data that it writes.
fn as_dma_write(_machine: &Machine, edu: &mut ClaimedEdu, message: MsiMessage) -> Result<(), Failure> {
    let data = message.data.to_le_bytes();
    let mut page = PageBuffer::zeroed(1).ok_or_else(|| failure!("no memory"))?;
    page[..data.len()].copy_from_slice(&data);
    let mapping = edu.dma.dma_map(page, ToDevice)?;
    edu.pull(mapping.iova(), data.len())?;
    mapping.unmap()?;
    let iova = Iova::new(message.address);
    edu.device.transfer(Transfer { way: Way::ToMemory, iova, offset: 0, bytes: data.len() })?;
    Ok(())
}

/// Sends a message from a device and sees what becomes of it: a fault, or an interrupt that nobody asked for.
fn fate(context: &Context<'_>, machine: &Machine, send: Send, message: MsiMessage) -> Result<Fate, Failure> {
    let mut edu = machine.edu(0)?;
    let (source, unexpected) = (edu.device.function().source_id(), interrupts::unexpected());
    let is_blocked = |fault: &Fault| fault.source == source && fault.target == FaultTarget::Interrupt(None);
    let blocked = || reports::faults(&machine.iommu).into_iter().filter(is_blocked);
    let before = blocked().count();
    send(machine, &mut edu, message)?;
    let deadline_ns = context.now_ns() + 2 * clock::NS_PER_S;
    while context.now_ns() < deadline_ns {
        if interrupts::unexpected() > unexpected {
            return Ok(Fate::Arrived);
        }
        if let Some(fault) = blocked().nth(before) {
            return Ok(Fate::Blocked(fault));
        }
        machine.host.relax();
    }
    Err(failure!("{message:x?} neither arrived nor was it recorded as blocked"))
}

/// Sends messages with each of `data`.
fn try_all(context: &Context<'_>, what: &str, send: Send, data: &[u32]) -> Result<(), Failure> {
    let machine = Machine::of(context)?;
    let apic = cpus().map(Cpu::apic_id).find(|&id| apic::has_message(id));
    let apic = apic.ok_or_else(|| failure!("no CPU has an id of eight bits"))?;
    let mut arrived = 0;
    for &data in data {
        let message = MsiMessage { address: 0xfee0_0000 | u64::from(apic) << 12, data };
        match fate(context, machine, send, message)? {
            Fate::Blocked(fault) => check_eq!(fault.reason.code, COMPATIBILITY_BLOCKED, "{fault}"),
            Fate::Arrived => arrived += 1,
        }
    }
    if arrived > 0 && machine.remaps_interrupts() {
        log::info!("not enforced by this unit: {what} ({arrived} of {} arrived)", data.len());
    }
    machine.edu(0)?.device.raise_interrupt(0x5c)?;
    Ok(())
}

fn unused_vector() -> Result<u8, Failure> {
    let unused = (interrupts::LEGACY_BASE..u8::MAX).rev().find(|&vector| !interrupts::is_used(vector));
    unused.ok_or_else(|| failure!("every vector is in use"))
}

test! {
    /// Messages that name CPU and vector themselves, one of them a non-maskable interrupt and some with the vectors of
    /// exceptions.
    lacks = lacks::edu,
    fn messages_in_compatibility_format_do_no_harm(context) {
        const NMI: u32 = 0b100 << 8;
        let data = [unused_vector()?.into(), 16, 17, 18, 29, 31, NMI];
        try_all(context, "compatibility format", as_interrupt, &data)?;
    }
}

test! {
    /// The same written as data, to an address that no page table translates.
    deadline_ms = 20_000,
    lacks = lacks::edu,
    fn dma_writes_to_the_interrupt_range_do_no_harm(context) {
        let data = [unused_vector()?.into(), 18];
        try_all(context, "DMA writes to 0xFEEx_xxxx in compatibility format", as_dma_write, &data)?;
    }
}
