//! Domains that are created by themselves: groups come and go, and reach what is mapped there for exactly as long as
//! they are attached.

mod domains;

use std::cell::Cell;

use domains::{
    AT, ELSEWHERE, PAGE, assign, at, buffer, create, map_at, reach, release, shown, start, two_units,
};
use iommu::{
    Bidirectional, ClaimError, DmaError, DomainError, FromDevice, Iova, PciAddress, ReleaseError, ToDevice,
    dma::Late,
    dump::{DomainKind, GroupStanding},
    policy::Limits,
};
use vtd_model::{Access, FunctionConfig, FunctionKind, MachineConfig};

#[test]
fn groups_behind_different_units_reach_what_is_mapped_while_they_are_attached() {
    let driven = start(two_units());
    let domain = create(&driven, &[0, 1]);
    // Before anybody is there, by the domain's handle.
    let (before, first) = map_at(&driven, &domain, AT);
    let (one, one_device) = assign(&driven, 0, &domain);
    let (other, other_device) = assign(&driven, 1, &domain);
    assert_eq!([at(&one_device, AT), at(&other_device, AT)], [Some(first); 2]);
    // By the handle of a device: for all that are there.
    let memory = buffer(&driven, 2);
    let second = memory.physical();
    let shared = one.dma_map_at(memory, FromDevice, Iova::new(ELSEWHERE)).expect("free");
    assert_eq!([at(&one_device, ELSEWHERE), at(&other_device, ELSEWHERE)], [Some(second); 2]);
    assert!(other_device.probe(ELSEWHERE, Access::Read).is_err(), "it may only be written");
    let taken = other.dma_map_at(buffer(&driven, 1), ToDevice, Iova::new(AT));
    assert!(taken.is_err_and(|rejected| rejected.error == DmaError::IovaTaken { iova: Iova::new(AT) }));
    let number = domain.number();
    assert_eq!(shown(&driven).0, [(number, 2, 3)]);
    let attached = Some((number, DomainKind::Assigned));
    assert_eq!(shown(&driven).1, [attached, attached, None]);
    release(&driven, 0);
    driven.enable(driven.function(0));
    assert_eq!((reach(&one_device), at(&one_device, AT)), (vec![], None));
    assert_eq!(at(&other_device, AT), Some(first));
    assert!(one.was_taken_back() && !other.was_taken_back());
    // Unmapped with one gone: in both units.
    shared.unmap().expect("all are quiet");
    assert_eq!(at(&other_device, ELSEWHERE), None);
    let (again, _) = assign(&driven, 0, &domain);
    assert_eq!((at(&one_device, AT), at(&one_device, ELSEWHERE)), (Some(first), None));
    assert!(!again.was_taken_back() && one.was_taken_back());
    before.unmap().expect("all are quiet");
    assert_eq!([at(&one_device, AT), at(&other_device, AT)], [None; 2]);
    driven.machine.audit();
    driven.assert_content("two groups in one domain");
}

#[test]
fn between_two_owners_a_device_reaches_neither() {
    let driven = start(two_units());
    let (old, new) = (create(&driven, &[0]), create(&driven, &[0]));
    let ((of_old, old_memory), (_of_new, new_memory)) =
        (map_at(&driven, &old, AT), map_at(&driven, &new, ELSEWHERE));
    let function = driven.function(0);
    let (_, device) = assign(&driven, 0, &old);
    let both = || (at(&device, AT), at(&device, ELSEWHERE));
    // It is in the caches.
    assert_eq!(both(), (Some(old_memory), None));
    let looked = Cell::new(0);
    let look = |what: &str| {
        looked.set(looked.get() + 1);
        assert!(!device.is_bus_master(), "{what}");
        driven.enable(function);
        assert_eq!(both(), (None, None), "{what}");
        driven.disable(function);
        true
    };
    driven.iommu.release(function, |_| look("while it is reset")).expect("a quiet device");
    look("when nobody has it");
    // Nobody has had it since its reset: there is no second one.
    driven.iommu.assign(function, &new, |_| panic!("it is reset")).expect("free");
    driven.enable(function);
    assert_eq!(both(), (None, Some(new_memory)));
    assert_eq!(looked.get(), 2);
    assert_eq!(of_old.unmap().map(|buffer| buffer.physical()), Ok(old_memory));
    driven.machine.audit();
    driven.assert_content("after a change of owner");
}

