//! Interrupt remapping.

use iommu::platform::MsiMessage;

use super::{Unit, global, translation::is_interrupt_range};
use crate::{
    entries::{InterruptEntry, bits},
    faults::Fault,
    interrupt_cache::InterruptScope,
    reason::Reason,
    world::World,
};

/// An interrupt that reached a CPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Delivered {
    /// Vector.
    pub vector: u8,
    /// APIC id.
    pub destination: u32,
    /// Index of the remapping entry; `None` if the message went through as it was.
    pub index: Option<u32>,
}

/// What became of an interrupt message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InterruptOutcome {
    /// It was delivered.
    Delivered(Delivered),
    /// The unit blocked it.
    Blocked(Reason),
    /// The function does not master the bus.
    NotBusMaster,
}

impl Unit {
    pub(super) fn extended_requested(&self) -> bool {
        self.interrupt_address >> 11 & 1 != 0
    }

    pub(super) fn extended_interrupts(&self) -> bool {
        self.interrupt_table >> 11 & 1 != 0
    }

    pub(super) fn interrupt_entries(&self) -> u32 {
        1 << ((self.interrupt_table & 0xf) + 1)
    }

    pub(super) fn interrupt_slot(&self, index: u32) -> u64 {
        (self.interrupt_table & bits(63, 12)) + u64::from(index) * 16
    }

    pub(super) fn forget_interrupt_entries(&mut self) {
        self.interrupts.invalidate(InterruptScope::Global);
    }

    /// Takes an interrupt message from `source`; an IOAPIC's has a source id too.
    pub fn interrupt(&mut self, world: &mut World, source: u16, message: MsiMessage) -> InterruptOutcome {
        match self.remap(world, source, message) {
            Ok(delivered) => InterruptOutcome::Delivered(delivered),
            Err((reason, index, muted)) => {
                if !muted || !reason.can_be_muted() {
                    let information = u64::from(index) << 48;
                    let fault = Fault { source, information, reason, read: false, address_type: 0 };
                    self.record_fault(world, &fault);
                }
                InterruptOutcome::Blocked(reason)
            }
        }
    }

    fn remap(
        &mut self,
        world: &mut World,
        source: u16,
        message: MsiMessage,
    ) -> Result<Delivered, (Reason, u32, bool)> {
        const REMAPPABLE: u64 = 1 << 4;
        const SUBHANDLE_VALID: u64 = 1 << 3;
        let MsiMessage { address, data } = message;
        let compatible =
            Delivered { vector: data as u8, destination: (address >> 12) as u32 & 0xff, index: None };
        if !self.remaps_interrupts() {
            return Ok(compatible);
        }
        if address & REMAPPABLE == 0 {
            let passes = self.is_on(global::COMPATIBILITY) && !self.extended_interrupts();
            return if passes { Ok(compatible) } else { Err((Reason::CompatibilityBlocked, 0, false)) };
        }
        let handle = (address >> 5 & 0x7fff | (address >> 2 & 1) << 15) as u32;
        let with_subhandle = address & SUBHANDLE_VALID != 0;
        let index = handle + if with_subhandle { data & 0xffff } else { 0 };
        let malformed = address & 3 != 0 || !is_interrupt_range(address) || with_subhandle && data >> 16 != 0;
        if malformed {
            return Err((Reason::InterruptRequestReserved, index, false));
        }
        if index >= self.interrupt_entries() {
            return Err((Reason::InterruptIndexTooLarge, index, false));
        }
        let entry = self.interrupt_entry(world, index).map_err(|(reason, muted)| (reason, index, muted))?;
        if !entry.accepts(source) {
            return Err((Reason::InterruptSourceRefused, index, entry.fault_processing_disabled()));
        }
        let destination = entry.destination(self.extended_interrupts());
        Ok(Delivered { vector: entry.vector(), destination, index: Some(index) })
    }

    /// The entry, from the cache or from memory.
    fn interrupt_entry(&mut self, world: &mut World, index: u32) -> Result<InterruptEntry, (Reason, bool)> {
        if let Some(entry) = self.interrupts.get(index) {
            if !world.drops() {
                return if entry.present() { Ok(entry) } else { Err((Reason::InterruptNotPresent, false)) };
            }
            self.interrupts.remove(index);
        }
        let slot = self.interrupt_slot(index);
        let (low, high) = self.structure_pair(world, slot).ok_or((Reason::InterruptNotAccessible, false))?;
        let entry = InterruptEntry { low, high };
        if !entry.present() {
            if self.config.caching_mode {
                self.interrupts.insert(index, entry);
            }
            return Err((Reason::InterruptNotPresent, entry.fault_processing_disabled()));
        }
        if entry.reserved_set(self.extended_interrupts()) {
            return Err((Reason::InterruptReserved, entry.fault_processing_disabled()));
        }
        self.watch_interrupt(world, index, entry);
        self.interrupts.insert(index, entry);
        Ok(entry)
    }
}
