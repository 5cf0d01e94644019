//! The entries of scalable mode, from the context entry of a function to the entry of a PASID.
//!
//! Only what one stage needs: of the 256 bits of a context entry and the 512 of a PASID entry, all above the 128 that
//! are described here are 0 then, but for the word of a PASID entry that leads to a first-stage table
//! ([`FirstStagePointer`]).

use bitfield_struct::bitfield;
use mm::PhysAddr;

use super::{
    AddressWidth, DomainId,
    address::{frame, frame_address},
};

/// Context entry in scalable mode, its lower 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ScalableContextEntry {
    /// P.
    pub present: bool,
    /// FPD: faults found after this entry was read are not recorded.
    pub fault_reporting_disabled: bool,
    /// DTE: a device TLB is served. Needs ECAP.DT.
    pub device_tlb: bool,
    /// PASIDE: requests may carry a PASID.
    pub pasid: bool,
    /// PRE: page requests are taken.
    pub page_requests: bool,
    #[bits(4)]
    __: u8,
    /// PDTS: the PASID directory has 2^(PDTS+7) entries.
    #[bits(3)]
    pub directory_order: u8,
    /// PASIDDIRPTR: page number of the PASID directory.
    #[bits(52)]
    pub frame: u64,
    /// RID_PASID: the PASID of requests without one. Other than 0 needs ECAP.RPS.
    #[bits(20)]
    pub request_pasid: u32,
    /// RID_PRIV: requests without a PASID are privileged.
    pub request_privilege: bool,
    #[bits(43)]
    __: u64,
}
pin_bits!(ScalableContextEntry:
    with_present(true) = 1,
    with_fault_reporting_disabled(true) = 1 << 1,
    with_device_tlb(true) = 1 << 2,
    with_pasid(true) = 1 << 3,
    with_page_requests(true) = 1 << 4,
    with_directory_order(7) = 7 << 9,
    with_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000,
    with_request_pasid(0xf_ffff) = 0xf_ffff << 64,
    with_request_privilege(true) = 1 << 84,
);

impl ScalableContextEntry {
    /// Requests without a PASID are those of PASID 0 in the directory at `directory`, which is page-aligned and as
    /// small as can be: 128 entries.
    #[must_use]
    pub const fn to_directory(directory: PhysAddr, device_tlb: bool) -> Self {
        Self::new().with_present(true).with_device_tlb(device_tlb).with_frame(frame(directory))
    }

    /// The PASID directory.
    #[must_use]
    pub const fn directory(self) -> PhysAddr {
        frame_address(self.frame())
    }
}

/// Entry of a PASID directory.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PasidDirectoryEntry {
    /// P.
    pub present: bool,
    /// FPD.
    pub fault_reporting_disabled: bool,
    #[bits(10)]
    __: u16,
    /// Page number of the PASID table.
    #[bits(52)]
    pub frame: u64,
}
pin_bits!(PasidDirectoryEntry:
    with_present(true) = 1,
    with_fault_reporting_disabled(true) = 1 << 1,
    with_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000,
);

impl PasidDirectoryEntry {
    /// The entry that points to the PASID table at `table`, which is page-aligned.
    #[must_use]
    pub const fn to_table(table: PhysAddr) -> Self {
        Self::new().with_present(true).with_frame(frame(table))
    }

    /// The PASID table, if it is present.
    #[must_use]
    pub const fn table(self) -> Option<PhysAddr> {
        if self.present() { Some(frame_address(self.frame())) } else { None }
    }
}

/// PGTT: what translates the requests of a PASID.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PasidTranslation {
    /// A first-stage table. Needs ECAP.FSTS.
    FirstStage = 1,
    /// A second-stage table. Needs ECAP.SSTS.
    SecondStage = 2,
    /// A first-stage table whose addresses a second-stage table translates. Needs ECAP.NEST.
    Nested = 3,
    /// None: requests pass untranslated. Needs ECAP.PT.
    PassThrough = 4,
    /// Reserved.
    Reserved = 0,
}

impl PasidTranslation {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::FirstStage,
            2 => Self::SecondStage,
            3 => Self::Nested,
            4 => Self::PassThrough,
            _ => Self::Reserved,
        }
    }
}

/// Entry of a PASID table, its lower 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct PasidEntry {
    /// P.
    pub present: bool,
    /// FPD.
    pub fault_reporting_disabled: bool,
    /// AW, as it is stored: see [`AddressWidth`].
    #[bits(3)]
    pub raw_width: u8,
    /// SSEE: the second stage has execute permissions.
    pub second_stage_execute: bool,
    /// PGTT.
    #[bits(3, default = PasidTranslation::Reserved)]
    pub translation: PasidTranslation,
    /// SSADE: hardware sets accessed and dirty bits in the second stage.
    pub second_stage_accessed_dirty: bool,
    #[bits(2)]
    __: u8,
    /// SSPTPTR: page number of the second-stage root table.
    #[bits(52)]
    pub frame: u64,
    /// DID.
    pub raw_domain: u16,
    #[bits(7)]
    __: u8,
    /// PWSNP: walks of the page table snoop the CPU's caches. Needs ECAP.SMPWCS.
    pub walks_snoop: bool,
    /// PGSNP: so do accesses to the pages. Needs ECAP.SC.
    pub accesses_snoop: bool,
    #[bits(39)]
    __: u64,
}
pin_bits!(PasidEntry:
    with_present(true) = 1,
    with_fault_reporting_disabled(true) = 1 << 1,
    with_raw_width(7) = 7 << 2,
    with_second_stage_execute(true) = 1 << 5,
    with_translation(PasidTranslation::SecondStage) = 2 << 6,
    with_translation(PasidTranslation::PassThrough) = 4 << 6,
    with_second_stage_accessed_dirty(true) = 1 << 9,
    with_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000,
    with_raw_domain(0xffff) = 0xffff << 64,
    with_walks_snoop(true) = 1 << 87,
    with_accesses_snoop(true) = 1 << 88,
);

