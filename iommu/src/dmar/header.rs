//! The first 48 bytes of the table.

use bitflags::bitflags;

use super::{
    DmarError, MAX_TABLE_BYTES,
    read::{array_at, u8_at, u32_at},
};

/// Size of the header in bytes: the first structure starts here.
pub const HEADER_BYTES: usize = 48;

bitflags! {
    /// What firmware says of the platform as a whole.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    pub struct HeaderFlags: u8 {
        /// The platform supports interrupt remapping.
        const INTR_REMAP = 1 << 0;
        /// Firmware asks that x2APIC mode be left off. Means something only together with `INTR_REMAP`.
        const X2APIC_OPT_OUT = 1 << 1;
        /// Firmware kept DMA blocked until the hand-over and asks that it stay so.
        const DMA_CTRL_PLATFORM_OPT_IN = 1 << 2;
    }
}

/// The header's fields, the standard ACPI ones first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Length of the whole table in bytes, as the table says.
    pub length: u32,
    /// Revision of the table, 1 in all that are known.
    pub revision: u8,
    /// The byte that makes the sum of all bytes 0.
    pub checksum: u8,
    /// Who made the machine.
    pub oem_id: [u8; 6],
    /// Which machine it is.
    pub oem_table_id: [u8; 8],
    /// The maker's version of the table.
    pub oem_revision: u32,
    /// Who made the tool that wrote the table.
    pub creator_id: [u8; 4],
    /// The tool's version.
    pub creator_revision: u32,
    /// Number of bits of the widest DMA address on this machine: HAW, 1-256.
    pub host_address_bits: u16,
    /// Flags, unknown bits included.
    pub flags: HeaderFlags,
    pub(super) reserved: [u8; 10],
}

impl Header {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, DmarError> {
        let header = Self::read(bytes).ok_or(DmarError::HeaderTruncated { available: bytes.len() })?;
        match array_at(bytes, 0) {
            Some(found) if found != *b"DMAR" => return Err(DmarError::Signature { found }),
            _ => {}
        }
        let length = header.length as usize;
        if length < HEADER_BYTES {
            return Err(DmarError::TableTooShort { length: header.length });
        }
        if length > MAX_TABLE_BYTES {
            return Err(DmarError::TableTooLong { length: header.length });
        }
        Ok(header)
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            length: u32_at(bytes, 4)?,
            revision: u8_at(bytes, 8)?,
            checksum: u8_at(bytes, 9)?,
            oem_id: array_at(bytes, 10)?,
            oem_table_id: array_at(bytes, 16)?,
            oem_revision: u32_at(bytes, 24)?,
            creator_id: array_at(bytes, 28)?,
            creator_revision: u32_at(bytes, 32)?,
            host_address_bits: u16::from(u8_at(bytes, 36)?) + 1,
            flags: HeaderFlags::from_bits_retain(u8_at(bytes, 37)?),
            reserved: array_at(bytes, 38)?,
        })
    }
}
