//! Configuration space made by hand, for host tests.

use std::{collections::BTreeMap, sync::Mutex, vec::Vec};

use iommu::PciAddress;

use super::config::ConfigSpace;

/// Registers by function and offset, with the bits of each that can be written.
#[derive(Default)]
pub struct FakeSpace {
    functions: Mutex<BTreeMap<PciAddress, FakeFunction>>,
    /// Every write, in order.
    pub writes: Mutex<Vec<(PciAddress, u16, u32)>>,
}

#[derive(Clone, Default)]
pub struct FakeFunction {
    registers: BTreeMap<u16, u32>,
    writable: BTreeMap<u16, u32>,
}

impl FakeFunction {
    /// A function with id, class and header type.
    pub fn new(id: u32, class: u32, header: u8) -> Self {
        Self::default().with(0, id).with(0x08, class).with(0x0c, u32::from(header) << 16)
    }

    pub fn bridge(secondary: u8, subordinate: u8) -> Self {
        let buses = u32::from(secondary) << 8 | u32::from(subordinate) << 16;
        Self::new(0x000c_1b36, 0x0604_0000, 1).with(0x18, buses)
    }

    pub fn with(mut self, offset: u16, value: u32) -> Self {
        self.registers.insert(offset, value);
        self
    }

    pub fn writable(mut self, offset: u16, mask: u32) -> Self {
        self.writable.insert(offset, mask);
        self
    }
}

pub fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::new(0, bus, device, function).unwrap()
}

impl FakeSpace {
    pub fn add(&self, address: PciAddress, function: FakeFunction) {
        self.functions.lock().unwrap().insert(address, function);
    }
}

impl ConfigSpace for FakeSpace {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset < 0x1000 && offset.is_multiple_of(4), "bad offset {offset:#x}");
        match self.functions.lock().unwrap().get(&function) {
            Some(fake) => fake.registers.get(&offset).copied().unwrap_or(0),
            None => u32::MAX,
        }
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.writes.lock().unwrap().push((function, offset, value));
        if let Some(fake) = self.functions.lock().unwrap().get_mut(&function) {
            let mask = fake.writable.get(&offset).copied().unwrap_or(0);
            let register = fake.registers.entry(offset).or_default();
            *register = *register & !mask | value & mask;
        }
    }
}
