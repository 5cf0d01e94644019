//! Configuration space made by hand, for host tests.

use std::{boxed::Box, collections::BTreeMap, sync::Mutex, vec::Vec};

use iommu::PciAddress;

use super::config::ConfigSpace;

/// Registers by function and offset, with the bits of each that can be written.
#[derive(Default)]
pub struct FakeSpace {
    functions: Mutex<FakeFunctions>,
    /// What a write does besides: it is shown the functions after the write.
    reaction: Mutex<Option<Reaction>>,
    /// Every write, in order.
    pub writes: Mutex<Vec<Write>>,
}

pub type FakeFunctions = BTreeMap<PciAddress, FakeFunction>;
/// Function, offset, value.
pub type Write = (PciAddress, u16, u32);
type Reaction = Box<dyn Fn(&mut FakeFunctions, Write) + Send>;

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

    pub fn set(&mut self, offset: u16, value: u32) {
        self.registers.insert(offset, value);
    }

    pub fn get(&self, offset: u16) -> u32 {
        self.registers.get(&offset).copied().unwrap_or(0)
    }

    /// Clears what can be written.
    pub fn reset(&mut self) {
        for (offset, mask) in &self.writable {
            if let Some(register) = self.registers.get_mut(offset) {
                *register &= !mask;
            }
        }
    }
}

pub const fn at(bus: u8, device: u8, function: u8) -> PciAddress {
    PciAddress::from_devfn(0, bus, device << 3 | function)
}

impl FakeSpace {
    pub fn add(&self, address: PciAddress, function: FakeFunction) {
        self.functions.lock().unwrap().insert(address, function);
    }

    pub fn remove(&self, address: PciAddress) {
        self.functions.lock().unwrap().remove(&address);
    }

    /// Makes `reaction` see every write, and do what it likes to all functions.
    pub fn react(&self, reaction: impl Fn(&mut FakeFunctions, Write) + Send + 'static) {
        *self.reaction.lock().unwrap() = Some(Box::new(reaction));
    }

    fn write(&self, function: PciAddress, offset: u16, value: u32) {
        self.write_masked(function, offset, value, u32::MAX);
    }

    /// Writes the bits of `written`; the reaction sees them alone.
    fn write_masked(&self, function: PciAddress, offset: u16, value: u32, written: u32) {
        self.writes.lock().unwrap().push((function, offset, value));
        let mut functions = self.functions.lock().unwrap();
        if let Some(fake) = functions.get_mut(&function) {
            let mask = written & fake.writable.get(&offset).copied().unwrap_or(0);
            let register = fake.registers.entry(offset).or_default();
            *register = *register & !mask | value & mask;
        }
        if let Some(reaction) = &*self.reaction.lock().unwrap() {
            reaction(&mut functions, (function, offset, value));
        }
    }
}

impl ConfigSpace for FakeSpace {
    fn read32(&self, function: PciAddress, offset: u16) -> u32 {
        assert!(offset < 0x1000 && offset.is_multiple_of(4), "bad offset {offset:#x}");
        match self.functions.lock().unwrap().get(&function) {
            Some(fake) => fake.get(offset),
            None => u32::MAX,
        }
    }

    fn write32(&self, function: PciAddress, offset: u16, value: u32) {
        self.change32(function, offset, u32::MAX, value);
    }

    fn write16(&self, function: PciAddress, offset: u16, value: u16) {
        let shift = 8 * (offset & 2);
        let mask = 0xffff << shift;
        self.write_masked(function, offset & !3, u32::from(value) << shift, mask);
    }

    fn change32(&self, function: PciAddress, offset: u16, clear: u32, set: u32) {
        let before = self.read32(function, offset);
        self.write(function, offset, before & !clear | set);
    }
}
