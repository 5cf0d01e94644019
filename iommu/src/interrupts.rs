//! Interrupts of devices and of I/O APICs: who may raise which vector where.
//!
//! A device raises an interrupt by a write to 0xFEEx_xxxx, which DMA remapping lets through. With interrupt remapping
//! the write names an entry of a table, the entry says who may use it and what is raised, and nothing else gets to a
//! CPU. A driver's host asks for [`MessageInterrupts`] or a [`WiredInterrupt`], routes them, and gives the device or
//! the I/O APIC what comes back. Without remapping the same calls give messages that name CPU and vector themselves.
//!
//! Entries belong to their owner until it releases them, and to nobody before the unit has confirmed that it has
//! forgotten them: an entry of a unit that does not answer is never used again. No lock is held while a unit is waited
//! for.

mod compatible;
mod error;
mod sender;

use alloc::sync::Arc;
use core::fmt;

pub(crate) use error::warn_of;
pub use error::{InterruptError, NotRemapped};
pub use sender::{IgnoredBits, Sender};

use crate::{
    PciAddress,
    platform::MsiMessage,
    topology::{PlatformDevice, Topology},
    vtd::{InterruptBlock, MAX_BLOCK_ORDER, Route, RouteError},
};

/// Most messages of one function in a row: what multi-message MSI allows.
pub const MAX_MESSAGES: u16 = 1 << MAX_BLOCK_ORDER;

/// What raises interrupts by messages of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MessageSource {
    /// A PCI function, by MSI or MSI-X.
    Function(PciAddress),
    /// The HPET with this number in its ACPI table.
    Hpet {
        /// The number.
        id: u8,
    },
}

/// What an interrupt raises.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Destination {
    /// Id of the local APIC that gets it.
    pub apic: u32,
    /// The vector, 16 to 255.
    pub vector: u8,
}

/// How a wire signals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WireMode {
    /// By a low level or a falling edge.
    pub active_low: bool,
    /// As long as the level lasts. The interrupt's end has to reach the I/O APIC then: it matches on the vector, which
    /// is why [`WiredInterrupt::route`] keeps the same one in both places.
    pub level_triggered: bool,
}

/// What is written into one entry of an I/O APIC's redirection table: unmasked.
///
/// A live entry is masked first, and its high half is written before its low one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedirectionEntry {
    /// Bits 31:0: vector, mode, mask.
    pub low: u32,
    /// Bits 63:32: destination, or the index of the remapping entry.
    pub high: u32,
}

/// The interrupts of one function: remapping entries in a row, or nothing at all where there is no remapping.
#[derive(Debug)]
pub struct MessageInterrupts(Entries);

/// The interrupt of one input of an I/O APIC.
#[derive(Debug)]
pub struct WiredInterrupt(Entries);

/// Remapping hardware, as this module sees it.
pub(crate) trait Remapper: Send + Sync {
    /// Whether unit `unit` remaps interrupts.
    fn remaps(&self, unit: usize) -> bool;

    /// Whether any unit does.
    fn remaps_any(&self) -> bool;

    /// Hands out 2^`order` entries of unit `unit` for `sender`.
    fn allocate(&self, unit: usize, order: u8, sender: Sender) -> Result<InterruptBlock, RouteError>;

    /// Lets `route` through entry `offset` of `block`; when it returns, nothing goes the old way any more.
    fn route(&self, block: &InterruptBlock, offset: u16, route: &Route) -> Result<(), RouteError>;

    /// Takes `block` back, for others to use once the hardware has forgotten it.
    fn release(&self, block: InterruptBlock) -> Result<(), RouteError>;
}

/// What an owner has.
struct Entries {
    count: u16,
    remapped: Option<Remapped>,
}

struct Remapped {
    remapper: Arc<dyn Remapper>,
    /// Present until released.
    block: Option<InterruptBlock>,
    sender: Sender,
}

