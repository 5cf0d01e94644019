//! The state of one life, and what each step does.

use std::sync::{Arc, Weak};

use iommu::{
    Bidirectional, Coherent, DmaDevice, DmaError, FromDevice, Iova, Mapping, PciAddress, Rejected, ToDevice,
    dma::Direction, policy::Limits,
};
use vtd_model::{Device, Machine, MachineConfig, ModelBuffer, Random};

use crate::{
    check,
    driver::Driven,
    oracle::{Mapped, Oracle},
    step::{Kind, Step},
};

mod trouble;

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
    /// It did not empty its TLB: it is stopped for good.
    lost: bool,
    address_bits: u32,
}

/// A mapping in one of the three directions.
enum Held {
    To(Mapping<ModelBuffer, ToDevice>),
    From(Mapping<ModelBuffer, FromDevice>),
    Both(Mapping<ModelBuffer, Bidirectional>),
}

struct Live {
    function: usize,
    iova: u64,
    bytes: u64,
    held: Held,
    /// Bytes that the device wrote, and where.
    written: Option<(u64, Vec<u8>)>,
}

struct LiveCoherent {
    function: usize,
    memory: Coherent<u64>,
}

pub struct Life {
    driven: Driven,
    functions: Vec<Function>,
    /// By group.
    oracles: Vec<Oracle>,
    live: Vec<Live>,
    coherent: Vec<LiveCoherent>,
    random: Random,
    steps: u64,
    short_of_memory: bool,
    /// Mappings that never come back.
    pinned: usize,
}

