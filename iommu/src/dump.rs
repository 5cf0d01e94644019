//! What the subsystem shows of itself: plain values, for a shell to print and tests to compare.

use core::fmt;

use mm::{PhysAddr, PhysRange};

use crate::{Iova, PciAddress, SourceId, checks::Misuse, fault::Fault, interrupts::Sender};

/// Takes what [`Iommu::visit`](crate::Iommu::visit) shows. Each method does nothing unless it is overridden. They are
/// called without a lock held, and may print and wait.
pub trait Visitor {
    /// A remapping unit.
    fn unit(&mut self, _unit: &UnitReport) {}

    /// An interrupt entry in use of the unit shown just before.
    fn interrupt(&mut self, _interrupt: &InterruptReport) {}

    /// A group of functions, after all units.
    fn group(&mut self, _group: &GroupReport<'_>) {}

    /// The domain of the group shown just before; blocked groups have none.
    fn domain(&mut self, _domain: &DomainReport) {}

    /// A domain that was created for groups which come and go, after all groups; and how many of them are attached to
    /// it.
    fn created_domain(&mut self, _domain: &DomainReport, _groups: usize) {}

    /// One run of addresses that the domain shown just before maps. Those of a created domain come with it alone.
    fn mapping(&mut self, _mapping: &MappingReport) {}

    /// What follows is the way of requests of `source` through the tables of `unit`.
    fn way(&mut self, _source: SourceId, _unit: usize) {}

    /// One entry on the way shown last, from the root down.
    fn step(&mut self, _step: &StepReport) {}

    /// A fault, oldest first, after all groups.
    fn fault(&mut self, _fault: &Fault) {}

    /// Faults that found no room in the ring, after the last one.
    fn lost_faults(&mut self, _count: u64) {}

    /// Faults of sources that belong to no group, those not shown included.
    fn stranger_faults(&mut self, _count: u64) {}

    /// One of the last things that a driver did wrong, oldest first: with `iommu=debug` only.
    fn misuse(&mut self, _misuse: &Misuse) {}

    /// How many of them were found, those not shown included, and how many pieces of mappings could not be checked.
    fn checks(&mut self, _found: u64, _unchecked: u64) {}
}

/// One remapping unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnitReport {
    /// Its index.
    pub unit: usize,
    /// PCI segment that it serves.
    pub segment: u16,
    /// Address of its registers.
    pub base: PhysAddr,
    /// How many bytes of them there are.
    pub bytes: u64,
    /// Major and minor version (VER).
    pub version: (u8, u8),
    /// The CAP register.
    pub capability: u64,
    /// The ECAP register.
    pub extended_capability: u64,
    /// The GSTS register as it reads now.
    pub global_status: u32,
    /// The RTADDR register as it reads now.
    pub root_table_address: u64,
    /// The FSTS register as it reads now.
    pub fault_status: u32,
    /// Widest IOVA that it translates, in bits.
    pub address_bits: u32,
    /// Page tables are of the first stage, in the CPU's format: what a device can write it can read.
    pub first_stage: bool,
    /// Domain ids in use.
    pub domains: usize,
    /// Whether it still answers.
    pub alive: bool,
    /// How often its fault event came so often that it was masked, until the records were found empty.
    pub fault_storms: u64,
    /// Doorbells of its invalidation queue so far; 0 without a queue.
    pub doorbells: u64,
    /// Descriptors behind these doorbells.
    pub descriptors: u64,
}

impl UnitReport {
    /// DMA remapping is on (GSTS.TES).
    #[must_use]
    pub const fn translates(&self) -> bool {
        self.global_status >> 31 & 1 != 0
    }

    /// The root table pointer is set (GSTS.RTPS).
    #[must_use]
    pub const fn has_root(&self) -> bool {
        self.global_status >> 30 & 1 != 0
    }

    /// The root table is one of scalable mode (RTADDR.TTM).
    #[must_use]
    pub const fn is_scalable(&self) -> bool {
        self.root_table_address >> 10 & 3 == 1
    }

    /// Queued invalidation is on (GSTS.QIES).
    #[must_use]
    pub const fn queues_invalidations(&self) -> bool {
        self.global_status >> 26 & 1 != 0
    }

    /// Interrupt remapping is on (GSTS.IRES).
    #[must_use]
    pub const fn remaps_interrupts(&self) -> bool {
        self.global_status >> 25 & 1 != 0
    }
}

