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
}

impl World {
    /// Whether a cached entry is dropped now, although nobody asked for it.
    pub fn drops(&mut self) -> bool {
        self.random.once_in(self.drop_once_in)
    }

    /// Whether all functions behind `unit` with `source` answer device-TLB invalidations now.
    pub fn device_answers(&self, unit: usize, source: u16) -> bool {
        let answers = |index: usize| {
            let function = &self.functions[index];
            function.answers_from_ns <= self.now_ns && !function.unplugged
        };
        self.functions_of(unit, source).all(answers)
    }

    /// Functions behind `unit` whose requests carry `source`.
    pub fn functions_of(&self, unit: usize, source: u16) -> impl Iterator<Item = usize> {
        let matches = move |f: &Function| f.unit == unit && f.requester == source;
        self.functions.iter().enumerate().filter(move |(_, f)| matches(f)).map(|(index, _)| index)
    }
}
