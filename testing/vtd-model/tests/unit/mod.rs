//! One unit of the driver on a machine of the model, below domains and groups.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::sync::Arc;

use iommu::{
    PciAddress, Platform, SourceId,
    fault::Fault,
    vtd::{BringUp, BringUpError, Drained, InterruptSetup, Invalidation, Location, TranslationMode, Unit},
};
use mm::{PhysAddr, table::TableMemory};
use vtd_model::{Device, Machine, MachineConfig, ModelPlatform};

pub struct UnitBench {
    pub machine: Arc<Machine>,
    pub platform: Arc<ModelPlatform>,
    pub unit: Unit<ModelPlatform>,
    pub root: PhysAddr,
}

impl UnitBench {
    /// Unit 0, up, translating, with an empty root table and interrupts remapped if it can.
    pub fn new(config: MachineConfig) -> Self {
        let setup = InterruptSetup { entries_order: 8, x2apic: true };
        let bench = Self::try_new(config, Some(setup)).expect("a unit that works");
        bench.unit.enable_translation(&bench.platform).expect("a unit that works");
        bench.assert_content();
        bench
    }

    pub fn try_new(config: MachineConfig, interrupts: Option<InterruptSetup>) -> Result<Self, BringUpError> {
        Self::on(Machine::new(config), interrupts)
    }

    pub fn on(machine: Arc<Machine>, interrupts: Option<InterruptSetup>) -> Result<Self, BringUpError> {
        let platform = Arc::new(ModelPlatform::new(&machine));
        let base = PhysAddr::new(machine.config().units[0].base);
        let MachineConfig { units, host_address_bits, .. } = machine.config();
        let location = Location { base, segment: units[0].segment, host_address_bits: *host_address_bits };
        let mut unit = Unit::discover(&*platform, 0, location).expect("there is a unit");
        let root = platform.tables().allocate().expect("memory");
        // SAFETY: just allocated.
        let table = unsafe { platform.tables().table(root) };
        platform.tables().write_back(table.as_ptr().cast(), 4096);
        let how = BringUp {
            root,
            mode: TranslationMode::Legacy,
            queue: true,
            queue_order: machine.config().queue_order,
            interrupts,
        };
        // SAFETY: the root table is empty and never freed.
        unsafe { unit.bring_up(&platform, &how)? };
        Ok(Self { machine, platform, unit, root })
    }

    /// The `index`th function, as a bus master.
    pub fn device(&self, index: usize) -> Device {
        let address = self.function(index);
        self.platform.write_config(address, 4, 4);
        self.machine.device(address)
    }

    pub fn function(&self, index: usize) -> PciAddress {
        self.machine.config().functions[index].address
    }

    pub fn source(&self, index: usize) -> SourceId {
        self.function(index).source_id()
    }

    pub fn invalidate(&self, batch: &[Invalidation]) {
        self.unit.invalidate(&self.platform, batch).expect("a unit that works");
    }

    /// Reads the fault records until nothing is left.
    pub fn drain(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        const LAPS: usize = 1000;
        for _ in 0..LAPS {
            if self.unit.drain_faults(&self.platform, |fault| faults.push(fault)) == Drained::All {
                return faults;
            }
        }
        panic!("the records never run dry");
    }

    pub fn assert_content(&self) {
        let complaints = self.machine.take_complaints();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}
