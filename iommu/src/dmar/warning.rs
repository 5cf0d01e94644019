//! What firmware got wrong without making the table unreadable.

use core::fmt;

use super::StructureKind;

/// Something in the table that can be read but is wrong or suspicious. Offsets count bytes from the start of the table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Warning {
    /// The bytes of the table do not add up to 0.
    BadChecksum {
        /// Sum of all bytes, modulo 256.
        sum: u8,
    },
    /// Bytes that belong to no structure.
    TrailingBytes {
        /// Where they start.
        offset: usize,
        /// How many there are.
        bytes: usize,
    },
    /// DMA addresses narrower than 32 or wider than 52 bits.
    HostAddressBits {
        /// Number of bits.
        bits: u16,
    },
    /// X2APIC_OPT_OUT without INTR_REMAP means nothing.
    OptOutWithoutRemapping,
    /// The table describes no unit.
    NoUnits,
    /// Reserved bits are set.
    ReservedBits {
        /// Where the structure or scope starts that holds them.
        offset: usize,
        /// The field.
        field: &'static str,
        /// The bits.
        bits: u64,
    },
    /// The structure is not known here and was skipped.
    UnknownStructure {
        /// Where it starts.
        offset: usize,
        /// Its type.
        kind: u16,
        /// Its length in bytes.
        length: usize,
    },
    /// The structure comes after one of a higher type.
    OutOfOrder {
        /// Where it starts.
        offset: usize,
        /// What it is.
        kind: StructureKind,
    },
    /// Bytes after the fields of a structure that has no scopes.
    SurplusBytes {
        /// Where they start.
        offset: usize,
        /// The structure.
        kind: StructureKind,
        /// How many there are.
        bytes: usize,
    },
    /// A unit with INCLUDE_PCI_ALL is followed by another unit of its segment.
    IncludeAllNotLast {
        /// Where the unit with INCLUDE_PCI_ALL starts.
        offset: usize,
        /// The segment.
        segment: u16,
        /// Where the other unit starts.
        other: usize,
    },
    /// A second unit with INCLUDE_PCI_ALL in one segment.
    IncludeAllTwice {
        /// Where it starts.
        offset: usize,
        /// The segment.
        segment: u16,
        /// Where the first one starts.
        first: usize,
    },
    /// No unit can be at this address: 0, all ones, beyond 52 bits or not page-aligned.
    BadBase {
        /// Where the unit starts.
        offset: usize,
        /// The address.
        base: u64,
    },
    /// The registers of two units overlap.
    SharedBase {
        /// Where the second unit starts.
        offset: usize,
        /// Its address.
        base: u64,
        /// Where the first unit starts.
        first: usize,
    },
    /// Neither INCLUDE_PCI_ALL or ALL_PORTS nor a scope: the structure speaks of no function.
    NoScopes {
        /// Where the structure starts.
        offset: usize,
        /// What it is.
        kind: StructureKind,
    },
    /// The region's last byte is before its first.
    ReversedRegion {
        /// Where the RMRR starts.
        offset: usize,
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
    /// The region is not whole pages.
    UnalignedRegion {
        /// Where the RMRR starts.
        offset: usize,
        /// First byte.
        first: u64,
        /// Last byte.
        last: u64,
    },
    /// The region reaches beyond the machine's DMA addresses.
    RegionTooHigh {
        /// Where the RMRR starts.
        offset: usize,
        /// Last byte.
        last: u64,
        /// Number of address bits.
        bits: u16,
    },
    /// Two regions share bytes but are not the same.
    OverlappingRegions {
        /// Where the second RMRR starts.
        offset: usize,
        /// Where the first one starts.
        first: usize,
    },
    /// The affinity of a unit that the table does not describe.
    UnknownUnit {
        /// Where the RHSA starts.
        offset: usize,
        /// The unit's address.
        base: u64,
    },
    /// The name has no NUL at its end.
    UnterminatedName {
        /// Where the ANDD starts.
        offset: usize,
    },
    /// The scope is of a type that is not known here; it names nothing.
    UnknownScope {
        /// Where the scope starts.
        offset: usize,
        /// Its type.
        kind: u8,
    },
    /// A hop with a device above 31 or a function above 7: the scope names nothing.
    BadHop {
        /// Where the scope starts.
        offset: usize,
        /// Which hop, from 0.
        index: usize,
        /// Its device.
        device: u8,
        /// Its function.
        function: u8,
    },
    /// A scope names an ACPI device that no ANDD declares.
    UndeclaredDevice {
        /// Where the scope starts.
        offset: usize,
        /// The device's number.
        number: u8,
    },
}

