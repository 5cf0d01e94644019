//! Address translation services (ATS): the TLB that a PCI function may have of its own.
//!
//! A function with ATS on asks the unit for translations, keeps them, and then sends *physical* addresses, which the
//! unit lets through unseen. So the page table holds only a function that plays by the rules: one that lies about
//! having asked reaches all of memory. Therefore:
//!
//! - ATS is off unless the owner of a function says that it trusts it, with
//!   [`Iommu::claim_trusted`](crate::Iommu::claim_trusted). Nothing else turns it on: no option, and not what firmware
//!   left behind.
//! - Without that, the unit blocks translated requests and requests for translations of the function (TT = 0 in its
//!   context entry), whatever the function's own registers say.
//! - A trusted function gets it where firmware permits it (ATSR, SATC), the unit can invalidate it (ECAP.DT and the
//!   queue), and the function is a group by itself that firmware reserved no memory for: what shares its requester id
//!   or its way upstream would be trusted too, and reserved memory has to stay reachable while the entry changes.
//!   A domain is one group's, so it has one such TLB at most.
//!   Everywhere else a trusted function is claimed like any other.
//! - A function that firmware says needs ATS (SATC with ATC_REQUIRED) is left alone: in legacy mode the unit does that
//!   by itself, and software must not.

use core::num::NonZeroU8;

use crate::{PciAddress, Platform};

/// The TLB of a function, as whoever invalidates it has to know it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DeviceTlb {
    /// The physical function that it belongs to: the function itself, unless that is a virtual one.
    pub physical: PciAddress,
    /// How many invalidations it takes at a time, 1 to 32.
    pub queue_depth: NonZeroU8,
}

/// Extended capability id of ATS.
const CAPABILITY_ID: u32 = 0x000f;
/// The dword after the capability's header: capability register below, control register above.
const REGISTERS: u16 = 4;
/// Invalidate Queue Depth; 0 stands for 32.
const QUEUE_DEPTH: u32 = 0x1f;
const MAX_QUEUE_DEPTH: NonZeroU8 = NonZeroU8::new(32).unwrap();
/// Smallest Translation Unit, log2 of its 4 KiB pages. Translations of single pages need 0.
const SMALLEST_UNIT: u32 = 0x1f << 16;
const ENABLE: u32 = 1 << 31;

/// The TLB of `function`, or `None` if it has none that can be used. `physical` is the physical function of a virtual
/// one: the two share what the capability says.
pub(crate) fn find<P: Platform>(
    platform: &P,
    function: PciAddress,
    physical: Option<PciAddress>,
) -> Option<DeviceTlb> {
    registers(platform, function)?;
    let owner = physical.unwrap_or(function);
    let value = platform.read_config(owner, registers(platform, owner)?);
    // The physical function's unit counts for its virtual ones. Its own is set when it is turned on.
    if physical.is_some() && value & SMALLEST_UNIT != 0 {
        return None;
    }
    let queue_depth = NonZeroU8::new((value & QUEUE_DEPTH) as u8).unwrap_or(MAX_QUEUE_DEPTH);
    Some(DeviceTlb { physical: owner, queue_depth })
}

/// Lets `function` use its TLB.
pub(crate) fn enable<P: Platform>(platform: &P, function: PciAddress) {
    if let Some(offset) = registers(platform, function) {
        platform.write_config(function, offset, ENABLE);
    }
}

/// Makes `function` use its TLB no more, and forget what is in it.
pub(crate) fn disable<P: Platform>(platform: &P, function: PciAddress) {
    if let Some(offset) = registers(platform, function) {
        platform.write_config(function, offset, 0);
    }
}

/// Where the ATS registers of `function` are, if it has them.
fn registers<P: Platform>(platform: &P, function: PciAddress) -> Option<u16> {
    const FIRST: u16 = 0x100;
    const END: u16 = 0x1000;
    const SMALLEST_CAPABILITY: u16 = 8;
    let mut offset = FIRST;
    // A list that leads in a circle ends with the number of capabilities that there is room for.
    for _ in 0..(END - FIRST) / SMALLEST_CAPABILITY {
        let header = platform.read_config(function, offset);
        if header == 0 || header == u32::MAX {
            return None;
        }
        if header & 0xffff == CAPABILITY_ID {
            return Some(offset + REGISTERS);
        }
        offset = (header >> 20) as u16 & !3;
        if offset < FIRST {
            return None;
        }
    }
    None
}
