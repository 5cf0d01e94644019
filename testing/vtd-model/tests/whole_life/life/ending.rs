//! How a life ends: in peace, or with a unit that stops working.

use std::collections::BTreeSet;

use iommu::{
    Bidirectional, DmaError, Iova, ReleaseError,
    dump::{DomainReport, GroupReport, Visitor},
};

use super::{Group, Life, PAGE, memory::Standing};

#[derive(Default)]
struct Pages(u64);

impl Visitor for Pages {
    fn domain(&mut self, domain: &DomainReport) {
        self.0 += domain.mapped_pages;
    }
}

/// Requester ids, each with the unit that sees it.
#[derive(Default)]
struct Sources(Vec<(u16, usize)>);

impl Visitor for Sources {
    fn group(&mut self, group: &GroupReport<'_>) {
        self.0.extend(group.sources.iter().map(|&(source, unit)| (source.requester, unit)));
    }
}

impl Life {
    /// Takes everything back and looks at what is left.
    pub fn end(mut self) -> Result<(), String> {
        self.driven.machine.set_shortage(None);
        self.short_of_memory = false;
        self.plug_all()?;
        self.release_quarantined()?;
        self.check_everything()?;
        self.unmap_all()?;
        self.redeem_where(|_, _| true)?;
        while !self.pools.is_empty() {
            self.drop_pool(0);
        }
        self.release_all_interrupts()?;
        while let Some(coherent) = self.coherent.pop() {
            self.drop_coherent(coherent);
        }
        self.reap();
        let left = self.driven.iommu.live_mappings();
        if left != self.pinned {
            return Err(format!("{left} mappings are left at the end, not {}", self.pinned));
        }
        self.check_everything()?;
        self.expect_only_reserved_pages()?;
        self.expect_free_addresses()?;
        self.release_claimed()?;
        self.check_everything()?;
        self.expect_no_tables()?;
        self.expect_no_complaint()
    }

    /// A unit stops working, in one way or another: what it may still reach stays pinned, and everything else goes on.
    pub fn end_by_death(mut self) -> Result<(), String> {
        self.driven.machine.set_shortage(None);
        self.short_of_memory = false;
        self.release_quarantined()?;
        self.reap();
        self.redeem_where(|_, _| true)?;
        self.release_all_interrupts()?;
        let units = &self.driven.machine.config().units;
        let dead = self.random.index(units.len());
        let queued = self.driven.units()[dead].queues_invalidations();
        let way = self.random.below(3);
        self.driven.machine.clock().set_relax_ns(1_000_000);
        self.driven.machine.misbehave(dead, |unit| match (way, queued) {
            (0, _) => unit.gone = true,
            (_, false) => unit.registers_stalled = true,
            (1, true) => unit.queue_stalled = true,
            (_, true) => unit.statuses_lost = true,
        });
        while let Some(live) = self.live.pop() {
            let group = self.functions[live.function].group;
            let pinned = self.is_behind(group, dead);
            match live.held.unmap() {
                Err(DmaError::Stuck(stuck))
                    if pinned && stuck.unit == dead && live.standing == Standing::InUse => {}
                Ok(_) if live.standing == Standing::Quiet => {}
                Ok(_) if !pinned => {
                    live.pieces.iter().for_each(|&(iova, ..)| self.groups[group].oracle.remove(iova));
                }
                other => {
                    return Err(format!("unmap of {:#x} behind unit {dead} ({way}): {other:?}", live.iova));
                }
            }
        }
        while let Some(coherent) = self.coherent.pop() {
            self.drop_coherent(coherent);
        }
        while !self.pools.is_empty() {
            self.drop_pool(0);
        }
        self.pump();
        if self.random.once_in(2) {
            self.release_behind(dead)?;
            self.pump();
        }
        for (index, function) in self.functions.iter().enumerate() {
            let config = &self.driven.machine.config().functions[index];
            let claimed_there = config.unit == dead && function.handle.is_some();
            if claimed_there && self.stuck_was_found(dead) && function.hardware.is_bus_master() {
                return Err(format!("{} is still a bus master behind unit {dead}", function.address));
            }
            if !self.is_behind(function.group, dead) {
                self.check_whole(function)?;
            }
        }
        self.expect_no_complaint()
    }

