//! The state of one life, and what each step does.

use std::{
    collections::VecDeque,
    sync::{Arc, Weak},
};

use driven::Driven;
use iommu::{ClaimError, DmaDevice, DmaError, Options, PciAddress, platform::MsiMessage, policy::Limits};
use vtd_model::{Device, Machine, MachineConfig, Random};

use crate::{
    check,
    oracle::{Mapped, Oracle, State},
    step::{Kind, Step},
};
use late::LiveRetired;
use memory::{Live, LiveCoherent};
use pools::LivePool;
use vectors::LiveInterrupts;

mod ending;
mod held;
mod late;
mod memory;
mod plug;
mod pools;
mod revoke;
mod traffic;
mod trouble;
mod vectors;

const PAGE: u64 = 4096;
/// Steps between two checks of everything.
const WHOLE_CHECK_EVERY: u64 = 1_000;
const RANDOM_ADDRESSES: usize = 16;

/// A function, whether or not it is claimed.
struct Function {
    address: PciAddress,
    group: usize,
    hardware: Device,
    handle: Option<DmaDevice>,
    address_bits: u32,
    /// Its unit's tables have no entries for writes alone.
    reads_what_it_writes: bool,
    /// It was pulled out.
    gone: bool,
    /// Addresses that the one that was pulled out of its place could reach.
    remembered: Vec<u64>,
}

/// A group of functions that share their reach.
#[derive(Default)]
struct Group {
    oracle: Oracle,
    /// It reaches its reserved memory and nothing else, until it is released.
    quarantined: bool,
    /// Buffers that were given up in quarantine, by physical address: they come back with the release.
    waiting: Vec<u64>,
}

pub struct Life {
    driven: Driven,
    options: Options,
    functions: Vec<Function>,
    groups: Vec<Group>,
    live: Vec<Live>,
    retired: Vec<LiveRetired>,
    /// Group, address and memory of retired mappings that were dropped, until they are reaped.
    forgotten: Vec<(usize, u64, u64)>,
    coherent: Vec<LiveCoherent>,
    pools: Vec<LivePool>,
    interrupts: Vec<LiveInterrupts>,
    /// Function, entry and message of interrupts that were given up.
    old_messages: VecDeque<(usize, u16, MsiMessage)>,
    /// The last addresses that groups were given.
    addresses: VecDeque<(usize, u64)>,
    /// Handles of drivers that lost their devices.
    old_handles: VecDeque<DmaDevice>,
    random: Random,
    steps: u64,
    short_of_memory: bool,
    /// Mappings that never come back.
    pinned: usize,
    /// Table pages in use before any driver came.
    tables_at_first: usize,
    /// Most mappings that were live after a step.
    most_mappings: usize,
}

impl Life {
    pub fn begin(config: MachineConfig, options: Options) -> Result<Self, String> {
        let seed = config.seed;
        let driven = Driven::start_with(config, options).map_err(|error| format!("bring-up: {error}"))?;
        // Its devices fault all the time, and are to go on.
        driven.iommu.set_fault_limits(Limits::none());
        let groups = driven.groups();
        let config = driven.machine.config();
        let units = driven.units();
        let functions: Vec<Function> = config
            .functions
            .iter()
            .map(|function| Function {
                address: function.address,
                group: groups
                    .iter()
                    .position(|group| group.contains(&function.address))
                    .unwrap_or(usize::MAX),
                hardware: driven.device(function.address),
                handle: None,
                address_bits: config.units[function.unit].mgaw.into(),
                reads_what_it_writes: units[function.unit].first_stage,
                gone: false,
                remembered: Vec::new(),
            })
            .collect();
        if functions.iter().any(|function| function.group == usize::MAX) {
            return Err("a function is in no group".to_owned());
        }
        let groups = groups.iter().map(|_| Group::default()).collect();
        let random = Random::new(seed ^ 0x11fe);
        let tables_at_first = driven.machine.live_table_pages();
        let mut life = Self {
            driven,
            options,
            functions,
            groups,
            live: Vec::new(),
            retired: Vec::new(),
            forgotten: Vec::new(),
            coherent: Vec::new(),
            pools: Vec::new(),
            interrupts: Vec::new(),
            old_messages: VecDeque::new(),
            addresses: VecDeque::new(),
            old_handles: VecDeque::new(),
            random,
            steps: 0,
            short_of_memory: false,
            pinned: 0,
            tables_at_first,
            most_mappings: 0,
        };
        for group in 0..life.groups.len() {
            life.groups[group].oracle = life.reserved_only(group)?;
        }
        Ok(life)
    }