impl MessageInterrupts {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.0.count
    }

    /// Unit and index of the first remapping entry, if the interrupts are remapped.
    #[must_use]
    pub fn first_entry(&self) -> Option<(usize, u16)> {
        self.0.first_entry()
    }

    /// Sends interrupt `number` to `to`. Returns what the function writes to raise it (MSI with one message, MSI-X).
    ///
    /// Remapped, that is always the same, and a live interrupt has moved when this returns: what was raised before has
    /// gone the old way, nothing else does. Not remapped, it moves when the function is given the message.
    ///
    /// # Errors
    /// [`InterruptError`]. After [`RouteError::Invalidation`] the interrupt may still go the old way, else it does.
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::interrupts::{Destination, InterruptError, MessageInterrupts};
    ///
    /// /// Moves a live interrupt to another CPU: remapped, the function keeps its message.
    /// fn follow(interrupts: &MessageInterrupts, apic: u32, vector: u8) -> Result<(), InterruptError> {
    ///     interrupts.route(0, Destination { apic, vector }).map(drop)
    /// }
    /// ```
    pub fn route(&self, number: u16, to: Destination) -> Result<MsiMessage, InterruptError> {
        self.0.route(number, to, false)?;
        match self.0.block() {
            Some(block) => block.message(number).ok_or(InterruptError::NoSuchNumber { number }),
            None => compatible::message(to),
        }
    }

    /// Sends all of them to one CPU, on vectors in a row from `to.vector` on. Returns what a function with
    /// multi-message MSI is given: it adds the number of the message to the data. Remapped, each can be
    /// [moved](Self::route) on its own later; the message stays.
    ///
    /// # Errors
    /// [`InterruptError::Unaligned`] if the interrupts are not remapped and the vector is not a multiple of their
    /// number; see [`route`](Self::route).
    ///
    /// # Examples
    /// ```no_run
    /// use iommu::{interrupts::{Destination, InterruptError, MessageInterrupts}, platform::MsiMessage};
    ///
    /// /// Eight messages on vectors 0x40 to 0x47 of one CPU, and what goes into the function's MSI capability.
    /// fn multi_message(interrupts: &MessageInterrupts, apic: u32) -> Result<MsiMessage, InterruptError> {
    ///     assert_eq!(interrupts.count(), 8);
    ///     interrupts.route_all(Destination { apic, vector: 0x40 })
    /// }
    /// ```
    pub fn route_all(&self, to: Destination) -> Result<MsiMessage, InterruptError> {
        let last = u16::from(to.vector) + (self.0.count - 1);
        if last > u8::MAX.into() {
            return Err(InterruptError::TooManyVectors { first: to.vector, count: self.0.count });
        }
        for number in 0..self.0.count {
            // The sum was checked above.
            self.0.route(number, Destination { vector: to.vector + number as u8, ..to }, false)?;
        }
        match self.0.block() {
            Some(block) => Ok(block.multi_message()),
            None if !u16::from(to.vector).is_multiple_of(self.0.count) => {
                Err(InterruptError::Unaligned { first: to.vector, count: self.0.count })
            }
            None => compatible::message(to),
        }
    }

    /// Gives the interrupts up. When this returns `Ok`, the unit lets none of them through any more. Waits for the
    /// unit; so does dropping them.
    ///
    /// # Errors
    /// The unit does not answer: it may go on letting them through, so their vectors must not be used for anything
    /// else.
    pub fn release(mut self) -> Result<(), InterruptError> {
        self.0.release()
    }
}

impl WiredInterrupt {
    /// Unit and index of the remapping entry, if the interrupt is remapped.
    #[must_use]
    pub fn entry(&self) -> Option<(usize, u16)> {
        self.0.first_entry()
    }

    /// Sends the interrupt to `to`. Returns what its input is given: remapped, that changes with the vector and the
    /// mode only. While the entry is rewritten, a level-triggered one is masked, or its end may be missed.
    ///
    /// # Errors
    /// As for [`MessageInterrupts::route`].
    pub fn route(&self, mode: WireMode, to: Destination) -> Result<RedirectionEntry, InterruptError> {
        self.0.route(0, to, mode.level_triggered)?;
        let Some(block) = self.0.block() else { return compatible::redirection(mode, to) };
        let entry = block.ioapic_entry(0, to.vector).ok_or(InterruptError::NoSuchNumber { number: 0 })?;
        let entry = entry
            .with_masked(false)
            .with_active_low(mode.active_low)
            .with_level_triggered(mode.level_triggered);
        let bits = entry.into_bits();
        Ok(RedirectionEntry { low: bits as u32, high: (bits >> 32) as u32 })
    }

    /// Gives the interrupt up; see [`MessageInterrupts::release`]. Its input has to be masked before.
    ///
    /// # Errors
    /// The unit does not answer.
    pub fn release(mut self) -> Result<(), InterruptError> {
        self.0.release()
    }
}

