//! Devices are taken away from their drivers: release, quarantine, and what is left of a driver after either.
//!
//! The devices do not play along. Until they are reset they go on with what they had begun, and at every moment they
//! try what they could reach before.

use iommu::{
    Bidirectional, DmaError, PciAddress, Platform, Rejected, ReleaseError, dump::GroupStanding,
    policy::Limits,
};
use vtd_model::Access;

use super::{
    Function, Life, PAGE,
    late::LiveRetired,
    memory::{Live, Standing, Touched},
};
use crate::{
    oracle::{Expected, Oracle, State},
    step::Step,
};

impl Life {
    /// A driver goes, or is made to go, and its device is reset. Some give back what they mapped, some keep it.
    pub(super) fn release(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_taken(step.a) else { return Ok(None) };
        let group = self.functions[index].group;
        self.release_group(index)?;
        match step.b % 3 {
            0 => self.give_up(group, |life, live| Ok(life.drop_mapping(live)))?,
            1 => self.give_up(group, Self::unmap)?,
            _ => {}
        }
        Ok(Some((group, PAGE, PAGE)))
    }

    /// A release whose reset fails, of one function or another, is a quarantine.
    pub(super) fn reset_fails(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_taken(step.a) else { return Ok(None) };
        let Function { address, group, .. } = self.functions[index];
        let resettable: Vec<PciAddress> = self.endpoints_of(group).map(|function| function.address).collect();
        if resettable.is_empty() {
            return Ok(None);
        }
        let stubborn = resettable[step.b as usize % resettable.len()];
        self.provoke(group);
        let result = self.driven.iommu.release(address, |function| {
            if function != stubborn {
                self.reset(function);
            }
            function != stubborn
        });
        self.calm();
        if result != Err(ReleaseError::NotQuiet { function: stubborn }) {
            return Err(format!("release of {address} without a reset of {stubborn}: {result:?}"));
        }
        self.enter_quarantine(group)?;
        self.pump();
        self.expect_waiting(group, true)?;
        Ok(Some((group, PAGE, PAGE)))
    }

    /// Somebody puts a group in quarantine.
    pub(super) fn quarantine(&mut self, step: &Step) -> Result<Touched, String> {
        let Some(index) = self.pick_taken(step.a) else { return Ok(None) };
        let Function { address, group, .. } = self.functions[index];
        self.provoke(group);
        let result = self.driven.iommu.quarantine(address);
        self.calm();
        result.map_err(|error| format!("quarantine of {address}: {error}"))?;
        self.enter_quarantine(group)?;
        Ok(Some((group, PAGE, PAGE)))
    }

    /// A device faults until its group is in quarantine.
    pub(super) fn faults_too_much(&mut self, step: &Step) -> Result<Touched, String> {
        const ENOUGH: u64 = 10_000;
        let Some(index) = self.pick_claimed(step.a) else { return Ok(None) };
        let Function { address, group, address_bits, .. } = self.functions[index];
        self.pump();
        self.provoke(group);
        let before = self.driven.iommu.set_fault_limits(Limits::default());
        let burst = 1 + step.b % 40;
        let mut sent = 0;
        while sent < ENOUGH && !self.is_in_quarantine(address) {
            for _ in 0..burst {
                let at = self.random.below(1 << address_bits) & !7;
                if self.groups[group].oracle.expected(at) == Expected::Nothing {
                    let _ = self.functions[index].hardware.write(at, &[0; 8]);
                }
            }
            sent += burst;
            self.driven.pump();
        }
        self.driven.iommu.set_fault_limits(before);
        self.calm();
        if !self.is_in_quarantine(address) {
            return Err(format!("{address} is not in quarantine after {sent} requests"));
        }
        self.enter_quarantine(group)?;
        Ok(Some((group, PAGE, PAGE)))
    }

