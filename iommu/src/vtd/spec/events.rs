//! Fault status and the two event messages that do not come from a device.

#![allow(clippy::result_unit_err, reason = "bitfield-struct's checked setters, seen through the macro below")]

use bitfield_struct::bitfield;

use super::register::register;

/// FSTS: what went wrong. Writing 1 clears PFO, IQE, ICE and ITE, and AFO and APF where there are any; PPF and FRI
/// follow the fault records.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// PFO: a fault was lost because all records were in use. While it is set no fault is recorded.
    pub overflow: bool,
    /// PPF, read-only: some record holds a fault.
    pub pending: bool,
    /// AFO: the advanced fault log overflowed; gone since revision 4.0.
    pub advanced_overflow: bool,
    /// APF: the advanced fault log holds a fault; gone since revision 4.0.
    pub advanced_pending: bool,
    /// IQE: the descriptor at the queue's head cannot be carried out.
    pub queue_error: bool,
    /// ICE: a device completed an invalidation that nobody asked for.
    pub completion_error: bool,
    /// ITE: a device did not complete an invalidation of its TLB in time.
    pub timeout_error: bool,
    /// PRO in older texts; reserved now.
    pub page_request_overflow: bool,
    /// FRI, read-only: the record that set PPF.
    pub first_record: u8,
    #[bits(16)]
    __: u16,
}
register!(FaultStatus: u32 @ 0x034, ReadWrite);
pin_bits!(FaultStatus:
    with_overflow(true) = 1,
    with_pending(true) = 1 << 1,
    with_advanced_overflow(true) = 1 << 2,
    with_advanced_pending(true) = 1 << 3,
    with_queue_error(true) = 1 << 4,
    with_completion_error(true) = 1 << 5,
    with_timeout_error(true) = 1 << 6,
    with_page_request_overflow(true) = 1 << 7,
    with_first_record(0xff) = 0xff << 8,
);

impl FaultStatus {
    /// An error of the invalidation queue is pending.
    pub const fn has_queue_error(self) -> bool {
        self.queue_error() || self.completion_error() || self.timeout_error()
    }

    /// Nothing is pending: the next fault is recorded, and raises an event unless those are masked.
    #[inline]
    pub const fn is_quiet(self) -> bool {
        !self.pending() && !self.overflow() && !self.has_queue_error()
    }
}

/// Declares the four registers of one event message.
macro_rules! event_registers {
    ($what:literal: $control:ident @ $at0:literal, $data:ident @ $at1:literal, $address:ident @ $at2:literal,
     $upper:ident @ $at3:literal) => {
        #[doc = concat!("Control of the ", $what, " event.")]
        #[bitfield(u32)]
        #[derive(PartialEq, Eq)]
        pub struct $control {
            #[bits(30)]
            __: u32,
            /// IP, read-only: the event waits for the mask to be lifted.
            pub pending: bool,
            /// IM: no message is sent.
            pub masked: bool,
        }
        register!($control: u32 @ $at0, ReadWrite);
        pin_bits!($control: with_pending(true) = 1 << 30, with_masked(true) = 1 << 31);

        #[doc = concat!("Message data of the ", $what, " event.")]
        #[bitfield(u32)]
        #[derive(PartialEq, Eq)]
        pub struct $data {
            /// What the message writes.
            pub data: u16,
            #[bits(16)]
            __: u16,
        }
        register!($data: u32 @ $at1, ReadWrite);
        pin_bits!($data: with_data(0xffff) = 0xffff);

        #[doc = concat!("Message address of the ", $what, " event, low half.")]
        #[bitfield(u32)]
        #[derive(PartialEq, Eq)]
        pub struct $address {
            #[bits(2)]
            __: u8,
            /// Bits 31:2 of the address.
            #[bits(30)]
            pub dword: u32,
        }
        register!($address: u32 @ $at2, ReadWrite);
        pin_bits!($address: with_dword(1) = 1 << 2, with_dword((1 << 30) - 1) = 0xffff_fffc);

        #[doc = concat!("Message address of the ", $what, " event, high half; used with extended interrupt mode.")]
        #[bitfield(u32)]
        #[derive(PartialEq, Eq)]
        pub struct $upper {
            /// Bits 63:32 of the address.
            #[bits(32)]
            pub address: u32,
        }
        register!($upper: u32 @ $at3, ReadWrite);
    };
}

event_registers!("fault": FaultControl @ 0x038, FaultData @ 0x03c, FaultAddress @ 0x040, FaultUpperAddress @ 0x044);
event_registers!("invalidation completion":
    EventControl @ 0x0a0, EventData @ 0x0a4, EventAddress @ 0x0a8, EventUpperAddress @ 0x0ac);
event_registers!("page request":
    PageRequestControl @ 0x0e0, PageRequestData @ 0x0e4, PageRequestAddress @ 0x0e8, PageRequestUpperAddress @ 0x0ec);