#[test]
fn what_firmware_or_a_driver_had_is_reset_before_it_is_assigned() {
    let driven = start(two_units());
    let domain = create(&driven, &[0]);
    let (_mapping, memory) = map_at(&driven, &domain, AT);
    let (function, device) = (driven.function(0), driven.device(driven.function(0)));
    driven.enable(function);
    let refused = driven.iommu.assign(function, &domain, |asked| {
        assert_eq!((asked, device.is_bus_master()), (function, false));
        driven.enable(function);
        assert_eq!(at(&device, AT), None, "attached before it was reset");
        false
    });
    assert_eq!(refused.map(drop), Err(ClaimError::NotQuiet { function }));
    assert_eq!((at(&device, AT), shown(&driven).0), (None, vec![(domain.number(), 0, 1)]));
    let (_, device) = assign(&driven, 0, &domain);
    assert_eq!(at(&device, AT), Some(memory));
    // A kernel driver that had it is one who had it.
    release(&driven, 0);
    driven.iommu.claim(function).expect("a free function");
    let refused = driven.iommu.assign(function, &domain, |_| true);
    assert_eq!(refused.map(drop), Err(ClaimError::Claimed { function }));
    release(&driven, 0);
    driven.iommu.assign(function, &domain, |_| panic!("it is reset")).expect("free");
    driven.assert_content("after refusals");
}

#[test]
fn memory_comes_back_when_what_left_the_domain_is_quiet() {
    let driven = start(two_units());
    let domain = create(&driven, &[0, 1]);
    let ((_, wild), (calm_handle, calm)) = (assign(&driven, 0, &domain), assign(&driven, 1, &domain));
    let (waited_for, first) = map_at(&driven, &domain, AT);
    let (asked_for, second) = map_at(&driven, &domain, ELSEWHERE);
    assert_eq!(at(&wild, AT), Some(first));
    // What it does after it is blocked was translated before.
    driven.iommu.quarantine(driven.function(0)).expect("units that work");
    let Ok(Late::Pending(waited_for)) = waited_for.retire().poll() else { panic!("it came back") };
    driven.pump();
    assert_eq!(at(&calm, AT), None, "retired, and flushed, for those that are left");
    assert_eq!(asked_for.unmap().map(drop), Err(DmaError::Restless));
    driven.pump();
    assert_eq!(at(&calm, ELSEWHERE), Some(second), "nothing was done");
    assert!([first, second].iter().all(|&memory| driven.machine.is_lent(memory)));
    // Nothing is mapped meanwhile: it could not come back either, and there would be more of it with each request.
    for _ in 0..3 {
        let refused = domain.dma_map_at(buffer(&driven, 1), Bidirectional, Iova::new(AT + 8 * PAGE));
        assert!(refused.is_err_and(|rejected| rejected.error == DmaError::Restless));
        let refused = calm_handle.dma_map(buffer(&driven, 1), ToDevice);
        assert!(refused.is_err_and(|rejected| rejected.error == DmaError::Restless));
    }
    assert_eq!(driven.iommu.live_mappings(), 2, "what is pinned does not grow");
    let failed = driven.iommu.release(driven.function(0), |_| false);
    assert_eq!(failed, Err(ReleaseError::NotQuiet { function: driven.function(0) }));
    let Ok(Late::Pending(waited_for)) = waited_for.poll() else { panic!("it came back") };
    release(&driven, 0);
    driven.pump();
    assert!(!driven.machine.is_lent(second));
    let Ok(Late::Ready(back)) = waited_for.poll() else { panic!("it does not come back") };
    assert_eq!(back.physical(), first);
    // And all goes on.
    let (third, memory) = map_at(&driven, &domain, AT + 8 * PAGE);
    assert_eq!(at(&calm, AT + 8 * PAGE), Some(memory));
    third.unmap().expect("all are quiet");
    assert_eq!((driven.iommu.live_mappings(), reach(&calm)), (0, vec![]));
    driven.machine.audit();
    driven.assert_content("after a restless device");
}

