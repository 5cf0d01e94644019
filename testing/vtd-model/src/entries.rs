//! Root, context, second-stage and interrupt entries as the unit reads them.

use crate::config::UnitConfig;

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Bits `last..=first` of a word, as a mask.
pub(crate) const fn bits(last: u32, first: u32) -> u64 {
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

/// A root entry of legacy mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RootEntry {
    pub low: u64,
    pub high: u64,
}

impl RootEntry {
    pub fn present(self) -> bool {
        self.low & 1 != 0
    }

    pub fn reserved_set(self) -> bool {
        self.low & bits(11, 1) != 0 || self.high != 0
    }

    pub fn context_table(self) -> u64 {
        self.low & bits(63, 12)
    }
}

/// How a context entry translates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TranslationType {
    Untranslated,
    DeviceTlb,
    PassThrough,
}

/// What the requests of a source are translated by, whichever tables say so.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Binding {
    pub kind: TranslationType,
    pub domain: u16,
    /// Root of the second-stage table.
    pub table: u64,
    /// 1 is 39 bits, 2 is 48, 3 is 57.
    pub width: u8,
    /// FPD of an entry on the way.
    pub muted: bool,
    /// Walks of the table snoop the CPU's caches.
    pub snoops: bool,
    /// Faults have the reasons of scalable mode.
    pub scalable: bool,
}

impl Binding {
    pub fn levels(&self) -> u8 {
        self.width + 2
    }
}

/// A context entry of legacy mode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ContextEntry {
    pub low: u64,
    pub high: u64,
}

impl ContextEntry {
    pub fn present(self) -> bool {
        self.low & 1 != 0
    }

    pub fn fault_processing_disabled(self) -> bool {
        self.low >> 1 & 1 != 0
    }

    pub fn translation_type(self) -> Option<TranslationType> {
        match self.low >> 2 & 3 {
            0 => Some(TranslationType::Untranslated),
            1 => Some(TranslationType::DeviceTlb),
            2 => Some(TranslationType::PassThrough),
            _ => None,
        }
    }

    pub fn table(self) -> u64 {
        self.low & bits(63, 12)
    }

    /// Bits 66:64: 1 is 39 bits, 2 is 48, 3 is 57.
    pub fn width(self) -> u8 {
        (self.high & 7) as u8
    }

    pub fn domain(self) -> u16 {
        (self.high >> 8) as u16
    }

    pub fn reserved_set(self, unit: &UnitConfig) -> bool {
        let domain_beyond = u32::from(self.domain()) >= unit.domain_ids();
        self.low & bits(11, 4) != 0 || self.high & (1 << 7 | bits(63, 24)) != 0 || domain_beyond
    }

    /// Whether the unit can do what the entry asks for.
    pub fn is_supported(self, unit: &UnitConfig) -> bool {
        match self.translation_type() {
            None => false,
            Some(TranslationType::Untranslated) => unit.supports_width(self.width()),
            Some(TranslationType::DeviceTlb) => unit.device_tlb && unit.supports_width(self.width()),
            Some(TranslationType::PassThrough) => unit.pass_through && self.width() == unit.largest_width(),
        }
    }

    /// What the requests of a source are translated by, whose entry this is, of a supported type.
    pub fn binding(self, snoops: bool) -> Binding {
        Binding {
            kind: self.translation_type().unwrap_or(TranslationType::Untranslated),
            domain: self.domain(),
            table: self.table(),
            width: self.width(),
            muted: self.fault_processing_disabled(),
            snoops,
            scalable: false,
        }
    }

    /// The bits that may change while the entry is present: the software field.
    pub fn differs(self, other: Self) -> bool {
        const SOFTWARE: u64 = bits(6, 3);
        self.low != other.low || (self.high ^ other.high) & !SOFTWARE != 0
    }
}

/// An entry of a second-stage table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageEntry(pub u64);

