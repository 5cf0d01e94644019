//! What a machine is made of: its units, its functions, its memory.

mod generate;

use iommu::PciAddress;
use mm::{PAGE_BYTES, PhysAddr, PhysRange};

use crate::memory::MemoryMap;

/// One remapping unit, as its capability registers describe it.
#[derive(Clone, Debug)]
pub struct UnitConfig {
    /// PCI segment.
    pub segment: u16,
    /// Address of the registers.
    pub base: u64,
    /// Major version in bits 7:4, minor in 3:0.
    pub version: u8,
    /// Domain ids are numbers below 2^(4 + 2 * nd).
    pub nd: u8,
    /// Faults may go to a log in memory (AFL).
    pub advanced_fault_log: bool,
    /// Stores wait in a write buffer until it is flushed (RWBF).
    pub write_buffer: bool,
    /// Entries that are not present are cached, but those of first-stage tables (CM).
    pub caching_mode: bool,
    /// Widths: bit 1 39-bit, bit 2 48-bit, bit 3 57-bit.
    pub sagaw: u8,
    /// Width of the addresses that devices may use, in bits.
    pub mgaw: u8,
    /// A read of no bytes from a write-only page is let through (ZLR).
    pub zero_length_reads: bool,
    /// Offset of the fault records, in units of 16 bytes (FRO).
    pub fault_offset: u16,
    /// Number of fault records, 1 to 256.
    pub fault_records: u16,
    /// Leaves of 2 MiB.
    pub superpages_2m: bool,
    /// Leaves of 1 GiB.
    pub superpages_1g: bool,
    /// Page-selective invalidation of the second stage, with the highest address mask (PSI, MAMV).
    pub page_selective: Option<u8>,
    /// Invalidations can wait for writes in flight (DWD).
    pub drains_writes: bool,
    /// Invalidations can wait for reads in flight (DRD).
    pub drains_reads: bool,
    /// A new root pointer invalidates by itself.
    pub esrtps: bool,
    /// A new interrupt table pointer invalidates by itself.
    pub esirtps: bool,
    /// Memory below 4 GiB may be protected (PLMR).
    pub protected_low: bool,
    /// Memory from 4 GiB on may be protected (PHMR).
    pub protected_high: bool,
    /// Walks snoop the CPU's caches (C).
    pub coherent: bool,
    /// Queued invalidation (QI).
    pub queued: bool,
    /// Device TLBs (DT).
    pub device_tlb: bool,
    /// Invalidations of device TLBs name the physical function (DIT).
    pub names_physical_function: bool,
    /// Interrupt remapping (IR).
    pub interrupt_remapping: bool,
    /// 32-bit APIC ids (EIM).
    pub eim: bool,
    /// Page requests, with an event of their own (PRS).
    pub page_requests: bool,
    /// Pass-through contexts (PT).
    pub pass_through: bool,
    /// The snoop bit of leaves (SC).
    pub snoop_control: bool,
    /// Scalable mode (SMTS).
    pub scalable: bool,
    /// Second-stage tables in scalable mode (SSTS).
    pub scalable_second_stage: bool,
    /// First-stage tables in scalable mode (FSTS).
    pub first_stage: bool,
    /// 1 GiB leaves in them (FS1GP).
    pub first_stage_1g: bool,
    /// In scalable mode, walks of page tables can be made to snoop the CPU's caches (SMPWCS).
    pub scalable_coherent: bool,
    /// Offset of the IOTLB registers, in units of 16 bytes (IRO).
    pub iotlb_offset: u16,
    /// Highest mask of an interrupt-entry invalidation (MHMV).
    pub interrupt_mask: u8,
    /// Time that a global command or a register invalidation takes.
    pub command_ns: u64,
    /// Time that a descriptor takes.
    pub descriptor_ns: u64,
    /// After an IQE the queue goes on only when its tail is written again.
    pub tail_restarts: bool,
    /// What firmware left behind.
    pub leftovers: Leftovers,
}

/// The state that firmware leaves a unit in.
#[derive(Clone, Copy, Debug, Default)]
pub struct Leftovers {
    /// Translation is on, with tables of the firmware's.
    pub translation: bool,
    /// The queue is on.
    pub queue: bool,
    /// Interrupt remapping is on, with compatibility format let through.
    pub interrupts: bool,
    /// Faults go to a log of the firmware's.
    pub fault_log: bool,
    /// Protected memory is on.
    pub protection: bool,
    /// Registers hold garbage, fault records are pending.
    pub garbage: bool,
}