    /// A driver that lost its device maps nothing for it any more, whoever has it now.
    pub(super) fn map_through_old_handle(&mut self, step: &Step) -> Result<(), String> {
        if self.old_handles.is_empty() {
            return Ok(());
        }
        let handle = &self.old_handles[step.a as usize % self.old_handles.len()];
        let Some(buffer) = self.driven.machine.allocate_buffer(1 + step.b as u32 % 4, 1) else {
            return Ok(());
        };
        let physical = buffer.physical();
        match handle.dma_map(buffer, Bidirectional) {
            Err(Rejected { error: DmaError::Revoked | DmaError::Silent(_), buffer: Some(buffer) })
                if buffer.physical() == physical =>
            {
                Ok(())
            }
            other => Err(format!("{handle:?} of a driver that is gone maps: {other:?}")),
        }
    }

    /// Everything that is in quarantine is released.
    pub(super) fn release_quarantined(&mut self) -> Result<(), String> {
        self.release_where(|life, index| life.groups[life.functions[index].group].quarantined)
    }

    /// The drivers that have a device go.
    pub(super) fn release_claimed(&mut self) -> Result<(), String> {
        self.release_where(|life, index| life.functions[index].handle.is_some())
    }

    fn release_where(&mut self, is_due: impl Fn(&Self, usize) -> bool) -> Result<(), String> {
        for index in 0..self.functions.len() {
            if is_due(self, index) {
                self.release_group(index)?;
            }
        }
        Ok(())
    }

    /// A function that a driver has, or that is in quarantine; now and then any.
    fn pick_taken(&self, number: u64) -> Option<usize> {
        let is_taken = |&index: &usize| {
            let Function { group, handle, .. } = &self.functions[index];
            handle.is_some() || self.groups[*group].quarantined
        };
        let taken = || (0..self.functions.len()).filter(is_taken);
        let any = Some(number as usize % self.functions.len()).filter(|&any| !self.functions[any].gone);
        match number >> 60 {
            0 => any,
            _ => taken().nth(number as usize % taken().count().max(1)).or(any),
        }
    }

    fn endpoints_of(&self, group: usize) -> impl Iterator<Item = &Function> {
        let config = &self.driven.machine.config().functions;
        let is_endpoint = move |(index, function): &(usize, &Function)| {
            function.group == group && config[*index].kind.buses().is_none()
        };
        self.functions.iter().enumerate().filter(is_endpoint).map(|(_, function)| function)
    }

    fn is_in_quarantine(&self, function: PciAddress) -> bool {
        matches!(self.driven.standing(function).0, GroupStanding::Quarantined { .. })
    }

    /// What was mapped for a group and has not come back.
    fn lives_of(&self, group: usize) -> impl Iterator<Item = &Live> {
        let is_its = move |live: &&Live| self.functions[live.function].group == group;
        self.live.iter().filter(is_its).filter(|live| live.standing != Standing::Quiet)
    }

    /// The devices of a group are in the middle of something, and will not give up.
    pub(super) fn provoke(&mut self, group: usize) {
        const MOST_ADDRESSES: usize = 8;
        let mut random = self.random.clone();
        for (index, function) in self.functions.iter().enumerate().filter(|(_, f)| f.group == group) {
            for live in self.lives_of(group).filter(|live| live.function == index).take(MOST_ADDRESSES) {
                let offset = random.below(live.bytes);
                let bytes = 1 + random.below((live.bytes - offset).min(2 * PAGE));
                function.hardware.begin_transfer(live.iova + offset, bytes);
            }
            let lives = self.lives_of(group).take(MOST_ADDRESSES);
            let addresses: Vec<u64> = lives.map(|live| live.iova + random.below(live.bytes)).collect();
            function.hardware.keep_trying(&addresses);
        }
        self.random = random;
    }

    pub(super) fn calm(&self) {
        self.functions.iter().for_each(|function| function.hardware.keep_trying(&[]));
    }

    /// Releases the group of function `index`, with a reset that works.
    fn release_group(&mut self, index: usize) -> Result<(), String> {
        let Function { address, group, .. } = self.functions[index];
        self.provoke(group);
        let mut seen = Ok(());
        let result = self.driven.iommu.release(address, |function| {
            let attacked = self.attack_while_blocked(group);
            seen = std::mem::replace(&mut seen, Ok(())).and(attacked);
            self.reset(function);
            true
        });
        self.calm();
        seen?;
        result.map_err(|error| format!("release of {address}: {error}"))?;
        self.enter_quarantine(group)?;
        self.leave_quarantine(group)
    }

