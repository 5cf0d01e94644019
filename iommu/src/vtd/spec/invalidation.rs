//! The registers of the invalidation queue, and those that invalidate without it.

use bitfield_struct::bitfield;
use mm::PhysAddr;

use super::{address::frame, register::register};

/// CCMD: context-cache invalidation without the queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// DID.
    pub domain: u16,
    /// SID.
    pub source: u16,
    /// FM: which function bits of SID are ignored.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(25)]
    __: u32,
    /// CAIG, read-only: granularity that was carried out; 0 if the request was refused.
    #[bits(2)]
    pub actual: u8,
    /// CIRG: 1 everything, 2 a domain, 3 a function.
    #[bits(2)]
    pub granularity: u8,
    /// ICC: carry it out; clears when done.
    pub invalidate: bool,
}
register!(ContextCommand: u64 @ 0x028, ReadWrite);
pin_bits!(ContextCommand:
    with_domain(0xffff) = 0xffff,
    with_source(0xffff) = 0xffff << 16,
    with_function_mask(3) = 3 << 32,
    with_actual(3) = 3 << 59,
    with_granularity(3) = 3 << 61,
    with_invalidate(true) = 1 << 63,
);

/// IVA: the pages that the next [`IotlbCommand`] is about.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidateAddress {
    /// AM: 2^AM pages.
    #[bits(6)]
    pub order: u8,
    /// IH: only leaves changed.
    pub leaf_only: bool,
    #[bits(5)]
    __: u8,
    /// Number of the first page.
    #[bits(52)]
    pub frame: u64,
}
register!(InvalidateAddress: u64 @ 0x0 in Invalidate, WriteOnly);
pin_bits!(InvalidateAddress:
    with_order(0x3f) = 0x3f,
    with_leaf_only(true) = 1 << 6,
    with_frame((1 << 52) - 1) = !0xfff,
);

/// IOTLB: IOTLB invalidation without the queue.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbCommand {
    #[bits(32)]
    __: u32,
    /// DID.
    pub domain: u16,
    /// DW: writes in flight are drained first.
    pub drain_writes: bool,
    /// DR: reads in flight are drained first.
    pub drain_reads: bool,
    #[bits(7)]
    __: u8,
    /// IAIG, read-only: granularity that was carried out; 0 if the request was refused.
    #[bits(2)]
    pub actual: u8,
    #[bits(1)]
    __: u8,
    /// IIRG: 1 everything, 2 a domain, 3 pages of a domain.
    #[bits(2)]
    pub granularity: u8,
    #[bits(1)]
    __: u8,
    /// IVT: carry it out; clears when done.
    pub invalidate: bool,
}
register!(IotlbCommand: u64 @ 0x8 in Invalidate, ReadWrite);
pin_bits!(IotlbCommand:
    with_domain(0xffff) = 0xffff << 32,
    with_drain_writes(true) = 1 << 48,
    with_drain_reads(true) = 1 << 49,
    with_actual(3) = 3 << 57,
    with_granularity(3) = 3 << 60,
    with_invalidate(true) = 1 << 63,
);

/// IQH: the descriptor that hardware fetches next.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueHead {
    #[bits(4)]
    __: u8,
    /// Offset into the queue, in units of 16 bytes.
    #[bits(15)]
    pub units: u16,
    #[bits(45)]
    __: u64,
}
register!(QueueHead: u64 @ 0x080, ReadOnly);
pin_bits!(QueueHead: with_units(0x7fff) = 0x7fff << 4);

/// IQT: where software writes the next descriptor; writing it is the doorbell.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueTail {
    #[bits(4)]
    __: u8,
    /// Offset into the queue, in units of 16 bytes.
    #[bits(15)]
    pub units: u16,
    #[bits(45)]
    __: u64,
}
register!(QueueTail: u64 @ 0x088, ReadWrite);
pin_bits!(QueueTail: with_units(0x7fff) = 0x7fff << 4);

impl QueueTail {
    /// The value for an offset into the queue, in units of 16 bytes.
    #[inline]
    #[must_use]
    pub const fn at(units: u16) -> Self {
        Self((units as u64 & 0x7fff) << 4)
    }
}

const _: () = assert!(QueueTail::at(0x7fff).0 == QueueTail::new().with_units(0x7fff).0);

/// IQA: where the queue lies.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueAddress {
    /// QS: 2^QS pages.
    #[bits(3)]
    pub order: u8,
    #[bits(8)]
    __: u8,
    /// DW: descriptors of 256 bits.
    pub wide: bool,
    /// Page number of the queue.
    #[bits(52)]
    pub frame: u64,
}
register!(QueueAddress: u64 @ 0x090, ReadWrite);
pin_bits!(QueueAddress:
    with_order(7) = 7,
    with_wide(true) = 1 << 11,
    with_frame((1 << 52) - 1) = !0xfff,
);

impl QueueAddress {
    /// A queue of 2^`order` pages at `address`, which is page-aligned.
    #[must_use]
    pub const fn at(address: PhysAddr, order: u8, wide: bool) -> Self {
        Self::new().with_frame(frame(address)).with_order(order).with_wide(wide)
    }
}

/// ICS: whether a wait with an interrupt has completed.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InvalidationCompletionStatus {
    /// IWC, cleared by writing 1.
    pub complete: bool,
    #[bits(31)]
    __: u32,
}
register!(InvalidationCompletionStatus: u32 @ 0x09c, ReadWrite);
pin_bits!(InvalidationCompletionStatus: with_complete(true) = 1);

/// IQERCD: details of a queue error.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueErrorRecord {
    /// IQEI: see [`QueueError`].
    #[bits(4)]
    pub error: u8,
    #[bits(28)]
    __: u32,
    /// ITESID: the device that did not answer.
    pub timeout_source: u16,
    /// ICESID: the device that answered unasked.
    pub completion_source: u16,
}
register!(QueueErrorRecord: u64 @ 0x0b0, ReadOnly);
pin_bits!(QueueErrorRecord:
    with_error(0xf) = 0xf,
    with_timeout_source(0xffff) = 0xffff << 32,
    with_completion_source(0xffff) = 0xffff << 48,
);

/// What IQERCD.IQEI says of a descriptor that hardware refused. Hardware may invent values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct QueueError(pub u8);

impl QueueError {
    /// The error in words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self.0 {
            0 => "no details",
            1 => "tail out of range",
            2 => "descriptor could not be fetched",
            3 => "unknown descriptor type",
            4 => "reserved bits set",
            5 => "descriptor width does not fit the mode",
            6 => "tail not aligned",
            7 => "not allowed with this root-table mode",
            _ => "unknown error",
        }
    }
}

impl core::fmt::Debug for QueueError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} ({})", self.0, self.words())
    }
}
