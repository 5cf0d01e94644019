//! Two CPUs that want the same function at once, in every order.

use std::{sync::Arc, vec};

use loom::thread;

use super::*;
use crate::{
    options::{Flush, Quarantine},
    registers::Registers,
    sync::explore,
    vtd::{
        Vtd,
        testing::{FakePlatform, units_up},
    },
};

const CAP: u64 = 0x00d2_008c_222f_0606;
const ECAP: u64 = 0x00f0_0f4a;
const FUNCTION: PciAddress = PciAddress::from_devfn(0, 0, 3 << 3);

struct Model {
    group: Group<Vtd<FakePlatform>>,
    maker: DomainMaker<Vtd<FakePlatform>>,
}

impl Model {
    fn new() -> Arc<Self> {
        let platform = Arc::new(FakePlatform::new(CAP, ECAP));
        let layout = GroupLayout {
            functions: vec![FUNCTION],
            endpoints: vec![FUNCTION],
            sources: vec![(FUNCTION.source_id(), 0)],
            reserved: vec![],
            is_firmwares: false,
        };
        let maker = DomainMaker::new(
            units_up(&platform),
            Arc::new(Reaper::new(platform, Flush::Strict)),
            Quarantine::Basic,
            vec![],
            Registers::default(),
        );
        Arc::new(Self { group: Group::new(layout), maker })
    }

    fn claim(&self) -> Result<(), ClaimError> {
        self.group.claim(&self.maker, FUNCTION, Home::Own(None)).map(drop)
    }
}

#[test]
fn of_two_cpus_that_claim_a_function_one_gets_it() {
    explore(2, || {
        let model = Model::new();
        let other = {
            let model = model.clone();
            thread::spawn(move || model.claim())
        };
        let mine = model.claim();
        match (mine, other.join().unwrap()) {
            (Ok(()), Err(refused)) | (Err(refused), Ok(())) => {
                assert!(matches!(refused, ClaimError::Claimed { .. } | ClaimError::Busy { .. }), "{refused}");
            }
            claims => panic!("{claims:?}"),
        }
        model.group.release(&model.maker, FUNCTION, None, &mut |_| true).unwrap();
        assert_eq!(model.claim(), Ok(()));
        model.group.release(&model.maker, FUNCTION, None, &mut |_| true).unwrap();
    });
}

/// Whoever finds that the group was taken back gets the memory back that it had, at once.
#[test]
fn what_a_group_had_comes_back_no_later_than_that_is_said() {
    explore(2, || {
        let model = Model::new();
        let claimed = model.group.claim(&model.maker, FUNCTION, Home::Own(None)).unwrap();
        let other = {
            let model = model.clone();
            thread::spawn(move || model.group.release(&model.maker, FUNCTION, None, &mut |_| true).unwrap())
        };
        if model.group.term(model.maker.backend.platform()) != claimed.term {
            assert!(claimed.domain.gives_back());
        }
        other.join().unwrap();
        assert!(claimed.domain.gives_back());
    });
}

/// A driver that ends while its device is taken from it and given to the next one, who keeps it.
#[test]
fn who_gives_a_function_back_takes_it_from_nobody_else() {
    explore(2, || {
        let model = Model::new();
        let claimed = model.group.claim(&model.maker, FUNCTION, Home::Own(None)).unwrap();
        let other = {
            let model = model.clone();
            thread::spawn(move || {
                let released = model.group.release(&model.maker, FUNCTION, None, &mut |_| true);
                // Nobody else is in the way of who comes next.
                released.map(|()| model.claim().unwrap())
            })
        };
        let mine = model.group.release(&model.maker, FUNCTION, Some(claimed.term), &mut |_| true);
        let standing = model.group.standing(model.maker.backend.platform());
        match (mine, other.join().unwrap()) {
            // It was given back, and then taken once more from nobody.
            (Ok(()) | Err(ReleaseError::Over { .. } | ReleaseError::Busy { .. }), Ok(())) => {
                let standing = model.group.standing(model.maker.backend.platform());
                assert_eq!(standing, GroupStanding::Claimed, "{mine:?}");
            }
            (Ok(()), Err(ReleaseError::Busy { .. })) => assert_eq!(standing, GroupStanding::Free),
            outcome => panic!("{outcome:?}"),
        }
    });
}

/// Whoever has a function can give it back, also while somebody tries who had it before.
#[test]
fn who_is_late_is_in_nobodys_way() {
    explore(2, || {
        let model = Model::new();
        let claim = || model.group.claim(&model.maker, FUNCTION, Home::Own(None)).unwrap().term;
        let before = claim();
        model.group.release(&model.maker, FUNCTION, None, &mut |_| true).unwrap();
        let now = claim();
        let late = {
            let model = model.clone();
            thread::spawn(move || model.group.release(&model.maker, FUNCTION, Some(before), &mut |_| true))
        };
        let mine = model.group.release(&model.maker, FUNCTION, Some(now), &mut |_| true);
        assert_eq!(mine, Ok(()));
        assert_eq!(late.join().unwrap(), Err(ReleaseError::Over { function: FUNCTION }));
    });
}

/// A domain is destroyed while a group is given to its owner: it has the group, or it ends.
#[test]
fn a_domain_ends_or_is_given_a_group_never_both() {
    explore(2, || {
        let model = Model::new();
        let domain = model.maker.make(model.group.layout().units(), Kind::Assigned).unwrap();
        let other = {
            let (model, domain) = (model.clone(), domain.clone());
            thread::spawn(move || {
                let home = Home::Assigned(&domain, &mut |_| true);
                model.group.claim(&model.maker, FUNCTION, home).map(drop)
            })
        };
        let closed = domain.close();
        match (closed, other.join().unwrap()) {
            (Ok(()), Err(ClaimError::Domain(DmaError::Revoked))) => assert_eq!(domain.groups(), 0),
            (Err(1), Ok(())) => {
                model.group.release(&model.maker, FUNCTION, None, &mut |_| true).unwrap();
                assert_eq!((domain.groups(), domain.close()), (0, Ok(())));
            }
            outcome => panic!("{outcome:?}"),
        }
    });
}