    /// Before their reset the devices reach nothing of what was mapped for them, though they master the bus; and
    /// nothing of it has come back.
    pub(super) fn attack_while_blocked(&self, group: usize) -> Result<(), String> {
        let may_master = !self.short_of_memory && !self.lacks_reserved(group)?;
        for Function { address, hardware, .. } in self.endpoints_of(group) {
            if hardware.is_bus_master() {
                return Err(format!("{address} masters the bus in a release"));
            }
            if may_master {
                self.driven.enable(*address);
            }
            // Whatever comes of it: what it reaches is looked at with the probes.
            let on_scratch_page = self.scratch_page(group)?;
            let reaches = |live: &&Live| {
                let _ = hardware.write(live.iova, &[0; 8]);
                let got = [Access::Read, Access::Write].map(|access| hardware.probe(live.iova, access).ok());
                got.iter().flatten().any(|&physical| Some(physical & !(PAGE - 1)) != on_scratch_page)
            };
            let hit = self.lives_of(group).find(reaches);
            self.driven.disable(*address);
            if let Some(live) = hit {
                return Err(format!("{address} reaches {:#x} in a release", live.iova));
            }
        }
        let is_held = |retired: &&LiveRetired| {
            self.functions[retired.function].group == group && retired.standing != Standing::Quiet
        };
        let retired = self.retired.iter().filter(is_held).map(|retired| retired.physical);
        let mut lent = self.lives_of(group).flat_map(|live| live.memory.iter().copied()).chain(retired);
        match lent.find(|&physical| !self.driven.machine.is_lent(physical)) {
            Some(physical) => Err(format!("{physical:#x} came back before the device was quiet")),
            None => self.expect_waiting(group, true),
        }
    }

    pub(super) fn reset(&self, function: PciAddress) {
        const DEVICE_CONTROL: u16 = 0x48;
        const FUNCTION_LEVEL_RESET: u32 = 1 << 15;
        self.driven.platform.write_config(function, DEVICE_CONTROL, FUNCTION_LEVEL_RESET);
        // Not every function has that one; its own means leave more behind.
        let device = self.driven.device(function);
        device.reset();
        device.set_answers_from_ns(0);
    }

    /// A group was taken from its drivers: from now on its devices reach its reserved memory.
    pub(super) fn enter_quarantine(&mut self, group: usize) -> Result<(), String> {
        if let Some(Function { address, .. }) = self.endpoints_of(group).find(|f| f.hardware.is_bus_master())
        {
            return Err(format!("{address} masters the bus, and nobody has it"));
        }
        if self.groups[group].quarantined {
            return Ok(());
        }
        let scratch = self.scratch_page(group)?;
        let may_lack = scratch.is_none() && (self.short_of_memory || self.lacks_reserved(group)?);
        let mut reserved = self.reserved_reached(group, may_lack)?;
        reserved.scratch = scratch;
        let before = std::mem::replace(&mut self.groups[group].oracle, reserved);
        self.groups[group].quarantined = true;
        // What was dropped and not yet reaped waits like what is given up from now on.
        let dropped = before.ranges().filter(|(_, mapped)| mapped.state == State::Dropped);
        self.groups[group].waiting.extend(dropped.filter_map(|(_, mapped)| mapped.physical));
        let (forgotten, others) =
            std::mem::take(&mut self.forgotten).into_iter().partition(|&(of, ..)| of == group);
        let forgotten: Vec<(usize, u64, u64)> = forgotten;
        self.forgotten = others;
        self.groups[group].waiting.extend(forgotten.iter().map(|&(_, _, physical)| physical));
        self.change_standing(group, Standing::InUse, Standing::Revoked);
        for live in self.interrupts.iter_mut().filter(|live| self.functions[live.function].group == group) {
            live.mute();
        }
        for function in self.functions.iter_mut().filter(|function| function.group == group) {
            self.old_handles.extend(function.handle.take());
        }
        const KEPT_HANDLES: usize = 8;
        while self.old_handles.len() > KEPT_HANDLES {
            self.old_handles.pop_front();
        }
        Ok(())
    }