    /// What the domains say they map is the reserved memory.
    fn expect_only_reserved_pages(&self) -> Result<(), String> {
        let mut pages = Pages::default();
        self.driven.iommu.visit(&mut pages);
        let reserved =
            |group: &Group| group.oracle.ranges().map(|(_, mapped)| mapped.bytes / PAGE).sum::<u64>();
        let expected: u64 = self.groups.iter().map(reserved).sum();
        if pages.0 == expected {
            Ok(())
        } else {
            Err(format!("{} pages are mapped, not {expected}", pages.0))
        }
    }

    /// The last addresses that were given out are free again.
    fn expect_free_addresses(&mut self) -> Result<(), String> {
        for (group, iova) in std::mem::take(&mut self.addresses) {
            let mut functions = self.functions.iter().filter(|function| function.group == group);
            let Some(handle) = functions.find_map(|function| function.handle.clone()) else { continue };
            let buffer = self.driven.machine.allocate_buffer(1, 1).ok_or("no buffer is left")?;
            handle.set_address_bits(64);
            let mapped = handle.dma_map_at(buffer, Bidirectional, Iova::new(iova));
            let mapping = mapped.map_err(|rejected| format!("{iova:#x} is not free: {}", rejected.error))?;
            mapping.unmap().map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Whether the driver knows that a unit does not work.
    fn stuck_was_found(&self, unit: usize) -> bool {
        self.driven.units().iter().any(|report| report.unit == unit && !report.alive)
    }

    /// Whether a group has functions behind a unit.
    fn is_behind(&self, group: usize, unit: usize) -> bool {
        let config = self.driven.machine.config();
        let mut units = self.functions.iter().zip(&config.functions);
        units.any(|(function, config)| function.group == group && config.unit == unit)
    }

    /// Nobody can be released behind a unit that does not answer, nor is asked to reset anything.
    fn release_behind(&mut self, dead: usize) -> Result<(), String> {
        for function in self.functions.iter().filter(|function| function.handle.is_some()) {
            if !self.is_behind(function.group, dead) {
                continue;
            }
            let mut asked = false;
            let result = self.driven.iommu.release(function.address, |_| {
                asked = true;
                true
            });
            let stuck = matches!(result, Err(ReleaseError::Stuck(stuck)) if stuck.unit == dead);
            if asked || !stuck || function.hardware.is_bus_master() {
                return Err(format!("release of {} behind unit {dead}: {result:?}", function.address));
            }
        }
        Ok(())
    }

    /// With no driver left no tables are left but the units' own: those that lead to a source are new. So is the room
    /// for dropped mappings, which is kept.
    fn expect_no_tables(&mut self) -> Result<(), String> {
        /// A page has more of them.
        const SLOTS_A_PAGE: usize = 16;
        self.old_handles.clear();
        self.reap();
        // A context table for each bus of each unit; in scalable mode for each half of it, and two more pages for each
        // source.
        let units = self.driven.units();
        let mut sources = Sources::default();
        self.driven.iommu.visit(&mut sources);
        let mut own = BTreeSet::new();
        for (source, unit) in sources.0 {
            let (bus, half) = (source >> 8, source >> 7);
            match units[unit].is_scalable() {
                true => own.extend([
                    (unit, "context", half),
                    (unit, "directory", source),
                    (unit, "PASIDs", source),
                ]),
                false => own.extend([(unit, "context", bus)]),
            }
        }
        let room = 1 + self.most_mappings / SLOTS_A_PAGE;
        let (left, most) = (self.driven.machine.live_table_pages(), self.tables_at_first + own.len() + room);
        // What devices that did not answer may still walk stays for ever.
        if self.pinned == 0 && left > most {
            return Err(format!("{left} table pages are left at the end, of which {most} can be explained"));
        }
        Ok(())
    }
}