/// One PCI function.
#[derive(Clone, Debug)]
pub struct FunctionConfig {
    /// Where it is.
    pub address: PciAddress,
    /// What it is.
    pub kind: FunctionKind,
    /// Index of the unit that sees its requests.
    pub unit: usize,
    /// The requester id that the unit sees.
    pub requester: u16,
    /// It has the ATS capability.
    pub ats: bool,
    /// How many invalidations its TLB takes at a time, as its capability says it: 0 is 32. A virtual function has that
    /// of its physical one.
    pub ats_queue_depth: u8,
    /// It is a virtual function of that one.
    pub physical: Option<PciAddress>,
    /// It can be reset by itself (FLR).
    pub resets: bool,
    /// Firmware left it with bus mastering on, as it does with every bridge and with what it reserves memory for.
    pub bus_master: bool,
}

/// What kind of function it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FunctionKind {
    /// A PCI Express endpoint.
    Endpoint,
    /// A conventional PCI function.
    Conventional,
    /// A root port with everything from `secondary` to `subordinate` below it.
    RootPort {
        /// Bus right below.
        secondary: u8,
        /// Last bus below.
        subordinate: u8,
    },
    /// A bridge from PCI Express to conventional PCI.
    PciBridge {
        /// Bus right below.
        secondary: u8,
        /// Last bus below.
        subordinate: u8,
    },
}

impl FunctionKind {
    /// Buses below, if it is a bridge.
    #[must_use]
    pub fn buses(self) -> Option<(u8, u8)> {
        match self {
            Self::RootPort { secondary, subordinate } | Self::PciBridge { secondary, subordinate } => {
                Some((secondary, subordinate))
            }
            Self::Endpoint | Self::Conventional => None,
        }
    }
}

/// Memory that firmware wants a function to reach at all times.
#[derive(Clone, Copy, Debug)]
pub struct ReservedMemory {
    /// The function.
    pub function: PciAddress,
    /// First byte.
    pub base: u64,
    /// Last byte.
    pub limit: u64,
}

/// An HPET whose timers send messages of their own.
#[derive(Clone, Copy, Debug)]
pub struct HpetConfig {
    /// Number in its ACPI table.
    pub id: u8,
    /// Index of the unit that remaps its interrupts.
    pub unit: usize,
    /// Requester id in its device scope.
    pub source: u16,
}

/// An IOAPIC, which sends its requests through a unit.
#[derive(Clone, Copy, Debug)]
pub struct IoApicConfig {
    /// Id in the MADT.
    pub id: u8,
    /// Index of the unit.
    pub unit: usize,
    /// Source id of its requests.
    pub source: u16,
}

/// A whole machine.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Seed of everything that the hardware does at random.
    pub seed: u64,
    /// Width of physical addresses.
    pub host_address_bits: u8,
    /// Where memory is.
    pub memory: MemoryMap,
    /// The units, in the order of the DMAR table.
    pub units: Vec<UnitConfig>,
    /// All functions, bridges included.
    pub functions: Vec<FunctionConfig>,
    /// Reserved memory.
    pub reserved: Vec<ReservedMemory>,
    /// What the kernel knows of addresses that are no memory.
    pub registers: Vec<PhysRange>,
    /// The IOAPICs.
    pub ioapics: Vec<IoApicConfig>,
    /// The HPETs.
    pub hpets: Vec<HpetConfig>,
    /// log2 of the pages that the driver is to give an invalidation queue.
    pub queue_order: u8,
    /// Flags of the DMAR table: bit 0 INTR_REMAP, bit 1 X2APIC_OPT_OUT.
    pub dmar_flags: u8,
    /// A cached entry is dropped once in so many uses; 0: never.
    pub drop_once_in: u64,
    /// Hardware looks again at what it just dropped, once in so many invalidations; 0: never.
    pub prefetch_once_in: u64,
    /// A cache line is evicted, and a write buffer drained, once in so many steps; 0: never.
    pub evict_once_in: u64,
    /// All of the hardware-visible tables are checked once in so many write-backs and doorbells; 0: never.
    pub audit_once_in: u64,
    /// Time of one round of a busy wait.
    pub relax_ns: u64,
}

