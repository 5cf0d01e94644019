//! Root, context, second-stage and interrupt entries as the unit reads them.

use crate::{
    config::UnitConfig,
    iotlb::{Stage, Tag},
};

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
    /// Of which the table is.
    pub stage: Stage,
    /// Root of the page table.
    pub table: u64,
    /// 1 is 39 bits, 2 is 48, 3 is 57.
    pub width: u8,
    /// FPD of an entry on the way.
    pub muted: bool,
    /// Walks of the table snoop the CPU's caches.
    pub snoops: bool,
    /// Faults have the reasons of scalable mode.
    pub scalable: bool,
    /// NXE: the table may say that pages are not to be executed.
    pub no_execute: bool,
}

impl Binding {
    pub fn levels(&self) -> u8 {
        self.width + 2
    }

    /// What is cached of its table is tagged with.
    pub fn tag(&self) -> Tag {
        Tag { stage: self.stage, domain: self.domain }
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
            stage: Stage::Second,
            table: self.table(),
            width: self.width(),
            muted: self.fault_processing_disabled(),
            snoops,
            scalable: false,
            no_execute: false,
        }
    }

    /// The bits that may change while the entry is present: the software field.
    pub fn differs(self, other: Self) -> bool {
        const SOFTWARE: u64 = bits(6, 3);
        self.low != other.low || (self.high ^ other.high) & !SOFTWARE != 0
    }
}

/// An entry of a page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PageEntry {
    pub raw: u64,
    /// Of which the table is.
    pub stage: Stage,
}

impl PageEntry {
    /// U/S, of the first stage: requests of users, as all are here, may use it.
    const USER: u64 = 1 << 2;
    /// A and D, of the first stage.
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    /// In the first stage what is present can be read.
    pub fn read(self) -> bool {
        self.raw & 1 != 0
    }

    pub fn write(self) -> bool {
        self.raw & 2 != 0 && self.present()
    }

    pub fn present(self) -> bool {
        match self.stage {
            Stage::First => self.raw & 1 != 0,
            Stage::Second => self.raw & 3 != 0,
        }
    }

    /// Whether it is for supervisors alone.
    pub fn is_supervisors(self) -> bool {
        self.stage == Stage::First && self.raw & Self::USER == 0
    }

    /// Whether the unit would have to set A or D in it, for a write or another access.
    pub fn is_to_be_marked(self, level: u8, write: bool) -> bool {
        let dirty = if write && self.is_leaf(level) { Self::DIRTY } else { 0 };
        self.stage == Stage::First && !self.raw & (Self::ACCESSED | dirty) != 0
    }

    /// Whether the entry maps memory at `level`. At levels where no leaf can be, the bit is reserved.
    pub fn is_leaf(self, level: u8) -> bool {
        level == 1 || self.raw >> 7 & 1 != 0
    }

    pub fn address(self) -> u64 {
        self.raw & ADDRESS
    }

    /// XD, of the first stage: reserved unless the PASID entry has NXE.
    pub fn has_no_execute(self) -> bool {
        self.stage == Stage::First && self.raw >> 63 != 0
    }

    pub fn reserved_set(self, level: u8, unit: &UnitConfig, host_address_bits: u8) -> bool {
        const SIZE: u64 = 1 << 7;
        let leaf = self.is_leaf(level);
        let always = match self.stage {
            // XD is looked at where it is known what the PASID entry says of it.
            Stage::First => 0,
            Stage::Second => Self::reserved_in_second_stage(leaf, unit),
        };
        let mut reserved = always | ADDRESS & u64::MAX.unbounded_shl(host_address_bits.into());
        let (large, huge) = match self.stage {
            Stage::First => (true, unit.first_stage_1g),
            Stage::Second => (unit.superpages_2m, unit.superpages_1g),
        };
        match level {
            1 => {}
            2 if large => reserved |= if leaf { bits(20, 12) } else { 0 },
            3 if huge => reserved |= if leaf { bits(29, 12) } else { 0 },
            _ => reserved |= SIZE,
        }
        self.raw & reserved != 0
    }

    fn reserved_in_second_stage(leaf: bool, unit: &UnitConfig) -> u64 {
        const TM: u64 = 1 << 62;
        const SNOOP: u64 = 1 << 11;
        TM | if leaf && unit.snoop_control { 0 } else { SNOOP }
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
        let reserved = |raw, level| PageEntry { raw, stage: Stage::Second }.reserved_set(level, &unit, 39);
        assert!(!reserved(0x20_0083, 2) && reserved(0x20_1083, 2));
        assert!(!reserved(0x4000_0083, 3) && reserved(0x4020_0083, 3));
        assert!(reserved(0x83, 4) && !reserved(0x83, 1));
        assert!(reserved(1 << 39 | 3, 1) && !reserved(1 << 38 | 3, 1));
        assert!(!reserved(1 << 11 | 3, 1) && reserved(1 << 11 | 3, 2));
        assert!(!reserved(bits(61, 52) | 3, 2) && reserved(1 << 62 | 3, 2));
    }

    #[test]
    fn entries_of_the_first_stage_are_the_cpus() {
        let unit = UnitConfig { superpages_2m: false, ..UnitConfig::first_stage(0) };
        let entry = |raw| PageEntry { raw, stage: Stage::First };
        let reserved = |raw, level| entry(raw).reserved_set(level, &unit, 39);
        assert!(!reserved(0x20_00e7, 2) && reserved(0x20_20e7, 2) && reserved(0xe7, 4));
        assert!(!reserved(0x4000_00e7, 3) && reserved(0x4020_00e7, 3));
        assert!(
            !reserved(bits(62, 52) | 0x67, 1) && !reserved(1 << 63 | 0x67, 1) && reserved(1 << 39 | 0x67, 1)
        );
        assert!(entry(1 << 63 | 0x67).has_no_execute() && !entry(0x67).has_no_execute());
        let without = UnitConfig { first_stage_1g: false, ..unit.clone() };
        assert!(entry(0x4000_00e7).reserved_set(3, &without, 39));
        assert!(entry(0x65).read() && !entry(0x65).write() && entry(0x67).write());
        assert!(!entry(2).present() && !entry(2).write(), "writes alone are nothing");
        assert!(entry(0x63).is_supervisors() && !entry(0x67).is_supervisors());
        assert!(entry(0x47).is_to_be_marked(1, false) && entry(0x27).is_to_be_marked(1, true));
        assert!(!entry(0x27).is_to_be_marked(1, false) && !entry(0x27).is_to_be_marked(2, true));
    }
}
