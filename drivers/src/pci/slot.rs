//! The hot-plug slot of a PCI Express port: power, presence, link, attention button.
//!
//! Slot Control and Slot Status share a dword, and most bits of the status are cleared by ones: each is written alone,
//! as a word.

use alloc::sync::Arc;
use core::fmt;

use iommu::PciAddress;

use super::{
    capability::id,
    config::{Config, ConfigSpace},
    device::Device,
    function::Function,
};
use crate::host::Host;

/// Offsets in the PCI Express capability.
mod offset {
    pub const CAPABILITIES: u16 = 0x02;
    pub const LINK_CAPABILITIES: u16 = 0x0c;
    pub const LINK_STATUS: u16 = 0x12;
    pub const SLOT_CAPABILITIES: u16 = 0x14;
    pub const SLOT_CONTROL_STATUS: u16 = 0x18;
    pub const END: u16 = 0x1c;
}

/// Bits of the registers; see the names of the PCI Express specification beside them.
mod bits {
    /// Slot Implemented.
    pub const HAS_SLOT: u16 = 1 << 8;
    /// Data Link Layer Link Active Reporting Capable.
    pub const REPORTS_LINK: u32 = 1 << 20;
    /// Data Link Layer Link Active.
    pub const LINK_ACTIVE: u16 = 1 << 13;

    /// Slot Capabilities: Power Controller Present, Hot-Plug Capable, No Command Completed Support.
    pub const POWER_CONTROLLER: u32 = 1 << 1;
    pub const HOT_PLUG: u32 = 1 << 6;
    pub const NO_COMMAND_COMPLETED: u32 = 1 << 18;

    /// Slot Control: which changes raise an interrupt, and that they do.
    pub const BUTTON_ENABLE: u32 = 1 << 0;
    pub const PRESENCE_ENABLE: u32 = 1 << 3;
    pub const INTERRUPT_ENABLE: u32 = 1 << 5;
    pub const LINK_ENABLE: u32 = 1 << 12;
    pub const EVENTS: u32 = BUTTON_ENABLE | PRESENCE_ENABLE | INTERRUPT_ENABLE | LINK_ENABLE;
    /// Power Indicator Control.
    pub const INDICATOR: u32 = 0b11 << 8;
    pub const INDICATOR_ON: u32 = 0b01 << 8;
    pub const INDICATOR_BLINK: u32 = 0b10 << 8;
    pub const INDICATOR_OFF: u32 = 0b11 << 8;
    /// Power Controller Control.
    pub const POWER_OFF: u32 = 1 << 10;

    /// Slot Status, in the upper half of the dword: cleared by ones, but for Presence Detect State.
    pub const BUTTON_PRESSED: u32 = 1 << 16;
    pub const PRESENCE_CHANGED: u32 = 1 << 19;
    pub const COMMAND_COMPLETED: u32 = 1 << 20;
    pub const PRESENT: u32 = 1 << 22;
    pub const LINK_CHANGED: u32 = 1 << 24;
    pub const CHANGES: u32 = 0x011f_0000;
}

/// How long a command to the slot, or the link of a new device, may take.
const DEADLINE_NS: u64 = 2_000_000_000;
/// How long nobody may touch a device after its link came up.
const SETTLE_NS: u64 = 100_000_000;

/// How often in a row changes are taken, when there are new ones each time.
const MOST_ROUNDS: usize = 16;

/// Why a slot does not do what it is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotError {
    /// The port does not say that it has carried out a command.
    NoCompletion,
    /// The link of what is in the slot does not come up.
    NoLink,
    /// The port does not answer any more.
    Gone,
}

impl fmt::Display for SlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCompletion => "the port does not complete a command",
            Self::NoLink => "the link does not come up",
            Self::Gone => "the port does not answer",
        })
    }
}

impl core::error::Error for SlotError {}

/// What has happened to a slot since it was last asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    /// Somebody has pressed the attention button.
    pub button: bool,
    /// Something was put in or pulled out, or its link went up or down.
    pub occupant: bool,
}

/// A slot that devices can be plugged into while the machine runs.
pub struct Slot {
    device: Device,
    express: u16,
    capabilities: u32,
}

/// Where the PCI Express capability of a port with a hot-plug slot is, and the Slot Capabilities; `None` of any other
/// function.
fn capabilities<C: ConfigSpace + ?Sized>(config: Config<'_, C>) -> Option<(u16, u32)> {
    let express = config.find(id::EXPRESS, offset::END)?;
    let capabilities = config.read32(express + offset::SLOT_CAPABILITIES);
    let has_slot = config.read16(express + offset::CAPABILITIES) & bits::HAS_SLOT != 0;
    (has_slot && capabilities & bits::HOT_PLUG != 0).then_some((express, capabilities))
}

/// Whether the function is a port with a slot that devices can be plugged into while the machine runs.
pub(super) fn has_slot<C: ConfigSpace + ?Sized>(config: Config<'_, C>) -> bool {
    capabilities(config).is_some()
}

