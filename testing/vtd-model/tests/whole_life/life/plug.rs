//! Functions that are pulled out, with or without a word before, and others that are plugged in at their place.

use driven::functions_of;
use iommu::{ClaimError, PciAddress};
use vtd_model::FunctionKind;

use super::{Function, Life, PAGE, memory::Touched, trouble::WAIT_STEP_NS, vectors::LiveInterrupts};
use crate::{check, oracle::Oracle, step::Step};

impl Life {
    /// A function that shares its group with no other, and that no other belongs to.
    fn pick_pluggable(&self, number: u64, gone: bool) -> Option<usize> {
        let config = &self.driven.machine.config().functions;
        let is_apart = |&index: &usize| {
            let (function, its) = (&self.functions[index], &config[index]);
            let others = || (0..config.len()).filter(|&other| other != index);
            function.gone == gone
                && its.kind == FunctionKind::Endpoint
                && its.physical.is_none()
                && others().all(|other| {
                    self.functions[other].group != function.group
                        && config[other].physical != Some(its.address)
                })
        };
        let apart = || (0..config.len()).filter(is_apart);
        apart().nth(number as usize % apart().count().max(1))
    }

    /// A function goes, whoever has it. By surprise, it is gone before anybody hears of it.
    pub(super) fn unplug(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_pluggable(step.a, false) else { return Ok(None) };
        let Function { address, group, .. } = self.functions[index];
        let by_surprise = step.b & 1 != 0;
        self.functions[index].remembered = self.addresses_of(group);
        self.provoke(group);
        if by_surprise {
            self.functions[index].hardware.set_unplugged(true);
        }
        self.driven.machine.clock().set_relax_ns(WAIT_STEP_NS);
        let mut seen = Ok(());
        let result = self.driven.iommu.functions_gone(&[address], |function| {
            if !by_surprise {
                seen = self.attack_while_blocked(group);
                self.reset(function);
            }
            true
        });
        self.driven.machine.clock().set_relax_ns(self.driven.machine.config().relax_ns);
        self.calm();
        seen?;
        result.map_err(|error| format!("{address} goes: {error}"))?;
        let hardware = &self.functions[index].hardware;
        hardware.set_unplugged(true);
        hardware.set_answers_from_ns(0);
        self.functions[index].gone = true;
        self.enter_quarantine(group)?;
        self.leave_quarantine(group)?;
        // Not even the memory that firmware reserved.
        self.groups[group].oracle = Oracle::default();
        self.expect_unknown(address)?;
        self.check_remembered(index)?;
        Ok(Some((group, PAGE, PAGE)))
    }

    /// Another function comes in its place. It masters the bus from the start, and tries what the one before it could
    /// reach.
    pub(super) fn plug(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_pluggable(step.a, true) else { return Ok(None) };
        self.plug_in(index)?;
        Ok(Some((self.functions[index].group, PAGE, PAGE)))
    }

    /// All that were pulled out come back.
    pub(super) fn plug_all(&mut self) -> Result<(), String> {
        (0..self.functions.len())
            .filter(|&index| self.functions[index].gone)
            .collect::<Vec<_>>()
            .into_iter()
            .try_for_each(|index| self.plug_in(index))
    }

    fn plug_in(&mut self, index: usize) -> Result<(), String> {
        let Function { address, group, .. } = self.functions[index];
        let hardware = &self.functions[index].hardware;
        hardware.set_unplugged(false);
        // What is reserved for it, it has only from then on.
        let is_reserved = self.driven.machine.config().reserved.iter().any(|r| r.function == address);
        if !is_reserved {
            self.driven.enable(address);
        }
        hardware.keep_trying(&self.functions[index].remembered);
        self.check_remembered(index)?;
        let found = functions_of(self.driven.machine.config())[index];
        let appeared = self.driven.iommu.functions_appeared(&[found]);
        self.calm();
        appeared.map_err(|error| format!("{address} comes: {error}"))?;
        self.functions[index].gone = false;
        // What an old owner routed since the other went is taken from it as well.
        self.interrupts.iter_mut().filter(|live| live.function == index).for_each(LiveInterrupts::mute);
        self.groups[group].oracle = self.reserved_reached(group, self.short_of_memory)?;
        if self.functions[index].hardware.is_bus_master() {
            return Err(format!("{address} masters the bus, and nobody has it"));
        }
        self.check_remembered(index)
    }

    fn check_remembered(&self, index: usize) -> Result<(), String> {
        let Function { group, hardware, remembered, .. } = &self.functions[index];
        let oracle = &self.groups[*group].oracle;
        remembered.iter().try_for_each(|&address| check::address(hardware, oracle, address))
    }

    /// Some addresses that a group reaches.
    fn addresses_of(&self, group: usize) -> Vec<u64> {
        const MOST: usize = 16;
        self.groups[group].oracle.ranges().map(|(first, _)| first).take(MOST).collect()
    }

    fn expect_unknown(&self, function: PciAddress) -> Result<(), String> {
        match self.driven.iommu.claim(function) {
            Err(ClaimError::Unknown { function: unknown }) if unknown == function => Ok(()),
            other => Err(format!("claim of {function}, which is gone: {other:?}")),
        }
    }
}
