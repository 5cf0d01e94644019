//! What a driver asks of the kernel besides DMA memory.
//!
//! One `Arc<dyn Host>` serves all drivers. Calls are dynamic because none of them is on the path of a single request,
//! except the interrupt guard, which is two instructions behind the call.

use alloc::{boxed::Box, sync::Arc};
use core::fmt;

use iommu::{PciAddress, platform::MsiMessage};
use mm::PhysAddr;

use crate::mmio::Mmio;

/// The host kernel as drivers see it.
///
/// # Safety
/// [`map_mmio`](Self::map_mmio) and [`interrupts_off`](Self::interrupts_off) are trusted: drivers rely on them for the
/// soundness of register access and of locks.
pub unsafe trait Host: Send + Sync + 'static {
    /// Reads the aligned dword at `offset` (below 4096) of `function`'s configuration space. All ones where there is
    /// no function, no such segment or bus, or no extended configuration space.
    fn config_read32(&self, function: PciAddress, offset: u16) -> u32;

    /// Writes the aligned dword at `offset` of `function`'s configuration space; lost where nothing is.
    fn config_write32(&self, function: PciAddress, offset: u16, value: u32);

    /// Writes the aligned word at `offset` of `function`'s configuration space, and leaves the word beside it alone.
    fn config_write16(&self, function: PciAddress, offset: u16, value: u16);

    /// Clears and sets bits of the aligned dword at `offset` of `function`'s configuration space; the others are
    /// written as they read. No other change by this call comes in between: it is the same as
    /// [`Platform::change_config`](iommu::Platform::change_config).
    fn config_change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32);

    /// Maps `bytes` bytes of registers from `base`, uncached. `None` if the range is RAM, wraps, or address space is
    /// short. `base` need not be page-aligned. A mapping is never taken back.
    fn map_mmio(&self, base: PhysAddr, bytes: usize) -> Option<Mmio>;

    /// Monotonic time in nanoseconds since an arbitrary start.
    ///
    /// Deadlines of devices are measured by it. It had better not count time in which the host of a virtual machine
    /// keeps all of it, devices included, from running.
    fn now_ns(&self) -> u64;

    /// A new event, not signalled.
    fn event(&self) -> Arc<dyn Event>;

    /// A vector that signals `event`, as the message that `function` must send to raise it. With interrupt remapping
    /// on, no other function can raise it.
    ///
    /// # Errors
    /// No vector or no remapping entry is left, or the function is unknown to its remapping unit.
    fn allocate_interrupt(
        &self,
        function: PciAddress,
        event: Arc<dyn Event>,
    ) -> Result<Box<dyn Interrupt>, InterruptError>;

    /// Number of CPUs that interrupts can be sent to.
    fn cpus(&self) -> usize;

    /// Number of the CPU that the caller runs on, below [`cpus`](Self::cpus). It may run elsewhere by the time it looks
    /// at it.
    fn cpu(&self) -> usize;

    /// Starts a thread that runs `body` and ends with it.
    ///
    /// # Errors
    /// No memory for its stack.
    fn spawn(&self, name: &'static str, body: Box<dyn FnOnce() + Send>) -> Result<(), SpawnError>;

    /// Called in each round of a wait that polls a register until a deadline: lets other threads run.
    /// Not callable in an interrupt or with interrupts off.
    fn relax(&self);

    /// Lets other threads run that are ready, once; the caller waits for nothing. Not callable in an interrupt or with
    /// interrupts off.
    fn yield_now(&self);

    /// Turns interrupts, and with them preemption, off on this CPU. The result says what they were; calls nest.
    fn interrupts_off(&self) -> InterruptState;

    /// Brings back what the matching [`interrupts_off`](Self::interrupts_off) found.
    fn interrupts_restore(&self, state: InterruptState);
}

/// A binary, sticky, self-resetting flag that a thread can wait for.
///
/// A signal that comes before the wait is not lost; several signals before a wait count as one. One thread waits at a
/// time; with several, one of them takes the signal.
pub trait Event: Send + Sync {
    /// Sets the flag and wakes a waiter. Callable in an interrupt; never blocks.
    fn signal(&self);

    /// Waits until the flag is set and clears it, or until [`Host::now_ns`] reaches `deadline_ns`. True if the flag was
    /// set. A deadline in the past makes it a poll.
    fn wait(&self, deadline_ns: u64) -> bool;
}

/// A vector given to one function: freed when dropped. Drop it only after the function can no longer send the message.
pub trait Interrupt: Send + Sync {
    /// What the function writes, and where, to raise the interrupt.
    fn message(&self) -> MsiMessage;

    /// Sends the interrupt to CPU number `cpu`, below [`Host::cpus`]. With interrupt remapping it goes there from now
    /// on; without, when the function has been given the new [`message`](Self::message), which differs in the low half
    /// of its address alone. None is lost.
    ///
    /// # Errors
    /// It goes where it went before, or, if its remapping unit does not answer, to either.
    fn retarget(&mut self, cpu: usize) -> Result<(), InterruptError>;
}

/// Whether interrupts were on: made by [`Host::interrupts_off`], consumed by [`Host::interrupts_restore`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct InterruptState {
    /// Interrupts were on, and are turned on again.
    pub were_on: bool,
}

/// Why a function got no interrupt, or it could not be moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptError {
    /// All vectors are in use.
    NoVector,
    /// There is no such CPU.
    NoCpu {
        /// The number asked for.
        cpu: usize,
    },
    /// The host gives out no interrupts yet.
    NotReady,
    /// There is no way from the function to the CPU.
    Route(iommu::interrupts::InterruptError),
}

impl From<iommu::interrupts::InterruptError> for InterruptError {
    fn from(error: iommu::interrupts::InterruptError) -> Self {
        Self::Route(error)
    }
}

impl fmt::Display for InterruptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoVector => f.write_str("all interrupt vectors are in use"),
            Self::NoCpu { cpu } => write!(f, "there is no CPU {cpu}"),
            Self::NotReady => f.write_str("no interrupts are given out yet"),
            Self::Route(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for InterruptError {}

/// There was no memory for a thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SpawnError {
    /// Name of the thread that could not be started.
    pub name: &'static str,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no memory for thread {}", self.name)
    }
}

impl core::error::Error for SpawnError {}
