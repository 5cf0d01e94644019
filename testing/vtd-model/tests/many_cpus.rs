//! Several CPUs map, use and unmap memory of the same devices at the same time.

use std::thread;

use driven::Driven;
use iommu::{Bidirectional, DmaDevice, DmaError};
use vtd_model::{Access, Device, MachineConfig, Random, become_cpu};

const CPUS: usize = 4;
const ROUNDS: u64 = 1_000;
const MACHINES: u64 = 24;

/// One CPU's share: when an unmap has returned, the address leads to the buffer no more, whoever has it now.
fn work(driven: &Driven, devices: &[(DmaDevice, Device)], random: &mut Random) {
    let mut held = Vec::new();
    for _ in 0..ROUNDS {
        let (handle, hardware) = &devices[random.index(devices.len())];
        let pages = 1 + random.below(600) as u32 / if random.once_in(4) { 1 } else { 64 };
        let Some(buffer) = driven.machine.allocate_buffer(pages, 1) else { continue };
        let physical = buffer.physical();
        match handle.dma_map(buffer, Bidirectional) {
            Ok(mapping) => held.push((hardware, physical, mapping)),
            Err(rejected) => panic!("{}", rejected.error),
        }
        let index = random.index(held.len());
        let (hardware, physical, mapping) = &held[index];
        let offset = random.below(mapping.len() as u64);
        let answer = hardware.probe(mapping.iova().as_u64() + offset, Access::Write);
        assert_eq!(answer, Ok(physical + offset), "{hardware:?} at {}", mapping.iova());
        if held.len() > 8 {
            let (hardware, physical, mapping) = held.swap_remove(index);
            let (iova, bytes) = (mapping.iova().as_u64(), mapping.len() as u64);
            let buffer = mapping.unmap().expect("a unit that works");
            for at in [0, random.below(bytes), bytes - 1] {
                let answer = hardware.probe(iova + at, Access::Write);
                assert_ne!(answer, Ok(physical + at), "{hardware:?}: {iova:#x} is stale");
            }
            drop(buffer);
        }
        if random.once_in(16) {
            driven.pump();
        }
    }
}

#[test]
fn nothing_is_stale_however_many_cpus_unmap_at_once() {
    for seed in 0..MACHINES {
        let driven = Driven::start(MachineConfig::random(seed)).expect("units that work");
        let claim = |function: &vtd_model::FunctionConfig| match driven.iommu.claim(function.address) {
            Ok(handle) => {
                driven.enable(function.address);
                Some((handle, driven.device(function.address)))
            }
            Err(iommu::ClaimError::Domain(DmaError::OutOfDomainIds { .. })) => None,
            Err(error) => panic!("seed {seed}: {error}"),
        };
        let functions = driven.machine.config().functions.iter().filter(|f| f.kind.buses().is_none());
        let devices: Vec<_> = functions.filter_map(claim).take(2).collect();
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                let (driven, devices) = (&driven, &devices);
                scope.spawn(move || {
                    become_cpu(cpu);
                    work(driven, devices, &mut Random::new(seed * 100 + cpu as u64));
                });
            }
        });
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0, "seed {seed}");
        driven.machine.audit();
        driven.assert_content(&format!("seed {seed}"));
        for (_, hardware) in &devices {
            let reserved: u64 =
                hardware.reach_of_tables().expect("translated").iter().map(|run| run.bytes).sum();
            assert!(reserved < 1 << 20, "seed {seed}: {reserved:#x} bytes stay mapped");
        }
    }
}