#[test]
fn a_device_that_faults_too_much_is_taken_out_and_the_others_stay() {
    let driven = start(two_units());
    driven.iommu.set_fault_limits(Limits::default().without_decay());
    let domain = create(&driven, &[0, 2]);
    let ((wild, wild_device), (_, calm)) = (assign(&driven, 0, &domain), assign(&driven, 2, &domain));
    let (mapping, memory) = map_at(&driven, &domain, AT);
    for page in 0..4_000 {
        let _ = wild_device.write(ELSEWHERE + page * PAGE, b"x");
        driven.pump();
    }
    assert!(matches!(driven.standing(driven.function(0)).0, GroupStanding::Quarantined { .. }));
    driven.enable(driven.function(0));
    assert_eq!((at(&wild_device, AT), at(&calm, AT)), (None, Some(memory)));
    assert!(!wild.was_taken_back(), "it is not quiet yet");
    let refused = driven.iommu.assign(driven.function(0), &domain, |_| true).map(drop);
    assert_eq!(refused, Err(ClaimError::Quarantined { function: driven.function(0) }));
    release(&driven, 0);
    assert!(wild.was_taken_back());
    mapping.unmap().expect("all are quiet");
    driven.assert_content("after a storm");
}

#[test]
fn a_domain_that_is_destroyed_returns_everything() {
    let driven = start(two_units());
    let ids = || driven.units().iter().map(|unit| unit.domains).sum::<usize>();
    let mut before = None;
    for round in 0..8 {
        let domain = create(&driven, &[0, 1]);
        let number = domain.number();
        for index in [0, 1] {
            drop(assign(&driven, index, &domain));
        }
        let mapped: Vec<_> = (0..70).map(|page| map_at(&driven, &domain, AT + page * 0x4020_0000)).collect();
        let dropped = map_at(&driven, &domain, ELSEWHERE).0;
        assert_eq!(domain.destroy(), Err(DomainError::InUse { number, groups: 2 }));
        release(&driven, 0);
        assert_eq!(domain.destroy(), Err(DomainError::InUse { number, groups: 1 }));
        release(&driven, 1);
        assert_eq!(domain.destroy(), Ok(()));
        assert_eq!(domain.destroy(), Err(DomainError::Unknown { number }));
        assert!(driven.iommu.domain(number).is_none() && shown(&driven).0.is_empty());
        let refused = driven.iommu.assign(driven.function(0), &domain, |_| true);
        assert_eq!(refused.map(drop), Err(ClaimError::NoDomain { domain: number }));
        let refused = domain.dma_map(buffer(&driven, 1), ToDevice).map(drop);
        assert!(refused.is_err_and(|rejected| rejected.error == DmaError::Revoked));
        // What is mapped comes back as always.
        drop((dropped, domain));
        for (mapping, physical) in mapped {
            assert_eq!(mapping.unmap().map(|buffer| buffer.physical()), Ok(physical));
        }
        driven.pump();
        let now = (driven.machine.live_table_pages(), driven.iommu.live_mappings(), ids());
        assert_eq!((now.1, now.2), (0, 0), "round {round}");
        // The first one may leave room for more dropped mappings behind, and tables of a bus.
        assert_eq!(*before.get_or_insert(now), now, "round {round}");
    }
    driven.machine.audit();
    driven.assert_content("after eight domains");
}

/// Numbers of domains are each subsystem's own, and handles of theirs may meet in one program.
#[test]
fn a_domain_of_another_subsystem_is_none_of_this_one() {
    let (driven, foreign) = (start(two_units()), start(two_units()));
    let (own, other) = (create(&driven, &[0]), create(&foreign, &[0]));
    assert_eq!(own.number(), other.number());
    let refused = driven.iommu.assign(driven.function(0), &other, |_| true).map(drop);
    assert_eq!(refused, Err(ClaimError::NoDomain { domain: other.number() }));
    drop(assign(&driven, 0, &own));
}

