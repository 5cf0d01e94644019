//! The Identify Namespace structure.

use core::fmt;

use super::identify::{IDENTIFY_BYTES, bytes_at};

/// A namespace: the blocks of a controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Namespace {
    /// Its identifier.
    pub id: u32,
    /// Number of blocks.
    pub blocks: u64,
    /// Size of a block as a power of two: 9 to 12.
    pub block_lg2: u8,
    /// Writes fail.
    pub is_write_protected: bool,
}

/// Why a namespace cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NamespaceError {
    /// Its identifier is above the highest that the controller says there can be.
    Id {
        /// The identifier.
        id: u32,
        /// The highest.
        highest: u32,
    },
    /// It has no blocks.
    Empty,
    /// It is formatted in a way that it does not list.
    Format {
        /// Index of the format.
        index: u8,
        /// Formats in the list.
        formats: u8,
    },
    /// Its blocks are shorter than 512 or longer than 4,096 bytes.
    BlockSize {
        /// Size as a power of two.
        lg2: u8,
    },
    /// Its blocks carry metadata, or protection information.
    Metadata {
        /// Bytes of metadata.
        bytes: u16,
        /// The protection settings.
        protection: u8,
    },
}

impl fmt::Display for NamespaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id { id, highest } => write!(f, "namespace {id} of at most {highest}"),
            Self::Empty => f.write_str("the namespace has no blocks"),
            Self::Format { index, formats } => {
                write!(f, "the namespace has format {index} of {formats}")
            }
            Self::BlockSize { lg2 } => write!(f, "blocks of 2^{lg2} bytes"),
            Self::Metadata { bytes, protection } => {
                write!(f, "blocks with {bytes} bytes of metadata and protection {protection:#x}")
            }
        }
    }
}

impl core::error::Error for NamespaceError {}

/// Offsets in the structure.
mod offset {
    /// Number of blocks, 8 bytes.
    pub const SIZE: usize = 0;
    /// Number of formats, as one less.
    pub const FORMATS: usize = 25;
    /// Index of the format in use: bits 3:0, and bits 6:5 above them.
    pub const FORMAT: usize = 26;
    pub const PROTECTION: usize = 29;
    pub const ATTRIBUTES: usize = 99;
    /// The formats, 4 bytes each.
    pub const FORMAT_LIST: usize = 128;
}

/// Most formats that there is room for.
const FORMATS: usize = 64;

impl Namespace {
    /// Decodes the structure of namespace `id`.
    ///
    /// # Errors
    /// It is of no use to this driver.
    pub fn decode(id: u32, page: &[u8; IDENTIFY_BYTES]) -> Result<Self, NamespaceError> {
        let blocks = u64::from_le_bytes(bytes_at(page, offset::SIZE));
        if blocks == 0 {
            return Err(NamespaceError::Empty);
        }
        let formats = page[offset::FORMATS].saturating_add(1);
        let selected = page[offset::FORMAT];
        let index = selected & 0xf | (selected >> 5 & 3) << 4;
        if index >= formats || usize::from(index) >= FORMATS {
            return Err(NamespaceError::Format { index, formats });
        }
        let format: [u8; 4] = bytes_at(page, offset::FORMAT_LIST + 4 * usize::from(index));
        let (metadata, block_lg2) = (u16::from_le_bytes([format[0], format[1]]), format[2]);
        let protection = page[offset::PROTECTION] & 7;
        if metadata != 0 || protection != 0 {
            return Err(NamespaceError::Metadata { bytes: metadata, protection });
        }
        if !(9..=12).contains(&block_lg2) {
            return Err(NamespaceError::BlockSize { lg2: block_lg2 });
        }
        let is_write_protected = page[offset::ATTRIBUTES] & 1 != 0;
        Ok(Self { id, blocks, block_lg2, is_write_protected })
    }
}

/// The identifiers in a list of namespaces, which ends with a 0 or with its page.
pub fn namespaces(page: &[u8; IDENTIFY_BYTES]) -> impl Iterator<Item = u32> {
    let ids = (0..IDENTIFY_BYTES).step_by(4).map(|at| u32::from_le_bytes(bytes_at(page, at)));
    ids.take_while(|&id| id != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 4,096 blocks of 512 bytes: format 1 of 2.
    fn page() -> [u8; IDENTIFY_BYTES] {
        let mut page = [0; IDENTIFY_BYTES];
        page[offset::SIZE + 1] = 0x10;
        (page[offset::FORMATS], page[offset::FORMAT]) = (1, 1);
        (page[offset::FORMAT_LIST + 2], page[offset::FORMAT_LIST + 6]) = (12, 9);
        page
    }

    fn decode(change: impl FnOnce(&mut [u8; IDENTIFY_BYTES])) -> Result<Namespace, NamespaceError> {
        let mut page = page();
        change(&mut page);
        Namespace::decode(3, &page)
    }

    #[test]
    fn a_structure_is_decoded() {
        let plain = Namespace { id: 3, blocks: 4096, block_lg2: 9, is_write_protected: false };
        assert_eq!(decode(|_| ()), Ok(plain));
        assert_eq!(decode(|page| page[offset::FORMAT] = 0), Ok(Namespace { block_lg2: 12, ..plain }));
        let protected = Namespace { is_write_protected: true, ..plain };
        assert_eq!(decode(|page| page[offset::ATTRIBUTES] = 1), Ok(protected));
        // The index has two more bits above bit 4, which says something else.
        let upper = |page: &mut [u8; IDENTIFY_BYTES]| {
            (page[offset::FORMATS], page[offset::FORMAT]) = (32, 0x30);
            page[offset::FORMAT_LIST + 4 * 16 + 2] = 10;
        };
        assert_eq!(decode(upper), Ok(Namespace { block_lg2: 10, ..plain }));
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert_eq!(decode(|page| page[..8].fill(0)), Err(NamespaceError::Empty));
        let index = |page: &mut [u8; IDENTIFY_BYTES]| page[offset::FORMAT] = 2;
        assert_eq!(decode(index), Err(NamespaceError::Format { index: 2, formats: 2 }));
        for lg2 in [0, 8, 13, 255] {
            let error = decode(|page| page[offset::FORMAT_LIST + 6] = lg2);
            assert_eq!(error, Err(NamespaceError::BlockSize { lg2 }));
        }
        let error = decode(|page| page[offset::FORMAT_LIST + 4] = 8);
        assert_eq!(error, Err(NamespaceError::Metadata { bytes: 8, protection: 0 }));
        let error = decode(|page| page[offset::PROTECTION] = 0x19);
        assert_eq!(error, Err(NamespaceError::Metadata { bytes: 0, protection: 1 }));
    }

    #[test]
    fn a_list_of_namespaces_ends_with_a_zero_or_its_page() {
        let mut page = [0; IDENTIFY_BYTES];
        (page[0], page[4], page[12]) = (3, 7, 9);
        assert!(namespaces(&page).eq([3, 7]));
        page.fill(1);
        assert_eq!(namespaces(&page).count(), IDENTIFY_BYTES / 4);
    }

    #[test]
    fn whatever_is_in_the_structure_is_taken_or_refused() {
        let mut random = 1_u64;
        for _ in 0..2_000 {
            let mut page = [0; IDENTIFY_BYTES];
            for byte in &mut page[..512] {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (random >> 56) as u8;
            }
            if let Ok(namespace) = Namespace::decode(1, &page) {
                assert!((9..=12).contains(&namespace.block_lg2) && namespace.blocks > 0);
            }
        }
    }
}
