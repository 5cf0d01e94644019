//! Machines with domains that were created, and what is asked of them.

#![allow(dead_code, reason = "each test binary uses its part")]

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaDomain, Iova, Mapping,
    dump::{DomainKind, DomainReport, GroupReport, Visitor},
};
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, UnitConfig};

pub const PAGE: u64 = 0x1000;
pub const AT: u64 = 0x7000_0000;
pub const ELSEWHERE: u64 = 0x7400_0000;

/// Functions 0 and 2 behind one unit, 1 behind another.
pub fn two_units() -> MachineConfig {
    let mut config = MachineConfig::plain(3);
    config.units.push(UnitConfig::plain(0xfed9_8000));
    config.functions[1].unit = 1;
    config.relax_ns = 1_000_000;
    config
}

pub fn start(config: MachineConfig) -> Driven {
    Driven::start(config).expect("units that work")
}

pub fn create(driven: &Driven, functions: &[usize]) -> DmaDomain {
    let functions: Vec<_> = functions.iter().map(|&index| driven.function(index)).collect();
    driven.iommu.create_domain(&functions).expect("units with a common format")
}

pub fn assign(driven: &Driven, index: usize, domain: &DmaDomain) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.assign(function, domain, |_| true).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

pub fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}

pub fn map_at(driven: &Driven, domain: &DmaDomain, iova: u64) -> (Mapping<ModelBuffer, Bidirectional>, u64) {
    let buffer = buffer(driven, 1);
    let physical = buffer.physical();
    (domain.dma_map_at(buffer, Bidirectional, Iova::new(iova)).expect("a free address"), physical)
}

pub fn release(driven: &Driven, index: usize) {
    driven.iommu.release(driven.function(index), |_| true).expect("a quiet device");
}

/// What a device reaches at `iova`.
pub fn at(device: &Device, iova: u64) -> Option<u64> {
    device.probe(iova, Access::Write).ok()
}

/// Everything that a device reaches, as first addresses.
pub fn reach(device: &Device) -> Vec<u64> {
    device.reach_of_tables().unwrap_or_default().iter().map(|run| run.address).collect()
}

#[derive(Default)]
pub struct Created(pub Vec<(u64, usize, u64)>, pub Vec<Option<(u64, DomainKind)>>);

impl Visitor for Created {
    fn group(&mut self, _group: &GroupReport<'_>) {
        self.1.push(None);
    }

    fn domain(&mut self, domain: &DomainReport) {
        *self.1.last_mut().expect("a group") = Some((domain.number, domain.kind));
    }

    fn created_domain(&mut self, domain: &DomainReport, groups: usize) {
        assert_eq!(domain.kind, DomainKind::Assigned);
        self.0.push((domain.number, groups, domain.mapped_pages));
    }
}

pub fn shown(driven: &Driven) -> Created {
    let mut created = Created::default();
    driven.iommu.visit(&mut created);
    created
}
