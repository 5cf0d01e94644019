//! A device raises the interrupts that were given to it, wherever they are sent, and no others.

use alloc::{boxed::Box, sync::Arc};

use drivers::{
    edu::EduError,
    host::{Event, Interrupt, InterruptError},
};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{
    PciAddress,
    dump::InterruptReport,
    fault::{FaultKind, FaultTarget},
    interrupts::Sender,
    platform::MsiMessage,
    vtd::spec::message,
};

use crate::{
    machine::{ClaimedEdu, Machine, lacks},
    reports,
};

/// How long what must not arrive is waited for: a message takes microseconds.
const SILENCE_NS: u64 = 20_000_000;

/// How long a fault may take from the unit to the list that is shown.
const FAULT_DEADLINE_NS: u64 = 2_000_000_000;

/// Reasons, as VT-d numbers them.
mod code {
    pub const BEYOND_TABLE: u8 = 0x21;
    pub const NOT_PRESENT: u8 = 0x22;
    pub const OTHER_SOURCE: u8 = 0x26;
}

/// A message that nobody gave to the device.
struct Forged(MsiMessage);

impl Interrupt for Forged {
    fn message(&self) -> MsiMessage {
        self.0
    }

    fn retarget(&mut self, cpu: usize) -> Result<(), InterruptError> {
        Err(InterruptError::NoCpu { cpu })
    }
}

impl ClaimedEdu {
    /// Has the device send `message`, which is not its own. The event is what the message would signal if it were.
    pub fn forge(&mut self, machine: &Machine, message: MsiMessage) -> Result<Arc<dyn Event>, EduError> {
        let arrived = machine.host.event();
        self.device.use_interrupt(Box::new(Forged(message)), arrived.clone())?;
        self.device.send_interrupt();
        self.device.use_own_interrupt()?;
        Ok(arrived)
    }
}

/// The entries in use that `function` may use, in the order of their indices.
fn entries_of(machine: &Machine, function: PciAddress) -> impl Iterator<Item = InterruptReport> {
    let sender = Some(Sender::Function(function.source_id()));
    reports::interrupts(&machine.iommu).into_iter().filter(move |entry| entry.sender == sender)
}

/// Waits until `function` was blocked with the reason `code` at entry `index`. Units that do not record blocked
/// interrupts at all are known as such.
fn await_blocked(machine: &Machine, function: PciAddress, index: u16, code: u8) -> Result<(), Failure> {
    if !machine.records_interrupt_faults {
        return Ok(());
    }
    let deadline_ns = machine.host.now_ns().saturating_add(FAULT_DEADLINE_NS);
    loop {
        let faults = reports::faults(&machine.iommu);
        let wanted = faults.iter().find(|fault| {
            fault.source == function.source_id() && fault.target == FaultTarget::Interrupt(Some(index))
        });
        if let Some(fault) = wanted {
            check_eq!(fault.reason.code, code, "{fault}");
            check_eq!(fault.reason.kind, FaultKind::Interrupt, "{fault}");
            return Ok(());
        }
        if machine.host.now_ns() >= deadline_ns {
            let last = faults.last();
            return Err(failure!("{function} at entry {index}: not recorded; the last fault is {last:?}"));
        }
        machine.host.relax();
    }
}

test! {
    /// The device's message names an entry that only the device may use, and arrives where the entry says.
    lacks = lacks::remapped_edu,
    fn a_message_arrives_through_its_own_entry(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        check_eq!(entries_of(machine, edu.device.function()).count(), 1);
        edu.device.raise_interrupt(0x5a)?;
        for entry in reports::interrupts(&machine.iommu) {
            check!(entry.sender.is_some(), "anybody may use entry {}", entry.index);
            check!(entry.vector >= 0x20, "entry {} raises exception {}", entry.index, entry.vector);
        }
    }
}

test! {
    /// A message that names another device's entry reaches nobody.
    lacks = lacks::two_remapped_edus,
    fn anothers_entry_cannot_be_used(context) {
        let machine = Machine::of(context)?;
        let (mut owner, mut attacker) = (machine.edu(0)?, machine.edu(1)?);
        let entry = entries_of(machine, owner.device.function()).next();
        let index = entry.ok_or_else(|| failure!("the owner has no entry"))?.index;
        owner.device.await_interrupt(0);
        attacker.forge(machine, message(index, false))?;
        check!(!owner.device.await_interrupt(SILENCE_NS), "the owner got an interrupt that the attacker raised");
        await_blocked(machine, attacker.device.function(), index, code::OTHER_SOURCE)?;
        owner.device.raise_interrupt(0x11)?;
        attacker.device.raise_interrupt(0x12)?;
    }
}

test! {
    /// A message that names no entry in use reaches nobody, and an entry that was given up is none.
    lacks = lacks::remapped_edu,
    fn entries_that_nobody_has_lead_nowhere(context) {
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let function = edu.device.function();
        let arrived = machine.host.event();
        let given_up = machine.host.allocate_interrupt(function, arrived.clone())?;
        let message = given_up.message();
        let mut known = entries_of(machine, function).map(|entry| entry.index);
        let index = known.find(|&index| iommu::vtd::spec::message(index, false) == message);
        let index = index.ok_or_else(|| failure!("{message:x?} names no entry of {function}"))?;
        edu.forge(machine, message)?;
        check!(arrived.wait(machine.host.now_ns() + SILENCE_NS), "an interrupt of the device's own is blocked");
        drop(given_up);
        edu.forge(machine, message)?;
        check!(!arrived.wait(machine.host.now_ns() + SILENCE_NS), "an interrupt arrived that was given up");
        await_blocked(machine, function, index, code::NOT_PRESENT)?;
        const LAST: u16 = u16::MAX;
        edu.forge(machine, iommu::vtd::spec::message(LAST, false))?;
        await_blocked(machine, function, LAST, code::BEYOND_TABLE)?;
        edu.device.raise_interrupt(0x5b)?;
    }
}

test! {
    /// With remapping or without: an interrupt that goes from CPU to CPU arrives each time.
    deadline_ms = 60_000,
    lacks = lacks::edu,
    fn none_is_lost_when_the_cpu_changes(context) {
        const COUNT: usize = 2_000;
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        for number in 0..COUNT {
            if number % 10 == 0 {
                edu.device.retarget_interrupt(number / 10 % machine.host.cpus())?;
            }
            edu.device.raise_interrupt(1 + number as u32)?;
        }
        let beyond = edu.device.retarget_interrupt(machine.host.cpus());
        check!(beyond.is_err(), "an interrupt went to a CPU that does not exist");
        edu.device.retarget_interrupt(0)?;
    }
}
