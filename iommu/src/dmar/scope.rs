//! Device scopes: which functions a structure speaks of.

use core::fmt;

use bitflags::bitflags;

use super::{DmarError, StructureKind, read::u8_at};
use crate::PciAddress;

/// Bytes before the path: type, length, flags, reserved, enumeration id, start bus.
const FIXED_BYTES: usize = 6;
/// Bytes of one hop of a path.
const HOP_BYTES: usize = 2;

/// What a scope names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScopeKind {
    /// One function.
    Endpoint,
    /// A bridge and everything below it, from its secondary to its subordinate bus.
    Bridge,
    /// An I/O interrupt controller; bus and path are the source id of its requests, maybe of no visible function.
    IoApic {
        /// I/O APIC id, as in the MADT.
        id: u8,
    },
    /// A timer block that raises message-signalled interrupts; bus and path are their source id.
    Hpet {
        /// HPET number.
        id: u8,
    },
    /// A device of the ACPI name space; bus and path are the source id of its requests.
    Acpi {
        /// Device number of the [`Andd`](super::Andd) structure that names it.
        number: u8,
    },
    /// A type that is not known here.
    Unknown(u8),
}

bitflags! {
    /// What a scope of a [`Sidp`](super::Sidp) structure says of its functions. Reserved in all other structures.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct ScopeFlags: u8 {
        /// Requests without PASID cannot use nested translation.
        const NO_NESTED_WITHOUT_PASID = 1 << 0;
        /// Snooped page walks (PWSNP) are not to be used.
        const NO_PAGE_WALK_SNOOP = 1 << 1;
        /// Forced snooping of pages (PGSNP) is not to be used.
        const NO_PAGE_SNOOP = 1 << 2;
        /// The address translation cache is hardened.
        const ATC_HARDENED = 1 << 3;
        /// The address translation cache is required for the device to work.
        const ATC_REQUIRED = 1 << 4;
    }
}

/// One device scope.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// Where it starts, in bytes from the start of the table.
    pub offset: usize,
    /// What it names.
    pub kind: ScopeKind,
    /// The flags byte, unknown bits included.
    pub flags: ScopeFlags,
    /// Bus that the path starts on.
    pub start_bus: u8,
    /// From the start bus to the function: at least one hop.
    pub path: Path<'a>,
    pub(super) reserved: u8,
}

impl<'a> Scope<'a> {
    /// The scope at the front of `bytes`, and its length. `offset` is where `bytes` starts in the table, `structure`
    /// what holds it and where that starts.
    fn parse(
        bytes: &'a [u8],
        offset: usize,
        (kind, structure): (StructureKind, usize),
    ) -> Result<(Self, usize), DmarError> {
        let past_end = DmarError::ScopePastEnd { kind, structure, offset, available: bytes.len() };
        let length = usize::from(u8_at(bytes, 1).ok_or(past_end)?);
        if length < FIXED_BYTES + HOP_BYTES || !(length - FIXED_BYTES).is_multiple_of(HOP_BYTES) {
            return Err(DmarError::ScopeLength { kind, structure, offset, length });
        }
        let scope = Self::read(bytes, offset, length).ok_or(past_end)?;
        Ok((scope, length))
    }

    fn read(bytes: &'a [u8], offset: usize, length: usize) -> Option<Self> {
        let id = u8_at(bytes, 4)?;
        Some(Self {
            offset,
            kind: match u8_at(bytes, 0)? {
                1 => ScopeKind::Endpoint,
                2 => ScopeKind::Bridge,
                3 => ScopeKind::IoApic { id },
                4 => ScopeKind::Hpet { id },
                5 => ScopeKind::Acpi { number: id },
                other => ScopeKind::Unknown(other),
            },
            flags: ScopeFlags::from_bits_retain(u8_at(bytes, 2)?),
            start_bus: u8_at(bytes, 5)?,
            path: Path(bytes.get(FIXED_BYTES..length)?),
            reserved: u8_at(bytes, 3)?,
        })
    }
}

impl fmt::Display for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            ScopeKind::Endpoint => write!(f, "endpoint")?,
            ScopeKind::Bridge => write!(f, "bridge")?,
            ScopeKind::IoApic { id } => write!(f, "I/O APIC {id}")?,
            ScopeKind::Hpet { id } => write!(f, "HPET {id}")?,
            ScopeKind::Acpi { number } => write!(f, "ACPI device {number}")?,
            ScopeKind::Unknown(kind) => write!(f, "unknown type {kind:#x}")?,
        }
        write!(f, " {:02x}:{}", self.start_bus, self.path)
    }
}

/// The hops from a bus to a function, each but the last through the secondary bus of a bridge.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path<'a>(&'a [u8]);

impl<'a> Path<'a> {
    /// The hops, at least one.
    pub fn hops(self) -> impl ExactSizeIterator<Item = Hop> + use<'a> {
        self.0.chunks_exact(HOP_BYTES).map(|hop| Hop { device: hop[0], function: hop[1] })
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, hop) in self.hops().enumerate() {
            let separator = if index == 0 { "" } else { "/" };
            write!(f, "{separator}{:02x}.{:x}", hop.device, hop.function)?;
        }
        Ok(())
    }
}

/// One hop of a path, as firmware wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// Device number; above 31 there is none.
    pub device: u8,
    /// Function number; above 7 there is none.
    pub function: u8,
}

impl Hop {
    /// The function that the hop leads to from `bus`, or `None` if no function can have such numbers.
    #[must_use]
    pub const fn on(self, segment: u16, bus: u8) -> Option<PciAddress> {
        PciAddress::new(segment, bus, self.device, self.function)
    }
}

/// The scopes of one structure, in the order of the table.
#[derive(Clone, Debug)]
pub struct Scopes<'a> {
    rest: &'a [u8],
    offset: usize,
    holder: (StructureKind, usize),
}

impl<'a> Scopes<'a> {
    /// The scopes that fill `bytes`, which start `offset` bytes into the table. `holder` is the structure and where it
    /// starts.
    pub(super) const fn new(bytes: &'a [u8], offset: usize, holder: (StructureKind, usize)) -> Self {
        Self { rest: bytes, offset, holder }
    }

    /// Whether all of them can be read.
    pub(super) fn check(mut self) -> Result<(), DmarError> {
        while !self.rest.is_empty() {
            self.advance()?;
        }
        Ok(())
    }

    fn advance(&mut self) -> Result<Scope<'a>, DmarError> {
        let (scope, length) = Scope::parse(self.rest, self.offset, self.holder)?;
        self.rest = self.rest.get(length..).unwrap_or_default();
        self.offset += length;
        Ok(scope)
    }
}

impl<'a> Iterator for Scopes<'a> {
    type Item = Scope<'a>;

    fn next(&mut self) -> Option<Scope<'a>> {
        if self.rest.is_empty() {
            return None;
        }
        // The parser has checked the same bytes to their end.
        self.advance().ok()
    }
}