impl UnitConfig {
    /// A unit that has everything and asks for nothing: the easiest one there is.
    #[must_use]
    pub fn plain(base: u64) -> Self {
        Self {
            segment: 0,
            base,
            version: 0x10,
            nd: 6,
            advanced_fault_log: false,
            write_buffer: false,
            caching_mode: false,
            sagaw: 0b0110,
            mgaw: 48,
            zero_length_reads: true,
            fault_offset: 0x22,
            fault_records: 8,
            superpages_2m: true,
            superpages_1g: true,
            page_selective: Some(18),
            drains_writes: true,
            drains_reads: true,
            esrtps: false,
            esirtps: false,
            protected_low: false,
            protected_high: false,
            coherent: true,
            queued: true,
            device_tlb: true,
            names_physical_function: false,
            interrupt_remapping: true,
            eim: false,
            page_requests: false,
            pass_through: true,
            snoop_control: true,
            scalable: false,
            scalable_second_stage: false,
            first_stage: false,
            first_stage_1g: false,
            scalable_coherent: false,
            iotlb_offset: 0x50,
            interrupt_mask: 15,
            command_ns: 500,
            descriptor_ns: 100,
            tail_restarts: true,
            leftovers: Leftovers::default(),
        }
    }

    /// The same with scalable mode, and second-stage tables in it.
    #[must_use]
    pub fn scalable(base: u64) -> Self {
        Self { scalable: true, scalable_second_stage: true, ..Self::plain(base) }
    }

    /// The same with scalable mode, and first-stage tables alone in it.
    #[must_use]
    pub fn first_stage(base: u64) -> Self {
        Self { scalable: true, first_stage: true, first_stage_1g: true, ..Self::plain(base) }
    }

    /// Number of domain ids.
    #[must_use]
    pub fn domain_ids(&self) -> u32 {
        1 << (4 + 2 * u32::from(self.nd))
    }

    /// Bytes of registers that must be mapped.
    #[must_use]
    pub fn register_bytes(&self) -> usize {
        let iotlb = 16 * usize::from(self.iotlb_offset) + 16;
        let faults = 16 * usize::from(self.fault_offset) + 16 * usize::from(self.fault_records);
        iotlb.max(faults).max(4096).next_multiple_of(4096)
    }

    /// The CAP register.
    #[must_use]
    pub fn cap(&self) -> u64 {
        let bit = |set: bool, bit: u32| u64::from(set) << bit;
        u64::from(self.nd)
            | bit(self.advanced_fault_log, 3)
            | bit(self.write_buffer, 4)
            | bit(self.protected_low, 5)
            | bit(self.protected_high, 6)
            | bit(self.caching_mode, 7)
            | u64::from(self.sagaw) << 8
            | u64::from(self.mgaw - 1) << 16
            | bit(self.zero_length_reads, 22)
            | u64::from(self.fault_offset) << 24
            | bit(self.superpages_2m, 34)
            | bit(self.superpages_1g, 35)
            | bit(self.page_selective.is_some(), 39)
            | u64::from(self.fault_records - 1) << 40
            | u64::from(self.page_selective.unwrap_or(0)) << 48
            | bit(self.drains_writes, 54)
            | bit(self.drains_reads, 55)
            | bit(self.first_stage_1g, 56)
            | bit(self.esirtps, 62)
            | bit(self.esrtps, 63)
    }

    /// The ECAP register.
    #[must_use]
    pub fn ecap(&self) -> u64 {
        let bit = |set: bool, bit: u32| u64::from(set) << bit;
        bit(self.coherent, 0)
            | bit(self.queued, 1)
            | bit(self.device_tlb, 2)
            | bit(self.interrupt_remapping, 3)
            | bit(self.eim, 4)
            | bit(self.pass_through, 6)
            | bit(self.snoop_control, 7)
            | u64::from(self.iotlb_offset) << 8
            | u64::from(self.interrupt_mask) << 20
            | bit(self.page_requests, 29)
            | bit(self.device_tlb && self.names_physical_function, 41)
            | bit(self.scalable, 43)
            | bit(self.scalable_second_stage, 46)
            | bit(self.first_stage, 47)
            | bit(self.scalable_coherent, 48)
    }

    /// Whether memory may be protected, by the register that turns it on and off.
    #[must_use]
    pub fn has_protected_memory(&self) -> bool {
        self.protected_low || self.protected_high
    }

    /// Address widths in the encoding of a context entry: 1 is 39-bit, 2 48-bit, 3 57-bit.
    #[must_use]
    pub fn supports_width(&self, encoded: u8) -> bool {
        (1..=3).contains(&encoded) && self.sagaw >> encoded & 1 != 0
    }

    /// The largest supported width in the same encoding.
    #[must_use]
    pub fn largest_width(&self) -> u8 {
        (1..=3).rev().find(|&encoded| self.supports_width(encoded)).unwrap_or(0)
    }
}

