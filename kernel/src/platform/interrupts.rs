//! From a device or a wire to a handler: a vector of a CPU, and the way there, which the `iommu` crate gives.
//!
//! A vector means the same on every CPU, so an interrupt that moves keeps its own, and what was raised before arrives
//! where it was sent to.

use core::{fmt, mem};

use drivers::host::{Interrupt, InterruptError};
use iommu::{
    Iommu, PciAddress,
    interrupts::{Destination, MessageInterrupts, MessageSource, WireMode},
    platform::MsiMessage,
};

use crate::{
    acpi::Wire,
    arch::{
        Cpu, apic,
        interrupts::{self, Handler, Vector},
        io_apic,
    },
    smp,
};

/// The CPUs that take interrupts of devices, by their numbers.
pub fn cpus() -> impl Iterator<Item = &'static Cpu> {
    smp::online()
}

/// Sends an interrupt to the next CPU in turn; if that is out of its way's reach, to one that every way reaches.
fn send_to_next<T>(mut send: impl FnMut(&Cpu) -> Result<T, InterruptError>) -> Result<T, InterruptError> {
    let next = smp::next_cpu(|_| true);
    match send(next) {
        Err(InterruptError::Route(_)) if !apic::has_message(next.apic_id()) => {
            send(smp::next_cpu(apic::has_message))
        }
        sent => sent,
    }
}

/// What a remapping unit is given to raise `vector` with: units name CPU and vector themselves, so of the CPUs that
/// such a message reaches the next in turn gets it. `None` if it reaches none.
pub fn event_message(vector: &Vector) -> Option<MsiMessage> {
    apic::message(smp::next_cpu(apic::has_message).apic_id(), vector.number())
}

/// A vector of a driver's, and the way of one function to it.
pub(super) struct DriverInterrupt {
    message: MsiMessage,
    /// Both are there until it is dropped.
    interrupts: Option<MessageInterrupts>,
    vector: Option<Vector>,
}

impl DriverInterrupt {
    /// An interrupt that `function`, and nobody else, makes `handler` run by.
    pub fn new(iommu: &Iommu, function: PciAddress, handler: Handler) -> Result<Self, InterruptError> {
        let interrupts = iommu.message_interrupts(MessageSource::Function(function), 1)?;
        let vector = interrupts::allocate_for_device(handler).ok_or(InterruptError::NoVector)?;
        let message = MsiMessage { address: 0, data: 0 };
        let mut interrupt = Self { message, interrupts: Some(interrupts), vector: Some(vector) };
        send_to_next(|cpu| interrupt.send_to(cpu))?;
        Ok(interrupt)
    }

    fn send_to(&mut self, cpu: &Cpu) -> Result<(), InterruptError> {
        if let (Some(interrupts), Some(vector)) = (&self.interrupts, &self.vector) {
            let to = Destination { apic: cpu.apic_id(), vector: vector.number() };
            self.message = interrupts.route(0, to)?;
        }
        Ok(())
    }
}

impl Interrupt for DriverInterrupt {
    fn message(&self) -> MsiMessage {
        self.message
    }

    fn retarget(&mut self, cpu: usize) -> Result<(), InterruptError> {
        self.send_to(cpus().nth(cpu).ok_or(InterruptError::NoCpu { cpu })?)
    }
}

impl Drop for DriverInterrupt {
    fn drop(&mut self) {
        // The way first: while there is one, nobody else may have the vector.
        let released = self.interrupts.take().map_or(Ok(()), MessageInterrupts::release);
        if let Err(error) = released {
            log::error!("a vector is lost: {error}");
            mem::forget(self.vector.take());
        }
    }
}

/// Makes `wire` run `handler` for as long as the kernel runs.
///
/// # Errors
/// See [`WireError`].
pub fn connect(iommu: &Iommu, wire: Wire, handler: Handler) -> Result<(), WireError> {
    let no_input = WireError::NoInput { input: wire.input };
    let io_apic = io_apic::owner(wire).ok_or(no_input)?;
    // Dropped in reverse order if something fails: while there is a way to it, nobody else may have the vector.
    let vector = interrupts::allocate(handler).ok_or(WireError::NoVector)?;
    let interrupt = iommu.wired_interrupt(io_apic).map_err(|error| WireError::Unreachable(error.into()))?;
    let mode = WireMode { active_low: wire.is_active_low, level_triggered: wire.is_level };
    let entry = send_to_next(|cpu| {
        let to = Destination { apic: cpu.apic_id(), vector: vector.number() };
        Ok(interrupt.route(mode, to)?)
    })
    .map_err(WireError::Unreachable)?;
    if !io_apic::route(wire, entry) {
        return Err(no_input);
    }
    mem::forget((interrupt, vector));
    Ok(())
}

/// Why a wire could not be connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WireError {
    /// No I/O APIC has the input.
    NoInput {
        /// Its global number.
        input: u32,
    },
    /// All vectors are in use.
    NoVector,
    /// There is no way from the I/O APIC to a CPU.
    Unreachable(InterruptError),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInput { input } => write!(f, "no I/O APIC has input {input}"),
            Self::NoVector => f.write_str("all interrupt vectors are in use"),
            Self::Unreachable(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for WireError {}
