//! The remapping structures of the table, one type each.

use core::fmt;

use super::{
    DmarError, Drhd, Rmrr, Scopes,
    read::{array_at, u8_at, u16_at, u32_at, u64_at},
};

/// What a structure says it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum StructureKind {
    /// A remapping unit.
    Drhd,
    /// A reserved memory region.
    Rmrr,
    /// Root ports that support ATS.
    Atsr,
    /// Which memory a unit is close to.
    Rhsa,
    /// A device of the ACPI name space.
    Andd,
    /// Devices of the SoC with an address translation cache.
    Satc,
    /// Properties of devices integrated into the SoC.
    Sidp,
    /// A type that is not known here.
    Unknown(u16),
}

impl StructureKind {
    pub(super) const fn from_raw(raw: u16) -> Self {
        match raw {
            0 => Self::Drhd,
            1 => Self::Rmrr,
            2 => Self::Atsr,
            3 => Self::Rhsa,
            4 => Self::Andd,
            5 => Self::Satc,
            6 => Self::Sidp,
            other => Self::Unknown(other),
        }
    }

    /// Bytes of the fixed fields, type and length included.
    pub(super) const fn fixed_bytes(self) -> usize {
        match self {
            Self::Drhd => 16,
            Self::Rmrr => 24,
            Self::Atsr | Self::Satc | Self::Sidp | Self::Andd => 8,
            Self::Rhsa => 20,
            Self::Unknown(_) => 4,
        }
    }
}

impl fmt::Display for StructureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drhd => f.pad("DRHD"),
            Self::Rmrr => f.pad("RMRR"),
            Self::Atsr => f.pad("ATSR"),
            Self::Rhsa => f.pad("RHSA"),
            Self::Andd => f.pad("ANDD"),
            Self::Satc => f.pad("SATC"),
            Self::Sidp => f.pad("SIDP"),
            Self::Unknown(kind) => write!(f, "unknown structure type {kind:#x}"),
        }
    }
}