impl Life {
    pub fn begin(config: MachineConfig) -> Result<Self, String> {
        let seed = config.seed;
        let driven = Driven::start(config).map_err(|error| format!("bring-up: {error}"))?;
        // Its devices fault all the time, and are to go on.
        driven.iommu.set_fault_limits(Limits::none());
        let groups = driven.groups();
        let config = driven.machine.config();
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
                lost: false,
                address_bits: config.units[function.unit].mgaw.into(),
            })
            .collect();
        if functions.iter().any(|function| function.group == usize::MAX) {
            return Err("a function is in no group".to_owned());
        }
        let mut oracles: Vec<Oracle> = groups.iter().map(|_| Oracle::default()).collect();
        for reserved in &config.reserved {
            let function = functions.iter().find(|f| f.address == reserved.function);
            let group = function.map_or(0, |function| function.group);
            let mapped = Mapped {
                bytes: reserved.limit + 1 - reserved.base,
                physical: Some(reserved.base),
                read: true,
                write: true,
                fading: false,
            };
            oracles[group]
                .insert(reserved.base, mapped)
                .map_err(|at| format!("reserved memory overlaps {at:#x}"))?;
        }
        let random = Random::new(seed ^ 0x11fe);
        let (live, coherent) = (Vec::new(), Vec::new());
        Ok(Self {
            driven,
            functions,
            oracles,
            live,
            coherent,
            random,
            steps: 0,
            short_of_memory: false,
            pinned: 0,
        })
    }

    /// The machine that it runs on, to see it go.
    pub fn machine(&self) -> Weak<Machine> {
        Arc::downgrade(&self.driven.machine)
    }

    /// Does one step and checks everything that it may have touched.
    pub fn run(&mut self, step: &Step) -> Result<(), String> {
        let touched = self.perform(step)?;
        if let Some((group, first, bytes)) = touched {
            for function in self.functions.iter().filter(|f| f.group == group) {
                check::around(&function.hardware, &self.oracles[group], first, bytes, &mut self.random)?;
            }
        }
        for function in &self.functions {
            let oracle = &self.oracles[function.group];
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

    /// Takes everything back and looks at what is left.
    pub fn end(mut self) -> Result<(), String> {
        self.driven.machine.set_shortage(None);
        self.short_of_memory = false;
        self.release_lost()?;
        self.check_everything()?;
        self.unmap_all()?;
        while let Some(coherent) = self.coherent.pop() {
            self.drop_coherent(coherent);
        }
        self.reap();
        let left = self.driven.iommu.live_mappings();
        if left != self.pinned {
            return Err(format!("{left} mappings are left at the end, not {}", self.pinned));
        }
        self.check_everything()?;
        self.expect_no_complaint()
    }

    /// A unit stops working, in one way or another: what it may still reach stays pinned, and everything else goes on.
    pub fn end_by_death(mut self) -> Result<(), String> {
        self.driven.machine.set_shortage(None);
        self.release_lost()?;
        self.reap();
        let units = &self.driven.machine.config().units;
        let dead = self.random.index(units.len());
        let queued = units[dead].queued;
        let way = self.random.below(3);
        self.driven.machine.clock().set_relax_ns(1_000_000);
        self.driven.machine.misbehave(dead, |unit| match (way, queued) {
            (0, _) => unit.gone = true,
            (_, false) => unit.registers_stalled = true,
            (1, true) => unit.queue_stalled = true,
            (_, true) => unit.statuses_lost = true,
        });
        let behind = |functions: &[Function], group: usize, config: &MachineConfig| {
            (0..functions.len()).any(|i| functions[i].group == group && config.functions[i].unit == dead)
        };
        while let Some(live) = self.live.pop() {
            let group = self.functions[live.function].group;
            let pinned = behind(&self.functions, group, self.driven.machine.config());
            match live.held.unmap() {
                Err(DmaError::Stuck(stuck)) if pinned && stuck.unit == dead => {}
                Ok(_) if !pinned => self.oracles[group].remove(live.iova),
                other => {
                    return Err(format!("unmap of {:#x} behind unit {dead} ({way}): {other:?}", live.iova));
                }
            }
        }
        while let Some(coherent) = self.coherent.pop() {
            self.drop_coherent(coherent);
        }
        self.pump();
        for (index, function) in self.functions.iter().enumerate() {
            let config = &self.driven.machine.config().functions[index];
            let claimed_there = config.unit == dead && function.handle.is_some();
            if claimed_there && self.stuck_was_found(dead) && function.hardware.is_bus_master() {
                return Err(format!("{} is still a bus master behind unit {dead}", function.address));
            }
            if !behind(&self.functions, function.group, self.driven.machine.config()) {
                self.check_whole(function)?;
            }
        }
        self.expect_no_complaint()
    }

    /// Whether the driver knows that a unit does not work.
    fn stuck_was_found(&self, unit: usize) -> bool {
        self.driven.units().iter().any(|report| report.unit == unit && !report.alive)
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
        // What a device that was stopped has kept in its TLB does it no good.
        if function.lost {
            return check::blocked(&function.hardware);
        }
        check::whole(&function.hardware, &self.oracles[function.group])
    }

    fn perform(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        match step.kind {
            Kind::Claim => self.claim(step),
            Kind::Map => self.map(step, None, u32::MAX),
            Kind::MapAt => self.map(step, Some(()), u32::MAX),
            Kind::MapBelow => self.map(step, None, [28, 30, 32, 36][(step.c >> 32 & 3) as usize]),
            Kind::Unmap => self.pick_live(step.a).map_or(Ok(None), |index| self.unmap(index).map(Some)),
            Kind::UnmapAll => self.unmap_all().map(|()| None),
            Kind::Drop => Ok(self.pick_live(step.a).map(|index| self.drop_mapping(index))),
            Kind::Reap => {
                self.reap();
                Ok(None)
            }
            Kind::Transfer => self.transfer(step),
            Kind::PostedWrite => self.posted_write(step),
            Kind::Stray => self.stray(step).map(|()| None),
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
                Ok(Some(self.drop_coherent(coherent)))
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
        }
    }

    fn claim(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        let index = step.a as usize % self.functions.len();
        let function = &mut self.functions[index];
        let kind = self.driven.machine.config().functions[index].kind;
        if function.handle.is_some() || function.lost || kind.buses().is_some() {
            return Ok(None);
        }
        let trusted = step.b & 1 != 0;
        let claimed = match trusted {
            true => self.driven.iommu.claim_trusted(function.address),
            false => self.driven.iommu.claim(function.address),
        };
        if !trusted && function.hardware.uses_ats() {
            return Err(format!("{} uses its TLB, and nobody trusts it", function.address));
        }
        match claimed {
            Ok(handle) => {
                function.handle = Some(handle);
                self.driven.enable(function.address);
            }
            Err(iommu::ClaimError::Domain(DmaError::OutOfMemory)) if self.short_of_memory => {}
            Err(error) => return Err(format!("claim of {}: {error}", function.address)),
        }
        let first = self.oracles[function.group].nth(0).map_or(0, |(first, _)| first);
        Ok(Some((function.group, first, PAGE)))
    }

    /// The `number`th function of those that are claimed.
    fn pick_claimed(&self, number: u64) -> Option<usize> {
        let claimed = || (0..self.functions.len()).filter(|&i| self.functions[i].handle.is_some());
        claimed().nth(number as usize % claimed().count().max(1))
    }

    fn pick_live(&self, number: u64) -> Option<usize> {
        (!self.live.is_empty()).then(|| number as usize % self.live.len())
    }

    fn map(&mut self, step: &Step, at: Option<()>, mask: u32) -> Result<Option<(usize, u64, u64)>, String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(None) };
        let (pages, align) = size(step.b);
        let Some(mut buffer) = self.driven.machine.allocate_buffer(pages, align) else { return Ok(None) };
        mark(&mut buffer, step.c);
        let function = &self.functions[index];
        let handle = function.handle.clone().expect("claimed");
        handle.set_address_bits(mask.min(64));
        let at = at.map(|()| {
            let bits = u64::from(function.address_bits).min(40 + (step.c & 7));
            Iova::new(((step.c >> 3) % (1 << bits)) & !(PAGE - 1))
        });
        let physical = buffer.physical();
        let held = match step.c % 3 {
            0 => map_in(&handle, buffer, ToDevice, at).map(Held::To),
            1 => map_in(&handle, buffer, FromDevice, at).map(Held::From),
            _ => map_in(&handle, buffer, Bidirectional, at).map(Held::Both),
        };
        match held {
            Ok(held) => self.mapped(index, held, physical, at, mask).map(Some),
            Err(Rejected { error, buffer }) => {
                let same =
                    |buffer: ModelBuffer| buffer.physical() == physical && read_mark(&buffer) == step.c;
                if !buffer.is_some_and(same) {
                    return Err(format!("the buffer did not come back from a refused map: {error}"));
                }
                self.excuse(error, at, pages, mask)?;
                let near = at.map_or(0x1000, Iova::as_u64);
                Ok(Some((self.functions[index].group, near, PAGE)))
            }
        }
    }

    /// Whether a map may fail like this.
    fn excuse(&self, error: DmaError, at: Option<Iova>, pages: u32, mask: u32) -> Result<(), String> {
        let fine = match error {
            DmaError::OutOfMemory => self.short_of_memory,
            DmaError::IovaTaken { .. } => at.is_some(),
            // What is mapped, and what alignment costs, may fill a small window.
            DmaError::NoIova { .. } => at.is_none() && (mask <= 30 || pages > 1 << 12),
            _ => false,
        };
        if fine { Ok(()) } else { Err(format!("map of {pages} pages at {at:?} below 2^{mask}: {error}")) }
    }

    fn mapped(
        &mut self,
        index: usize,
        held: Held,
        physical: u64,
        at: Option<Iova>,
        mask: u32,
    ) -> Result<(usize, u64, u64), String> {
        let (iova, bytes) = held.range();
        let (group, bits) = (self.functions[index].group, self.functions[index].address_bits.min(mask));
        let last = iova + (bytes - 1);
        if last >> bits != 0 || iova < PAGE && at.is_none() || iova < 0xfef0_0000 && last >= 0xfee0_0000 {
            return Err(format!("IOVA {iova:#x} to {last:#x} with {bits} bits"));
        }
        if at.is_some_and(|at| at.as_u64() != iova) {
            return Err(format!("IOVA {iova:#x} instead of {at:?}"));
        }
        let (read, write) = held.rights();
        let mapped = Mapped { bytes, physical: Some(physical), read, write, fading: false };
        let inserted = self.oracles[group].insert(iova, mapped);
        inserted.map_err(|other| format!("IOVA {iova:#x} given out while {other:#x} is mapped"))?;
        self.live.push(Live { function: index, iova, bytes, held, written: None });
        Ok((group, iova, bytes))
    }

    fn unmap(&mut self, index: usize) -> Result<(usize, u64, u64), String> {
        let live = self.live.swap_remove(index);
        let group = self.functions[live.function].group;
        let buffer = live.held.unmap().map_err(|error| format!("unmap of {:#x}: {error}", live.iova))?;
        self.oracles[group].remove(live.iova);
        if let Some((offset, data)) = &live.written
            && &buffer.as_slice()[*offset as usize..][..data.len()] != data.as_slice()
        {
            return Err(format!("what the device wrote to {:#x} is not there", live.iova + offset));
        }
        Ok((group, live.iova, live.bytes))
    }

    fn unmap_all(&mut self) -> Result<(), String> {
        while !self.live.is_empty() {
            self.unmap(self.live.len() - 1)?;
        }
        Ok(())
    }

    fn drop_mapping(&mut self, index: usize) -> (usize, u64, u64) {
        let live = self.live.swap_remove(index);
        let group = self.functions[live.function].group;
        self.oracles[group].fade(live.iova);
        drop(live.held);
        (group, live.iova, live.bytes)
    }

    fn reap(&mut self) {
        self.driven.iommu.reap();
        self.pump();
    }

    /// Interrupts and threads run; the reaper is one of them, but it may have been woken or not.
    fn pump(&mut self) {
        self.driven.pump();
        self.driven.iommu.reap();
        self.oracles.iter_mut().for_each(Oracle::forget_faded);
    }

    /// The device moves data inside a mapping.
    fn transfer(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        const LONGEST: u64 = 3 * PAGE;
        let Some(index) = self.pick_live(step.a) else { return Ok(None) };
        let live = &mut self.live[index];
        let hardware = &self.functions[live.function].hardware;
        let offset = step.b % live.bytes;
        let bytes = 1 + step.c % LONGEST.min(live.bytes - offset);
        let (read, write) = live.held.rights();
        let mut data: Vec<u8> = (0..bytes).map(|i| (step.c >> (i % 8 * 8)) as u8 ^ i as u8).collect();
        if write {
            hardware.write(live.iova + offset, &data).map_err(|error| format!("write: {error:?}"))?;
            live.written = Some((offset, data));
        } else if read {
            hardware.read(live.iova + offset, &mut data).map_err(|error| format!("read: {error:?}"))?;
            let mut head = [0; 8];
            hardware.read(live.iova, &mut head).map_err(|error| format!("read: {error:?}"))?;
            if head[0] != 0xa5 {
                return Err(format!("the device read {head:x?} at {:#x}", live.iova));
            }
        }
        Ok(Some((self.functions[live.function].group, live.iova, live.bytes)))
    }

    /// A write that reaches memory later: before the buffer is given back, or never.
    fn posted_write(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        let Some(index) = self.pick_live(step.a) else { return Ok(None) };
        let live = &mut self.live[index];
        if !live.held.rights().1 {
            return Ok(None);
        }
        let hardware = &self.functions[live.function].hardware;
        let offset = (step.b % live.bytes) & !7;
        let data = step.c.to_le_bytes().to_vec();
        hardware.post_write(live.iova + offset, &data).map_err(|error| format!("posted write: {error:?}"))?;
        live.written = Some((offset, data));
        Ok(Some((self.functions[live.function].group, live.iova, live.bytes)))
    }

    /// A request that no mapping allows is blocked, and the device's fault count tells.
    fn stray(&mut self, step: &Step) -> Result<(), String> {
        let Some(index) = self.pick_claimed(step.a) else { return Ok(()) };
        let function = &self.functions[index];
        let oracle = &self.oracles[function.group];
        let address = check::some_address(oracle, function.address_bits + 1, &mut self.random) & !7;
        let writes = step.c & 1 != 0;
        if let crate::oracle::Expected::Mapped(mapped, _) = oracle.expected(address)
            && (mapped.fading || if writes { mapped.write } else { mapped.read })
        {
            return Ok(());
        }
        let handle = function.handle.as_ref().expect("claimed");
        let before = handle.fault_count();
        let hardware = &function.hardware;
        let result =
            if writes { hardware.write(address, &[0; 8]) } else { hardware.read(address, &mut [0; 8]) };
        match result {
            Ok(()) => Err(format!("{:?} reached {address:#x}", hardware)),
            // Not one of the faults that hardware reports.
            Err(vtd_model::Denied::InterruptRange | vtd_model::Denied::NoTranslation) => Ok(()),
            Err(_) if handle.fault_count() > before => Ok(()),
            Err(error) => {
                Err(format!("{hardware:?} at {address:#x}: {error:?}, but the count stays {before}"))
            }
        }
    }

    /// More faults than there are records, from every claimed function.
    fn storm(&mut self, step: &Step) -> Result<(), String> {
        for _ in 0..step.a % 600 {
            self.stray_quietly();
        }
        self.pump();
        for unit in 0..self.driven.machine.config().units.len() {
            if self.driven.machine.has_pending_faults(unit) {
                return Err(format!("unit {unit} still has faults pending after the storm"));
            }
        }
        Ok(())
    }

    fn stray_quietly(&mut self) {
        let number = self.random.bits();
        let Some(index) = self.pick_claimed(number) else { return };
        let function = &self.functions[index];
        let oracle = &self.oracles[function.group];
        let address = self.random.below(1 << function.address_bits) & !7;
        if oracle.expected(address) == crate::oracle::Expected::Nothing {
            // Blocked or not is what the checks after the step look at.
            let _ = function.hardware.write(address, &[0; 8]);
        }
    }

    fn allocate_coherent(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        let Some(function) = self.pick_claimed(step.a) else { return Ok(None) };
        let count = 1 + step.b as usize % 2000;
        let handle = self.functions[function].handle.clone().expect("claimed");
        handle.set_address_bits(64);
        match handle.alloc_coherent::<u64>(count) {
            Ok(memory) => {
                let (iova, bytes) = (memory.iova().as_u64(), (count as u64 * 8).next_multiple_of(PAGE));
                let mapped = Mapped { bytes, physical: None, read: true, write: true, fading: false };
                let group = self.functions[function].group;
                let inserted = self.oracles[group].insert(iova, mapped);
                inserted.map_err(|other| format!("coherent {iova:#x} overlaps {other:#x}"))?;
                self.coherent.push(LiveCoherent { function, memory });
                Ok(Some((group, iova, bytes)))
            }
            Err(DmaError::OutOfMemory) if self.short_of_memory => Ok(None),
            Err(error) => Err(format!("coherent memory: {error}")),
        }
    }

    fn drop_coherent(&mut self, coherent: LiveCoherent) -> (usize, u64, u64) {
        let group = self.functions[coherent.function].group;
        let (iova, bytes) = (coherent.memory.iova().as_u64(), coherent.memory.len() as u64 * 8);
        self.oracles[group].fade(iova);
        drop(coherent.memory);
        (group, iova, bytes)
    }

    /// CPU and device see each other's stores.
    fn touch_coherent(&mut self, step: &Step) -> Result<Option<(usize, u64, u64)>, String> {
        if self.coherent.is_empty() {
            return Ok(None);
        }
        let at = step.a as usize % self.coherent.len();
        let LiveCoherent { function, memory } = &mut self.coherent[at];
        let index = step.b as usize % memory.len();
        let hardware = &self.functions[*function].hardware;
        memory.write(index, step.c);
        let mut seen = [0; 8];
        hardware.read(memory.iova_of(index).as_u64(), &mut seen).map_err(|error| format!("{error:?}"))?;
        hardware
            .write(memory.iova_of(index).as_u64(), &(!step.c).to_le_bytes())
            .map_err(|e| format!("{e:?}"))?;
        if u64::from_le_bytes(seen) != step.c || memory.read(index) != !step.c {
            return Err(format!("coherent memory at {} is not shared", memory.iova_of(index)));
        }
        Ok(None)
    }
}

