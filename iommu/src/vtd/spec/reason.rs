//! Fault reasons in words.

use crate::fault::{FaultKind, Reason};

/// FR of a fault record. Hardware may report values that are not known here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FaultReason(pub u8);

use FaultKind::{BadEntry, Blocked, Denied, Interrupt, OutOfRange, Unreachable};

impl FaultReason {
    /// An interrupt in compatibility format was blocked.
    pub const COMPATIBILITY_FORMAT: Self = Self(0x25);

    /// Whether the fault is of interrupt remapping.
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.0 >= 0x20 && self.0 < 0x30
    }

    /// The reason as the rest of the crate knows it.
    #[must_use]
    pub const fn describe(self) -> Reason {
        let (kind, words) = self.kind_and_words();
        Reason { code: self.0, kind, words }
    }

    const fn kind_and_words(self) -> (FaultKind, &'static str) {
        match self.0 {
            0x00..=0x1f => legacy(self.0),
            0x20..=0x2f => interrupt(self.0),
            0x30..=0x4f => scalable_context(self.0),
            0x50..=0x6f => pasid(self.0),
            0x70..=0x7f => scalable_walk(self.0),
            _ => scalable_general(self.0),
        }
    }
}

const UNKNOWN: (FaultKind, &str) = (FaultKind::Other, "unknown reason");

const fn legacy(code: u8) -> (FaultKind, &'static str) {
    match code {
        0x1 => (Blocked, "root entry not present"),
        0x2 => (Blocked, "context entry not present"),
        0x3 => (BadEntry, "context entry invalid"),
        0x4 => (OutOfRange, "address beyond the width of the domain"),
        0x5 => (Denied, "no write permission"),
        0x6 => (Denied, "no read permission"),
        0x7 => (Unreachable, "second-stage table not accessible"),
        0x8 => (Unreachable, "root table not accessible"),
        0x9 => (Unreachable, "context table not accessible"),
        0xa => (BadEntry, "reserved bits set in root entry"),
        0xb => (BadEntry, "reserved bits set in context entry"),
        0xc => (BadEntry, "reserved bits set in second-stage entry"),
        0xd => (Denied, "request type blocked by context entry"),
        0xe => (BadEntry, "second stage leads into the interrupt range"),
        _ => UNKNOWN,
    }
}

const fn interrupt(code: u8) -> (FaultKind, &'static str) {
    let words = match code {
        0x20 => "reserved bits set in interrupt request",
        0x21 => "interrupt index beyond the table",
        0x22 => "interrupt entry not present",
        0x23 => "interrupt table not accessible",
        0x24 => "reserved bits set in interrupt entry",
        0x25 => "interrupt in compatibility format blocked",
        0x26 => "interrupt from another source than its entry allows",
        0x27 => "posted-interrupt descriptor not accessible",
        0x28 => "reserved bits set in posted-interrupt descriptor",
        _ => "unknown reason",
    };
    (Interrupt, words)
}

const fn scalable_context(code: u8) -> (FaultKind, &'static str) {
    match code {
        0x30 => (BadEntry, "root table address invalid"),
        0x31 => (BadEntry, "root table mode does not fit the request"),
        0x32 => (Denied, "page request in legacy mode"),
        0x38 => (Unreachable, "scalable root table not accessible"),
        0x39 => (Blocked, "scalable root entry not present"),
        0x3a => (BadEntry, "reserved bits set in scalable root entry"),
        0x40 => (Unreachable, "scalable context table not accessible"),
        0x41 => (Blocked, "scalable context entry not present"),
        0x42 => (BadEntry, "reserved bits set in scalable context entry"),
        0x43 => (BadEntry, "scalable context entry invalid"),
        0x44 => (Denied, "device TLB not enabled in context entry"),
        0x45 => (Denied, "PASID not enabled in context entry"),
        0x46 => (OutOfRange, "PASID beyond the directory"),
        0x47 => (Denied, "page requests not enabled in context entry"),
        0x48 => (BadEntry, "RID_PASID invalid"),
        _ => UNKNOWN,
    }
}

