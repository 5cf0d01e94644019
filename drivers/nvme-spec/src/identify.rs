//! The Identify Controller structure.

use core::{fmt, str};

/// Its length.
pub const IDENTIFY_BYTES: usize = 4096;

/// What a controller says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// PCI vendor id.
    pub vendor: u16,
    serial: [u8; 20],
    model: [u8; 40],
    firmware: [u8; 8],
    /// Optional admin commands: bit 3 for those about namespaces, bit 7 for virtualization management.
    pub optional_admin_commands: u16,
    /// Largest transfer as a power of two of 4 KiB pages; 0 for no limit.
    pub transfer_limit_lg2: u8,
    /// Number of namespaces that there can be.
    pub namespaces: u32,
    /// Least and most bytes of submission and completion entries, as powers of two.
    pub entry_lg2: [(u8, u8); 2],
    /// Optional commands: bit 2 for dataset management.
    pub optional_commands: u16,
    /// What completes may be lost until it is flushed.
    pub has_volatile_cache: bool,
}

impl Identity {
    /// Decodes the structure.
    #[must_use]
    pub fn decode(page: &[u8; IDENTIFY_BYTES]) -> Self {
        Self {
            vendor: u16::from_le_bytes(bytes_at(page, 0)),
            serial: bytes_at(page, 4),
            model: bytes_at(page, 24),
            firmware: bytes_at(page, 64),
            optional_admin_commands: u16::from_le_bytes(bytes_at(page, 256)),
            transfer_limit_lg2: page[77],
            namespaces: u32::from_le_bytes(bytes_at(page, 516)),
            entry_lg2: [512, 513].map(|at| (page[at] & 0xf, page[at] >> 4)),
            optional_commands: u16::from_le_bytes(bytes_at(page, 520)),
            has_volatile_cache: page[525] & 1 != 0,
        }
    }

    /// Whether entries of 64 and 16 bytes, which every controller must take, are among the possible ones.
    #[must_use]
    pub fn takes_plain_entries(&self) -> bool {
        self.entry_lg2.iter().zip([6, 4]).all(|(&(least, most), wanted)| (least..=most).contains(&wanted))
    }

    /// Whether it has the dataset management command.
    #[must_use]
    pub fn deallocates(&self) -> bool {
        self.optional_commands & 1 << 2 != 0
    }

    /// Whether namespaces can be attached to controllers, and detached.
    #[must_use]
    pub fn manages_namespaces(&self) -> bool {
        self.optional_admin_commands & 1 << 3 != 0
    }

    /// Whether it can give queues and interrupts to secondary controllers.
    #[must_use]
    pub fn manages_secondaries(&self) -> bool {
        self.optional_admin_commands & 1 << 7 != 0
    }

    /// Serial number.
    #[must_use]
    pub fn serial(&self) -> &str {
        text(&self.serial)
    }

    /// Model.
    #[must_use]
    pub fn model(&self) -> &str {
        text(&self.model)
    }

    /// Firmware revision.
    #[must_use]
    pub fn firmware(&self) -> &str {
        text(&self.firmware)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, serial {}, firmware {}", self.model(), self.serial(), self.firmware())
    }
}

/// The `N` bytes at `at` of a structure.
#[must_use]
pub fn bytes_at<const N: usize>(page: &[u8; IDENTIFY_BYTES], at: usize) -> [u8; N] {
    core::array::from_fn(|index| page[at + index])
}

/// A field as text without its padding; nothing if it is not printable ASCII, as it has to be.
fn text(field: &[u8]) -> &str {
    let printable = field.iter().all(|byte| matches!(byte, b' '..=b'~'));
    str::from_utf8(field).ok().filter(|_| printable).map_or("", str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_structure_is_decoded() {
        let mut page = [0; IDENTIFY_BYTES];
        page[..2].copy_from_slice(&[0x36, 0x1b]);
        page[4..24].copy_from_slice(b"sluice0             ");
        page[24..64].copy_from_slice(b"QEMU NVMe Ctrl                          ");
        page[64..72].copy_from_slice(b"10.0    ");
        page[77] = 7;
        page[256] = 0x88;
        page[512..514].copy_from_slice(&[0x66, 0x44]);
        (page[520], page[525]) = (0x04, 0x07);
        page[516..520].copy_from_slice(&256_u32.to_le_bytes());
        let identity = Identity::decode(&page);
        assert!(identity.manages_namespaces() && identity.manages_secondaries());
        assert!(identity.takes_plain_entries() && identity.deallocates() && identity.has_volatile_cache);
        assert_eq!((identity.vendor, identity.transfer_limit_lg2, identity.namespaces), (0x1b36, 7, 256));
        assert_eq!(
            (identity.serial(), identity.model(), identity.firmware()),
            ("sluice0", "QEMU NVMe Ctrl", "10.0")
        );
    }

    #[test]
    fn a_name_that_is_no_text_is_empty() {
        let mut page = [0; IDENTIFY_BYTES];
        page[24..64].fill(0xff);
        page[4..24].copy_from_slice(b"\x1b[2Jnot on a console");
        let identity = Identity::decode(&page);
        assert_eq!((identity.model(), identity.serial()), ("", ""));
    }
}