impl PasidEntry {
    /// Requests are translated by the second-stage table at `root`, which is page-aligned and has as many levels as
    /// `width` says.
    #[must_use]
    pub const fn second_stage(domain: DomainId, root: PhysAddr, width: AddressWidth) -> Self {
        Self::new()
            .with_present(true)
            .with_raw_width(width as u8)
            .with_translation(PasidTranslation::SecondStage)
            .with_frame(frame(root))
            .with_raw_domain(domain.as_u16())
    }

    /// Requests are translated by the first-stage table, of 4 levels, that a [`FirstStagePointer`] above names.
    ///
    /// AW is the second stage's: the architecture has no use for it here, and reserves it where scalable mode has no
    /// second stage. It is set there all the same, to a `width` of the unit's, because QEMU, which has such units,
    /// takes from it which addresses are canonical: with 0 there are 512 MiB of them. Linux sets it too. What reports
    /// no width gets none.
    #[must_use]
    pub const fn first_stage(domain: DomainId, width: Option<AddressWidth>) -> Self {
        let raw_width = match width {
            Some(width) => width as u8,
            None => 0,
        };
        Self::new()
            .with_present(true)
            .with_raw_width(raw_width)
            .with_translation(PasidTranslation::FirstStage)
            .with_raw_domain(domain.as_u16())
    }

    /// The domain whose id tags the cached translations.
    #[must_use]
    pub const fn domain(self) -> DomainId {
        DomainId::new(self.raw_domain())
    }

    /// Root of the second-stage table.
    #[must_use]
    pub const fn root(self) -> PhysAddr {
        frame_address(self.frame())
    }
}

/// Entry of a PASID table, bits 191:128: what it has of the first stage. Supervisor requests and execute permissions
/// stay off.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FirstStagePointer {
    /// SRE: supervisor requests are allowed.
    pub supervisor_requests: bool,
    /// ERE: execute requests are allowed.
    pub execute_requests: bool,
    /// FSPM: 0 for 4 levels, 1 for 5.
    #[bits(2)]
    pub paging_mode: u8,
    /// WPE: writes of supervisors obey R/W.
    pub write_protect: bool,
    /// NXE: bit 63 (XD) of entries is no reserved bit.
    pub no_execute: bool,
    #[bits(6)]
    __: u8,
    /// FSPTPTR: page number of the first-stage root table.
    #[bits(52)]
    pub frame: u64,
}
pin_bits!(FirstStagePointer:
    with_supervisor_requests(true) = 1,
    with_execute_requests(true) = 1 << 1,
    with_paging_mode(3) = 3 << 2,
    with_write_protect(true) = 1 << 4,
    with_no_execute(true) = 1 << 5,
    with_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000,
);

impl FirstStagePointer {
    /// To the root table of 4 levels at `root`, which is page-aligned. A CPU's says of pages that they are not to be
    /// executed.
    #[must_use]
    pub const fn to_table(root: PhysAddr) -> Self {
        Self::new().with_no_execute(true).with_frame(frame(root))
    }

    /// Root of the first-stage table.
    #[must_use]
    pub const fn table(self) -> PhysAddr {
        frame_address(self.frame())
    }
}

const _: () = {
    let entry = PasidEntry::second_stage(DomainId::new(0x1234), PhysAddr::new(0x5000), AddressWidth::Bits48);
    assert!(entry.into_bits() == 0x1234 << 64 | 0x5000 | 2 << 6 | 2 << 2 | 1);
    let entry = PasidEntry::first_stage(DomainId::new(0x1234), Some(AddressWidth::Bits48));
    assert!(entry.into_bits() == 0x1234 << 64 | 1 << 6 | 2 << 2 | 1);
    assert!(PasidEntry::first_stage(DomainId::new(0x1234), None).into_bits() == 0x1234 << 64 | 1 << 6 | 1);
    assert!(FirstStagePointer::to_table(PhysAddr::new(0x5000)).into_bits() == 0x5020);
    assert!(ScalableContextEntry::to_directory(PhysAddr::new(0x7000), true).into_bits() == 0x7005);
    assert!(PasidDirectoryEntry::to_table(PhysAddr::new(0x8000)).into_bits() == 0x8001);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out() {
        let page = PhysAddr::new(0x000f_ffff_ffff_f000);
        assert_eq!(ScalableContextEntry::to_directory(page, false).directory(), page);
        assert_eq!(PasidDirectoryEntry::to_table(page).table(), Some(page));
        assert_eq!(PasidDirectoryEntry::to_table(page).with_present(false).table(), None);
        for width in [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57] {
            let entry = PasidEntry::second_stage(DomainId::new(0xffff), page, width);
            assert_eq!((entry.domain(), entry.root()), (DomainId::new(0xffff), page));
            assert_eq!(AddressWidth::from_levels(entry.raw_width() + 2), Some(width));
            assert_eq!(entry.translation(), PasidTranslation::SecondStage);
            assert!(!entry.walks_snoop() && !entry.accesses_snoop() && !entry.second_stage_accessed_dirty());
        }
    }

    #[test]
    fn unknown_translations_are_reserved() {
        for bits in [0, 5, 6, 7] {
            assert_eq!(PasidEntry::from_bits(bits << 6).translation(), PasidTranslation::Reserved);
        }
    }
}
