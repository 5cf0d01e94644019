//! Two CPUs that want the same function at once, in every order.

use std::{sync::Arc, vec};

use loom::thread;

use super::*;
use crate::{
    options::{Flush, Quarantine},
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
        };
        let maker = DomainMaker::new(
            units_up(&platform),
            Arc::new(Reaper::new(platform, Flush::Strict)),
            Quarantine::Basic,
            vec![],
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
        model.group.release(&model.maker, FUNCTION, &mut |_| true).unwrap();
        assert_eq!(model.claim(), Ok(()));
        model.group.release(&model.maker, FUNCTION, &mut |_| true).unwrap();
    });
}
