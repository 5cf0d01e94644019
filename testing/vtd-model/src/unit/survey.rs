//! What a source can reach, read straight from memory and from the caches.

use super::Unit;
use crate::{
    entries::{PageEntry, TranslationType},
    iotlb::{Stage, Translation},
    paging_cache::level_shift,
    world::World,
};

/// A run of addresses that lead to a run of memory with the same rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// First address that the device uses.
    pub address: u64,
    /// Where it leads.
    pub physical: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
}

struct Survey<'a> {
    stage: Stage,
    snoops: bool,
    world: &'a World,
    found: Vec<Reach>,
}

impl Unit {
    /// Everything that the tables let `source` reach, as they stand in memory, sorted. Caches are not looked at. `None`
    /// if addresses pass through.
    pub fn survey(&self, world: &World, source: u16) -> Option<Vec<Reach>> {
        let Some(binding) = self.binding_in_memory(world, source) else { return Some(Vec::new()) };
        if binding.kind == TranslationType::PassThrough {
            return None;
        }
        let mut survey = Survey { stage: binding.stage, snoops: binding.snoops, world, found: Vec::new() };
        survey.table(binding.table, binding.levels(), 0, (true, true));
        Some(survey.found)
    }

    /// The translations that the IOTLB holds for `source`, each with the address that it is of.
    pub fn cached_for(&self, world: &World, source: u16) -> Vec<(u64, Translation)> {
        let binding = self.binding_in_memory(world, source);
        binding.map_or(Vec::new(), |binding| self.iotlb.entries(binding.tag()))
    }
}

impl Survey<'_> {
    fn table(&mut self, table: u64, level: u8, first: u64, rights: (bool, bool)) {
        for index in 0..512 {
            let raw = self.world.memory.word(table + index * 8, self.snoops);
            let entry = PageEntry { raw: raw.unwrap_or(0), stage: self.stage };
            let address = first + (index << level_shift(level));
            let (read, write) = (rights.0 && entry.read(), rights.1 && entry.write());
            if !read && !write || entry.is_supervisors() {
                continue;
            }
            if entry.is_leaf(level) {
                self.push(Reach {
                    address,
                    physical: entry.address(),
                    bytes: 1 << level_shift(level),
                    read,
                    write,
                });
            } else {
                self.table(entry.address(), level - 1, address, (read, write));
            }
        }
    }

    fn push(&mut self, next: Reach) {
        if let Some(last) = self.found.last_mut()
            && last.address + last.bytes == next.address
            && last.physical + last.bytes == next.physical
            && (last.read, last.write) == (next.read, next.write)
        {
            last.bytes += next.bytes;
        } else {
            self.found.push(next);
        }
    }
}
