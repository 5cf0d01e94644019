//! The driver comes up on every machine, and blocks everything but reserved memory.

mod driver;

use std::collections::BTreeSet;

use driver::Driven;
use vtd_model::{Access, MachineConfig, Reach};

const MACHINES: u64 = 300;

/// What a function may reach before anybody has claimed it.
fn reserved_of(driven: &Driven, function: iommu::PciAddress) -> Vec<Reach> {
    let groups = driven.groups();
    let group = groups.iter().find(|group| group.contains(&function)).expect("a group for each function");
    let reserved = driven.machine.config().reserved.iter().filter(|r| group.contains(&r.function));
    let mut reaches: Vec<Reach> = Vec::new();
    for r in reserved {
        let bytes = r.limit + 1 - r.base;
        match reaches.last_mut() {
            Some(last) if last.address + last.bytes == r.base => last.bytes += bytes,
            _ => reaches.push(Reach { address: r.base, physical: r.base, bytes, read: true, write: true }),
        }
    }
    reaches
}

#[test]
fn on_every_machine_unclaimed_functions_reach_reserved_memory_and_nothing_else() {
    let mut spanning = 0;
    for seed in 0..MACHINES {
        let driven = match Driven::start(MachineConfig::random(seed)) {
            Ok(driven) => driven,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        driven.machine.audit();
        driven.assert_content(&format!("seed {seed}"));
        let config = driven.machine.config();
        for unit in 0..config.units.len() {
            assert!(driven.machine.is_on(unit).0, "seed {seed}: unit {unit} does not translate");
        }
        spanning += driven.groups().iter().filter(|group| units_of(config, group).len() > 1).count();
        for function in &config.functions {
            let device = driven.device(function.address);
            let expected = reserved_of(&driven, function.address);
            assert_eq!(device.reach_of_tables(), Some(expected.clone()), "seed {seed}: {}", function.address);
            let inside =
                |address: u64| expected.iter().any(|r| (r.address..r.address + r.bytes).contains(&address));
            for page in (0..64).chain(0x70000..0x70100) {
                let address = page << 12;
                let answer = device.probe(address, Access::Write);
                assert_eq!(
                    answer.is_ok(),
                    inside(address),
                    "seed {seed}: {} at {address:#x}",
                    function.address
                );
            }
        }
    }
    assert!(spanning > 10, "{spanning} groups span units: too few to mean anything");
}

/// The units behind which the functions of a group are.
fn units_of(config: &MachineConfig, group: &[iommu::PciAddress]) -> BTreeSet<usize> {
    config.functions.iter().filter(|f| group.contains(&f.address)).map(|f| f.unit).collect()
}
