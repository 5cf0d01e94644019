//! A walker such as hardware is, written apart from the engine: from the root, one read for each level, permissions
//! ANDed on the way.

use mm::PhysAddr;

use super::arena::Arena;

/// What the walker knows of a table.
#[derive(Clone, Copy)]
pub struct Walker {
    pub root: PhysAddr,
    pub levels: u32,
    /// Whether it sees what the CPU wrote, or what was written back.
    pub snoops: bool,
    /// Bits that all have to be 0 for an entry to be not present.
    pub present: u64,
}

/// Where an input leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    pub output: u64,
    pub leaf_bytes: u64,
    /// The entry's bits 11:0 without bit 7.
    pub bits: u64,
    /// Page and index of the leaf.
    pub at: (PhysAddr, usize),
}

impl Walker {
    pub fn walk(&self, memory: &Arena, input: u64) -> Option<Found> {
        let mut table = self.root;
        let mut granted = self.present;
        for level in (0..self.levels).rev() {
            let shift = 12 + 9 * level;
            let at = (table, (input >> shift) as usize & 511);
            let entry = memory.read(at.0, at.1, self.snoops);
            granted &= entry;
            if granted == 0 {
                return None;
            }
            let address = entry & ((1 << 52) - 1) & !0xfff;
            if level == 0 || entry & 0x80 != 0 {
                assert!(level < 3, "a leaf at level {}", level + 1);
                let inside = input & ((1 << shift) - 1);
                assert_eq!(address & ((1 << shift) - 1), 0, "address bits inside a superpage");
                let bits = entry & 0xf7f;
                return Some(Found { output: address + inside, leaf_bytes: 1 << shift, bits, at });
            }
            table = PhysAddr::new(address);
        }
        unreachable!("level 0 ends the loop")
    }

    /// Sees that each link, in its bits 61:52, has the number of entries in use in the table behind it. Nobody is
    /// inside any table. Returns the number of tables.
    pub fn audit(&self, memory: &Arena) -> usize {
        self.audit_below(memory, self.root, self.levels).1
    }

    fn audit_below(&self, memory: &Arena, table: PhysAddr, levels: u32) -> (u64, usize) {
        let (mut in_use, mut tables) = (0, 1);
        for index in 0..512 {
            let entry = memory.read(table, index, true);
            in_use += u64::from(entry != 0);
            if levels > 1 && entry & self.present != 0 && entry & 0x80 == 0 {
                let below = PhysAddr::new(entry & ((1 << 52) - 1) & !0xfff);
                let (counted, more) = self.audit_below(memory, below, levels - 1);
                assert_eq!(entry >> 52 & 0x3ff, counted, "live count of the table at {below}");
                tables += more;
            }
        }
        (in_use, tables)
    }
}