impl Held {
    fn range(&self) -> (u64, u64) {
        match self {
            Self::To(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
            Self::From(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
            Self::Both(mapping) => (mapping.iova().as_u64(), mapping.len() as u64),
        }
    }

    fn rights(&self) -> (bool, bool) {
        match self {
            Self::To(_) => (true, false),
            Self::From(_) => (false, true),
            Self::Both(_) => (true, true),
        }
    }

    fn unmap(self) -> Result<ModelBuffer, DmaError> {
        match self {
            Self::To(mapping) => mapping.unmap(),
            Self::From(mapping) => mapping.unmap(),
            Self::Both(mapping) => mapping.unmap(),
        }
    }
}

fn map_in<D: Direction>(
    handle: &DmaDevice,
    buffer: ModelBuffer,
    direction: D,
    at: Option<Iova>,
) -> Result<Mapping<ModelBuffer, D>, Rejected<ModelBuffer>> {
    match at {
        Some(iova) => handle.dma_map_at(buffer, direction, iova),
        None => handle.dma_map(buffer, direction),
    }
}

/// Pages and alignment of a buffer: mostly small, now and then a superpage or more.
fn size(bits: u64) -> (u32, u32) {
    let small = 1 + (bits >> 8) as u32 % 32;
    match bits % 64 {
        0 => (1 << 18, 1 << 18),
        1 => ((1 << 18) + small, 1 << 18),
        2..=5 => (512 * (1 + (bits >> 8) as u32 % 3), 512),
        6..=9 => (512 + small, 512),
        10..=13 => (512 + small, 1),
        14..=30 => (small, 1),
        _ => (1, 1),
    }
}

/// Makes a buffer recognisable: first byte 0xa5, then a number.
fn mark(buffer: &mut ModelBuffer, number: u64) {
    buffer.as_mut_slice()[0] = 0xa5;
    buffer.as_mut_slice()[8..16].copy_from_slice(&number.to_le_bytes());
}

fn read_mark(buffer: &ModelBuffer) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&buffer.as_slice()[8..16]);
    u64::from_le_bytes(number)
}
