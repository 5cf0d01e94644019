//! One remapping unit.

mod audit;
mod command;
mod descriptors;
mod fetch;
mod handshake;
mod interrupts;
mod invalidation;
mod power_on;
mod queue;
mod register_access;
mod scalable_handshake;
mod survey;
mod translation;
mod walker;

use std::collections::{BTreeSet, HashMap};

use iommu::platform::MsiMessage;

pub use interrupts::{Delivered, InterruptOutcome};
pub use survey::Reach;
pub use translation::{Access, AddressType, Denied};
pub(crate) use translation::{Request, is_interrupt_range};

use command::Commands;
use handshake::Handshakes;
use queue::Queue;

use crate::{
    complaints::Rule, config::UnitConfig, context_cache::ContextCache, event::EventInterrupt, faults::Faults,
    interrupt_cache::InterruptCache, iotlb::Iotlb, misbehaviour::Misbehaviour, paging_cache::PagingCache,
    pasid_cache::PasidCache, world::World,
};

/// Bits of GSTS, and of GCMD where it has the same.
pub(crate) mod global {
    pub const TRANSLATION: u32 = 1 << 31;
    pub const ROOT: u32 = 1 << 30;
    pub const FAULT_LOG_SET: u32 = 1 << 29;
    pub const FAULT_LOG: u32 = 1 << 28;
    pub const WRITE_BUFFER: u32 = 1 << 27;
    pub const QUEUE: u32 = 1 << 26;
    pub const INTERRUPTS: u32 = 1 << 25;
    pub const INTERRUPT_TABLE: u32 = 1 << 24;
    pub const COMPATIBILITY: u32 = 1 << 23;
}

/// RTADDR.TTM, and what it is in scalable mode.
const TABLE_MODE: u64 = 3 << 10;
const SCALABLE: u64 = 1 << 10;

#[derive(Debug)]
pub(crate) struct Unit {
    pub index: usize,
    pub config: UnitConfig,
    pub misbehaviour: Misbehaviour,
    host_address_bits: u8,
    /// GSTS.
    status: u32,
    commands: Commands,
    /// RTADDR as written, and as latched by the root command.
    root_address: u64,
    root: u64,
    /// IRTA as written, and as latched.
    interrupt_address: u64,
    interrupt_table: u64,
    /// PMEN.EPM, and the four bounds.
    protection: bool,
    /// What was last written to EPM.
    protection_requested: bool,
    protected: [u64; 4],
    pub faults: Faults,
    fault_event: EventInterrupt,
    completion_event: EventInterrupt,
    page_event: EventInterrupt,
    /// ICS.IWC.
    completed: bool,
    queue: Queue,
    contexts: ContextCache,
    pasids: PasidCache,
    iotlb: Iotlb,
    paging: PagingCache,
    interrupts: InterruptCache,
    /// Caching mode, which is there for a unit of a hypervisor's that walks tables of its own: sources whose context
    /// entry was not present, and of which it has no table until the IOTLB is invalidated for the domain that they are
    /// in then.
    newcomers: BTreeSet<u16>,
    /// What the unit sees of pages whose stores wait in the write buffer (RWBF).
    write_buffer: HashMap<u64, Box<[u64; 512]>>,
    /// Number of the newest table page when the write buffer was last drained. Of a page that was given out after
    /// that, nothing has reached the unit.
    drained: u64,
    handshakes: Handshakes,
    /// Writes of registers so far.
    pub writes: u64,
    /// Descriptors carried out.
    pub descriptors: u64,
    /// Low halves of 64-bit registers that are written in two dwords.
    half_written: Option<usize>,
    /// Accesses that were translated and have not reached memory yet.
    pub(crate) in_flight: Vec<InFlight>,
}

