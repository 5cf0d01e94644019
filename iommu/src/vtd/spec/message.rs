//! What a device or an I/O APIC sends so that its interrupt is remapped.

use bitfield_struct::bitfield;

use crate::platform::MsiMessage;

/// Bits 31:20 of the address of every message-signalled interrupt.
const MESSAGE_BASE: u64 = 0xfee0_0000;
/// Address bit 4: remappable format.
const REMAPPABLE: u64 = 1 << 4;
/// Address bit 3, SHV: the data's low half is added to the handle.
const SUBHANDLE_VALID: u64 = 1 << 3;

/// The message whose remapping entry is `handle`; with `subhandle`, the device adds a number of its own in the data to
/// it (multi-message MSI).
#[must_use]
pub const fn message(handle: u16, subhandle: bool) -> MsiMessage {
    let handle_bits = (handle as u64 & 0x7fff) << 5 | (handle as u64 >> 15) << 2;
    let subhandle_bit = if subhandle { SUBHANDLE_VALID } else { 0 };
    MsiMessage { address: MESSAGE_BASE | handle_bits | REMAPPABLE | subhandle_bit, data: 0 }
}
const _: () = {
    assert!(message(0, false).address == 0xfee0_0010);
    assert!(message(0x7fff, false).address == 0xfeef_fff0);
    assert!(message(0x8000, true).address == 0xfee0_001c);
};

/// A redirection entry of an I/O APIC in remappable format.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IoapicEntry {
    /// Vector. An end of interrupt is matched against it: keep it equal to the remapping entry's.
    pub vector: u8,
    #[bits(3)]
    __: u8,
    /// Bit 15 of the handle.
    #[bits(1)]
    pub handle_high: u8,
    /// Delivery status, read-only.
    pub busy: bool,
    /// Active low.
    pub active_low: bool,
    /// Remote IRR, read-only.
    pub remote_irr: bool,
    /// Level-triggered.
    pub level_triggered: bool,
    /// Nothing is sent.
    pub masked: bool,
    #[bits(31)]
    __: u32,
    /// The entry is in remappable format.
    pub remappable: bool,
    /// Bits 14:0 of the handle.
    #[bits(15)]
    pub handle_low: u16,
}
pin_bits!(IoapicEntry:
    with_vector(0xff) = 0xff,
    with_handle_high(1) = 1 << 11,
    with_busy(true) = 1 << 12,
    with_active_low(true) = 1 << 13,
    with_remote_irr(true) = 1 << 14,
    with_level_triggered(true) = 1 << 15,
    with_masked(true) = 1 << 16,
    with_remappable(true) = 1 << 48,
    with_handle_low(0x7fff) = 0x7fff << 49,
);

impl IoapicEntry {
    /// The masked entry that goes through remapping entry `handle`, whose vector is `vector`.
    #[must_use]
    pub const fn remapped(handle: u16, vector: u8) -> Self {
        Self::new()
            .with_masked(true)
            .with_remappable(true)
            .with_handle_low(handle & 0x7fff)
            .with_handle_high((handle >> 15) as u8)
            .with_vector(vector)
    }
}
const _: () = {
    let bits = IoapicEntry::remapped(0x8001, 0x31).into_bits();
    assert!(bits == 1 << 49 | 1 << 48 | 1 << 16 | 1 << 11 | 0x31);
};