/// Interrupts of a function that are not remapped.
pub(crate) fn compatible_messages(count: u16) -> Result<MessageInterrupts, InterruptError> {
    order_of(count)?;
    Ok(MessageInterrupts(Entries { count, remapped: None }))
}

/// An interrupt of a wire that is not remapped.
pub(crate) fn compatible_wire() -> WiredInterrupt {
    WiredInterrupt(Entries { count: 1, remapped: None })
}

/// `count` interrupts of `source`, remapped if its unit does that.
pub(crate) fn allocate_messages<R: Remapper + 'static>(
    remapper: &Arc<R>,
    topology: &Topology,
    source: MessageSource,
    count: u16,
) -> Result<MessageInterrupts, InterruptError> {
    let (unit, sender) = message_sender(topology, source).ok_or(InterruptError::Unknown(source))?;
    if !remapper.remaps(unit) {
        return compatible_messages(count);
    }
    let block = remapper.allocate(unit, order_of(count)?, sender)?;
    Ok(MessageInterrupts(Entries::remapped(remapper.clone(), block, sender)))
}

/// The interrupt of an input of I/O APIC `id`, remapped if the I/O APIC's unit does that.
pub(crate) fn allocate_wire<R: Remapper + 'static>(
    remapper: &Arc<R>,
    topology: &Topology,
    id: u8,
) -> Result<WiredInterrupt, InterruptError> {
    match topology.io_apic(id) {
        Some(PlatformDevice { unit, source, .. }) if remapper.remaps(unit) => {
            let sender = Sender::Function(source);
            let block = remapper.allocate(unit, 0, sender)?;
            Ok(WiredInterrupt(Entries::remapped(remapper.clone(), block, sender)))
        }
        // Whichever unit sees it would block it.
        None if remapper.remaps_any() => Err(InterruptError::UnknownIoApic { id }),
        _ => Ok(compatible_wire()),
    }
}

/// The unit that sees the interrupts of `source`, and whom it takes them to be from.
fn message_sender(topology: &Topology, source: MessageSource) -> Option<(usize, Sender)> {
    match source {
        MessageSource::Function(function) => {
            Some((topology.unit(function)?, topology.interrupt_sender(function)?))
        }
        MessageSource::Hpet { id } => {
            let PlatformDevice { unit, source, .. } = topology.hpet(id)?;
            // Timers send under several function numbers, whatever their scope says.
            Some((unit, Sender::Functions { source, ignored: IgnoredBits::Bits210 }))
        }
    }
}

/// log2 of a number of interrupts that a function can have in a row.
fn order_of(count: u16) -> Result<u8, InterruptError> {
    if !count.is_power_of_two() || count > MAX_MESSAGES {
        return Err(InterruptError::BadCount { count });
    }
    Ok(count.trailing_zeros() as u8)
}

impl Entries {
    fn remapped(remapper: Arc<dyn Remapper>, block: InterruptBlock, sender: Sender) -> Self {
        let count = 1 << block.order();
        Self { count, remapped: Some(Remapped { remapper, block: Some(block), sender }) }
    }

    fn block(&self) -> Option<&InterruptBlock> {
        self.remapped.as_ref()?.block.as_ref()
    }

    fn first_entry(&self) -> Option<(usize, u16)> {
        self.block().map(|block| (block.unit(), block.first()))
    }

    fn route(&self, number: u16, to: Destination, level_triggered: bool) -> Result<(), InterruptError> {
        if number >= self.count {
            return Err(InterruptError::NoSuchNumber { number });
        }
        let (Some(remapped), Some(block)) = (&self.remapped, self.block()) else { return Ok(()) };
        let Destination { apic, vector } = to;
        let route = Route { sender: remapped.sender, vector, apic, level_triggered };
        Ok(remapped.remapper.route(block, number, &route)?)
    }

    fn release(&mut self) -> Result<(), InterruptError> {
        let Some(remapped) = &mut self.remapped else { return Ok(()) };
        let Some(block) = remapped.block.take() else { return Ok(()) };
        Ok(remapped.remapper.release(block)?)
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            log::error!("interrupt entries are lost: {error}");
        }
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entries")
            .field("count", &self.count)
            .field("block", &self.block())
            .finish_non_exhaustive()
    }
}
