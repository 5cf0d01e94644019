//! Domains that are created by themselves: groups come and go, and reach what is mapped there for exactly as long as they are
//! attached.

mod short;

use std::cell::Cell;

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaDomain, DmaError, DomainError, FromDevice, Iova, Mapping,
    Options, PciAddress, ReleaseError, ToDevice,
    dma::Late,
    dump::{DomainKind, DomainReport, GroupReport, GroupStanding, Visitor},
    options::{Quarantine, ReservedPolicy},
    policy::Limits,
};
use short::Short;
use vtd_model::{
    Access, Device, FunctionConfig, FunctionKind, MachineConfig, ModelBuffer, ReservedMemory, UnitConfig,
};

const PAGE: u64 = 0x1000;
const AT: u64 = 0x7000_0000;
const ELSEWHERE: u64 = 0x7400_0000;
const RESERVED: (u64, u64) = (0x5000_0000, 0x5000_3fff);

/// Functions 0 and 2 behind one unit, 1 behind another.
fn two_units() -> MachineConfig {
    let mut config = MachineConfig::plain(3);
    config.units.push(UnitConfig::plain(0xfed9_8000));
    config.functions[1].unit = 1;
    config.relax_ns = 1_000_000;
    config
}

fn start(config: MachineConfig) -> Driven {
    Driven::start(config).expect("units that work")
}

fn create(driven: &Driven, functions: &[usize]) -> DmaDomain {
    let functions: Vec<_> = functions.iter().map(|&index| driven.function(index)).collect();
    driven.iommu.create_domain(&functions).expect("units with a common format")
}

fn assign(driven: &Driven, index: usize, domain: &DmaDomain) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.assign(function, domain, |_| true).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven, pages: u32) -> ModelBuffer {
    driven.machine.allocate_buffer(pages, 1).expect("memory")
}

fn map_at(driven: &Driven, domain: &DmaDomain, iova: u64) -> (Mapping<ModelBuffer, Bidirectional>, u64) {
    let buffer = buffer(driven, 1);
    let physical = buffer.physical();
    (domain.dma_map_at(buffer, Bidirectional, Iova::new(iova)).expect("a free address"), physical)
}

fn release(driven: &Driven, index: usize) {
    driven.iommu.release(driven.function(index), |_| true).expect("a quiet device");
}

/// What a device reaches at `iova`.
fn at(device: &Device, iova: u64) -> Option<u64> {
    device.probe(iova, Access::Write).ok()
}

/// Everything that a device reaches, as first addresses.
fn reach(device: &Device) -> Vec<u64> {
    device.reach_of_tables().unwrap_or_default().iter().map(|run| run.address).collect()
}

#[derive(Default)]
struct Created(Vec<(u64, usize, u64)>, Vec<Option<(u64, DomainKind)>>);

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

fn shown(driven: &Driven) -> Created {
    let mut created = Created::default();
    driven.iommu.visit(&mut created);
    created
}

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
    let ((_, wild), (_, calm)) = (assign(&driven, 0, &domain), assign(&driven, 1, &domain));
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
    // The other goes on meanwhile.
    let (third, memory) = map_at(&driven, &domain, AT + 8 * PAGE);
    assert_eq!(at(&calm, AT + 8 * PAGE), Some(memory));
    let failed = driven.iommu.release(driven.function(0), |_| false);
    assert_eq!(failed, Err(ReleaseError::NotQuiet { function: driven.function(0) }));
    let Ok(Late::Pending(waited_for)) = waited_for.poll() else { panic!("it came back") };
    release(&driven, 0);
    driven.pump();
    assert!(!driven.machine.is_lent(second));
    let Ok(Late::Ready(back)) = waited_for.poll() else { panic!("it does not come back") };
    assert_eq!(back.physical(), first);
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
