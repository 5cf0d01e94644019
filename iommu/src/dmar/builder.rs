//! Writes DMAR tables for tests, right ones and wrong ones.
//!
//! ```
//! use iommu::dmar::{Dmar, ScopeKind, builder::{ScopeBytes, TableBytes}};
//!
//! let table = TableBytes::new()
//!     .drhd(0xfed9_0000, 0, false, &[ScopeBytes::endpoint(0, &[(2, 0)])])
//!     .drhd(0xfed9_1000, 0, true, &[ScopeBytes::io_apic(8, 0xf0, (0x1f, 0))])
//!     .rmrr(0x7000_0000, 0x7000_ffff, 0, &[ScopeBytes::endpoint(0, &[(0x14, 0)])])
//!     .finish();
//! let dmar = Dmar::parse(&table).unwrap();
//! assert_eq!(dmar.units().count(), 2);
//! ```

use alloc::vec::Vec;

use super::{HEADER_BYTES, HeaderFlags};

/// A table that grows structure by structure.
#[derive(Clone, Debug)]
pub struct TableBytes {
    bytes: Vec<u8>,
}

/// The bytes of one device scope.
#[derive(Clone, Debug)]
pub struct ScopeBytes(Vec<u8>);

impl ScopeBytes {
    /// A scope of type `kind`, enumeration id `id`, from `bus` along `path`.
    #[must_use]
    pub fn new(kind: u8, id: u8, bus: u8, path: &[(u8, u8)]) -> Self {
        let length = 6 + 2 * path.len();
        let mut bytes = Vec::from([kind, length as u8, 0, 0, id, bus]);
        bytes.extend(path.iter().flat_map(|&(device, function)| [device, function]));
        Self(bytes)
    }

    /// One function.
    #[must_use]
    pub fn endpoint(bus: u8, path: &[(u8, u8)]) -> Self {
        Self::new(1, 0, bus, path)
    }

    /// A bridge and all below it.
    #[must_use]
    pub fn bridge(bus: u8, path: &[(u8, u8)]) -> Self {
        Self::new(2, 0, bus, path)
    }

    /// The I/O APIC `id` with the source id `bus`:`function`.
    #[must_use]
    pub fn io_apic(id: u8, bus: u8, function: (u8, u8)) -> Self {
        Self::new(3, id, bus, &[function])
    }

    /// The HPET `id` with the source id `bus`:`function`.
    #[must_use]
    pub fn hpet(id: u8, bus: u8, function: (u8, u8)) -> Self {
        Self::new(4, id, bus, &[function])
    }

    /// The ACPI device `number` with the source id `bus`:`function`.
    #[must_use]
    pub fn acpi(number: u8, bus: u8, function: (u8, u8)) -> Self {
        Self::new(5, number, bus, &[function])
    }

    /// The same with the byte at `offset` replaced.
    #[must_use]
    pub fn with_byte(mut self, offset: usize, byte: u8) -> Self {
        self.0[offset] = byte;
        self
    }
}

impl Default for TableBytes {
    fn default() -> Self {
        Self::new()
    }
}

impl TableBytes {
    /// A header for 39-bit addresses and interrupt remapping, no structures.
    #[must_use]
    pub fn new() -> Self {
        let mut bytes = Vec::from([0; HEADER_BYTES]);
        bytes[..4].copy_from_slice(b"DMAR");
        bytes[8] = 1;
        bytes[10..16].copy_from_slice(b"SLUICE");
        bytes[16..24].copy_from_slice(b"TESTDMAR");
        bytes[24] = 1;
        bytes[28..32].copy_from_slice(b"TEST");
        bytes[32] = 1;
        bytes[36] = 39 - 1;
        bytes[37] = HeaderFlags::INTR_REMAP.bits();
        Self { bytes }
    }

    /// Sets the header's flags.
    #[must_use]
    pub fn flags(self, flags: HeaderFlags) -> Self {
        self.byte(37, flags.bits())
    }

    /// Replaces the byte at `offset` in the table so far.
    #[must_use]
    pub fn byte(mut self, offset: usize, byte: u8) -> Self {
        self.bytes[offset] = byte;
        self
    }

