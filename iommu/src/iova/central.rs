//! What all CPUs share, under one lock: the holes, the depot, and the ledger.

use core::mem;

use mm::{PAGE_SHIFT, table::TableMemory};

use super::{
    FreeError, IovaError,
    holes::{Holes, Run, Shape, limit},
    ledger::{Ledger, NoEntry},
    magazine::{Depot, KINDS, Kind, Magazine, Rack},
};
use crate::Iova;
use crate::slab::{Slab, Slot};

pub(super) struct Central {
    holes: Holes,
    magazines: Slab<Magazine>,
    depots: [Depot; KINDS],
    ledger: Ledger,
    /// Pages that are not in a hole and not reserved: handed out, or in a magazine.
    taken_pages: u64,
    /// Write down everything that is handed out.
    checked: bool,
}

impl Central {
    /// Nothing at all.
    ///
    /// # Safety
    /// All calls get the same table memory, [`release`](Self::release) is the last of them, and no magazine is used
    /// after it.
    pub unsafe fn new(checked: bool) -> Self {
        // SAFETY: passed on to the caller; records and nodes never leave the ledger and the holes.
        let (holes, magazines, ledger) = unsafe { (Holes::new(), Slab::new(), Ledger::new()) };
        Self { holes, magazines, depots: Default::default(), ledger, taken_pages: 0, checked }
    }

    /// Gives all memory back.
    pub fn release<M: TableMemory>(&mut self, tables: &M) {
        self.depots = Default::default();
        self.holes.release(tables);
        self.magazines.release(tables);
        self.ledger.release(tables);
    }

    /// Gives back memory that nothing needs now.
    pub fn trim<M: TableMemory>(&mut self, tables: &M) {
        self.holes.trim(tables);
        self.magazines.trim(tables);
        self.ledger.trim(tables);
    }

    /// Makes `run` part of the space.
    pub fn add<M: TableMemory>(&mut self, tables: &M, run: Run) -> Result<(), IovaError> {
        if self.holes.add(tables, run) { Ok(()) } else { Err(IovaError::OutOfMemory) }
    }

    #[cfg(test)]
    pub fn look(&self) -> &Holes {
        &self.holes
    }

    /// Whether something is written down in a space that does not write down everything.
    pub fn has_exceptions(&self) -> bool {
        !self.ledger.is_empty()
    }

    pub fn taken_pages(&self) -> u64 {
        self.taken_pages
    }

    /// Pages in the depot.
    pub fn depot_pages(&self) -> u64 {
        Kind::all().zip(&self.depots).map(|(kind, depot)| depot.blocks() as u64 * kind.pages()).sum()
    }

    /// Pages of memory in use.
    pub fn memory_pages(&self) -> usize {
        self.holes.memory_pages() + self.magazines.pages() + self.ledger.memory_pages()
    }

    /// A run of that shape, out of the holes: a block of a magazine's size if there is one, else just its pages. `None`
    /// if there is no room.
    pub fn allocate<M: TableMemory>(&mut self, tables: &M, shape: &Shape) -> Option<Result<Iova, IovaError>> {
        let order = shape.pages.next_power_of_two().max(shape.alignment).ilog2();
        let block = self.holes.find_blocks(order, 1, shape.limit).map(|block| {
            let pages = Kind::for_request(shape.pages, 0).map_or(shape.pages, Kind::pages);
            Run { first: block.first, end: block.first + pages }
        });
        let run = block.or_else(|| self.holes.find(shape))?;
        Some(self.take(tables, run, shape.pages).map(|()| Iova::new(run.first << PAGE_SHIFT)))
    }

    /// Exactly `run`, to be given back or, if `lasting`, not. `None` if it is not all free.
    pub fn take_fixed<M: TableMemory>(
        &mut self,
        tables: &M,
        run: Run,
        lasting: bool,
    ) -> Option<Result<(), IovaError>> {
        if !self.holes.is_free(run) {
            return None;
        }
        if !lasting {
            return Some(self.take(tables, run, run.pages()));
        }
        if !self.holes.prepare(tables, 0) {
            return Some(Err(IovaError::OutOfMemory));
        }
        self.holes.take(tables, run);
        Some(Ok(()))
    }

    /// Takes `run` for a request for `pages` pages, and writes it down if need be.
    fn take<M: TableMemory>(&mut self, tables: &M, run: Run, pages: u64) -> Result<(), IovaError> {
        let looks_like = Kind::of_block(run.first << PAGE_SHIFT, pages);
        let record = self.checked || !looks_like.is_none_or(|kind| kind.is_block(run));
        if record && !self.ledger.prepare(tables) {
            return Err(IovaError::OutOfMemory);
        }
        if !self.holes.prepare(tables, run.pieces().count()) {
            if record {
                self.ledger.cancel();
            }
            return Err(IovaError::OutOfMemory);
        }
        self.holes.take(tables, run);
        self.taken_pages += run.pages();
        if record {
            self.ledger.enter(run, pages);
        }
        Ok(())
    }

