//! Memory that two domains share: by an explicit grant, and revoked in the second before it is free in the first, in
//! whatever order the two end.

mod short;

use driven::Driven;
use iommu::{Bidirectional, DmaDomain, DmaError, FromDevice, Grant, Iova, Mapping, ToDevice};
use short::Short;
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, UnitConfig};

const AT: u64 = 0x7000_0000;
const THERE: u64 = 0x7400_0000;

/// The owner's device behind one unit, that of whom it grants something behind another.
struct Two {
    driven: Driven,
    owner: DmaDomain,
    other: DmaDomain,
    devices: [Device; 2],
}

impl Two {
    fn new() -> Self {
        let mut config = MachineConfig::plain(2);
        config.units.push(UnitConfig::plain(0xfed9_8000));
        config.functions[1].unit = 1;
        config.relax_ns = 1_000_000;
        let driven = Driven::start(config).expect("units that work");
        let [owner, other] = [0, 1].map(|index| {
            let function = driven.function(index);
            let domain = driven.iommu.create_domain(&[function]).expect("memory");
            driven.iommu.assign(function, &domain, |_| true).expect("free");
            driven.enable(function);
            domain
        });
        let devices = [0, 1].map(|index| driven.device(driven.function(index)));
        Self { driven, owner, other, devices }
    }

    fn map(&self) -> (Mapping<ModelBuffer, Bidirectional>, u64) {
        let buffer = self.driven.machine.allocate_buffer(3, 1).expect("memory");
        let physical = buffer.physical();
        (self.owner.dma_map_at(buffer, Bidirectional, Iova::new(AT)).expect("free"), physical)
    }

    fn granted(&self) -> (Grant<ModelBuffer, Bidirectional>, u64) {
        let (mapping, physical) = self.map();
        (mapping.grant_at(&self.other, Bidirectional, Iova::new(THERE)).expect("free"), physical)
    }

    /// What the two devices reach where the memory is for them.
    fn reach(&self) -> [Option<u64>; 2] {
        [0, 1].map(|index| {
            if !self.devices[index].is_bus_master() {
                self.driven.enable(self.driven.function(index));
            }
            self.devices[index].probe([AT, THERE][index], Access::Write).ok()
        })
    }

    fn release(&self, index: usize) {
        self.driven.iommu.release(self.driven.function(index), |_| true).expect("a quiet device");
    }

    fn assert_content(&self, physical: u64, when: &str) {
        self.driven.pump();
        assert!(!self.driven.machine.is_lent(physical), "{when}");
        assert_eq!(self.driven.iommu.live_mappings(), 0, "{when}");
        self.driven.machine.audit();
        self.driven.assert_content(when);
    }
}

#[test]
fn a_grant_is_what_the_second_domain_reaches_until_it_is_revoked() {
    let two = Two::new();
    let (mapping, physical) = two.map();
    assert_eq!(two.reach(), [Some(physical), None]);
    let grant = mapping.grant_at(&two.other, ToDevice, Iova::new(THERE)).expect("free");
    assert_eq!((grant.iova(), grant.mapping().iova()), (Iova::new(THERE), Iova::new(AT)));
    let there = |offset, access| two.devices[1].probe(THERE + offset, access).ok();
    assert_eq!(there(0x2ff8, Access::Read), Some(physical + 0x2ff8));
    assert_eq!((there(0, Access::Write), there(0x3000, Access::Read)), (None, None));
    let at = grant.revoke().expect("units that work");
    assert_eq!((there(0, Access::Read), two.reach()), (None, [Some(physical), None]));
    // Again, for writing alone, and wherever there is room.
    let grant = at.grant(&two.other, FromDevice).expect("room");
    let iova = grant.iova().as_u64();
    assert!(two.devices[1].probe(iova, Access::Write).is_ok());
    assert!(two.devices[1].probe(iova, Access::Read).is_err());
    let mapping = grant.revoke().expect("units that work");
    assert!(two.devices[1].probe(iova, Access::Write).is_err(), "it is in the caches");
    assert_eq!(mapping.unmap().map(|buffer| buffer.physical()), Ok(physical));
    two.assert_content(physical, "after two grants");
}

#[test]
fn what_cannot_be_granted_stays_what_it_was() {
    let two = Two::new();
    let (mapping, physical) = two.map();
    let taken = two.driven.machine.allocate_buffer(1, 1).expect("memory");
    let taken = two.other.dma_map_at(taken, ToDevice, Iova::new(THERE + 0x1000)).expect("free");
    let refused = mapping.grant_at(&two.other, ToDevice, Iova::new(THERE)).expect_err("it is taken");
    assert_eq!(refused.error, DmaError::IovaTaken { iova: Iova::new(THERE) });
    let mapping = refused.buffer.expect("the mapping");
    assert_eq!(two.reach()[0], Some(physical));
    taken.unmap().expect("units that work");
    two.release(1);
    two.other.destroy().expect("nobody is there");
    let refused = mapping.grant(&two.other, ToDevice).expect_err("it has ended");
    assert_eq!(refused.error, DmaError::Revoked);
    refused.buffer.expect("the mapping").unmap().expect("units that work");
    two.assert_content(physical, "after refusals");
    let ragged = two.owner.dma_map(vec![0_u8; 100], Bidirectional);
    if let Ok(ragged) = ragged {
        let refused = ragged.grant(&two.owner, ToDevice).expect_err("a copy would be shared");
        assert_eq!(refused.error, DmaError::NotWholePages { bytes: 100 });
    }
}