    /// What a group reaches that no driver has: its reserved memory.
    fn reserved_only(&self, group: usize) -> Result<Oracle, String> {
        let mut oracle = Oracle::default();
        for reserved in &self.driven.machine.config().reserved {
            let is_of_group = |f: &Function| f.address == reserved.function && f.group == group && !f.gone;
            if !self.functions.iter().any(is_of_group) {
                continue;
            }
            let mapped = Mapped {
                bytes: reserved.limit + 1 - reserved.base,
                physical: Some(reserved.base),
                read: true,
                write: true,
                state: State::InUse,
            };
            let inserted = oracle.insert(reserved.base, mapped);
            inserted.map_err(|at| format!("reserved memory overlaps {at:#x}"))?;
        }
        Ok(oracle)
    }

    /// Whether a release had no memory for the tables of a group's reserved memory, and it is out of reach. The model
    /// would take that ill of a device that masters the bus.
    fn lacks_reserved(&self, group: usize) -> Result<bool, String> {
        Ok(self.groups[group].oracle.len() < self.reserved_only(group)?.len())
    }

    /// The machine that it runs on, to see it go.
    pub fn machine(&self) -> Weak<Machine> {
        Arc::downgrade(&self.driven.machine)
    }

    /// Does one step and checks everything that it may have touched.
    pub fn run(&mut self, step: &Step) -> Result<(), String> {
        let touched = self.perform(step)?;
        self.most_mappings = self.most_mappings.max(self.driven.iommu.live_mappings());
        touched.map_or(Ok(()), |touched| self.check_around(touched))?;
        for function in &self.functions {
            let oracle = &self.groups[function.group].oracle;
            for _ in 0..RANDOM_ADDRESSES {
                let address = check::some_address(oracle, function.address_bits + 1, &mut self.random);
                check::address(&function.hardware, oracle, address)?;
            }
        }
        self.steps += 1;
        if self.steps.is_multiple_of(WHOLE_CHECK_EVERY) {
            self.check_everything()?;
        }
        self.expect_no_complaint()
    }

    fn check_around(&mut self, (group, first, bytes): (usize, u64, u64)) -> Result<(), String> {
        let Group { oracle, .. } = &self.groups[group];
        for function in self.functions.iter().filter(|function| function.group == group) {
            check::around(&function.hardware, oracle, first, bytes, &mut self.random)?;
        }
        Ok(())
    }

    fn expect_no_complaint(&self) -> Result<(), String> {
        if self.driven.machine.is_content() {
            return Ok(());
        }
        Err(format!("{:#?}", self.driven.machine.take_complaints()))
    }

    fn check_everything(&mut self) -> Result<(), String> {
        self.reap();
        self.driven.machine.audit();
        for function in &self.functions {
            self.check_whole(function)?;
        }
        Ok(())
    }

    fn check_whole(&self, function: &Function) -> Result<(), String> {
        let Group { oracle, .. } = &self.groups[function.group];
        if oracle.scratch.is_some() {
            return check::on_scratch_page(&function.hardware, oracle);
        }
        // What a device that was stopped has kept in its TLB does it no good.
        if function.handle.is_none() && function.hardware.uses_ats() && !function.gone {
            return check::blocked(&function.hardware);
        }
        check::whole(&function.hardware, oracle)
    }

    fn perform(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        match step.kind {
            Kind::Claim => self.claim(step),
            Kind::Map => self.map(step, None, u32::MAX),
            Kind::MapAt => self.map(step, Some(()), u32::MAX),
            Kind::MapBelow => self.map(step, None, [28, 30, 32, 36][(step.c >> 32 & 3) as usize]),
            Kind::Unmap => self.pick_live(step.a).map_or(Ok(None), |index| self.unmap(index)),
            Kind::UnmapAll => self.unmap_all().map(|()| None),
            Kind::Drop => Ok(self.pick_live(step.a).and_then(|index| self.drop_mapping(index))),
            Kind::Reap => {
                self.reap();
                Ok(None)
            }
            Kind::Transfer => self.transfer(step),
            Kind::Posted => self.posted(step),
            Kind::Stray => self.stray(step).map(|()| None),
            Kind::StrayOfFree => self.stray_of_a_free_function(step).map(|()| None),
            Kind::Storm => self.storm(step).map(|()| None),
            Kind::Faults => {
                self.pump();
                Ok(None)
            }
            Kind::AllocateCoherent => self.allocate_coherent(step),
            Kind::DropCoherent => {
                if self.coherent.is_empty() {
                    return Ok(None);
                }
                let index = step.a as usize % self.coherent.len();
                let coherent = self.coherent.swap_remove(index);
                Ok(self.drop_coherent(coherent))
            }
            Kind::TouchCoherent => self.touch_coherent(step),
            Kind::Shortage => {
                self.short_of_memory = step.a & 1 != 0;
                self.driven.machine.set_shortage(self.short_of_memory.then_some(step.b % 8));
                Ok(None)
            }
            Kind::Pause => {
                self.driven.machine.clock().advance(step.a % 1_000_000_000);
                (0..step.b % 8).for_each(|_| iommu::Platform::relax(&*self.driven.platform));
                Ok(None)
            }
            Kind::QueueTrouble => {
                self.queue_trouble(step);
                Ok(None)
            }
            Kind::Interrupt => self.interrupt(step).map(|()| None),
            Kind::SlowDevice => self.slow_device(step),
            Kind::SilentDevice => self.silent_device(step),
            Kind::Release => self.release(step),
            Kind::ResetFails => self.reset_fails(step),
            Kind::Quarantine => self.quarantine(step),
            Kind::FaultsTooMuch => self.faults_too_much(step),
            Kind::MapList => self.map_list(step),
            Kind::MapRagged => self.map_ragged(step),
            Kind::UnmapBatch => self.unmap_batch(step),
            Kind::Retire => Ok(self.pick_live(step.a).and_then(|index| self.retire(index))),
            Kind::Redeem => self.redeem(step),
            Kind::MakePool => self.make_pool(step),
            Kind::UsePool => self.use_pool(step),
            Kind::DropPool if self.pools.is_empty() => Ok(None),
            Kind::DropPool => Ok(self.drop_pool(step.a as usize % self.pools.len())),
            Kind::AllocateInterrupts => self.allocate_interrupts(step).map(|()| None),
            Kind::RouteInterrupt => self.route_interrupt(step).map(|()| None),
            Kind::RaiseInterrupt => self.raise_interrupt(step).map(|()| None),
            Kind::ReleaseInterrupts => self.release_interrupts(step).map(|()| None),
            Kind::LateStatuses => {
                self.late_statuses(step);
                Ok(None)
            }
            Kind::Unplug => self.unplug(step),
            Kind::Plug => self.plug(step),
            Kind::MapThroughOldHandle => self.map_through_old_handle(step).map(|()| None),
        }
    }