    /// Takes `run`, handed out for `pages` pages, back if it is written down. `false` if it need not be and is not.
    pub fn strike<M: TableMemory>(&mut self, tables: &M, run: Run, pages: u64) -> Result<bool, FreeError> {
        let iova = Iova::new(run.first << PAGE_SHIFT);
        match self.ledger.strike(tables, run.first, pages) {
            Ok(run) => {
                self.give(tables, run);
                Ok(true)
            }
            Err(NoEntry::Pages(allocated)) => Err(FreeError::WrongLength { iova, pages, allocated }),
            Err(NoEntry::Unknown) if self.checked => Err(FreeError::NotAllocated { iova, pages }),
            Err(NoEntry::Unknown) => Ok(false),
        }
    }

    /// Makes `run` free. `false`, and nothing done, if some of it is.
    pub fn give<M: TableMemory>(&mut self, tables: &M, run: Run) -> bool {
        let given = self.holes.give(tables, run);
        if given {
            self.taken_pages = self.taken_pages.saturating_sub(run.pages());
        }
        given
    }

    /// Puts blocks up to address `last` into `rack`, which has none, if there are any.
    pub fn refill<M: TableMemory>(&mut self, tables: &M, rack: &mut Rack, kind: Kind, last: u64) {
        if rack.previous.as_ref().is_none_or(|magazine| magazine.len() == 0)
            && let Some(full) = self.depots[kind.index()].pop()
        {
            let loaded = rack.loaded.replace(full);
            if let Some(empty) = mem::replace(&mut rack.previous, loaded) {
                self.magazines.put(tables, empty);
            }
            return;
        }
        if rack.loaded.is_none() {
            rack.loaded = self.magazines.take(tables, Magazine::new(kind));
        }
        let Some(magazine) = &mut rack.loaded else { return };
        let wanted = kind.refill().min(magazine.room()) as u64;
        let Some(run) = self.holes.find_blocks(kind.order, wanted, limit(last)) else { return };
        let blocks = run.pages() >> kind.order;
        if !self.holes.prepare(tables, blocks as usize) {
            return;
        }
        self.holes.take(tables, run);
        self.taken_pages += run.pages();
        // The lowest comes to lie on top.
        for block in (0..blocks).rev() {
            magazine.push((run.first + (block << kind.order)) << PAGE_SHIFT);
        }
    }

    /// Makes room in `rack`, whose magazines are full or absent: through the depot, or by giving blocks back. There may
    /// be none all the same, for want of memory.
    pub fn make_room<M: TableMemory>(&mut self, tables: &M, rack: &mut Rack, kind: Kind) {
        let depot = &mut self.depots[kind.index()];
        let is_wanted = rack.previous.is_none() || depot.has_room(kind);
        let fresh = is_wanted.then(|| self.magazines.take(tables, Magazine::new(kind))).flatten();
        match (fresh, rack.previous.take()) {
            (Some(fresh), previous) => {
                previous.into_iter().for_each(|full| depot.push(full));
                rack.previous = rack.loaded.replace(fresh);
            }
            (None, Some(mut full)) => {
                self.unload(tables, &mut full, kind);
                rack.previous = rack.loaded.replace(full);
            }
            (None, None) => {
                if let Some(full) = &mut rack.loaded {
                    self.unload(tables, full, kind);
                }
            }
        }
    }

    /// Gives the blocks of `magazine` back to the holes.
    fn unload<M: TableMemory>(&mut self, tables: &M, magazine: &mut Magazine, kind: Kind) {
        for first in magazine.drain() {
            // A block that is free already came in twice. It is dropped: the caller's mistake ends here.
            self.give(tables, kind.run(first));
        }
    }

    /// Gives the blocks of `magazine` back to the holes, and its memory to the host.
    pub fn retire<M: TableMemory>(&mut self, tables: &M, mut magazine: Slot<Magazine>, kind: Kind) {
        self.unload(tables, &mut magazine, kind);
        self.magazines.put(tables, magazine);
    }

    /// Does the same to a magazine of the depot. Whether there was one.
    pub fn retire_from_depot<M: TableMemory>(&mut self, tables: &M) -> bool {
        let mut kinds = Kind::all();
        let found = kinds.find_map(|kind| Some((kind, self.depots[kind.index()].pop()?)));
        found.map(|(kind, magazine)| self.retire(tables, magazine, kind)).is_some()
    }
}
