//! A fault recording register: 128 bits, read in parts.

use bitfield_struct::bitfield;

use super::{FaultReason, register::register};
use crate::{
    Iova, SourceId,
    fault::{Fault, FaultAccess, FaultTarget},
};

/// Bits 63:0.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordLow {
    #[bits(12)]
    __: u16,
    /// FI: page number of the address.
    #[bits(52)]
    pub frame: u64,
}
register!(FaultRecordLow: u64 @ 0x0 in Recording, ReadOnly);
pin_bits!(FaultRecordLow: with_frame((1 << 52) - 1) = !0xfff);

/// Bits 95:64.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordSource {
    /// SID.
    pub source: u16,
    #[bits(12)]
    __: u16,
    /// T2: with T1, the type of the request.
    pub type2: bool,
    /// PRIV: the request was privileged.
    pub privileged: bool,
    /// EXE: the request was to fetch instructions.
    pub execute: bool,
    /// PP: the PASID is valid.
    pub pasid_present: bool,
}
register!(FaultRecordSource: u32 @ 0x8 in Recording, ReadOnly);
pin_bits!(FaultRecordSource:
    with_source(0xffff) = 0xffff,
    with_type2(true) = 1 << (92 - 64),
    with_privileged(true) = 1 << (93 - 64),
    with_execute(true) = 1 << (94 - 64),
    with_pasid_present(true) = 1 << (95 - 64),
);

/// Bits 127:96. The one part that may be written: F clears by writing 1 to it.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordHigh {
    /// FR.
    pub reason: u8,
    /// PASID.
    #[bits(20)]
    pub pasid: u32,
    /// AT: 0 untranslated, 1 translation request, 2 translated.
    #[bits(2)]
    pub address_type: u8,
    /// T1: with T2, the type of the request.
    pub type1: bool,
    /// F: the record holds a fault. Hardware sets it last.
    pub fault: bool,
}
register!(FaultRecordHigh: u32 @ 0xc in Recording, ReadWrite);
pin_bits!(FaultRecordHigh:
    with_reason(0xff) = 0xff,
    with_pasid(0xf_ffff) = 0xf_ffff << (104 - 96),
    with_address_type(3) = 3 << (124 - 96),
    with_type1(true) = 1 << (126 - 96),
    with_fault(true) = 1 << (127 - 96),
);

/// A whole record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultRecord {
    /// Bits 63:0.
    pub low: FaultRecordLow,
    /// Bits 95:64.
    pub source: FaultRecordSource,
    /// Bits 127:96.
    pub high: FaultRecordHigh,
}

impl FaultRecord {
    /// Size of a recording register.
    pub const BYTES: usize = 16;

    /// The record in these 128 bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self {
            low: FaultRecordLow::from_bits(bits as u64),
            source: FaultRecordSource::from_bits((bits >> 64) as u32),
            high: FaultRecordHigh::from_bits((bits >> 96) as u32),
        }
    }

    /// What happened, as recorded by a unit of segment `segment`.
    #[must_use]
    pub fn decode(self, segment: u16) -> Fault {
        let reason = FaultReason(self.high.reason());
        let source = SourceId { segment, requester: self.source.source() };
        Fault {
            source,
            target: self.target(reason),
            access: self.access(),
            pasid: self.source.pasid_present().then_some(self.high.pasid()),
            reason: reason.describe(),
        }
    }

    fn target(self, reason: FaultReason) -> FaultTarget {
        if !reason.is_interrupt() {
            return FaultTarget::Address(Iova::new(self.low.frame() << mm::PAGE_SHIFT));
        }
        if reason == FaultReason::COMPATIBILITY_FORMAT {
            // The index is undefined: the message had none.
            return FaultTarget::Interrupt(None);
        }
        FaultTarget::Interrupt(Some((self.low.into_bits() >> 48) as u16))
    }

    fn access(self) -> FaultAccess {
        match (self.high.type1(), self.source.type2()) {
            (false, false) => FaultAccess::Write,
            (true, false) if self.source.execute() => FaultAccess::Execute,
            (true, false) => FaultAccess::Read,
            (false, true) => FaultAccess::PageRequest,
            (true, true) => FaultAccess::Atomic,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F: u128 = 1 << 127;
    const READ: u128 = 1 << 126;

    fn record(reason: u8, rest: u128) -> Fault {
        FaultRecord::from_bits(F | (reason as u128) << 96 | 0x0308 << 64 | rest).decode(2)
    }

    #[test]
    fn a_dma_fault_has_its_source_page_access_and_reason() {
        let fault = record(6, READ | 0x1_2345_6000);
        assert_eq!(fault.source, SourceId { segment: 2, requester: 0x0308 });
        assert_eq!(fault.target, FaultTarget::Address(Iova::new(0x1_2345_6000)));
        assert_eq!(fault.access, FaultAccess::Read);
        assert_eq!((fault.pasid, fault.reason.code), (None, 6));
    }

    #[test]
    fn the_two_type_bits_are_far_apart() {
        assert_eq!(record(5, 0).access, FaultAccess::Write);
        assert_eq!(record(5, READ).access, FaultAccess::Read);
        assert_eq!(record(5, READ | 1 << 94).access, FaultAccess::Execute);
        assert_eq!(record(5, 1 << 92).access, FaultAccess::PageRequest);
        assert_eq!(record(5, READ | 1 << 92).access, FaultAccess::Atomic);
    }

    #[test]
    fn the_pasid_counts_only_when_it_is_present() {
        assert_eq!(record(0x71, 0xf_1234 << 104).pasid, None);
        assert_eq!(record(0x71, 0xf_1234 << 104 | 1 << 95).pasid, Some(0xf_1234));
    }

    #[test]
    fn interrupts_have_an_index_except_in_compatibility_format() {
        assert_eq!(record(0x22, 0xbeef << 48).target, FaultTarget::Interrupt(Some(0xbeef)));
        assert_eq!(record(0x25, 0xbeef << 48).target, FaultTarget::Interrupt(None));
    }

    /// Any 128 bits give a fault: a device can never make decoding fail.
    #[test]
    fn garbage_decodes() {
        let mut bits: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
        for _ in 0..if cfg!(miri) { 100 } else { 10_000 } {
            bits = bits.wrapping_mul(0xda94_2042_e4dd_58b5).rotate_left(37) ^ 0x1234_5678;
            let fault = FaultRecord::from_bits(bits).decode(0);
            assert!(!std::format!("{fault}").is_empty());
        }
    }
}