/// What may happen to the two.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The owner's device is taken back, and its domain destroyed.
    Owner,
    /// That of the other.
    Other,
    Revoked,
    Dropped,
}

#[test]
fn the_two_end_in_any_order() {
    for ended in [End::Revoked, End::Dropped] {
        let orders = [
            [End::Owner, End::Other, ended],
            [End::Owner, ended, End::Other],
            [End::Other, End::Owner, ended],
            [End::Other, ended, End::Owner],
            [ended, End::Owner, End::Other],
            [ended, End::Other, End::Owner],
        ];
        for order in orders {
            let two = Two::new();
            let (grant, physical) = two.granted();
            assert_eq!(two.reach(), [Some(physical); 2]);
            let mut grant = Some(grant);
            let mut expected = [Some(physical); 2];
            for end in order {
                match end {
                    End::Owner => {
                        two.release(0);
                        two.owner.destroy().expect("nobody is there");
                        expected[0] = None;
                    }
                    End::Other => {
                        two.release(1);
                        two.other.destroy().expect("nobody is there");
                        expected[1] = None;
                    }
                    End::Revoked => {
                        let mapping = grant.take().expect("once").revoke().expect("all are quiet");
                        expected[1] = None;
                        assert_eq!(two.reach(), expected, "{order:?}");
                        let back = mapping.unmap().expect("all are quiet");
                        assert_eq!(back.physical(), physical);
                        expected[0] = None;
                    }
                    End::Dropped => {
                        drop(grant.take());
                        assert!(two.driven.machine.is_lent(physical), "{order:?}");
                        two.driven.pump();
                        expected = [None; 2];
                    }
                }
                assert_eq!(two.reach(), expected, "{order:?}, after {end:?}");
                assert_eq!(two.driven.machine.is_lent(physical), grant.is_some(), "{order:?}, after {end:?}");
            }
            two.assert_content(physical, &format!("{order:?}"));
        }
    }
}

#[test]
fn memory_is_nobodys_while_a_device_of_either_is_restless() {
    for (restless, drops) in [(0, false), (0, true), (1, false), (1, true)] {
        let two = Two::new();
        let (grant, physical) = two.granted();
        two.driven.iommu.quarantine(two.driven.function(restless)).expect("units that work");
        if drops {
            drop(grant);
        } else {
            let revoked = grant.revoke().and_then(Mapping::unmap).map(drop);
            assert_eq!(revoked, Err(DmaError::Restless));
        }
        two.driven.pump();
        assert!(two.driven.machine.is_lent(physical), "{restless}");
        // The other one keeps what it has until the memory can go.
        let reach = two.reach();
        assert_eq!(reach[restless], None);
        two.release(restless);
        two.assert_content(physical, "after a restless device");
        assert_eq!(two.reach(), [None; 2]);
    }
}

#[test]
fn memory_stays_pinned_when_the_second_domain_cannot_be_flushed() {
    for drops in [false, true] {
        let two = Two::new();
        let (grant, physical) = two.granted();
        two.driven.machine.misbehave(1, |unit| unit.gone = true);
        if drops {
            drop(grant);
        } else {
            let revoked = grant.revoke().map(drop);
            assert!(matches!(revoked, Err(DmaError::Stuck(_))), "{revoked:?}");
        }
        two.driven.pump();
        assert!(two.driven.machine.is_lent(physical));
        two.release(0);
        two.driven.pump();
        assert!(two.driven.machine.is_lent(physical), "the other device may reach it for ever");
    }
}

#[test]
fn a_grant_that_there_is_no_memory_for_leaves_the_mapping() {
    for short in Short::ALL {
        for granted in 0.. {
            let two = Two::new();
            let (mapping, physical) = two.map();
            let grant = || mapping.grant_at(&two.other, ToDevice, Iova::new(THERE));
            let (result, refused) = short.after(granted, &two.driven, grant);
            let mapping = match result {
                Ok(grant) => grant.revoke().expect("units that work"),
                Err(rejected) => {
                    assert_eq!(rejected.error, DmaError::OutOfMemory);
                    rejected.buffer.expect("the mapping")
                }
            };
            assert_eq!(two.reach(), [Some(physical), None]);
            mapping.unmap().expect("units that work");
            two.assert_content(physical, "after a shortage");
            if refused == 0 {
                assert!(granted > 0 || short != Short::Tables, "it takes nothing: the test is void");
                break;
            }
        }
    }
}
