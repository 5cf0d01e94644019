//! The driver on a machine of the model.
//!
//! A crate of its own, so that the driver is compiled for the model's platform once, and not again for each test
//! binary.

#![forbid(unsafe_code)]

use std::sync::Arc;

use iommu::{
    Iommu, Options, PciAddress, Platform,
    dump::{GroupReport, GroupStanding, UnitReport, Visitor},
    platform::Work,
    topology::{Acs, BridgeKind, Function},
};
use vtd_model::{Device, FunctionKind, Machine, MachineConfig, ModelPlatform};

/// Of the Command register.
const BUS_MASTER: u32 = 1 << 2;

pub struct Driven {
    pub machine: Arc<Machine>,
    pub platform: Arc<ModelPlatform>,
    pub iommu: Iommu,
}

impl Driven {
    /// Brings the driver up on a machine.
    pub fn start(config: MachineConfig) -> Result<Self, iommu::StartError> {
        Self::start_with(config, Options::default())
    }

    pub fn start_with(config: MachineConfig, options: Options) -> Result<Self, iommu::StartError> {
        Self::start_on(Machine::new(config), options)
    }

    pub fn start_on(machine: Arc<Machine>, options: Options) -> Result<Self, iommu::StartError> {
        let io_apics: Vec<u8> = machine.config().ioapics.iter().map(|ioapic| ioapic.id).collect();
        let functions = functions_of(machine.config());
        Self::start_as(machine, &functions, &io_apics, options)
    }

    /// On a machine of which the kernel has found these functions, and the others come later.
    pub fn start_knowing(config: MachineConfig, functions: &[Function]) -> Result<Self, iommu::StartError> {
        Self::start_as(Machine::new(config), functions, &[], Options::default())
    }

    /// On a machine whose first function was not enumerated, though its requests reach the unit.
    pub fn start_with_a_stranger(config: MachineConfig) -> Result<Self, iommu::StartError> {
        let functions = functions_of(&config);
        Self::start_knowing(config, &functions[1..])
    }

    /// On a machine whose MADT has these I/O APICs, whatever its DMAR table says.
    pub fn start_with_io_apics(config: MachineConfig, io_apics: &[u8]) -> Result<Self, iommu::StartError> {
        let functions = functions_of(&config);
        Self::start_as(Machine::new(config), &functions, io_apics, Options::default())
    }

    fn start_as(
        machine: Arc<Machine>,
        functions: &[Function],
        io_apics: &[u8],
        options: Options,
    ) -> Result<Self, iommu::StartError> {
        let platform = Arc::new(ModelPlatform::new(&machine));
        let dmar = machine.config().dmar_table();
        let memory = machine.config().memory.ram();
        let registers = &machine.config().registers;
        let found = iommu::Machine {
            dmar: Some(&dmar),
            functions,
            io_apics,
            memory: &memory,
            registers,
            x2apic: true,
        };
        let options = Options { queue_order: machine.config().queue_order, ..options };
        let iommu = Iommu::start(platform.clone(), &found, options)?;
        Ok(Self { machine, platform, iommu })
    }

    /// Delivers interrupts and does the work that was asked for, until nothing is left.
    pub fn pump(&self) {
        const ROUNDS: usize = 8;
        for _ in 0..ROUNDS {
            let events = self.machine.deliver_events(|event| self.iommu.handle_event(event));
            let work = self.machine.take_work();
            if events == 0 && work.is_empty() {
                return;
            }
            for work in work {
                match work {
                    Work::Faults => self.iommu.process_faults(),
                    Work::Reap => self.iommu.reap(),
                }
            }
        }
    }

    /// Turns bus mastering on, as a driver does after its claim.
    pub fn enable(&self, function: PciAddress) {
        self.change_command(function, 0, BUS_MASTER);
    }

    /// Turns bus mastering off.
    pub fn disable(&self, function: PciAddress) {
        self.change_command(function, BUS_MASTER, 0);
    }

    fn change_command(&self, function: PciAddress, clear: u32, set: u32) {
        const COMMAND: u16 = 4;
        const STATUS_BITS: u32 = 0xffff << 16;
        self.platform.change_config(function, COMMAND, clear | STATUS_BITS, set);
    }

    pub fn device(&self, function: PciAddress) -> Device {
        self.machine.device(function)
    }

    pub fn function(&self, index: usize) -> PciAddress {
        self.machine.config().functions[index].address
    }

    pub fn units(&self) -> Vec<UnitReport> {
        let mut units = Units::default();
        self.iommu.visit(&mut units);
        units.0
    }

    /// The functions of each group, as the driver sees them.
    pub fn groups(&self) -> Vec<Vec<PciAddress>> {
        let mut groups = Groups::default();
        self.iommu.visit(&mut groups);
        groups.0
    }

    /// What the subsystem says of the group of `function`, and how many faults it counts.
    pub fn standing(&self, function: PciAddress) -> (GroupStanding, u64) {
        let mut search = Search(function, None);
        self.iommu.visit(&mut search);
        search.1.expect("a group")
    }

    pub fn assert_content(&self, when: &str) {
        let complaints = self.machine.take_complaints();
        assert!(complaints.is_empty(), "{when}: {complaints:#?}");
    }
}

#[derive(Default)]
struct Units(Vec<UnitReport>);

impl Visitor for Units {
    fn unit(&mut self, unit: &UnitReport) {
        self.0.push(*unit);
    }
}

#[derive(Default)]
struct Groups(Vec<Vec<PciAddress>>);

impl Visitor for Groups {
    fn group(&mut self, group: &GroupReport<'_>) {
        self.0.push(group.functions.to_vec());
    }
}

struct Search(PciAddress, Option<(GroupStanding, u64)>);

impl Visitor for Search {
    fn group(&mut self, group: &GroupReport<'_>) {
        if group.functions.contains(&self.0) {
            self.1 = Some((group.standing, group.faults));
        }
    }
}

/// The functions as a kernel's enumeration would describe them.
pub fn functions_of(config: &MachineConfig) -> Vec<Function> {
    let on = Acs { offered: Acs::ISOLATION, enabled: Acs::ISOLATION };
    let describe = |function: &vtd_model::FunctionConfig| match function.kind {
        FunctionKind::Endpoint | FunctionKind::Conventional => {
            Function { physical: function.physical, ..Function::endpoint(function.address) }
        }
        FunctionKind::RootPort { secondary, subordinate } => Function {
            acs: Some(on),
            ..Function::bridge(function.address, BridgeKind::RootPort, secondary, subordinate)
        },
        FunctionKind::PciBridge { secondary, subordinate } => {
            Function::bridge(function.address, BridgeKind::ToPci, secondary, subordinate)
        }
    };
    config.functions.iter().map(describe).collect()
}
