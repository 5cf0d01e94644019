//! A whole machine: memory, units, functions, clock.

use std::sync::{Arc, Mutex, MutexGuard};

use iommu::{
    PciAddress,
    platform::{Event, MsiMessage, Work},
};
use mm::{PhysAddr, PhysRange};

use crate::{
    clock::Clock,
    complaints::{Complaint, Complaints, Rule},
    config::MachineConfig,
    device,
    device_tlb::DeviceTlb,
    memory::Memory,
    misbehaviour::Misbehaviour,
    pci::{ConfigSpace, Effect},
    platform,
    random::Random,
    turn,
    unit::{Access, AddressType, Request, Unit},
    world::{Function, World},
};

/// A simulated machine. Shared by its platform, its devices and the test.
#[derive(Debug)]
pub struct Machine {
    config: MachineConfig,
    clock: Clock,
    pub(crate) memory: Arc<Memory>,
    complaints: Arc<Complaints>,
    state: Mutex<State>,
    vectors: Mutex<Vectors>,
    work: Mutex<Vec<Work>>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub units: Vec<Unit>,
    pub world: World,
}

#[derive(Debug, Default)]
struct Vectors {
    given: Vec<(MsiMessage, Event)>,
    /// No more vectors are given out.
    exhausted: bool,
}

impl Machine {
    /// A machine that was just turned on.
    #[must_use]
    pub fn new(config: MachineConfig) -> Arc<Self> {
        let mut random = Random::new(config.seed);
        let complaints = Arc::new(Complaints::default());
        let memory =
            Arc::new(Memory::new(&config.memory, config.host_address_bits, &mut random, complaints.clone()));
        let functions = config.functions.iter().map(|function| Function {
            address: function.address,
            unit: function.unit,
            requester: function.requester,
            config: ConfigSpace::new(function),
            physical: config.physical_of(function),
            tlb: DeviceTlb::default(),
            answers_from_ns: 0,
            unplugged: false,
            busy_with: Vec::new(),
            bridges: config.bridges_above(function.address),
        });
        let mut world = World {
            memory: memory.clone(),
            complaints: complaints.clone(),
            random,
            now_ns: 0,
            outbox: Vec::new(),
            functions: functions.collect(),
            drop_once_in: config.drop_once_in,
            prefetch_once_in: config.prefetch_once_in,
            attempts: Vec::new(),
        };
        let mut units: Vec<Unit> = (0..)
            .zip(&config.units)
            .map(|(index, unit)| Unit::new(index, unit.clone(), config.host_address_bits))
            .collect();
        units.iter_mut().for_each(|unit| unit.power_on(&mut world, config.memory.firmware));
        const ACCESS_NS: u64 = 50;
        Arc::new(Self {
            clock: Clock::new(config.relax_ns, ACCESS_NS),
            memory,
            complaints,
            state: Mutex::new(State { units, world }),
            vectors: Mutex::default(),
            work: Mutex::default(),
            config,
        })
    }