/// An access on its way to memory, past translation.
#[derive(Clone, Debug)]
pub(crate) struct InFlight {
    pub physical: u64,
    pub kind: InFlightKind,
    pub pass_through: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum InFlightKind {
    /// What is written.
    Write(Vec<u8>),
    /// How many bytes are read.
    Read(usize),
}

impl InFlightKind {
    pub fn bytes(&self) -> usize {
        match self {
            Self::Write(data) => data.len(),
            Self::Read(bytes) => *bytes,
        }
    }
}

impl Unit {
    pub fn new(index: usize, config: UnitConfig, host_address_bits: u8) -> Self {
        let faults = Faults::new(config.fault_records);
        Self {
            index,
            config,
            misbehaviour: Misbehaviour::default(),
            host_address_bits,
            status: 0,
            commands: Commands::default(),
            root_address: 0,
            root: 0,
            interrupt_address: 0,
            interrupt_table: 0,
            protection: false,
            protection_requested: false,
            protected: [0; 4],
            faults,
            fault_event: EventInterrupt::new(),
            completion_event: EventInterrupt::new(),
            page_event: EventInterrupt::new(),
            completed: false,
            queue: Queue::default(),
            contexts: ContextCache::default(),
            pasids: PasidCache::default(),
            iotlb: Iotlb::default(),
            paging: PagingCache::default(),
            interrupts: InterruptCache::default(),
            newcomers: BTreeSet::new(),
            write_buffer: HashMap::new(),
            drained: 0,
            handshakes: Handshakes::default(),
            writes: 0,
            descriptors: 0,
            half_written: None,
            in_flight: Vec::new(),
        }
    }

    fn is_on(&self, bit: u32) -> bool {
        self.status & bit != 0
    }

    pub fn translates(&self) -> bool {
        self.is_on(global::TRANSLATION)
    }

    /// Whether the root table that was taken over is of scalable mode.
    fn is_scalable(&self) -> bool {
        self.root & TABLE_MODE == SCALABLE
    }

    pub fn remaps_interrupts(&self) -> bool {
        self.is_on(global::INTERRUPTS)
    }

    /// Notes a rule that the driver broke on this unit.
    fn complain(&self, world: &World, rule: Rule, text: impl AsRef<str>) {
        world.complaints.add(rule, format!("unit {}: {}", self.index, text.as_ref()));
    }

    /// A word of a structure other than a page table, as the unit sees it.
    fn structure_word(&mut self, world: &World, physical: u64) -> Option<u64> {
        self.word_as(world, physical, self.config.coherent)
    }

    /// A word as the unit sees it, with or without a look into the CPU's caches.
    fn word_as(&mut self, world: &World, physical: u64, snoop: bool) -> Option<u64> {
        if !self.config.write_buffer {
            return world.memory.word(physical, snoop);
        }
        let page = physical & !0xfff;
        if !self.write_buffer.contains_key(&page) {
            let too_young = world.memory.tables.age(page).is_some_and(|number| number > self.drained);
            let mut copy = Box::new([world.memory.tables.trap() | 3; 512]);
            for (index, word) in (0_u64..).zip(copy.iter_mut()).filter(|_| !too_young) {
                *word = world.memory.word(page + index * 8, snoop)?;
            }
            self.write_buffer.insert(page, copy);
        }
        self.write_buffer.get(&page).map(|copy| copy[(physical & 0xfff) as usize / 8])
    }

    /// Two words of a structure.
    fn structure_pair(&mut self, world: &World, physical: u64) -> Option<(u64, u64)> {
        Some((self.structure_word(world, physical)?, self.structure_word(world, physical + 8)?))
    }

    /// The words of a larger entry.
    fn structure_words<const N: usize>(&mut self, world: &World, physical: u64) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (slot, at) in words.iter_mut().zip((physical..).step_by(8)) {
            *slot = self.structure_word(world, at)?;
        }
        Some(words)
    }

    /// Everything that was stored so far becomes visible to the unit.
    pub fn drain_write_buffer(&mut self, world: &World) {
        self.write_buffer.clear();
        self.drained = world.memory.tables.newest();
    }

    fn send(world: &mut World, message: Option<MsiMessage>) {
        world.outbox.extend(message);
    }

    /// Whether the unit could reach the table page at `physical` by what it has cached.
    pub fn caches_table(&self, physical: u64) -> Option<String> {
        if let Some(source) = self.contexts.reaches(physical) {
            return Some(format!("the context entry cached for {source:#06x}"));
        }
        if let Some(source) = self.pasids.reaches(physical) {
            return Some(format!("the PASID entry cached for {source:#06x}"));
        }
        let (domain, level) = self.paging.reaches(physical)?;
        Some(format!("a level-{level} entry cached for domain {domain}"))
    }

    /// Whether the IOTLB leads to one of the `bytes` bytes at `physical`.
    pub fn caches_memory(&self, physical: u64, bytes: u64) -> Option<(u16, u64)> {
        self.iotlb.reaches(physical, bytes)
    }
}
