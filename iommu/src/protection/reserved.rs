//! What firmware reserves for functions (RMRR), and how far it is believed.
//!
//! Firmware's word is taken for memory that is nobody's: it knows what it uses. Not for what is the kernel's (its image, what it
//! hands out, the registers of the remapping units) or no memory (0xFEEx_xxxx): that is refused, and the function goes
//! without. Memory that the memory map does not call reserved is mapped, and the log says so: firmware is at odds with itself,
//! and the function would fail without it. Regions that overlap are in the log too (`dmar::Warning::OverlappingRegions`); each
//! function gets its own, and those of a group are joined.

use mm::PhysRange;

use crate::{
    Platform,
    dmar::Dmar,
    iova::INTERRUPT_RANGE,
    topology::{Topology, TopologyError},
};

/// Takes from functions what firmware may not reserve for them, and notes what it should not.
pub(super) fn judge<P: Platform>(
    platform: &P,
    dmar: Option<&Dmar<'_>>,
    topology: &mut Topology,
) -> Result<(), TopologyError> {
    topology.refuse_reserved(|region| {
        platform.is_own_memory(region) || raises_interrupts(region) || is_of_a_unit(dmar, region)
    })?;
    topology.note_reserved(|region| !platform.is_firmware_memory(region))
}

fn raises_interrupts(region: PhysRange) -> bool {
    meets(region, *INTERRUPT_RANGE.start(), *INTERRUPT_RANGE.end())
}

/// Whether a device that reached `region` could tell a remapping unit what to do.
fn is_of_a_unit(dmar: Option<&Dmar<'_>>, region: PhysRange) -> bool {
    let mut registers = dmar.into_iter().flat_map(Dmar::units).filter_map(|unit| unit.registers());
    registers.any(|PhysRange { start, bytes }| meets(region, start.as_u64(), start.as_u64() + (bytes - 1)))
}

fn meets(region: PhysRange, first: u64, last: u64) -> bool {
    let start = region.start.as_u64();
    start <= last && first <= start.saturating_add(region.bytes - 1)
}
