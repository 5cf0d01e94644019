//! The driver comes up on every machine, and blocks everything but reserved memory.

use std::collections::BTreeSet;

use driven::Driven;
use iommu::{
    Bidirectional, Options, Platform,
    platform::{MsiMessage, Registers},
};
use mm::PhysAddr;
use vtd_model::{
    Access, Denied, InterruptOutcome, Leftovers, Machine, MachineConfig, ModelPlatform, Reach, Reason,
    ReservedMemory, UnitConfig,
};

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

/// A unit with a write buffer that need not be told to forget a table that it had before sees of the new one what was
/// flushed.
#[test]
fn a_new_interrupt_table_lets_nothing_through_whatever_the_unit_does_by_itself() {
    for traits in 0..16_u8 {
        let mut config = MachineConfig::plain(1);
        let unit = &mut config.units[0];
        (unit.write_buffer, unit.coherent) = (traits & 1 != 0, traits & 2 != 0);
        (unit.esrtps, unit.esirtps) = (traits & 4 != 0, traits & 8 != 0);
        let driven = Driven::start(config).expect("a unit that works");
        let function = driven.function(0);
        driven.enable(function);
        for index in 0..16 {
            let message = MsiMessage { address: 0xfee0_0010 | index << 5, data: 0 };
            let outcome = driven.device(function).interrupt(message);
            assert_eq!(
                outcome,
                InterruptOutcome::Blocked(Reason::InterruptNotPresent),
                "traits {traits:#b}, entry {index}"
            );
        }
        driven.assert_content("with a new table");
    }
}

/// The same of the root table, with nothing after it that would make the unit see it.
#[test]
fn a_new_root_table_lets_nothing_through_whatever_the_unit_does_by_itself() {
    for traits in 0..16_u8 {
        let mut config = MachineConfig::plain(1);
        let unit = &mut config.units[0];
        (unit.write_buffer, unit.coherent) = (traits & 1 != 0, traits & 2 != 0);
        unit.esrtps = traits & 4 != 0;
        let queued_invalidation = traits & 8 != 0;
        let options = Options { queued_invalidation, interrupt_remapping: false, ..Options::default() };
        let driven = Driven::start_with(config, options).expect("a unit that works");
        let device = driven.device(driven.function(0));
        for page in 0..64 {
            let answer = device.probe(page << 30, Access::Read);
            assert_eq!(answer, Err(Denied::Fault(Reason::RootNotPresent)), "traits {traits:#b}, page {page}");
        }
        driven.assert_content("with a new table");
    }
}

/// Firmware may have protected memory below 4 GiB, above, both, or none of it.
#[test]
fn what_firmware_protected_can_be_reached_once_the_units_translate() {
    for traits in 0..8_u8 {
        let mut config = MachineConfig::plain(1);
        let unit = &mut config.units[0];
        (unit.protected_low, unit.protected_high) = (traits & 1 != 0, traits & 2 != 0);
        unit.leftovers.protection = traits & 4 != 0;
        let (function, low, high) =
            (config.functions[0].address, config.memory.firmware, config.memory.buffers);
        assert!(low >> 32 == 0 && high >> 32 != 0);
        config.reserved.push(ReservedMemory { function, base: low, limit: low + 0xfff });
        let driven = Driven::start(config).expect("a unit that works");
        let handle = driven.iommu.claim(function).expect("a free function");
        driven.enable(function);
        let device = driven.device(function);
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        let mapping = handle.dma_map(buffer, Bidirectional).expect("room");
        for address in [low, mapping.iova().as_u64()] {
            assert_eq!(device.write(address, &[1]), Ok(()), "traits {traits:#b}: {address:#x}");
        }
        mapping.unmap().expect("a unit that works");
        driven.assert_content("with protected memory");
    }
}

/// What firmware left on would keep each fault from being counted, and its driver and the policy from hearing of it.
#[test]
fn faults_are_heard_of_although_firmware_had_a_log_of_its_own() {
    let mut config = MachineConfig::plain(1);
    let unit = &mut config.units[0];
    (unit.advanced_fault_log, unit.page_requests) = (true, true);
    unit.leftovers = Leftovers { fault_log: true, garbage: true, translation: true, ..Leftovers::default() };
    let driven = Driven::start(config).expect("a unit that works");
    driven.pump();
    let function = driven.function(0);
    driven.enable(function);
    assert!(driven.device(function).probe(0x5000, Access::Write).is_err());
    assert!(driven.device(function).write(0x5000, &[1]).is_err());
    driven.pump();
    assert_eq!(driven.standing(function).1, 1);
    driven.assert_content("a fault");
}

/// The first unit's fault records lie in its second page, where the second unit is said to begin.
#[test]
fn registers_that_lie_over_each_other_are_refused_and_named() {
    let mut config = MachineConfig::plain(1);
    config.units.push(UnitConfig::plain(config.units[0].base + 0x1000));
    Driven::start(config.clone()).expect("side by side");
    config.units[0].fault_offset = 0xf8;
    Driven::start(config.clone()).expect("8 records end with the page");
    config.units[0].fault_offset = 0xf9;
    let error = Driven::start(config).map(drop).expect_err("one record too many");
    let text = error.to_string();
    for named in ["unit 1", "unit 0", "0x1010 bytes", "0xfed90000", "0xfed91000"] {
        assert!(text.contains(named), "{named}: {text}");
    }
}

/// One unit ignores a command: what the others had been told is undone.
#[test]
fn units_that_are_up_are_turned_off_again_when_one_does_not_come_up() {
    const STATUS: usize = 0x1c;
    for (bit, name) in [(31, "TES"), (30, "RTPS"), (26, "QIES"), (25, "IRES"), (24, "IRTPS")] {
        for deaf in 0..3 {
            let mut config = MachineConfig::plain(1);
            let base = config.units[0].base;
            config.units.extend((1..3).map(|index| UnitConfig::plain(base + index * 0x1000)));
            let machine = Machine::new(config);
            machine.misbehave(deaf, |unit| unit.deaf_to = 1 << bit);
            let error = Driven::start_on(machine.clone(), Options::default()).map(drop).expect_err(name);
            assert!(error.to_string().contains(name), "{error}");
            for unit in (0..3).filter(|&unit| unit != deaf) {
                let registers = ModelPlatform::new(&machine).map_registers(address(base, unit), 0x1000);
                let status = registers.expect("they are there").read32(STATUS);
                assert_eq!(status & 0x8600_0000, 0, "{name} of unit {deaf}: GSTS {status:#x} of unit {unit}");
            }
            machine.audit();
        }
    }
}

fn address(base: u64, unit: usize) -> PhysAddr {
    PhysAddr::new(base + unit as u64 * 0x1000)
}
