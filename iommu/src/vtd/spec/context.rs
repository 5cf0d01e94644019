//! The entry of a context table: one per function.

use bitfield_struct::bitfield;
use mm::PhysAddr;

use super::{
    DomainId,
    address::{frame, frame_address},
};

/// TT: what happens to the requests of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum TranslationType {
    /// Requests are translated; requests of a device TLB are blocked.
    Translate = 0,
    /// As `Translate`, and a device TLB is served. Needs ECAP.DT.
    TranslateWithDeviceTlb = 1,
    /// Requests pass untranslated. Needs ECAP.PT.
    PassThrough = 2,
    /// Reserved.
    Reserved = 3,
}

impl TranslationType {
    const fn into_bits(self) -> u8 {
        self as u8
    }

    const fn from_bits(bits: u8) -> Self {
        match bits {
            0 => Self::Translate,
            1 => Self::TranslateWithDeviceTlb,
            2 => Self::PassThrough,
            _ => Self::Reserved,
        }
    }
}

/// AW: the width of the addresses that a second-stage table translates, as the number of its levels less two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39 = 1,
    /// 48 bits, 4 levels.
    Bits48 = 2,
    /// 57 bits, 5 levels.
    Bits57 = 3,
}

impl AddressWidth {
    /// The width that a table of `levels` levels translates.
    #[must_use]
    pub const fn from_levels(levels: u8) -> Option<Self> {
        match levels {
            3 => Some(Self::Bits39),
            4 => Some(Self::Bits48),
            5 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// Levels of the table.
    #[must_use]
    pub const fn levels(self) -> u8 {
        self as u8 + 2
    }

    /// Bits of an address.
    #[must_use]
    pub const fn bits(self) -> u8 {
        12 + 9 * self.levels()
    }
}

/// What the first 64 bits of a context entry say in either mode.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextState {
    /// P.
    pub present: bool,
    /// FPD: faults found after this entry was read are not recorded.
    pub fault_reporting_disabled: bool,
    #[bits(62)]
    __: u64,
}
pin_bits!(ContextState: with_present(true) = 1, with_fault_reporting_disabled(true) = 1 << 1);

/// Context entry in legacy mode, 128 bits.
#[bitfield(u128)]
#[derive(PartialEq, Eq)]
pub struct ContextEntry {
    /// P.
    pub present: bool,
    /// FPD: faults found after this entry was read are not recorded.
    pub fault_reporting_disabled: bool,
    /// TT.
    #[bits(2, default = TranslationType::Translate)]
    pub translation: TranslationType,
    #[bits(8)]
    __: u8,
    /// SSPTPTR: page number of the second-stage root table.
    #[bits(52)]
    pub frame: u64,
    /// AW, as it is stored: see [`AddressWidth`].
    #[bits(3)]
    pub raw_width: u8,
    /// Free for software.
    #[bits(4)]
    pub software: u8,
    #[bits(1)]
    __: u8,
    /// DID.
    pub raw_domain: u16,
    #[bits(40)]
    __: u64,
}
pin_bits!(ContextEntry:
    with_present(true) = 1,
    with_fault_reporting_disabled(true) = 1 << 1,
    with_translation(TranslationType::TranslateWithDeviceTlb) = 1 << 2,
    with_translation(TranslationType::PassThrough) = 2 << 2,
    with_frame((1 << 52) - 1) = 0xffff_ffff_ffff_f000,
    with_raw_width(7) = 7 << 64,
    with_software(0xf) = 0xf << 67,
    with_raw_domain(0xffff) = 0xffff << 72,
);

impl ContextEntry {
    /// Requests are translated by the second-stage table at `root`, which is page-aligned and has as many levels as
    /// `width` says. `translation` is one of the two translating types.
    #[must_use]
    pub const fn translating(
        domain: DomainId,
        root: PhysAddr,
        width: AddressWidth,
        translation: TranslationType,
    ) -> Self {
        Self::new()
            .with_present(true)
            .with_translation(translation)
            .with_frame(frame(root))
            .with_raw_width(width as u8)
            .with_raw_domain(domain.as_u16())
    }

    /// Requests pass untranslated. `widest` is the largest width that the unit has; the field must say so.
    #[must_use]
    pub const fn pass_through(domain: DomainId, widest: AddressWidth) -> Self {
        Self::new()
            .with_present(true)
            .with_translation(TranslationType::PassThrough)
            .with_raw_width(widest as u8)
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

    /// The width, or `None` if the field has a reserved value.
    #[must_use]
    pub const fn width(self) -> Option<AddressWidth> {
        AddressWidth::from_levels(self.raw_width() + 2)
    }
}
const _: () = {
    let entry = ContextEntry::translating(
        DomainId::new(0x1234),
        PhysAddr::new(0x5000),
        AddressWidth::Bits48,
        TranslationType::Translate,
    );
    assert!(entry.into_bits() == (0x1234 << 72) | (2 << 64) | 0x5001);
    assert!(AddressWidth::Bits39.bits() == 39 && AddressWidth::Bits57.bits() == 57);
};
