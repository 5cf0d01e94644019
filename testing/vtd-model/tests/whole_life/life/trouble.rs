//! What goes wrong in the middle of a life, and passes.

use iommu::{DmaError, dma::Silent, platform::MsiMessage};
use vtd_model::InterruptOutcome;

use super::{
    Life, PAGE,
    memory::{Live, LiveCoherent, Standing, Touched},
    pools::LivePool,
};
use crate::step::Step;

impl Life {
    /// A unit with a queue refuses a descriptor, or completes one with an error.
    pub(super) fn queue_trouble(&mut self, step: &Step) {
        let units = &self.driven.machine.config().units;
        let unit = step.a as usize % units.len();
        if !units[unit].queued {
            return;
        }
        self.driven.machine.misbehave(unit, |unit| match step.b % 2 {
            0 => unit.refused_descriptors = 1,
            _ => unit.completion_error = true,
        });
    }

    /// Waits complete, and their statuses come late.
    pub(super) fn late_statuses(&mut self, step: &Step) {
        const LATEST: u64 = 50;
        let unit = step.a as usize % self.driven.machine.config().units.len();
        let delay_ns =
            if step.b & 1 == 0 { 0 } else { step.c % (LATEST * self.driven.machine.config().relax_ns) };
        self.driven.machine.misbehave(unit, |unit| unit.status_delay_ns = delay_ns);
    }

    /// A message in the old format goes nowhere where interrupts are remapped.
    pub(super) fn interrupt(&mut self, step: &Step) -> Result<(), String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(()) };
        let config = &self.driven.machine.config().functions[index];
        let (_, remaps) = self.driven.machine.is_on(config.unit);
        let address = 0xfee0_0000 | step.b & 0xf_ffe8;
        let message = MsiMessage { address, data: 0x41 };
        match self.functions[index].hardware.interrupt(message) {
            InterruptOutcome::Delivered(delivered) if remaps => {
                Err(format!("{} delivered {delivered:?}", config.address))
            }
            _ => Ok(()),
        }
    }

    /// A function that uses its TLB.
    fn pick_caching(&self, number: u64) -> Option<usize> {
        let is_caching =
            |&i: &usize| self.functions[i].handle.is_some() && self.functions[i].hardware.uses_ats();
        let caching = || (0..self.functions.len()).filter(is_caching);
        caching().nth(number as usize % caching().count().max(1))
    }

    /// A device takes longer to empty its TLB than any unit may take for its own caches: it is waited for.
    pub(super) fn slow_device(&mut self, step: &Step) -> Result<Touched, String> {
        const LONGEST_NS: u64 = 50_000_000_000;
        let Some(index) = self.pick_caching(step.a) else { return Ok(None) };
        let Some(live) = self.live.iter().position(|live| is_of(live, index)) else { return Ok(None) };
        let clock = self.driven.machine.clock();
        self.functions[index].hardware.set_answers_from_ns(clock.now_ns() + step.b % LONGEST_NS);
        clock.set_relax_ns(WAIT_STEP_NS);
        let touched = self.unmap(live);
        self.driven.machine.clock().set_relax_ns(self.driven.machine.config().relax_ns);
        touched
    }

    /// A device does not empty its TLB at all: what it may reach stays pinned, it is stopped, and its group reaches
    /// nothing any more. Everything else goes on.
    pub(super) fn silent_device(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_caching(step.a) else { return Ok(None) };
        if !self.live.iter().any(|live| is_of(live, index)) {
            return Ok(None);
        }
        // What was dropped or retired before is not lost.
        self.reap();
        let group = self.functions[index].group;
        self.redeem_where(|life, retired| {
            life.functions[retired.function].group == group && retired.standing == Standing::InUse
        })?;
        let (group, unit) = (self.functions[index].group, self.driven.machine.config().functions[index].unit);
        self.functions[index].hardware.set_answers_from_ns(u64::MAX);
        self.driven.machine.clock().set_relax_ns(WAIT_STEP_NS);
        // Writes in flight are the unit's: they land when it drains them.
        self.lose_mappings(index)?;
        self.pump();
        self.driven.machine.clock().set_relax_ns(self.driven.machine.config().relax_ns);
        self.enter_quarantine(group)?;
        let function = &self.functions[index];
        if function.hardware.is_bus_master() {
            return Err(format!("{} is still a bus master", function.address));
        }
        if self.driven.units()[unit].alive {
            return Ok(Some((group, PAGE, PAGE)));
        }
        Err(format!("unit {unit} was given up for {}", function.address))
    }

    fn lose_mappings(&mut self, function: usize) -> Result<(), String> {
        let group = self.functions[function].group;
        let source = self.functions[function].address.source_id();
        let lost = Err(DmaError::Silent(Silent { source }));
        while let Some(at) = self.live.iter().position(|live| is_of(live, function)) {
            let live = self.live.swap_remove(at);
            let unmapped = live.held.unmap().map(drop);
            if unmapped != lost {
                return Err(format!("unmap of {:#x} for a silent device: {unmapped:?}", live.iova));
            }
            live.pieces.iter().for_each(|&(iova, ..)| self.groups[group].oracle.remove(iova));
            self.pinned += 1;
        }
        let is_its =
            |coherent: &LiveCoherent| coherent.function == function && coherent.standing == Standing::InUse;
        let is_its_pool = |pool: &LivePool| pool.function == function && pool.standing == Standing::InUse;
        while let Some(at) = self.pools.iter().position(is_its_pool) {
            self.drop_pool(at);
        }
        while let Some(at) = self.coherent.iter().position(is_its) {
            let coherent = self.coherent.swap_remove(at);
            self.drop_coherent(coherent);
        }
        Ok(())
    }
}

/// A mapping that the function `index` reaches.
fn is_of(live: &Live, index: usize) -> bool {
    live.function == index && live.standing == Standing::InUse
}

/// Waiting for a device takes minutes: the clock goes faster meanwhile.
pub(super) const WAIT_STEP_NS: u64 = 5_000_000;
