//! The entries of scalable mode as the unit reads them: context entries of 256 bits, PASID directories and tables.

use crate::{
    config::UnitConfig,
    entries::{Binding, TranslationType, bits},
    iotlb::Stage,
};

/// Half of a root entry: the table for devices 0 to 15, or for 16 to 31.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RootHalf(pub u64);

impl RootHalf {
    pub fn present(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn reserved_set(self) -> bool {
        self.0 & bits(11, 1) != 0
    }

    pub fn context_table(self) -> u64 {
        self.0 & bits(63, 12)
    }
}

/// A context entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ScalableContext(pub [u64; 4]);

impl ScalableContext {
    pub const BYTES: u64 = 32;
    /// Entries in a table.
    pub const COUNT: u64 = 128;

    pub fn present(self) -> bool {
        self.0[0] & 1 != 0
    }

    pub fn fault_processing_disabled(self) -> bool {
        self.0[0] >> 1 & 1 != 0
    }

    /// DTE.
    pub fn device_tlb(self) -> bool {
        self.0[0] >> 2 & 1 != 0
    }

    /// Entries of its PASID directory.
    pub fn directory_entries(self) -> u64 {
        1 << ((self.0[0] >> 9 & 7) + 7)
    }

    pub fn directory(self) -> u64 {
        self.0[0] & bits(63, 12)
    }

    /// The PASID of requests that have none.
    pub fn request_pasid(self) -> u64 {
        self.0[1] & bits(19, 0)
    }

    pub fn reserved_set(self) -> bool {
        self.0[0] & bits(8, 5) != 0 || self.0[1] & bits(63, 21) != 0 || self.0[2] != 0 || self.0[3] != 0
    }

    /// Whether the unit can do what the entry asks for.
    pub fn is_supported(self, unit: &UnitConfig) -> bool {
        const PASID_ENABLE: u64 = 1 << 3;
        const PAGE_REQUESTS: u64 = 1 << 4;
        const PRIVILEGED: u64 = 1 << 20;
        // Nothing here has PASIDs of its own, or page requests through them.
        self.0[0] & (PASID_ENABLE | PAGE_REQUESTS) == 0
            && self.0[1] & PRIVILEGED == 0
            && (unit.device_tlb || !self.device_tlb())
    }
}

/// An entry of a PASID directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct DirectoryEntry(pub u64);

impl DirectoryEntry {
    pub fn present(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn reserved_set(self) -> bool {
        self.0 & bits(11, 2) != 0
    }

    pub fn table(self) -> u64 {
        self.0 & bits(63, 12)
    }
}

/// As a width of the second stage would say it.
const FOUR_LEVELS: u8 = 2;

/// An entry of a PASID table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PasidEntry(pub [u64; 8]);

impl PasidEntry {
    pub const BYTES: u64 = 64;
    /// Entries in a table.
    pub const COUNT: u64 = 64;

    pub fn present(self) -> bool {
        self.0[0] & 1 != 0
    }

    pub fn fault_processing_disabled(self) -> bool {
        self.0[0] >> 1 & 1 != 0
    }

    /// Bits 4:2, as in a context entry of legacy mode.
    pub fn width(self) -> u8 {
        (self.0[0] >> 2 & 7) as u8
    }

    fn kind(self) -> u64 {
        self.0[0] >> 6 & 7
    }

    const FIRST_STAGE: u64 = 1;
    /// NXE, in the third word.
    const NO_EXECUTE: u64 = 1 << 5;
    const SECOND_STAGE: u64 = 2;

    pub fn stage(self) -> Stage {
        if self.kind() == Self::FIRST_STAGE { Stage::First } else { Stage::Second }
    }

    /// Root of the page table, of either stage.
    pub fn table(self) -> u64 {
        let word = if self.kind() == Self::FIRST_STAGE { 2 } else { 0 };
        self.0[word] & bits(63, 12)
    }

    pub fn domain(self) -> u16 {
        self.0[1] as u16
    }

    /// PWSNP.
    pub fn walks_snoop(self) -> bool {
        self.0[1] >> 23 & 1 != 0
    }

    /// PGSNP.
    fn accesses_snoop(self) -> bool {
        self.0[1] >> 24 & 1 != 0
    }

    /// Also what belongs to the stage that the entry does not have.
    pub fn reserved_set(self, unit: &UnitConfig) -> bool {
        let beyond = u32::from(self.domain()) >= unit.domain_ids();
        let snoops =
            self.walks_snoop() && !unit.scalable_coherent || self.accesses_snoop() && !unit.snoop_control;
        self.0[0] & bits(11, 10) != 0
            || self.0[1] & (bits(22, 16) | bits(63, 25)) != 0
            || self.0[3..].iter().any(|&word| word != 0)
            || self.has_other_stage(unit)
            || beyond
            || snoops
    }

