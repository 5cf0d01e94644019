//! What firmware reserves for functions (RMRR), and how far it is believed.
//!
//! Firmware's word is taken for memory that is nobody's: it knows what it uses. Not for what is the kernel's (its
//! image, what it hands out) or no memory (0xFEEx_xxxx, and the registers of the remapping units and of whatever else
//! the host knows of): that is refused, and the function goes without. Memory that the memory map does not call
//! reserved is mapped, and the log says so: firmware is at odds with itself, and the function would fail without it.
//! Regions that overlap are in the log too (`dmar::Warning::OverlappingRegions`); each function gets its own, and those
//! of a group are joined.

use mm::PhysRange;

use crate::{
    Platform,
    iova::INTERRUPT_RANGE,
    registers::Registers,
    topology::{Topology, TopologyError},
};

/// Takes from functions what firmware may not reserve for them, and notes what it should not.
pub(super) fn judge<P: Platform>(
    platform: &P,
    registers: &Registers,
    topology: &mut Topology,
) -> Result<(), TopologyError> {
    topology.refuse_reserved(|region| {
        platform.is_own_memory(region) || raises_interrupts(region) || registers.meet_range(region)
    })?;
    topology.note_reserved(|region| !platform.is_firmware_memory(region))
}

fn raises_interrupts(PhysRange { start, bytes }: PhysRange) -> bool {
    let start = start.as_u64();
    start <= *INTERRUPT_RANGE.end() && *INTERRUPT_RANGE.start() <= start.saturating_add(bytes - 1)
}