/// One structure of the table.
#[derive(Clone, Debug)]
pub enum Structure<'a> {
    /// A remapping unit.
    Drhd(Drhd<'a>),
    /// A reserved memory region.
    Rmrr(Rmrr<'a>),
    /// Root ports that support ATS.
    Atsr(Atsr<'a>),
    /// Which memory a unit is close to.
    Rhsa(Rhsa),
    /// A device of the ACPI name space.
    Andd(Andd<'a>),
    /// Devices of the SoC with an address translation cache.
    Satc(Satc<'a>),
    /// Properties of devices integrated into the SoC.
    Sidp(Sidp<'a>),
    /// A structure that is not known here.
    Unknown(Unknown<'a>),
}

/// Root Port ATS Capability Reporting.
#[derive(Clone, Debug)]
pub struct Atsr<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// Every root port of the segment supports ATS.
    pub all_ports: bool,
    /// PCI segment group.
    pub segment: u16,
    /// The root ports that support ATS, unless all do.
    pub scopes: Scopes<'a>,
    pub(super) flags: u8,
    pub(super) reserved: u8,
}

impl<'a> Atsr<'a> {
    const ALL_PORTS: u8 = 1 << 0;

    fn parse(bytes: &'a [u8], offset: usize, scopes: Scopes<'a>) -> Option<Self> {
        let flags = u8_at(bytes, 4)?;
        Some(Self {
            offset,
            all_ports: flags & Self::ALL_PORTS != 0,
            segment: u16_at(bytes, 6)?,
            scopes,
            flags,
            reserved: u8_at(bytes, 5)?,
        })
    }

    pub(super) const fn reserved_flags(&self) -> u8 {
        self.flags & !Self::ALL_PORTS
    }
}

/// Remapping Hardware Static Affinity: which memory a unit is close to.
#[derive(Clone, Debug)]
pub struct Rhsa {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// [`Drhd::base`] of the unit.
    pub base: u64,
    /// Proximity domain, as in the SRAT.
    pub proximity: u32,
    pub(super) reserved: u32,
    pub(super) surplus_bytes: usize,
}

impl Rhsa {
    fn parse(bytes: &[u8], offset: usize) -> Option<Self> {
        Some(Self {
            offset,
            base: u64_at(bytes, 8)?,
            proximity: u32_at(bytes, 16)?,
            reserved: u32_at(bytes, 4)?,
            surplus_bytes: bytes.len().checked_sub(StructureKind::Rhsa.fixed_bytes())?,
        })
    }
}

/// ACPI Name-space Device Declaration: a device that is no PCI function, by name.
#[derive(Clone, Debug)]
pub struct Andd<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// Number by which [`ScopeKind::Acpi`](super::ScopeKind::Acpi) refers to the device.
    pub number: u8,
    /// Path in the ACPI name space up to its NUL. Untrusted bytes: escape them before printing.
    pub name: &'a [u8],
    pub(super) terminated: bool,
    pub(super) reserved: [u8; 3],
}

impl<'a> Andd<'a> {
    fn parse(bytes: &'a [u8], offset: usize) -> Option<Self> {
        let field = bytes.get(StructureKind::Andd.fixed_bytes()..)?;
        let nul = field.iter().position(|&byte| byte == 0);
        Some(Self {
            offset,
            number: u8_at(bytes, 7)?,
            name: field.get(..nul.unwrap_or(field.len()))?,
            terminated: nul.is_some(),
            reserved: array_at(bytes, 4)?,
        })
    }
}

/// SoC Integrated Address Translation Cache reporting.
#[derive(Clone, Debug)]
pub struct Satc<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// The devices do not work without their address translation cache.
    pub atc_required: bool,
    /// PCI segment group.
    pub segment: u16,
    /// The devices.
    pub scopes: Scopes<'a>,
    pub(super) flags: u8,
    pub(super) reserved: u8,
}

impl<'a> Satc<'a> {
    const ATC_REQUIRED: u8 = 1 << 0;

    fn parse(bytes: &'a [u8], offset: usize, scopes: Scopes<'a>) -> Option<Self> {
        let flags = u8_at(bytes, 4)?;
        Some(Self {
            offset,
            atc_required: flags & Self::ATC_REQUIRED != 0,
            segment: u16_at(bytes, 6)?,
            scopes,
            flags,
            reserved: u8_at(bytes, 5)?,
        })
    }

    pub(super) const fn reserved_flags(&self) -> u8 {
        self.flags & !Self::ATC_REQUIRED
    }
}

/// SoC Integrated Device Property reporting: each scope carries flags of its own.
#[derive(Clone, Debug)]
pub struct Sidp<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// PCI segment group.
    pub segment: u16,
    /// The devices and their properties.
    pub scopes: Scopes<'a>,
    pub(super) reserved: u16,
}

impl<'a> Sidp<'a> {
    fn parse(bytes: &'a [u8], offset: usize, scopes: Scopes<'a>) -> Option<Self> {
        Some(Self { offset, segment: u16_at(bytes, 6)?, scopes, reserved: u16_at(bytes, 4)? })
    }
}

/// A structure that is not known here: skipped, with a warning.
#[derive(Clone, Debug)]
pub struct Unknown<'a> {
    /// Where the structure starts, in bytes from the start of the table.
    pub offset: usize,
    /// Its type.
    pub kind: u16,
    /// All of it, type and length included.
    pub bytes: &'a [u8],
}

impl<'a> Structure<'a> {
    /// The structure of type `kind` that fills `bytes`, which start `offset` bytes into the table. Its scopes are left
    /// unread.
    pub(super) fn parse(kind: StructureKind, bytes: &'a [u8], offset: usize) -> Result<Self, DmarError> {
        let minimum = kind.fixed_bytes();
        let too_short = DmarError::StructureTooShort { kind, offset, length: bytes.len(), minimum };
        let tail = bytes.get(minimum..).ok_or(too_short)?;
        let scopes = Scopes::new(tail, offset + minimum, (kind, offset));
        let structure = match kind {
            StructureKind::Drhd => Drhd::parse(bytes, offset, scopes).map(Self::Drhd),
            StructureKind::Rmrr => Rmrr::parse(bytes, offset, scopes).map(Self::Rmrr),
            StructureKind::Atsr => Atsr::parse(bytes, offset, scopes).map(Self::Atsr),
            StructureKind::Rhsa => Rhsa::parse(bytes, offset).map(Self::Rhsa),
            StructureKind::Andd => Andd::parse(bytes, offset).map(Self::Andd),
            StructureKind::Satc => Satc::parse(bytes, offset, scopes).map(Self::Satc),
            StructureKind::Sidp => Sidp::parse(bytes, offset, scopes).map(Self::Sidp),
            StructureKind::Unknown(kind) => Some(Self::Unknown(Unknown { offset, kind, bytes })),
        };
        structure.ok_or(too_short)
    }

    /// What the structure says it is.
    #[must_use]
    pub const fn kind(&self) -> StructureKind {
        match self {
            Self::Drhd(_) => StructureKind::Drhd,
            Self::Rmrr(_) => StructureKind::Rmrr,
            Self::Atsr(_) => StructureKind::Atsr,
            Self::Rhsa(_) => StructureKind::Rhsa,
            Self::Andd(_) => StructureKind::Andd,
            Self::Satc(_) => StructureKind::Satc,
            Self::Sidp(_) => StructureKind::Sidp,
            Self::Unknown(unknown) => StructureKind::Unknown(unknown.kind),
        }
    }

    /// Where the structure starts, in bytes from the start of the table.
    #[must_use]
    pub const fn offset(&self) -> usize {
        match self {
            Self::Drhd(drhd) => drhd.offset,
            Self::Rmrr(rmrr) => rmrr.offset,
            Self::Atsr(atsr) => atsr.offset,
            Self::Rhsa(rhsa) => rhsa.offset,
            Self::Andd(andd) => andd.offset,
            Self::Satc(satc) => satc.offset,
            Self::Sidp(sidp) => sidp.offset,
            Self::Unknown(unknown) => unknown.offset,
        }
    }

    /// The device scopes, or `None` for a structure that has none.
    #[must_use]
    pub fn scopes(&self) -> Option<Scopes<'a>> {
        match self {
            Self::Drhd(drhd) => Some(drhd.scopes.clone()),
            Self::Rmrr(rmrr) => Some(rmrr.scopes.clone()),
            Self::Atsr(atsr) => Some(atsr.scopes.clone()),
            Self::Satc(satc) => Some(satc.scopes.clone()),
            Self::Sidp(sidp) => Some(sidp.scopes.clone()),
            Self::Rhsa(_) | Self::Andd(_) | Self::Unknown(_) => None,
        }
    }
}