impl Slot {
    /// The slot of `port`, if it has one of that kind.
    pub fn open(host: &Arc<dyn Host>, port: &Function) -> Option<Self> {
        let device = Device::open(host.clone(), port)?;
        let (express, capabilities) = capabilities(device.config())?;
        Some(Self { device, express, capabilities })
    }

    /// The port, as the function that sends the slot's interrupt.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The port's address.
    pub fn port(&self) -> PciAddress {
        self.device.function()
    }

    /// Which of the port's messages tells of changes: the number of an entry of its MSI-X table.
    pub fn interrupt_number(&self) -> u16 {
        self.config().read16(self.express + offset::CAPABILITIES) >> 9 & 0x1f
    }

    /// Whether what is in the slot can be switched off.
    pub fn has_power_controller(&self) -> bool {
        self.capabilities & bits::POWER_CONTROLLER != 0
    }

    /// Lets changes raise the port's interrupt, or not.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn enable_events(&self, enable: bool) -> Result<(), SlotError> {
        self.command(bits::EVENTS, if enable { bits::EVENTS } else { 0 })
    }

    /// What has changed; asked again, only what has changed since.
    ///
    /// The port raises its interrupt when the first change comes, not for one that joins others: so this looks until it
    /// sees none, as far as a port that never rests lets it.
    pub fn take_changes(&self) -> Changes {
        let mut taken = 0;
        for _ in 0..MOST_ROUNDS {
            let value = self.read();
            let changes = value & bits::CHANGES & !bits::COMMAND_COMPLETED;
            if value == u32::MAX || changes == 0 {
                break;
            }
            self.clear(changes);
            taken |= changes;
        }
        Changes {
            button: taken & bits::BUTTON_PRESSED != 0,
            occupant: taken & (bits::PRESENCE_CHANGED | bits::LINK_CHANGED) != 0,
        }
    }

    /// Whether something is in the slot, with its link up if it has power and the port can tell.
    pub fn is_occupied(&self) -> bool {
        let value = self.read();
        value != u32::MAX && value & bits::PRESENT != 0
    }

    /// Whether the slot has power; one that cannot be switched has.
    pub fn has_power(&self) -> bool {
        !self.has_power_controller() || self.read() & bits::POWER_OFF == 0
    }

    /// Whether the link is up, as far as the port can tell.
    pub fn has_link(&self) -> bool {
        let config = self.config();
        let reports = config.read32(self.express + offset::LINK_CAPABILITIES) & bits::REPORTS_LINK != 0;
        !reports || config.read16(self.express + offset::LINK_STATUS) & bits::LINK_ACTIVE != 0
    }

    /// Switches the slot on, and waits until what is in it can be talked to.
    ///
    /// # Errors
    /// See [`SlotError`]; it is off again.
    pub fn power_on(&self) -> Result<(), SlotError> {
        let host = &**self.device.host();
        self.command(bits::POWER_OFF | bits::INDICATOR, bits::INDICATOR_BLINK)?;
        let deadline_ns = host.now_ns().saturating_add(DEADLINE_NS);
        while !(self.is_occupied() && self.has_link()) {
            if host.now_ns() >= deadline_ns {
                self.power_off()?;
                return Err(SlotError::NoLink);
            }
            host.relax();
        }
        let settled_ns = host.now_ns().saturating_add(SETTLE_NS);
        while host.now_ns() < settled_ns {
            host.relax();
        }
        self.command(bits::INDICATOR, bits::INDICATOR_ON)
    }

    /// Switches the slot off: what was in it does nothing any more. Without a power controller, only its light.
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn power_off(&self) -> Result<(), SlotError> {
        let off = if self.has_power_controller() { bits::POWER_OFF } else { 0 };
        self.command(off | bits::INDICATOR, off | bits::INDICATOR_OFF)
    }

    /// Changes bits of Slot Control, and waits until the port has acted on them.
    fn command(&self, clear: u32, set: u32) -> Result<(), SlotError> {
        let host = &**self.device.host();
        let before = self.read();
        if before == u32::MAX {
            return Err(SlotError::Gone);
        }
        let control = before & 0xffff & !clear | set;
        self.clear(bits::COMMAND_COMPLETED);
        self.config().write_word(self.register(), control as u16);
        if self.capabilities & bits::NO_COMMAND_COMPLETED != 0 {
            return Ok(());
        }
        let deadline_ns = host.now_ns().saturating_add(DEADLINE_NS);
        while self.read() & bits::COMMAND_COMPLETED == 0 {
            if host.now_ns() >= deadline_ns {
                return Err(SlotError::NoCompletion);
            }
            host.relax();
        }
        Ok(())
    }

    /// Clears bits of Slot Status.
    fn clear(&self, status: u32) {
        self.config().write_word(self.register() + 2, (status >> 16) as u16);
    }

    /// Slot Control in the lower half, Slot Status in the upper one.
    fn read(&self) -> u32 {
        self.config().read32(self.register())
    }

    fn register(&self) -> u16 {
        self.express + offset::SLOT_CONTROL_STATUS
    }

    fn config(&self) -> Config<'_, dyn Host> {
        self.device.config()
    }
}

#[cfg(test)]
#[path = "slot_tests.rs"]
mod tests;
