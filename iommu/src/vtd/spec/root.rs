//! The entry of a root table: one per bus.

use bitfield_struct::bitfield;
use mm::PhysAddr;

use super::address::{frame, frame_address};

/// Root entry in legacy mode, 128 bits. In scalable mode the high half is a second pointer of the same layout, for
/// devices 16 to 31.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct RootEntry {
    /// P; in scalable mode LP.
    pub present: bool,
    #[bits(11)]
    __: u16,
    /// Page number of the context table; in scalable mode of the one for devices 0 to 15.
    #[bits(52)]
    pub frame: u64,
    /// UP, scalable mode only.
    pub upper_present: bool,
    #[bits(11)]
    __: u16,
    /// Page number of the upper context table, scalable mode only.
    #[bits(52)]
    pub upper_frame: u64,
}
pin_bits!(RootEntry:
    with_present(true) = 1,
    with_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000,
    with_upper_present(true) = 1 << 64,
    with_upper_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000 << 64,
);

impl RootEntry {
    /// The legacy entry that points to the context table at `table`, which is page-aligned.
    #[must_use]
    pub const fn to_context_table(table: PhysAddr) -> Self {
        Self::new().with_present(true).with_frame(frame(table))
    }

    /// The context table of a legacy entry, if it is present.
    #[must_use]
    pub const fn context_table(self) -> Option<PhysAddr> {
        if self.present() { Some(frame_address(self.frame())) } else { None }
    }
}
