//! What units keep, and do not see yet.

use driven::Driven;
use iommu::{Bidirectional, DmaError, Iova};
use vtd_model::{Access, Denied, InterruptOutcome, MachineConfig, Reason};

use crate::{buffer, claim, interrupts::remappable, plain, unit::UnitBench};

// Write-buffer flush (RWBF), non-coherent walk (ECAP.C=0), caching mode (CM=1) ignored.

#[test]
fn what_is_mapped_is_seen_at_once_whatever_the_unit_needs_for_that() {
    type Change = fn(&mut vtd_model::UnitConfig);
    let needs: [(&str, Change); 4] = [
        ("nothing", |_| {}),
        ("RWBF", |unit| unit.write_buffer = true),
        ("ECAP.C = 0", |unit| unit.coherent = false),
        ("CM", |unit| unit.caching_mode = true),
    ];
    for (what, change) in needs {
        for queued in [true, false] {
            let mut config = plain();
            change(&mut config.units[0]);
            config.units[0].queued = queued;
            config.units[0].interrupt_remapping = queued;
            let driven = Driven::start(config).expect("a unit that works");
            let hardware = driven.device(driven.function(0));
            assert!(hardware.probe(0x5000, Access::Read).is_err());
            let (handle, hardware) = claim(&driven, 0);
            // The table of the domain says so, not that there is none.
            let empty = Err(Denied::Fault(Reason::NoWrite));
            for page in 1..600_u64 {
                let iova = page * 0x20_3000;
                assert_eq!(hardware.probe(iova, Access::Write), empty, "{what}");
                let memory = buffer(&driven, 1);
                let physical = memory.physical();
                let mapping =
                    handle.dma_map_at(memory, Bidirectional, Iova::new(iova)).expect("a free address");
                assert_eq!(hardware.probe(iova, Access::Write), Ok(physical), "{what}, queue: {queued}");
                if page % 3 == 0 {
                    mapping.unmap().expect("a unit that works");
                    assert!(hardware.probe(iova, Access::Write).is_err(), "{what}");
                } else {
                    std::mem::forget(mapping);
                }
            }
            driven.machine.audit();
            driven.assert_content(what);
        }
    }
}

// Domain id 0 used with CM=1; domain id = BDF although ND allows fewer.

#[test]
fn domain_ids_fit_the_unit_and_run_out_with_an_error() {
    let mut config = MachineConfig::plain(18);
    config.units[0].nd = 0;
    config.units[0].caching_mode = true;
    let driven = Driven::start(config).expect("a unit that works");
    let mut claimed = 0;
    for index in 0..18 {
        match driven.iommu.claim(driven.function(index)) {
            Ok(device) => {
                claimed += 1;
                device
                    .dma_map(buffer(&driven, 1), Bidirectional)
                    .expect("room")
                    .unmap()
                    .expect("a working unit");
            }
            Err(error) => {
                let expected = iommu::ClaimError::Domain(DmaError::OutOfDomainIds { unit: 0 });
                assert_eq!(error, expected);
            }
        }
    }
    assert_eq!(claimed, 15, "16 ids, and 0 is not to be used");
    driven.machine.audit();
    driven.assert_content("with 16 ids");
}

// No invalidation after SRTP or SIRTP when ESRTPS or ESIRTPS is 0.

#[test]
fn what_the_caches_held_before_is_gone_when_the_unit_is_up() {
    for (esrtps, esirtps, queued) in [
        (false, false, true),
        (true, true, true),
        (false, false, false),
        (true, false, true),
        (false, true, true),
    ] {
        let mut config = plain();
        let unit = &mut config.units[0];
        (unit.esrtps, unit.esirtps, unit.queued, unit.interrupt_remapping) =
            (esrtps, esirtps, queued, queued);
        let bench = UnitBench::new(config);
        for page in 0..64_u64 {
            let answer = bench.device(0).probe(page << 12, Access::Read);
            assert_eq!(answer, Err(vtd_model::Denied::Fault(Reason::RootNotPresent)));
        }
        for index in (0..256).filter(|_| queued) {
            let outcome = bench.device(0).interrupt(remappable(index));
            assert_eq!(outcome, InterruptOutcome::Blocked(Reason::InterruptNotPresent));
        }
    }
}