impl PageEntry {
    pub fn read(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn write(self) -> bool {
        self.0 & 2 != 0
    }

    pub fn present(self) -> bool {
        self.0 & 3 != 0
    }

    /// Whether the entry maps memory at `level`. At levels where no leaf can be, the bit is reserved.
    pub fn is_leaf(self, level: u8) -> bool {
        level == 1 || self.0 >> 7 & 1 != 0
    }

    pub fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    pub fn reserved_set(self, level: u8, unit: &UnitConfig, host_address_bits: u8) -> bool {
        const TM: u64 = 1 << 62;
        const SNOOP: u64 = 1 << 11;
        const SIZE: u64 = 1 << 7;
        let mut reserved = TM | ADDRESS & u64::MAX.unbounded_shl(host_address_bits.into());
        let leaf = self.is_leaf(level);
        if !leaf || !unit.snoop_control {
            reserved |= SNOOP;
        }
        match level {
            1 => {}
            2 if unit.superpages_2m => reserved |= if leaf { bits(20, 12) } else { 0 },
            3 if unit.superpages_1g => reserved |= if leaf { bits(29, 12) } else { 0 },
            _ => reserved |= SIZE,
        }
        self.0 & reserved != 0
    }
}

/// An interrupt-remapping entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct InterruptEntry {
    pub low: u64,
    pub high: u64,
}

impl InterruptEntry {
    pub fn present(self) -> bool {
        self.low & 1 != 0
    }

    pub fn fault_processing_disabled(self) -> bool {
        self.low >> 1 & 1 != 0
    }

    pub fn reserved_set(self, extended: bool) -> bool {
        const POSTED: u64 = 1 << 15;
        let destination = if extended { 0 } else { bits(39, 32) | bits(63, 48) };
        let delivery = self.low >> 5 & 7;
        let source_validation = self.high >> 18 & 3;
        self.low & (bits(14, 12) | POSTED | bits(31, 24) | destination) != 0
            || self.high & bits(63, 20) != 0
            || matches!(delivery, 3 | 6)
            || source_validation == 3
    }

    /// Whether a request from `source` may use the entry.
    pub fn accepts(self, source: u16) -> bool {
        let sid = self.high as u16;
        match self.high >> 18 & 3 {
            0 => true,
            1 => {
                let mask = [0xffff, 0xfffb, 0xfff9, 0xfff8][(self.high >> 16 & 3) as usize];
                source & mask == sid & mask
            }
            _ => ((sid >> 8)..=(sid & 0xff)).contains(&(source >> 8)),
        }
    }

    pub fn vector(self) -> u8 {
        (self.low >> 16) as u8
    }

    pub fn destination(self, extended: bool) -> u32 {
        if extended { (self.low >> 32) as u32 } else { (self.low >> 40) as u32 & 0xff }
    }

    /// Whether the two belong to different sources, or mean different things altogether.
    pub fn source_differs(self, other: Self) -> bool {
        self.high != other.high
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bit_ranges() {
        assert_eq!(bits(0, 0), 1);
        assert_eq!(bits(63, 0), u64::MAX);
        assert_eq!(bits(11, 4), 0xff0);
    }

    #[test]
    fn source_checks() {
        let entry = |svt: u64, sq: u64, sid: u64| InterruptEntry { low: 1, high: svt << 18 | sq << 16 | sid };
        assert!(entry(0, 0, 0x100).accepts(0x999));
        assert!(entry(1, 0, 0x100).accepts(0x100) && !entry(1, 0, 0x100).accepts(0x104));
        assert!(entry(1, 1, 0x100).accepts(0x104) && !entry(1, 1, 0x100).accepts(0x102));
        assert!(entry(1, 2, 0x100).accepts(0x106) && !entry(1, 2, 0x100).accepts(0x101));
        assert!(entry(1, 3, 0x100).accepts(0x107) && !entry(1, 3, 0x100).accepts(0x108));
        let buses = entry(2, 0, 0x0305);
        assert!(buses.accepts(0x0300) && buses.accepts(0x05ff) && !buses.accepts(0x0600));
    }

    #[test]
    fn superpage_alignment_is_checked() {
        let unit = UnitConfig::plain(0);
        let reserved = |raw, level| PageEntry(raw).reserved_set(level, &unit, 39);
        assert!(!reserved(0x20_0083, 2) && reserved(0x20_1083, 2));
        assert!(!reserved(0x4000_0083, 3) && reserved(0x4020_0083, 3));
        assert!(reserved(0x83, 4) && !reserved(0x83, 1));
        assert!(reserved(1 << 39 | 3, 1) && !reserved(1 << 38 | 3, 1));
        assert!(!reserved(1 << 11 | 3, 1) && reserved(1 << 11 | 3, 2));
        assert!(!reserved(bits(61, 52) | 3, 2) && reserved(1 << 62 | 3, 2));
    }
}
