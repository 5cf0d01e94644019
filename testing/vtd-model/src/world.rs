//! What the units of a machine share.

use std::sync::Arc;

use iommu::{PciAddress, platform::MsiMessage};

use crate::{
    complaints::Complaints, device_tlb::DeviceTlb, memory::Memory, pci::ConfigSpace, random::Random,
};

#[derive(Debug)]
pub(crate) struct World {
    pub memory: Arc<Memory>,
    pub complaints: Arc<Complaints>,
    pub random: Random,
    pub now_ns: u64,
    /// Messages that units sent and nobody has taken yet.
    pub outbox: Vec<MsiMessage>,
    pub functions: Vec<Function>,
    pub drop_once_in: u64,
    pub prefetch_once_in: u64,
    /// Addresses that functions, by their index, go on trying at every moment, whatever became of them.
    pub attempts: Vec<(usize, u64)>,
}

/// A PCI function, as the hardware around it sees it.
#[derive(Debug)]
pub(crate) struct Function {
    pub address: PciAddress,
    pub unit: usize,
    /// The requester id that the unit sees.
    pub requester: u16,
    pub config: ConfigSpace,
    /// The physical function that it is or belongs to, and how many invalidations that takes at a time.
    pub physical: (u16, u8),
    pub tlb: DeviceTlb,
    /// Answers device-TLB invalidations from this time on.
    pub answers_from_ns: u64,
    /// Unplugged: its configuration space reads all ones.
    pub unplugged: bool,
    /// Memory, first byte and length, that it goes on using until it is reset: its requests were let through before.
    pub busy_with: Vec<(u64, u64)>,
    /// Indices of the bridges above it, whose bus mastering its requests need too.
    pub bridges: Vec<usize>,
}

impl World {
    /// Whether a cached entry is dropped now, although nobody asked for it.
    pub fn drops(&mut self) -> bool {
        self.random.once_in(self.drop_once_in)
    }

    /// Whether hardware looks again at what it just dropped.
    pub fn prefetches(&mut self) -> bool {
        self.random.once_in(self.prefetch_once_in)
    }

    /// Whether all functions behind `unit` with `source` answer device-TLB invalidations now.
    pub fn device_answers(&self, unit: usize, source: u16) -> bool {
        let answers = |index: usize| {
            let function = &self.functions[index];
            function.answers_from_ns <= self.now_ns && !function.unplugged
        };
        self.functions_of(unit, source).all(answers)
    }

    /// Whether function `index` masters the bus, and every bridge on the way to its unit lets its requests through.
    pub fn masters_bus(&self, index: usize) -> bool {
        let is_master = |index: usize| {
            let function = &self.functions[index];
            function.config.bus_master() && !function.unplugged
        };
        is_master(index) && self.functions[index].bridges.iter().all(|&bridge| is_master(bridge))
    }

    /// Functions behind `unit` whose requests carry `source`.
    pub fn functions_of(&self, unit: usize, source: u16) -> impl Iterator<Item = usize> {
        let matches = move |f: &Function| f.unit == unit && f.requester == source;
        self.functions.iter().enumerate().filter(move |(_, f)| matches(f)).map(|(index, _)| index)
    }
}