impl Warning {
    /// Where in the table the cause is: a structure, a scope or, for the header's fields, their own offset.
    #[must_use]
    pub const fn offset(&self) -> usize {
        match *self {
            Self::BadChecksum { .. } => 9,
            Self::HostAddressBits { .. } => 36,
            Self::OptOutWithoutRemapping => 37,
            Self::NoUnits => super::HEADER_BYTES,
            Self::TrailingBytes { offset, .. }
            | Self::ReservedBits { offset, .. }
            | Self::UnknownStructure { offset, .. }
            | Self::OutOfOrder { offset, .. }
            | Self::SurplusBytes { offset, .. }
            | Self::IncludeAllNotLast { offset, .. }
            | Self::IncludeAllTwice { offset, .. }
            | Self::BadBase { offset, .. }
            | Self::SharedBase { offset, .. }
            | Self::NoScopes { offset, .. }
            | Self::ReversedRegion { offset, .. }
            | Self::UnalignedRegion { offset, .. }
            | Self::RegionTooHigh { offset, .. }
            | Self::OverlappingRegions { offset, .. }
            | Self::UnknownUnit { offset, .. }
            | Self::UnterminatedName { offset }
            | Self::UnknownScope { offset, .. }
            | Self::BadHop { offset, .. }
            | Self::UndeclaredDevice { offset, .. } => offset,
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {:#x}: ", self.offset())?;
        match *self {
            Self::BadChecksum { sum } => write!(f, "bad checksum: the bytes add up to {sum:#04x}, not 0"),
            Self::TrailingBytes { bytes, .. } => {
                write!(f, "trailing bytes: {bytes} after the last structure")
            }
            Self::HostAddressBits { bits } => write!(f, "host address width of {bits} bits is implausible"),
            Self::OptOutWithoutRemapping => write!(f, "X2APIC_OPT_OUT without INTR_REMAP means nothing"),
            Self::NoUnits => write!(f, "the table describes no unit"),
            Self::ReservedBits { field, bits, .. } => write!(f, "reserved bits {bits:#x} set in {field}"),
            Self::UnknownStructure { kind, length, .. } => {
                write!(f, "unknown structure type {kind:#x}, {length} bytes, skipped")
            }
            Self::OutOfOrder { kind, .. } => write!(f, "{kind} after a structure of a higher type"),
            Self::SurplusBytes { kind, bytes, .. } => write!(f, "{bytes} bytes after the fields of {kind}"),
            Self::IncludeAllNotLast { segment, other, .. } => {
                write!(
                    f,
                    "INCLUDE_PCI_ALL unit is not the last of segment {segment:04x}: one follows at {other:#x}"
                )
            }
            Self::IncludeAllTwice { segment, first, .. } => {
                write!(f, "second INCLUDE_PCI_ALL unit of segment {segment:04x}: the first is at {first:#x}")
            }
            Self::BadBase { base, .. } => write!(f, "no unit can be at base address {base:#x}"),
            Self::SharedBase { base, first, .. } => {
                write!(
                    f,
                    "unit at base address {base:#x} overlaps the registers of the unit at offset {first:#x}"
                )
            }
            Self::NoScopes { kind, .. } => write!(f, "{kind} speaks of no function"),
            Self::ReversedRegion { first, last, .. } => {
                write!(f, "RMRR is reversed: it ends at {last:#x}, before its start {first:#x}")
            }
            Self::UnalignedRegion { first, last, .. } => {
                write!(f, "RMRR is unaligned: {first:#x}-{last:#x} is not whole pages")
            }
            Self::RegionTooHigh { last, bits, .. } => {
                write!(f, "RMRR reaches {last:#x}, beyond the host address width of {bits} bits")
            }
            Self::OverlappingRegions { first, .. } => write!(f, "RMRR overlaps the one at {first:#x}"),
            Self::UnknownUnit { base, .. } => {
                write!(f, "RHSA for a unit at {base:#x} that no DRHD describes")
            }
            Self::UnterminatedName { .. } => write!(f, "ANDD name is not terminated"),
            Self::UnknownScope { kind, .. } => write!(f, "unknown device scope type {kind:#x} names nothing"),
            Self::BadHop { index, device, function, .. } => {
                write!(f, "hop {index} of the path, device {device:#x} function {function:#x}, cannot exist")
            }
            Self::UndeclaredDevice { number, .. } => {
                write!(f, "device scope names ACPI device {number}, which no ANDD declares")
            }
        }
    }
}
