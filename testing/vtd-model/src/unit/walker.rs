//! The walk of either stage, with its paging-structure caches.

use super::{Access, Unit, translation::is_interrupt_range};
use crate::{
    complaints::Rule,
    entries::{Binding, PageEntry},
    iotlb::{Stage, Tag, Translation},
    paging_cache::{CachedTable, level_shift},
    reason::Reason,
    world::World,
};

/// Where a walk stands: the table to read next, and the rights that the entries above leave.
struct Position {
    level: u8,
    table: u64,
    read: bool,
    write: bool,
}

/// What one walk is for.
struct Walk {
    tag: Tag,
    address: u64,
    access: Access,
    /// It snoops the CPU's caches.
    snoops: bool,
    /// XD is no reserved bit.
    no_execute: bool,
}

impl Walk {
    fn refused(&self) -> Reason {
        if self.access == Access::Write { Reason::NoWrite } else { Reason::NoRead }
    }
}

impl Unit {
    /// Walks the table of a source. What is found is not yet in the IOTLB.
    pub(super) fn walk(
        &mut self,
        world: &mut World,
        binding: &Binding,
        address: u64,
        access: Access,
    ) -> Result<Translation, Reason> {
        let Binding { snoops, no_execute, .. } = *binding;
        let walk = Walk { tag: binding.tag(), address, access, snoops, no_execute };
        let mut position = self.cached_position(world, &walk, binding.levels())?.unwrap_or(Position {
            level: binding.levels(),
            table: binding.table,
            read: true,
            write: true,
        });
        // At most five rounds: each goes one level down.
        loop {
            let entry = self.next_entry(world, &walk, &mut position)?;
            if entry.is_leaf(position.level) {
                return self.leaf(world, &walk, &position, entry);
            }
            let cached =
                CachedTable { table: Some(entry.address()), read: position.read, write: position.write };
            self.paging.insert(walk.tag, position.level, walk.address, cached);
            position.level -= 1;
            position.table = entry.address();
        }
    }

    /// Where the paging-structure caches let the walk start: as far down as they reach.
    fn cached_position(
        &mut self,
        world: &mut World,
        walk: &Walk,
        levels: u8,
    ) -> Result<Option<Position>, Reason> {
        for level in 2..=levels {
            let Some(cached) = self.paging.get(walk.tag, level, walk.address) else { continue };
            if world.drops() {
                self.paging.remove(walk.tag, level, walk.address);
                continue;
            }
            let Some(table) = cached.table else { return Err(walk.refused()) };
            return Ok(Some(Position { level: level - 1, table, read: cached.read, write: cached.write }));
        }
        Ok(None)
    }

    /// Reads and checks the entry at `position`, and narrows the rights by it.
    fn next_entry(
        &mut self,
        world: &mut World,
        walk: &Walk,
        position: &mut Position,
    ) -> Result<PageEntry, Reason> {
        let index = walk.address >> level_shift(position.level) & 0x1ff;
        let raw = self.word_as(world, position.table + index * 8, walk.snoops);
        let raw = raw.ok_or(Reason::PageEntryNotAccessible)?;
        let entry = PageEntry { raw, stage: walk.tag.stage };
        position.read &= entry.read();
        position.write &= entry.write();
        // Caching mode is the second stage's.
        if !entry.present() && self.config.caching_mode && entry.stage == Stage::Second {
            self.remember_not_present(world, walk, position.level);
        }
        if entry.stage == Stage::First {
            self.check_first_stage(world, walk, position.level, entry)?;
        }
        // Rights come before reserved bits.
        if !self.allows(walk.access, position.read, position.write) {
            return Err(walk.refused());
        }
        let is_reserved = entry.reserved_set(position.level, &self.config, self.host_address_bits);
        if is_reserved || entry.has_no_execute() && !walk.no_execute {
            return Err(Reason::PageEntryReserved);
        }
        Ok(entry)
    }

    /// What the first stage asks of an entry besides.
    fn check_first_stage(
        &self,
        world: &World,
        walk: &Walk,
        level: u8,
        entry: PageEntry,
    ) -> Result<(), Reason> {
        if !entry.present() {
            return Err(Reason::FirstStageNotPresent);
        }
        if entry.is_supervisors() {
            return Err(Reason::Supervisors);
        }
        // Hardware would write to the table, which nobody expects it to.
        if entry.is_to_be_marked(level, walk.access == Access::Write && entry.write()) {
            let text = format!("level-{level} entry {:#x}: A or D is not set", entry.raw);
            self.complain(world, Rule::WritesToTable, text);
        }
        Ok(())
    }

    /// Caching mode: the missing entry is remembered for its page, or for everything that it spans.
    fn remember_not_present(&mut self, world: &mut World, walk: &Walk, level: u8) {
        if level > 1 && world.random.once_in(2) {
            let cached = CachedTable { table: None, read: false, write: false };
            self.paging.insert(walk.tag, level, walk.address, cached);
        } else {
            self.iotlb.insert_not_present(walk.tag, walk.address);
        }
    }

    /// The translation by a leaf. Hardware may cut a superpage into smaller translations.
    fn leaf(
        &mut self,
        world: &mut World,
        walk: &Walk,
        position: &Position,
        entry: PageEntry,
    ) -> Result<Translation, Reason> {
        let mut page_shift = level_shift(position.level);
        let mut physical = entry.address();
        if is_interrupt_range(physical | walk.address & ((1 << page_shift) - 1)) {
            return Err(Reason::OutputIsInterrupt);
        }
        while page_shift > 12 && world.random.once_in(2) {
            let inside = walk.address & ((1 << page_shift) - 1);
            page_shift -= 9;
            physical += inside >> page_shift << page_shift;
        }
        let Position { read, write, .. } = *position;
        Ok(Translation { physical, page_shift, read, write, pass_through: false })
    }
}
