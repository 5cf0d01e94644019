//! What is not done in a domain over a shared table, and what is not shared.

use std::sync::Arc;

use driven::Driven;
use iommu::{
    DmaError, DomainError, FromDevice, Options, ToDevice,
    dma::NotShareable,
    dump::{DomainKind, DomainReport, Visitor},
};
use mm::table::LeafSizes;
use vtd_model::{Access, MachineConfig, ReservedMemory};

use super::{
    HEAP, machine, options,
    process::{Process, share, space_on, x86},
    units,
};

/// What a domain over a table takes besides is no page.
#[test]
fn a_domain_without_a_table_of_its_own_takes_no_pages() {
    let driven = Driven::start_with(machine(false), options()).expect("units that work");
    let space = space_on(&driven, x86(4, LeafSizes::all()));
    let live = driven.machine.live_table_pages();
    let domain = share(&driven, &space, &[driven.function(0)], 39).expect("units that walk it");
    assert_eq!(driven.machine.live_table_pages(), live);
    domain.destroy().expect("nobody is in it");
    driven.assert_content("a domain");
}

#[derive(Default)]
struct Domains(Vec<DomainReport>);

impl Visitor for Domains {
    fn created_domain(&mut self, domain: &DomainReport, _groups: usize) {
        self.0.push(*domain);
    }
}

/// The table is its owner's: nobody maps in it by the API, and its pages are none of the domain's.
#[test]
fn the_owner_alone_maps() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let before = process.driven.machine.live_table_pages();
    let buffer = || process.driven.machine.allocate_buffer(1, 1).expect("memory");
    let rejected = handle.dma_map(buffer(), FromDevice).expect_err("the owner's alone");
    assert_eq!(rejected.error, DmaError::SharedTable);
    let rejected = process.domain.domain().dma_map(buffer(), ToDevice).expect_err("the owner's alone");
    assert_eq!((rejected.error, rejected.buffer.is_some()), (DmaError::SharedTable, true));
    assert!(matches!(handle.alloc_coherent::<u64>(1), Err(DmaError::SharedTable)));
    assert_eq!(process.driven.machine.live_table_pages(), before);
    let mut shown = Domains::default();
    process.driven.iommu.visit(&mut shown);
    let [report] = shown.0[..] else { panic!("{:?}", shown.0) };
    assert_eq!((report.kind, report.root), (DomainKind::Shared, process.space.table().root()));
    assert_eq!((report.table_pages, report.mapped_pages), (0, 0));
    assert!(device.probe(HEAP, Access::Read).is_err());
    process.driven.assert_content("a refusal");
}

/// What a unit, or a group, does not take.
#[test]
fn tables_that_units_do_not_walk_are_refused() {
    let refused = |config: MachineConfig, options, format, physical_bits| {
        let driven = Driven::start_with(config, options).expect("units that work");
        let space = space_on(&driven, format);
        let live = driven.machine.live_table_pages();
        let result = share(&driven, &space, &[driven.function(0)], physical_bits);
        assert_eq!((Arc::strong_count(&space), driven.machine.live_table_pages()), (1, live));
        match result {
            Err(DomainError::NotShareable(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let plain = x86(4, LeafSizes::all());
    assert_eq!(refused(MachineConfig::plain(1), options(), plain, 39), NotShareable::SecondStage);
    let mut config = machine(false);
    config.units[0].first_stage_1g = false;
    assert_eq!(refused(config, options(), plain, 39), NotShareable::LeafSizes);
    let mut config = machine(false);
    config.units[0].scalable_coherent = false;
    assert_eq!(refused(config, options(), plain, 39), NotShareable::NotCoherent);
    let five = x86(5, LeafSizes::all());
    assert_eq!(refused(machine(false), options(), five, 39), NotShareable::Levels(5));
    let beyond = NotShareable::PhysicalBits { memory: 40, units: 39 };
    assert_eq!(refused(machine(false), options(), plain, 40), beyond);
    // Units that have both stages use the second, unless they are asked for the first.
    let both = || {
        let mut config = units(1);
        config.units[0].scalable_second_stage = true;
        config
    };
    assert_eq!(refused(both(), options(), plain, 39), NotShareable::SecondStage);
    let driven = Driven::start_with(both(), Options { first_stage: true, ..options() }).expect("a unit");
    let space = space_on(&driven, plain);
    share(&driven, &space, &[driven.function(0)], 39)
        .expect("a unit that walks it")
        .destroy()
        .expect("empty");
    driven.assert_content("refusals");
}

/// Memory that firmware reserves for a device is in no address space of a program.
#[test]
fn a_group_with_reserved_memory_does_not_come_in() {
    let mut config = machine(false);
    let function = config.functions[0].address;
    let base = config.memory.firmware;
    config.reserved = vec![ReservedMemory { function, base, limit: base + 0xfff }];
    let options = Options { rmrr: iommu::options::ReservedPolicy::Relaxed, ..options() };
    let driven = Driven::start_with(config, options).expect("units that work");
    let space = space_on(&driven, x86(4, LeafSizes::all()));
    let domain = share(&driven, &space, &[function], 39).expect("units that walk it");
    let refused = driven.iommu.assign(function, domain.domain(), |_| true).expect_err("reserved memory");
    assert_eq!(refused, DmaError::SharedTable.into());
    driven.assert_content("a refusal");
}