/// One interrupt-remapping entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptReport {
    /// Index of the unit.
    pub unit: usize,
    /// Index of the entry: what the device's message names.
    pub index: u16,
    /// Who may use it; `None` if anybody may.
    pub sender: Option<Sender>,
    /// The vector that it raises.
    pub vector: u8,
    /// Id of the local APIC that gets it.
    pub apic: u32,
    /// It is level-triggered.
    pub level_triggered: bool,
}

/// One group.
#[derive(Clone, Copy, Debug)]
pub struct GroupReport<'a> {
    /// Its index.
    pub group: usize,
    /// Its functions.
    pub functions: &'a [PciAddress],
    /// The ids that requests of its functions carry, each with the index of the unit that sees it.
    pub sources: &'a [(SourceId, usize)],
    /// Memory that it reaches at all times.
    pub reserved: &'a [PhysRange],
    /// Faults so far.
    pub faults: u64,
    /// Who has it.
    pub standing: GroupStanding,
}

/// How a group stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GroupStanding {
    /// No driver has claimed a function of it.
    Free,
    /// Drivers use it.
    Claimed,
    /// It reaches its reserved memory, and nothing else that matters, until it is released.
    Quarantined {
        /// Its other addresses lead to a scratch page of its own. Else they are blocked.
        on_scratch_page: bool,
        /// How many faults had been recorded of it when its faults brought that about ([`policy`](crate::policy)), that
        /// one included; of the same count as [`GroupReport::faults`]. `None` if it was asked for.
        condemned_at: Option<u64>,
    },
}

/// One domain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomainReport {
    /// Its number.
    pub number: u64,
    /// Whose it is.
    pub kind: DomainKind,
    /// Root of its page table.
    pub root: PhysAddr,
    /// Levels of its page table.
    pub levels: u8,
    /// Pages of 4 KiB mapped now.
    pub mapped_pages: u64,
    /// Pages that its table has. None of a shared one, which is its owner's.
    pub table_pages: usize,
}

/// Whose a domain is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DomainKind {
    /// The kernel's, for one group: its drivers map what they lend to a device.
    Kernel,
    /// The kernel's, for one group that is trusted with all of RAM: an IOVA is a physical address.
    Identity,
    /// An owner's who created it ([`Iommu::create_domain`](crate::Iommu::create_domain)).
    Assigned,
    /// The same, over a table that the CPU walks ([`Iommu::share_table`](crate::Iommu::share_table)). What that maps is
    /// not shown.
    Shared,
}

/// One entry that a unit reads for a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StepReport {
    /// The table that it is in.
    pub table: TableKind,
    /// The entry as the unit reads it.
    pub raw: u128,
    /// What it says.
    pub leads: Leads,
}

/// A kind of table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TableKind {
    /// The root table: an entry a bus.
    Root,
    /// The context table of a bus: an entry a function.
    Context,
    /// The PASID directory of a function, in scalable mode.
    PasidDirectory,
    /// A PASID table of a function, in scalable mode.
    Pasid,
    /// A page table.
    Page {
        /// Its level; leaves of 4 KiB are at level 1.
        level: u8,
        /// Index of the entry.
        index: usize,
    },
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root"),
            Self::Context => f.write_str("context"),
            Self::PasidDirectory => f.write_str("PASID directory"),
            Self::Pasid => f.write_str("PASID"),
            Self::Page { level, .. } => write!(f, "level {level}"),
        }
    }
}

/// Where an entry leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leads {
    /// Nowhere: it is not present, and the translation ends here.
    Nowhere,
    /// To the next table.
    On,
    /// To memory.
    Memory {
        /// Where the leaf's memory starts.
        start: PhysAddr,
        /// The device may read.
        read: bool,
        /// The device may write.
        write: bool,
    },
}

/// One run of mapped addresses with the same rights.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MappingReport {
    /// First IOVA.
    pub iova: Iova,
    /// What it translates to.
    pub output: PhysAddr,
    /// Length in bytes.
    pub bytes: u64,
    /// The device may read.
    pub read: bool,
    /// The device may write.
    pub write: bool,
}

impl fmt::Display for MappingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let right = |on, letter| if on { letter } else { '-' };
        let (read, write) = (right(self.read, 'r'), right(self.write, 'w'));
        write!(f, "{} -> {} {:#x} bytes {read}{write}", self.iova, self.output, self.bytes)
    }
}
