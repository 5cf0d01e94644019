//! What a device did that it may not do.
//!
//! Faults are facts about devices, and devices make as many as they like: they travel by value through a
//! ring that never grows, from the interrupt that reads them to the thread that decides what to do.

use core::fmt;

use crate::{Iova, Platform, SourceId, platform::LockClass, sync::IrqLock};

/// One request that a remapping unit blocked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// Who sent it.
    pub source: SourceId,
    /// What it was aimed at.
    pub target: FaultTarget,
    /// What it wanted to do.
    pub access: FaultAccess,
    /// The address space within the device, if the request named one.
    pub pasid: Option<u32>,
    /// Why it was blocked.
    pub reason: Reason,
}

/// What a blocked request was aimed at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultTarget {
    /// Memory: the address, rounded down to its page.
    Address(Iova),
    /// An interrupt: the index of its remapping entry, if it had one.
    Interrupt(Option<u16>),
}

/// What a blocked request wanted to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultAccess {
    /// Read memory.
    Read,
    /// Write memory, or raise an interrupt.
    Write,
    /// Fetch instructions.
    Execute,
    /// Read and write memory in one step.
    Atomic,
    /// Ask for a page to be made present.
    PageRequest,
}

/// Why a request was blocked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reason {
    /// The hardware's number for it.
    pub code: u8,
    /// The class that it belongs to.
    pub kind: FaultKind,
    /// The reason in words.
    pub words: &'static str,
}

/// A class of reasons, whatever the hardware.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultKind {
    /// The device may reach nothing at all.
    Blocked,
    /// The address is not mapped, or not for this access.
    Denied,
    /// The address cannot be mapped for this device.
    OutOfRange,
    /// A table entry of ours is malformed: a bug, or memory corruption.
    BadEntry,
    /// A table of ours could not be read.
    Unreachable,
    /// An interrupt was not the device's to raise.
    Interrupt,
    /// Something this crate does not know.
    Other,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if let Some(pasid) = self.pasid {
            write!(f, " (PASID {pasid:#x})")?;
        }
        match self.target {
            FaultTarget::Address(address) => write!(f, ": {} at {address} blocked", self.access)?,
            FaultTarget::Interrupt(Some(index)) => write!(f, ": interrupt {index:#x} blocked")?,
            FaultTarget::Interrupt(None) => f.write_str(": interrupt blocked")?,
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for FaultAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
            Self::Atomic => "atomic",
            Self::PageRequest => "page request",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (reason {:#x})", self.words, self.code)
    }
}

/// A queue of at most `N` values between interrupts and a thread. The oldest are kept: what starts a storm tells more
/// than what ends it.
pub(crate) struct BoundedRing<T, const N: usize> {
    state: IrqLock<RingState<T, N>>,
}

/// Entries of the ring that faults of all units go through: one lap of the largest set of fault records that a unit can
/// have. A thread of `loom` has a small stack.
pub(crate) const FAULT_RING_ENTRIES: usize = if cfg!(loom) { 4 } else { 256 };

struct RingState<T, const N: usize> {
    entries: [Option<T>; N],
    /// Index of the oldest entry.
    first: usize,
    count: usize,
    lost: u64,
}

impl<T: Copy, const N: usize> BoundedRing<T, N> {
    pub const fn new() -> Self {
        Self {
            state: IrqLock::new(
                LockClass::FaultRing,
                RingState { entries: [None; N], first: 0, count: 0, lost: 0 },
            ),
        }
    }

    /// Appends `value`, or counts it as lost if the ring is full. Callable in an interrupt.
    pub fn push<P: Platform>(&self, platform: &P, value: T) {
        let mut state = self.state.lock(platform);
        if state.count == N {
            state.lost = state.lost.saturating_add(1);
            return;
        }
        let index = (state.first + state.count) % N;
        state.entries[index] = Some(value);
        state.count += 1;
    }

    /// Takes the oldest value out.
    pub fn pop<P: Platform>(&self, platform: &P) -> Option<T> {
        let mut state = self.state.lock(platform);
        if state.count == 0 {
            return None;
        }
        let index = state.first;
        state.first = (index + 1) % N;
        state.count -= 1;
        state.entries[index].take()
    }

    /// How many values found the ring full, ever.
    pub fn lost<P: Platform>(&self, platform: &P) -> u64 {
        self.state.lock(platform).lost
    }
}

#[cfg(all(test, loom))]
mod interleavings;
#[cfg(test)]
mod tests;
