//! A format like that of a remapping unit: read and write bits, leaves marked by bit 7, whatever else the test wants.

use mm::PhysAddr;
use mm::table::{Entry, Format, LeafSizes};

#[derive(Clone, Copy, Debug)]
pub struct Remap {
    pub levels: u8,
    pub sizes: LeafSizes,
    pub output_bits: u8,
    pub coherent: bool,
}

/// Bits 1:0: 1 read, 2 write, 3 both.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rights(pub u8);

pub const READ: Rights = Rights(1);
pub const WRITE: Rights = Rights(2);
pub const BOTH: Rights = Rights(3);

const LEAF: u64 = 0x80;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// What hardware sets by itself.
pub const DIRTY: u64 = 0x200;

impl Format for Remap {
    type Access = Rights;

    fn levels(&self) -> u8 {
        self.levels
    }

    fn leaf_sizes(&self) -> LeafSizes {
        self.sizes
    }

    fn output_bits(&self) -> u8 {
        self.output_bits
    }

    fn is_coherent(&self) -> bool {
        self.coherent
    }

    fn encode_table(&self, table: PhysAddr) -> u64 {
        table.as_u64() | 3
    }

    fn encode_leaf(&self, level: u8, output: PhysAddr, access: Rights) -> u64 {
        output.as_u64() | u64::from(access.0) | if level > 1 { LEAF } else { 0 }
    }

    fn decode(&self, level: u8, raw: u64) -> Entry<Rights> {
        let address = PhysAddr::new(raw & ADDRESS);
        match raw & 3 {
            0 => Entry::Empty,
            rights if level == 1 || raw & LEAF != 0 => Entry::Leaf(address, Rights(rights as u8)),
            _ => Entry::Table(address),
        }
    }

    fn hardware_bits(&self) -> u64 {
        DIRTY
    }
}