    /// The devices of a group in quarantine are quiet: what was given up comes back, and they can be claimed anew.
    pub(super) fn leave_quarantine(&mut self, group: usize) -> Result<(), String> {
        self.groups[group].quarantined = false;
        let scratch = self.groups[group].oracle.scratch.take();
        if scratch.is_some() || self.lacks_reserved(group)? {
            self.groups[group].oracle = self.reserved_reached(group, self.short_of_memory)?;
        }
        self.change_standing(group, Standing::Revoked, Standing::Quiet);
        self.pump();
        self.expect_waiting(group, false)?;
        self.groups[group].waiting.clear();
        Ok(())
    }

    /// The scratch page that a group is on.
    fn scratch_page(&self, group: usize) -> Result<Option<u64>, String> {
        let mut functions = self.functions.iter().filter(|function| function.group == group);
        let Some(Function { address, hardware, gone: false, .. }) = functions.next() else {
            return Ok(None);
        };
        match self.driven.standing(*address).0 {
            GroupStanding::Quarantined { on_scratch_page: true, .. } => {
                // A device that still uses its TLB is blocked, unless it asks without it.
                const PROBES: usize = 400;
                let at = (0..PROBES).find_map(|_| hardware.probe(PAGE, Access::Write).ok());
                let page =
                    at.ok_or_else(|| format!("{address} does not reach its scratch page"))? & !(PAGE - 1);
                let is_lent = self.driven.machine.is_lent(page);
                if is_lent { Err(format!("the scratch page {page:#x} is a buffer")) } else { Ok(Some(page)) }
            }
            _ => Ok(None),
        }
    }

    /// The reserved memory of a group that nobody has. If that `may_lack` tables, the devices are blocked altogether.
    pub(super) fn reserved_reached(&self, group: usize, may_lack: bool) -> Result<Oracle, String> {
        if !may_lack {
            return self.reserved_only(group);
        }
        let reached = self.endpoints_of(group).next().and_then(|f| f.hardware.reach_of_tables());
        let is_blocked = reached.is_some_and(|reach| reach.is_empty());
        if is_blocked { Ok(Oracle::default()) } else { self.reserved_only(group) }
    }

    fn change_standing(&mut self, group: usize, from: Standing, to: Standing) {
        let functions = &self.functions;
        let of_lives = self.live.iter_mut().map(|live| (live.function, &mut live.standing));
        let of_coherent =
            self.coherent.iter_mut().map(|coherent| (coherent.function, &mut coherent.standing));
        let of_retired = self.retired.iter_mut().map(|retired| (retired.function, &mut retired.standing));
        let of_pools = self.pools.iter_mut().map(|pool| (pool.function, &mut pool.standing));
        for (function, standing) in of_lives.chain(of_coherent).chain(of_retired).chain(of_pools) {
            if functions[function].group == group && *standing == from {
                *standing = to;
            }
        }
    }

    /// Whether the buffers that were given up in quarantine are all still lent, or all back.
    fn expect_waiting(&self, group: usize, lent: bool) -> Result<(), String> {
        let waiting = &self.groups[group].waiting;
        match waiting.iter().find(|&&physical| self.driven.machine.is_lent(physical) != lent) {
            Some(physical) => {
                Err(format!("{physical:#x} is {}", if lent { "back too early" } else { "not back" }))
            }
            None => Ok(()),
        }
    }

    /// A driver that lost its device gives back what it had mapped.
    fn give_up(
        &mut self,
        group: usize,
        back: fn(&mut Self, usize) -> Result<Touched, String>,
    ) -> Result<(), String> {
        let is_its = |life: &Self, function: usize, standing| {
            life.functions[function].group == group && standing == Standing::Quiet
        };
        while let Some(at) = self.live.iter().position(|live| is_its(self, live.function, live.standing)) {
            back(self, at)?;
        }
        self.redeem_where(|life, retired| is_its(life, retired.function, retired.standing))?;
        while let Some(at) = self.pools.iter().position(|pool| is_its(self, pool.function, pool.standing)) {
            self.drop_pool(at);
        }
        while let Some(at) = self.coherent.iter().position(|c| is_its(self, c.function, c.standing)) {
            let coherent = self.coherent.swap_remove(at);
            self.drop_coherent(coherent);
        }
        Ok(())
    }
}