const fn pasid(code: u8) -> (FaultKind, &'static str) {
    match code {
        0x50 => (Unreachable, "PASID directory not accessible"),
        0x51 => (Blocked, "PASID directory entry not present"),
        0x52 => (BadEntry, "reserved bits set in PASID directory entry"),
        0x58 => (Unreachable, "PASID table not accessible"),
        0x59 => (Blocked, "PASID entry not present"),
        0x5a => (BadEntry, "reserved bits set in PASID entry"),
        0x5b => (BadEntry, "PASID entry invalid"),
        0x5c => (Denied, "execute requests not enabled in PASID entry"),
        0x5d => (Denied, "supervisor requests not enabled in PASID entry"),
        _ => UNKNOWN,
    }
}

const fn scalable_walk(code: u8) -> (FaultKind, &'static str) {
    match code {
        0x70 => (Unreachable, "first-stage table not accessible"),
        0x71 => (Denied, "first-stage entry not present"),
        0x72 => (BadEntry, "reserved bits set in first-stage entry"),
        0x73 => (Unreachable, "first-stage root table not accessible"),
        0x74 => (OutOfRange, "first-stage address beyond the second stage"),
        0x75 => (Denied, "second stage denies reading the first-stage root table"),
        0x76 => (Denied, "second stage denies reading a first-stage table"),
        0x77 => (Denied, "second stage denies setting accessed or dirty"),
        0x78 => (Unreachable, "second-stage table not accessible"),
        0x79 => (Denied, "no permission in second stage"),
        0x7a => (BadEntry, "reserved bits set in second-stage entry"),
        0x7b => (BadEntry, "second-stage root pointer invalid"),
        0x7c => (BadEntry, "accessed or dirty bit in second-stage table not snooped"),
        _ => UNKNOWN,
    }
}

const fn scalable_general(code: u8) -> (FaultKind, &'static str) {
    match code {
        0x80 => (OutOfRange, "address not canonical"),
        0x81 => (Denied, "user request to supervisor page"),
        0x82 => (Denied, "no execute permission"),
        0x83 => (OutOfRange, "address beyond the width of the hardware"),
        0x84 => (OutOfRange, "address beyond the width of the second stage"),
        0x85 => (Denied, "no write permission"),
        0x86 => (Denied, "no read permission"),
        0x87 => (OutOfRange, "address in the interrupt range"),
        0x90 => (BadEntry, "accessed or dirty bit in first-stage table not snooped"),
        0x91 => (Unreachable, "first-stage entry could not be updated"),
        _ => UNKNOWN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listed_reason_has_words_and_every_other_one_is_unknown() {
        let listed: std::vec::Vec<u8> = [
            0x01..=0x0e,
            0x20..=0x28,
            0x30..=0x32,
            0x38..=0x3a,
            0x40..=0x48,
            0x50..=0x52,
            0x58..=0x5d,
            0x70..=0x7c,
            0x80..=0x87,
            0x90..=0x91,
        ]
        .into_iter()
        .flatten()
        .collect();
        for code in 0..=u8::MAX {
            let reason = FaultReason(code).describe();
            assert_eq!(reason.code, code);
            assert_eq!(reason.words != "unknown reason", listed.contains(&code), "{code:#x}");
        }
    }

    #[test]
    fn the_reasons_that_a_blocked_device_meets_are_told_apart() {
        assert_eq!(FaultReason(2).describe().kind, Blocked);
        assert_eq!(FaultReason(5).describe().kind, Denied);
        assert_eq!(FaultReason(4).describe().kind, OutOfRange);
        assert_eq!(FaultReason(0x26).describe().kind, Interrupt);
        assert_eq!(FaultReason(0xff).describe().kind, FaultKind::Other);
    }
}