    fn has_other_stage(self, unit: &UnitConfig) -> bool {
        match self.stage() {
            // AW may be what the unit's second stage would have, in either mode.
            Stage::First => {
                let strange = self.width() != 0 && !unit.supports_width(self.width());
                self.0[0] & bits(63, 12) != 0 || strange
            }
            Stage::Second => self.0[2] != 0,
        }
    }

    /// Whether the unit can do what the entry asks for: a first stage of 4 levels for users alone, or a second stage,
    /// without execute permissions or accessed bits.
    pub fn is_supported(self, unit: &UnitConfig) -> bool {
        const EXECUTE: u64 = 1 << 5;
        const ACCESSED: u64 = 1 << 9;
        let is_plain = self.0[0] & (EXECUTE | ACCESSED) == 0;
        let first = self.0[2] & bits(11, 0) & !Self::NO_EXECUTE;
        match self.kind() {
            Self::FIRST_STAGE => unit.first_stage && is_plain && first == 0,
            Self::SECOND_STAGE => unit.scalable_second_stage && is_plain && unit.supports_width(self.width()),
            _ => false,
        }
    }

    /// What the requests of a source are translated by, whose context entry leads here.
    pub fn binding(self, context: ScalableContext) -> Binding {
        let kind =
            if context.device_tlb() { TranslationType::DeviceTlb } else { TranslationType::Untranslated };
        Binding {
            kind,
            domain: self.domain(),
            stage: self.stage(),
            table: self.table(),
            width: if self.stage() == Stage::First { FOUR_LEVELS } else { self.width() },
            muted: context.fault_processing_disabled() || self.fault_processing_disabled(),
            snoops: self.walks_snoop(),
            scalable: true,
            no_execute: self.0[2] & Self::NO_EXECUTE != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scalable() -> UnitConfig {
        UnitConfig { scalable: true, scalable_second_stage: true, ..UnitConfig::plain(0) }
    }

    #[test]
    fn a_first_stage_is_named_above_and_has_nothing_of_a_second() {
        let unit = UnitConfig { first_stage: true, ..scalable() };
        let entry = |low: u64, third: u64| PasidEntry([low, 3, third, 0, 0, 0, 0, 0]);
        let plain = entry(1 << 6 | 1, 0x5000);
        assert!(plain.is_supported(&unit) && !plain.reserved_set(&unit) && !plain.is_supported(&scalable()));
        assert_eq!((plain.table(), plain.stage()), (0x5000, Stage::First));
        for (sagaw, allowed) in
            [(0b0110, [true, true, false]), (0b0010, [true, false, false]), (0, [false; 3])]
        {
            let unit = UnitConfig { sagaw, ..unit.clone() };
            let is_allowed = |width: u64| !entry(1 << 6 | 1 | width << 2, 0x5000).reserved_set(&unit);
            assert!(is_allowed(0), "{sagaw:#b}");
            assert_eq!([1, 2, 3].map(is_allowed), allowed, "{sagaw:#b}");
        }
        assert!(entry(1 << 6 | 1 | 0x5000, 0x5000).reserved_set(&unit));
        assert!(entry(1 << 6 | 1, 0x5020).is_supported(&unit));
        for third in [0x5001, 0x5002, 0x5004, 0x5010, 0x5080] {
            assert!(!entry(1 << 6 | 1, third).is_supported(&unit), "{third:#x}");
        }
        assert!(entry(0x5000 | 2 << 6 | 2 << 2 | 1, 0x5000).reserved_set(&unit));
    }

    #[test]
    fn a_second_stage_is_all_that_a_unit_without_a_first_has() {
        let entry = |low: u64| PasidEntry([low, 3, 0, 0, 0, 0, 0, 0]);
        let plain = 0x5000 | 2 << 6 | 2 << 2 | 1;
        assert!(entry(plain).is_supported(&scalable()) && !entry(plain).reserved_set(&scalable()));
        assert_eq!((entry(plain).table(), entry(plain).width(), entry(plain).domain()), (0x5000, 2, 3));
        for kind in [0, 1, 3, 4, 5] {
            assert!(!entry(0x5000 | kind << 6 | 2 << 2 | 1).is_supported(&scalable()));
        }
        assert!(!entry(plain | 1 << 9).is_supported(&scalable()), "accessed and dirty bits");
        assert!(entry(plain | 1 << 10).reserved_set(&scalable()));
    }

    #[test]
    fn snooping_needs_the_capability() {
        let entry = |bit: u32| PasidEntry([1, 3 | 1 << bit, 0, 0, 0, 0, 0, 0]);
        let able = UnitConfig { scalable_coherent: true, ..scalable() };
        assert!(entry(23).reserved_set(&scalable()) && !entry(23).reserved_set(&able));
        let unable = UnitConfig { snoop_control: false, ..scalable() };
        assert!(entry(24).reserved_set(&unable) && !entry(24).reserved_set(&scalable()));
    }
}
