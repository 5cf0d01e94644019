//! Groups that firmware reserves memory for, and domains that are created: who gets one, and with what; and what there
//! is no memory for.

mod domains;
mod short;

use domains::{AT, PAGE, assign, at, buffer, create, map_at, reach, release, shown, two_units};
use driven::Driven;
use iommu::{
    ClaimError, DmaError, Iova, Options, ToDevice,
    options::{Quarantine, ReservedPolicy},
};
use short::Short;
use vtd_model::ReservedMemory;

const RESERVED: (u64, u64) = (0x5000_0000, 0x5000_3fff);

fn with_reserved_memory(options: Options) -> Driven {
    let mut config = two_units();
    let function = config.functions[0].address;
    config.reserved.push(ReservedMemory { function, base: RESERVED.0, limit: RESERVED.1 });
    Driven::start_with(config, options).expect("units that work")
}

#[test]
fn a_group_with_reserved_memory_is_assigned_only_if_that_is_asked_for() {
    let driven = with_reserved_memory(Options::default());
    let domain = create(&driven, &[0, 2]);
    let function = driven.function(0);
    driven.enable(function);
    let refused = driven.iommu.assign(function, &domain, |_| panic!("it is refused")).map(drop);
    assert_eq!(refused, Err(ClaimError::Reserved { function }));
    let device = driven.device(function);
    assert_eq!((reach(&device), device.is_bus_master()), (vec![RESERVED.0], true));
    assign(&driven, 2, &domain);
    driven.assert_content("with reserved memory");
}

/// What firmware wants of a device does not depend on whether it gets it.
#[test]
fn a_group_whose_reserved_memory_was_refused_is_firmwares_all_the_same() {
    let mut config = two_units();
    let (function, base) = (config.functions[0].address, config.memory.tables);
    config.reserved.push(ReservedMemory { function, base, limit: base + PAGE - 1 });
    for rmrr in [ReservedPolicy::Strict, ReservedPolicy::Relaxed] {
        let options = Options { rmrr, ..Options::default() };
        let driven = Driven::start_with(config.clone(), options).expect("units that work");
        let domain = create(&driven, &[0, 1]);
        let assigned = driven.iommu.assign(function, &domain, |_| true).map(drop);
        let expected = match rmrr {
            ReservedPolicy::Strict => Err(ClaimError::Reserved { function }),
            ReservedPolicy::Relaxed => Ok(()),
        };
        assert_eq!(assigned, expected);
        assign(&driven, 1, &domain);
        driven.assert_content("with memory that was refused");
    }
}