impl FunctionConfig {
    /// A PCI Express endpoint behind `unit` that sends its own requester id.
    #[must_use]
    pub fn endpoint(address: PciAddress, unit: usize) -> Self {
        Self {
            address,
            kind: FunctionKind::Endpoint,
            unit,
            requester: address.source_id().requester,
            ats: false,
            ats_queue_depth: 1,
            physical: None,
            resets: true,
            bus_master: false,
        }
    }
}

impl MemoryMap {
    /// Whether any of `range` is a table page, or memory that buffers are cut from.
    pub fn is_kernels(&self, range: PhysRange) -> bool {
        let (start, end) = (range.start.as_u64(), range.start.as_u64() + range.bytes);
        let own = [(self.tables, self.table_pages * 4096), (self.buffers, self.buffer_bytes)];
        own.iter().any(|&(first, bytes)| start < first + bytes as u64 && first < end)
    }

    /// Whether all of `range` is memory that firmware keeps.
    #[must_use]
    pub fn is_firmwares(&self, range: PhysRange) -> bool {
        let (start, end) = (range.start.as_u64(), range.start.as_u64() + range.bytes);
        self.firmware <= start && end <= self.firmware + self.firmware_bytes as u64
    }

    /// What a kernel would call its RAM.
    #[must_use]
    pub fn ram(&self) -> [PhysRange; 3] {
        let table_bytes = self.table_pages as u64 * PAGE_BYTES;
        let ranges =
            [(self.tables, table_bytes), (self.buffers, self.buffer_bytes as u64), (self.foreign, 1 << 30)];
        ranges.map(|(start, bytes)| PhysRange::new(PhysAddr::new(start), bytes))
    }

    /// A small map below 2^36.
    #[must_use]
    pub fn small() -> Self {
        Self {
            tables: 0x2_1000_0000,
            table_pages: 2048,
            firmware: 0x7000_0000,
            firmware_bytes: 64 * 4096,
            buffers: 0x4_0000_0000,
            buffer_bytes: 2 << 30,
            foreign: 0x8_0000_0000,
        }
    }
}

impl MachineConfig {
    /// Requester id and ATS queue depth of the physical function that `function` is or belongs to.
    pub(crate) fn physical_of(&self, function: &FunctionConfig) -> (u16, u8) {
        let physical = function.physical.unwrap_or(function.address);
        let depth = self.functions.iter().find(|f| f.address == physical).map_or(0, |f| f.ats_queue_depth);
        (physical.source_id().requester, depth)
    }

    /// Indices of the bridges above the function at `address`.
    pub(crate) fn bridges_above(&self, address: PciAddress) -> Vec<usize> {
        let is_above = |bridge: &FunctionConfig| {
            let buses = bridge.kind.buses();
            bridge.address.segment == address.segment
                && buses.is_some_and(|(first, last)| (first..=last).contains(&address.bus))
        };
        (0..self.functions.len()).filter(|&index| is_above(&self.functions[index])).collect()
    }

    /// The same as [`plain`](Self::plain), of a unit that has scalable mode too.
    #[must_use]
    pub fn scalable(endpoints: u8) -> Self {
        Self { units: vec![UnitConfig::scalable(0xfed9_0000)], ..Self::plain(endpoints) }
    }

    /// The same, of a unit that has first-stage tables alone in scalable mode.
    #[must_use]
    pub fn first_stage(endpoints: u8) -> Self {
        Self { units: vec![UnitConfig::first_stage(0xfed9_0000)], ..Self::plain(endpoints) }
    }

    /// One plain unit with `endpoints` functions on bus 0.
    #[must_use]
    pub fn plain(endpoints: u8) -> Self {
        let functions = (0..endpoints)
            .map(|device| FunctionConfig::endpoint(PciAddress::from_devfn(0, 0, (device + 2) << 3), 0))
            .collect();
        Self {
            seed: 1,
            host_address_bits: 39,
            memory: MemoryMap::small(),
            units: vec![UnitConfig::plain(0xfed9_0000)],
            functions,
            reserved: Vec::new(),
            registers: Vec::new(),
            ioapics: Vec::new(),
            hpets: Vec::new(),
            queue_order: 0,
            dmar_flags: 1,
            drop_once_in: 0,
            prefetch_once_in: 8,
            evict_once_in: 0,
            audit_once_in: 16,
            relax_ns: 1_000,
        }
    }
}