    /// Length of the table so far in bytes: the offset of the next structure.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes as they are.
    #[must_use]
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A structure of type `kind`: `fields` follow type and length, `scopes` follow these.
    #[must_use]
    pub fn structure(mut self, kind: u16, fields: &[u8], scopes: &[ScopeBytes]) -> Self {
        let scope_bytes: usize = scopes.iter().map(|scope| scope.0.len()).sum();
        let length = 4 + fields.len() + scope_bytes;
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend((length as u16).to_le_bytes());
        self.bytes.extend_from_slice(fields);
        self.bytes.extend(scopes.iter().flat_map(|scope| &scope.0));
        self
    }

    /// A unit with one page of registers.
    #[must_use]
    pub fn drhd(self, base: u64, segment: u16, include_pci_all: bool, scopes: &[ScopeBytes]) -> Self {
        self.drhd_with_size(base, 0, segment, include_pci_all, scopes)
    }

    /// A unit with 2^`pages_lg2` pages of registers.
    #[must_use]
    pub fn drhd_with_size(
        self,
        base: u64,
        pages_lg2: u8,
        segment: u16,
        include_pci_all: bool,
        scopes: &[ScopeBytes],
    ) -> Self {
        let mut fields = Vec::from([u8::from(include_pci_all), pages_lg2]);
        fields.extend(segment.to_le_bytes());
        fields.extend(base.to_le_bytes());
        self.structure(0, &fields, scopes)
    }

    /// Reserved memory, `last` inclusive.
    #[must_use]
    pub fn rmrr(self, first: u64, last: u64, segment: u16, scopes: &[ScopeBytes]) -> Self {
        let mut fields = Vec::from([0, 0]);
        fields.extend(segment.to_le_bytes());
        fields.extend(first.to_le_bytes());
        fields.extend(last.to_le_bytes());
        self.structure(1, &fields, scopes)
    }

    /// Root ports with ATS.
    #[must_use]
    pub fn atsr(self, segment: u16, all_ports: bool, scopes: &[ScopeBytes]) -> Self {
        let segment = segment.to_le_bytes();
        self.structure(2, &[u8::from(all_ports), 0, segment[0], segment[1]], scopes)
    }

    /// Affinity of the unit at `base`.
    #[must_use]
    pub fn rhsa(self, base: u64, proximity: u32) -> Self {
        let mut fields = Vec::from([0; 4]);
        fields.extend(base.to_le_bytes());
        fields.extend(proximity.to_le_bytes());
        self.structure(3, &fields, &[])
    }

    /// The ACPI device `number`; `name` with its NUL, if it is to have one.
    #[must_use]
    pub fn andd(self, number: u8, name: &[u8]) -> Self {
        let mut fields = Vec::from([0, 0, 0, number]);
        fields.extend_from_slice(name);
        self.structure(4, &fields, &[])
    }

    /// Devices with an address translation cache.
    #[must_use]
    pub fn satc(self, segment: u16, atc_required: bool, scopes: &[ScopeBytes]) -> Self {
        let segment = segment.to_le_bytes();
        self.structure(5, &[u8::from(atc_required), 0, segment[0], segment[1]], scopes)
    }

    /// Properties of integrated devices.
    #[must_use]
    pub fn sidp(self, segment: u16, scopes: &[ScopeBytes]) -> Self {
        let segment = segment.to_le_bytes();
        self.structure(6, &[0, 0, segment[0], segment[1]], scopes)
    }

    /// The table with its length and checksum.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.finish_with_length(length)
    }

    /// The table with the length `length`, whether true or not, and a checksum over the bytes that are there.
    #[must_use]
    pub fn finish_with_length(mut self, length: u32) -> Vec<u8> {
        self.bytes[4..8].copy_from_slice(&length.to_le_bytes());
        self.bytes[9] = 0;
        let covered = self.bytes.len().min(length as usize);
        let sum = self.bytes[..covered].iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte));
        self.bytes[9] = sum.wrapping_neg();
        self.bytes
    }
}