    /// What the machine is made of.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The state, at the present time.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap();
        state.world.now_ns = self.clock.now_ns();
        state
    }

    /// What happens by itself between two steps of the driver: caches evict, write buffers drain, accesses land.
    pub(crate) fn stir(&self, state: &mut State) {
        const LAND_ONCE_IN: u64 = 16;
        let State { units, world } = state;
        if world.random.once_in(self.config.evict_once_in) {
            let memory = world.memory.clone();
            memory.tables.evict(&mut world.random);
            for unit in units.iter_mut() {
                if world.random.once_in(2) {
                    unit.drain_write_buffer(world);
                }
            }
        }
        for unit in units.iter_mut().filter(|unit| !unit.in_flight.is_empty()) {
            if world.random.once_in(LAND_ONCE_IN) {
                unit.land(world, |_| true);
            }
        }
        device::attempt(units, world);
        device::go_on(world);
        const WATCH_ONCE_IN: u64 = 4;
        if world.random.once_in(WATCH_ONCE_IN) {
            self.watch_reserved_memory(state);
        }
    }

    /// Devices that firmware reserved memory for use it all the time, until their bus mastering is turned off: there is
    /// no moment in which they may be blocked. Where it speaks of the kernel's memory they are to be.
    fn watch_reserved_memory(&self, state: &mut State) {
        let State { units, world } = state;
        for reserved in &self.config.reserved {
            let Some(index) = world.functions.iter().position(|f| f.address == reserved.function) else {
                continue;
            };
            let range = PhysRange::new(PhysAddr::new(reserved.base), reserved.limit - reserved.base + 1);
            if !world.masters_bus(index) || self.config.memory.is_kernels(range) {
                continue;
            }
            let function = &world.functions[index];
            let (unit, source) = (&mut units[function.unit], function.requester);
            if unit.misbehaviour.gone || !unit.was_open_at_first() {
                continue;
            }
            let request = Request {
                source,
                address: reserved.base,
                access: Access::Write,
                address_type: AddressType::Untranslated,
                silent: true,
            };
            let answer = unit.request(world, &request);
            if answer.map(|translation| translation.at(reserved.base)) != Ok(reserved.base) {
                let text = format!("{}: {:#x} gives {answer:x?}", reserved.function, reserved.base);
                world.complaints.add(Rule::ReservedMemoryBlocked, text);
            }
        }
    }

    /// One round of a busy wait.
    pub(crate) fn relax(&self) {
        self.clock.relax();
        let mut state = self.state();
        self.stir(&mut state);
        let State { units, world } = &mut *state;
        units.iter_mut().filter(|unit| !unit.misbehaviour.gone).for_each(|unit| unit.advance(world));
    }

    /// Checks all tables now and then: they are being changed.
    pub(crate) fn audit_sometimes(&self, state: &mut State) {
        if state.world.random.once_in(self.config.audit_once_in) {
            Self::audit_state(state);
        }
    }

    fn audit_state(state: &mut State) {
        let State { units, world } = state;
        for unit in units.iter_mut().filter(|unit| !unit.misbehaviour.gone) {
            unit.audit(world);
            unit.check_entries(world);
        }
    }

    /// Checks everything that every unit can walk.
    pub fn audit(&self) {
        Self::audit_state(&mut self.state());
    }

    /// What the driver did wrongly so far; forgets it.
    pub fn take_complaints(&self) -> Vec<Complaint> {
        self.complaints.take()
    }

    /// Whether the driver did nothing wrongly so far.
    pub fn is_content(&self) -> bool {
        self.complaints.is_empty()
    }

    /// Notes a rule that the driver broke.
    pub fn complain(&self, rule: Rule, text: impl Into<String>) {
        self.complaints.add(rule, text);
    }

    /// Makes unit `index` misbehave.
    pub fn misbehave(&self, index: usize, change: impl FnOnce(&mut Misbehaviour)) {
        change(&mut self.state().units[index].misbehaviour);
    }

    /// Makes the fault records of unit `index` look pending for ever.
    pub fn stick_fault_records(&self, index: usize, stuck: bool) {
        self.state().units[index].faults.stuck = stuck;
    }

    /// Lets `remaining` more table pages be allocated and then none; `None` ends the shortage.
    pub fn set_shortage(&self, remaining: Option<u64>) {
        self.memory.tables.set_shortage(remaining);
    }

    /// Gives the table page, or run of pages, that is allocated after `after` others an address beyond the host address
    /// width.
    pub fn place_beyond(&self, after: u64) {
        self.memory.beyond.set(after);
    }

    /// Allocations that a shortage refused.
    pub fn refused_allocations(&self) -> u64 {
        self.memory.tables.refused()
    }

    /// Memory for table pages, for a host that chooses itself which it gives out, and says so by
    /// [`take_table_pages`](Self::take_table_pages).
    pub fn table_memory(&self) -> PhysRange {
        let (first, pages) = self.memory.tables.range();
        PhysRange::new(PhysAddr::new(first), pages as u64 * mm::PAGE_BYTES)
    }

    /// Gives out `pages` zeroed table pages from `first` on, which are free.
    pub fn take_table_pages(&self, first: PhysAddr, pages: usize) {
        let _turn = turn::take();
        self.memory.tables.take(first.as_u64(), pages);
    }

    /// Table pages in use.
    pub fn live_table_pages(&self) -> usize {
        self.memory.tables.live_pages()
    }

    /// Whether unit `index` translates, and whether it remaps interrupts.
    pub fn is_on(&self, index: usize) -> (bool, bool) {
        let state = self.state();
        let unit = &state.units[index];
        (unit.translates(), unit.remaps_interrupts())
    }

    /// Faults that unit `index` has recorded and nobody has cleared.
    pub fn has_pending_faults(&self, index: usize) -> bool {
        self.state().units[index].faults.any_pending()
    }

    /// Writes to the registers of unit `index` so far.
    pub fn register_writes(&self, index: usize) -> u64 {
        self.state().units[index].writes
    }

    /// Descriptors, waits included, that unit `index` has carried out so far.
    pub fn descriptors(&self, index: usize) -> u64 {
        self.state().units[index].descriptors
    }

    /// Whether the buffer at `physical` is in the hands of a device.
    pub fn is_lent(&self, physical: u64) -> bool {
        self.memory.buffers.is_lent(physical)
    }

    /// Gives no more vectors out.
    pub fn exhaust_vectors(&self) {
        self.vectors.lock().unwrap().exhausted = true;
    }

    pub(crate) fn allocate_vector(&self, event: Event) -> Option<MsiMessage> {
        const FIRST_VECTOR: u32 = 0x40;
        let mut vectors = self.vectors.lock().unwrap();
        let Event::Fault { unit } = event;
        if vectors.exhausted {
            return None;
        }
        // With 32-bit APIC ids the upper half of the address counts too.
        let wide = self.config.units.get(unit).is_some_and(|unit| unit.eim);
        let upper = if wide { 0x0000_0100_0000_0000 } else { 0 };
        let number = vectors.given.len() as u32;
        let message = MsiMessage { address: upper | 0xfee0_1000, data: FIRST_VECTOR + number };
        vectors.given.push((message, event));
        Some(message)
    }

    pub(crate) fn wake(&self, work: Work) {
        let mut list = self.work.lock().unwrap();
        if !list.contains(&work) {
            list.push(work);
        }
    }

    /// Work that the driver wants done in a thread; forgets it.
    pub fn take_work(&self) -> Vec<Work> {
        std::mem::take(&mut *self.work.lock().unwrap())
    }

    /// Takes the interrupts that units have sent, and calls `handler` for each as if in an interrupt. Messages that
    /// no vector was allocated for are dropped: firmware left them.
    pub fn deliver_events(&self, mut handler: impl FnMut(Event)) -> usize {
        let messages = std::mem::take(&mut self.state().world.outbox);
        let events: Vec<Event> = {
            let vectors = self.vectors.lock().unwrap();
            let event_of =
                |message| vectors.given.iter().find(|(given, _)| *given == message).map(|(_, e)| *e);
            messages.into_iter().filter_map(event_of).collect()
        };
        events.iter().for_each(|&event| platform::in_interrupt(|| handler(event)));
        events.len()
    }

    pub(crate) fn read_config(&self, function: PciAddress, offset: u16) -> u32 {
        let state = self.state();
        let found = state.world.functions.iter().find(|f| f.address == function && !f.unplugged);
        found.map_or(!0, |f| f.config.read(offset))
    }

    pub(crate) fn write_config(&self, function: PciAddress, offset: u16, value: u32) {
        self.change_config(function, offset, !0, value);
    }

    pub(crate) fn change_config(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        let mut state = self.state();
        self.stir(&mut state);
        let found = state.world.functions.iter_mut().find(|f| f.address == function && !f.unplugged);
        let Some(found) = found else { return };
        match found.config.write(offset, found.config.read(offset) & !clear | set) {
            Effect::None => {}
            Effect::AtsOff => found.tlb.clear(),
            Effect::Reset => {
                found.tlb.clear();
                found.busy_with.clear();
            }
        }
    }

    /// Takes a table page back, unless a unit could still walk it.
    pub(crate) fn free_table(&self, physical: u64) {
        let mut state = self.state();
        let State { units, world } = &mut *state;
        for unit in units.iter().filter(|unit| unit.translates() && !unit.misbehaviour.gone) {
            if let Some(how) = unit.caches_table(physical) {
                let text = format!("unit {}: table {physical:#x} freed, but in {how}", unit.index);
                world.complaints.add(Rule::FreedWhileReachable, text);
            }
        }
        self.memory.tables.free(physical);
        self.audit_sometimes(&mut state);
    }

    /// Notes if a unit or a device can still reach the buffer at `physical`.
    pub(crate) fn check_unreachable(&self, physical: u64, bytes: u64) {
        let mut state = self.state();
        let complain = |text| self.complaints.add(Rule::BufferStillReachable, text);
        let overlaps =
            |first: u64, length: usize| first < physical + bytes && physical < first + length as u64;
        for unit in state.units.iter().filter(|unit| unit.translates() && !unit.misbehaviour.gone) {
            if let Some((domain, address)) = unit.caches_memory(physical, bytes) {
                complain(format!("unit {}: {physical:#x} by {address:#x} of domain {domain}", unit.index));
            }
            if let Some(access) =
                unit.in_flight.iter().find(|access| overlaps(access.physical, access.kind.bytes()))
            {
                complain(format!("unit {}: {physical:#x}: {:?} is still in flight", unit.index, access.kind));
            }
        }
        let State { units, world } = &mut *state;
        for index in 0..world.functions.len() {
            let function = &world.functions[index];
            let who = function.address;
            if function.busy_with.iter().any(|&(first, length)| overlaps(first, length as usize)) {
                complain(format!("{who}: {physical:#x} is in a transfer that began before"));
            }
            // What it has kept does it no good where its unit lets no translated request of it through.
            if let Some(address) = function.tlb.reaches(physical, bytes)
                && device::reaches_translated(units, world, index, physical)
            {
                complain(format!("{who}: {physical:#x} by {address:#x} in its device TLB"));
            }
        }
    }
}