    fn claim(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        let index = step.a as usize % self.functions.len();
        let Function { address, group, .. } = self.functions[index];
        let kind = self.driven.machine.config().functions[index].kind;
        let Function { gone, .. } = self.functions[index];
        if gone || self.functions[index].handle.is_some() || kind.buses().is_some() {
            return Ok(None);
        }
        // What it has kept in its TLB from an earlier driver it tries on the next one's tables.
        let hardware = &self.functions[index].hardware;
        let kept = hardware.cached_translations().into_iter().map(|(address, _)| address);
        hardware.keep_trying(&kept.take(8).collect::<Vec<_>>());
        let trusted = step.b & 1 != 0;
        let claimed = match trusted {
            true => self.driven.iommu.claim_trusted(address),
            false => self.driven.iommu.claim(address),
        };
        hardware.keep_trying(&[]);
        let Group { oracle, quarantined, .. } = &self.groups[group];
        if *quarantined {
            return match claimed {
                Err(ClaimError::Quarantined { function }) if function == address => {
                    Ok(Some((group, PAGE, PAGE)))
                }
                other => Err(format!("claim of {address} in quarantine: {other:?}")),
            };
        }
        let first = oracle.nth(0).map_or(0, |(first, _)| first);
        match claimed {
            Ok(handle) => {
                if !trusted && self.functions[index].hardware.uses_ats() {
                    return Err(format!("{address} uses its TLB, and nobody trusts it"));
                }
                self.functions[index].handle = Some(handle);
                self.driven.enable(address);
                self.restore_reserved(group)?;
            }
            Err(ClaimError::Domain(DmaError::OutOfMemory)) if self.short_of_memory => {}
            Err(error) => return Err(format!("claim of {address}: {error}")),
        }
        Ok(Some((group, first, PAGE)))
    }

    /// A claim maps the reserved memory that a release found no tables for.
    fn restore_reserved(&mut self, group: usize) -> Result<(), String> {
        let reserved = self.reserved_only(group)?;
        for (first, mapped) in reserved.ranges() {
            // It is there, ordinarily.
            let _ = self.groups[group].oracle.insert(first, mapped);
        }
        Ok(())
    }

    fn note_address(&mut self, group: usize, iova: u64) {
        const KEPT: usize = 16;
        self.addresses.push_front((group, iova & !(PAGE - 1)));
        self.addresses.truncate(KEPT);
    }

    /// The `number`th function of those that are claimed.
    fn pick_claimed(&self, number: u64) -> Option<usize> {
        let claimed = || (0..self.functions.len()).filter(|&i| self.functions[i].handle.is_some());
        claimed().nth(number as usize % claimed().count().max(1))
    }

    fn pick_live(&self, number: u64) -> Option<usize> {
        (!self.live.is_empty()).then(|| number as usize % self.live.len())
    }

    fn reap(&mut self) {
        self.driven.iommu.reap();
        self.pump();
    }

    /// Interrupts and threads run; the reaper is one of them, but it may have been woken or not.
    fn pump(&mut self) {
        self.driven.pump();
        let now_ns = self.driven.machine.clock().now_ns();
        self.driven.iommu.reap();
        self.groups.iter_mut().for_each(|group| group.oracle.forget_dropped());
        for (group, iova, _) in std::mem::take(&mut self.forgotten) {
            self.groups[group].oracle.remove(iova);
        }
        self.settle_retired(now_ns);
    }
}