#[test]
fn reserved_memory_goes_with_its_group_and_is_nobody_elses() {
    for quarantine in [Quarantine::Basic, Quarantine::ScratchPage] {
        let options = Options { rmrr: ReservedPolicy::Relaxed, quarantine, ..Options::default() };
        let driven = with_reserved_memory(options);
        let (domain, device) = (create(&driven, &[0, 2]), driven.device(driven.function(0)));
        driven.disable(driven.function(0));
        // Others are there already: they would reach it too.
        assign(&driven, 2, &domain);
        let refused = driven.iommu.assign(driven.function(0), &domain, |_| true).map(drop);
        assert_eq!(refused, Err(ClaimError::Domain(DmaError::ReservedForOne)));
        assert_eq!(reach(&device), [RESERVED.0], "back where it was");
        release(&driven, 2);
        // The owner has something where it has to be.
        let (mapping, _) = map_at(&driven, &domain, RESERVED.0 + PAGE);
        let refused = driven.iommu.assign(driven.function(0), &domain, |_| true).map(drop);
        let taken = DmaError::IovaTaken { iova: Iova::new(RESERVED.0) };
        assert_eq!(refused, Err(ClaimError::Domain(taken)));
        assert_eq!((reach(&device), shown(&driven).0), (vec![RESERVED.0], vec![(domain.number(), 0, 1)]));
        mapping.unmap().expect("nobody is there");
        let (_, device) = assign(&driven, 0, &domain);
        let (mapping, memory) = map_at(&driven, &domain, AT);
        assert_eq!(at(&device, RESERVED.0 + PAGE), Some(RESERVED.0 + PAGE));
        assert_eq!((at(&device, AT), reach(&device)), (Some(memory), vec![RESERVED.0, AT]));
        let refused = driven.iommu.assign(driven.function(2), &domain, |_| true).map(drop);
        assert_eq!(refused, Err(ClaimError::Domain(DmaError::ReservedForOne)));
        let refused = domain.dma_map_at(buffer(&driven, 1), ToDevice, Iova::new(RESERVED.1 + 1 - PAGE));
        let reserved = DmaError::IovaReserved { iova: Iova::new(RESERVED.1 + 1 - PAGE) };
        assert!(refused.is_err_and(|rejected| rejected.error == reserved));
        driven.iommu.quarantine(driven.function(0)).expect("units that work");
        driven.enable(driven.function(0));
        assert_eq!(at(&device, RESERVED.0), Some(RESERVED.0));
        assert_ne!(at(&device, AT), Some(memory));
        release(&driven, 0);
        assert_eq!(reach(&device), [RESERVED.0]);
        // In the domain there is nothing left of it.
        let (_, other) = assign(&driven, 2, &domain);
        assert_eq!(reach(&other), [AT]);
        let (there, memory) = map_at(&driven, &domain, RESERVED.0);
        assert_eq!(at(&other, RESERVED.0), Some(memory));
        for mapping in [mapping, there] {
            mapping.unmap().expect("all are quiet");
        }
        driven.machine.audit();
        driven.assert_content("reserved memory in a domain");
    }
}

#[test]
fn what_there_is_no_memory_for_is_an_error_and_leaves_everything_as_it_was() {
    for short in Short::ALL {
        let options = Options { rmrr: ReservedPolicy::Relaxed, ..Options::default() };
        let driven = with_reserved_memory(options);
        let (zero, one) = (driven.function(0), driven.function(1));
        [zero, one].iter().for_each(|&function| driven.disable(function));
        let counts = || {
            let created = shown(&driven);
            let reach = [zero, one].map(|function| reach(&driven.device(function)));
            (created.0, created.1.len(), reach, driven.iommu.live_mappings())
        };
        // Each operation with 0, 1, 2 .. allocations, until none is refused.
        let each = |work: &dyn Fn() -> bool| {
            for granted in 0.. {
                let before = counts();
                let (worked, refused) = short.after(granted, &driven, work);
                if refused == 0 {
                    assert!(worked);
                    break;
                }
                assert!(granted < 200, "there is no end of it");
                if worked {
                    // It went on without.
                    break;
                }
                assert_eq!(counts().0, before.0, "{granted} granted of {short:?}");
                assert_eq!(counts().3, before.3, "{granted} granted of {short:?}");
                // A group that there is no memory for may end up blocked, and never with more than it had.
                let left = counts().2;
                assert!(left == before.2 || left[0].is_empty() && left[1] == before.2[1]);
            }
        };
        each(&|| driven.iommu.create_domain(&[zero, one]).is_ok());
        let number = shown(&driven).0[0].0;
        let domain = driven.iommu.domain(number).expect("it is there");
        each(&|| driven.iommu.assign(one, &domain, |_| true).is_ok());
        release(&driven, 1);
        each(&|| driven.iommu.assign(zero, &domain, |_| true).is_ok());
        assert_eq!(reach(&driven.device(zero)), [RESERVED.0]);
        each(&|| {
            let buffer = short::with_enough(|| buffer(&driven, 1));
            let mapped = domain.dma_map_at(buffer, ToDevice, Iova::new(AT));
            mapped.map(|mapping| mapping.unmap().expect("works")).is_ok()
        });
        release(&driven, 0);
        domain.destroy().expect("nobody is there");
        driven.pump();
        driven.machine.audit();
        let _ = driven.machine.take_complaints();
    }
}