#[test]
fn a_group_is_in_one_domain_and_goes_as_a_whole() {
    // Two functions behind a bridge, which a unit cannot tell apart.
    let mut config = MachineConfig::plain(1);
    let bridge = PciAddress::from_devfn(0, 0, 5 << 3);
    let behind = [PciAddress::from_devfn(0, 1, 0), PciAddress::from_devfn(0, 1, 1 << 3)];
    config.functions.push(FunctionConfig {
        kind: FunctionKind::PciBridge { secondary: 1, subordinate: 1 },
        ..FunctionConfig::endpoint(bridge, 0)
    });
    for function in behind {
        let requester = behind[0].source_id().requester;
        config.functions.push(FunctionConfig {
            kind: FunctionKind::Conventional,
            requester,
            ..FunctionConfig::endpoint(function, 0)
        });
    }
    let driven = start(config);
    let iommu = &driven.iommu;
    let (domain, other) = (create(&driven, &[2]), create(&driven, &[2]));
    let reset = Cell::new(0);
    let count = |_| {
        reset.set(reset.get() + 1);
        true
    };
    iommu.assign(behind[0], &domain, count).expect("free");
    assert_eq!(reset.get(), 2, "all endpoints of the group");
    let elsewhere = ClaimError::Elsewhere { function: behind[1], domain: domain.number() };
    assert_eq!(iommu.assign(behind[1], &other, count).map(drop), Err(elsewhere));
    assert_eq!(iommu.claim(behind[1]).map(drop), Err(elsewhere));
    iommu.assign(behind[1], &domain, count).expect("its group is there");
    assert_eq!(reset.get(), 2, "the first one works by now");
    let number = domain.number();
    assert_eq!(shown(&driven).0, [(number, 1, 0), (other.number(), 0, 0)]);
    iommu.release(behind[1], |_| true).expect("a quiet device");
    assert_eq!(domain.destroy(), Ok(()));
    // The kernel's own comes first this time.
    iommu.claim(behind[0]).expect("free");
    let refused = iommu.assign(behind[1], &other, count).map(drop);
    assert!(matches!(refused, Err(ClaimError::Elsewhere { .. })), "{refused:?}");
    driven.assert_content("with a group of two");
}

#[test]
fn a_domain_is_as_wide_as_what_all_its_units_translate() {
    let mut config = two_units();
    (config.units[1].sagaw, config.units[1].mgaw) = (0b010, 39);
    config.units[0].sagaw = 0b110;
    let driven = start(config);
    let narrow = create(&driven, &[0, 1]);
    let last = (1 << 39) - 1;
    let beyond = narrow.dma_map_at(buffer(&driven, 1), ToDevice, Iova::new(1 << 39)).map(drop);
    let error = DmaError::IovaBeyond { iova: Iova::new(1 << 39), last };
    assert!(beyond.is_err_and(|rejected| rejected.error == error));
    let wide = create(&driven, &[0]);
    let mapping = wide.dma_map_at(buffer(&driven, 1), ToDevice, Iova::new(1 << 39)).expect("48 bits");
    let refused = driven.iommu.assign(driven.function(1), &wide, |_| true).map(drop);
    assert_eq!(refused, Err(ClaimError::Domain(DmaError::NoCommonFormat)));
    assign(&driven, 1, &narrow);
    assign(&driven, 0, &narrow);
    assert_eq!(driven.iommu.create_domain(&[]).map(drop), Err(DomainError::NoFunctions));
    let function = PciAddress::from_devfn(0, 9, 0);
    let unknown = DomainError::UnknownFunction { function };
    assert_eq!(driven.iommu.create_domain(&[function]).map(drop), Err(unknown));
    drop(mapping);
    driven.pump();
    driven.assert_content("with units of two widths");
}
