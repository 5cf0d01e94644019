//! The driver of a primary controller against one in software.

use std::{sync::Arc, vec};

use nvme_spec::Resource;

use super::{super::NvmeError, Primary};
use crate::{
    doubles::{
        Bench,
        nvme::{CONFIGURATION, Nvme, bench_of, function},
        secondaries::Secondary,
    },
    pci::{ResetError, fake::FakeFunction},
};

const EXPRESS: u16 = 0x60;
const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
const INITIATE: u32 = 1 << 15;

/// A controller that has secondary ones, and knows this way to be reset.
fn primary(capabilities: u32) -> (Bench, Arc<Nvme>) {
    let msix = function().get(0x40) | u32::from(EXPRESS) << 8;
    let function: FakeFunction = function()
        .with(0x40, msix)
        .with(EXPRESS, 0x0002_0010)
        .with(EXPRESS + 4, capabilities)
        .with(EXPRESS + 8, 0x10)
        .writable(EXPRESS + 8, 0xffff);
    let (bench, device) = bench_of(function);
    device.set(|state| state.identity[256] = 0x88);
    let of_device = device.clone();
    bench.host.space.react(move |functions, (address, offset, value)| {
        if offset == EXPRESS + 8 && value & INITIATE != 0 {
            functions.get_mut(&address).expect("the function").reset();
            of_device.set(|state| state.reset());
        }
    });
    (bench, device)
}

fn open(bench: &Bench) -> Result<Primary, NvmeError> {
    Primary::open(&bench.as_host(), bench.dma.clone(), &bench.function())
}

#[test]
fn each_gets_its_share_and_a_namespace_that_is_nobody_elses() {
    let (bench, device) = primary(FUNCTION_LEVEL_RESET);
    let mut controller = open(&bench).expect("a primary controller");
    assert_eq!(device.set(|state| state.secondaries.resets), 1, "what it gave up is free after a reset");
    // The second time all of it is there already.
    for _ in 0..2 {
        device.set(|state| state.secondaries.list.iter_mut().for_each(|it| it.is_online = false));
        controller.bring_online(2).expect("both");
        let list = device.set(|state| state.secondaries.list.clone());
        let given = |id, number, namespace| Secondary {
            id,
            number,
            given: [3, 3],
            is_online: true,
            namespaces: vec![namespace],
        };
        assert_eq!(list, [given(0x31, 1, 7), given(0x32, 2, 9)]);
    }
    drop(controller);
    drop(open(&bench).expect("once more"));
    assert_eq!(device.set(|state| state.secondaries.resets), 1, "there was nothing to give up");
    bench.await_live_mappings(0);
}

#[test]
fn a_namespace_of_another_controller_is_given_to_nobody() {
    let (bench, device) = primary(FUNCTION_LEVEL_RESET);
    // The first one is a stranger's, and the second one is the second controller's already, and shared with another
    // stranger.
    device.set(|state| {
        state.secondaries.namespaces = vec![5, 7, 9, 11, 13];
        state.secondaries.strangers = vec![(7, 0x99), (9, 0x98)];
        state.secondaries.list[1].namespaces = vec![9];
    });
    open(&bench).expect("a primary controller").bring_online(2).expect("both");
    let namespaces =
        device.set(|state| state.secondaries.list.iter().map(|it| it.namespaces.clone()).collect());
    let namespaces: std::vec::Vec<_> = namespaces;
    assert_eq!(namespaces, [vec![11], vec![9, 13]]);
}

#[test]
fn who_cannot_have_enough_is_not_brought_online() {
    let (bench, device) = primary(FUNCTION_LEVEL_RESET);
    let mut controller = open(&bench).expect("a primary controller");
    let too_little = NvmeError::TooLittle { resource: Resource::Queues, share: 1 };
    assert_eq!(controller.bring_online(4), Err(too_little));
    assert!(device.set(|state| state.secondaries.list.iter().all(|it| !it.is_online)));
    assert_eq!(controller.bring_online(3), Err(NvmeError::NoSecondary { number: 3 }));
    // One alone can have no more than one may.
    device.set(|state| {
        state
            .secondaries
            .list
            .iter_mut()
            .for_each(|it| *it = Secondary { given: [0; 2], is_online: false, ..it.clone() })
    });
    controller.bring_online(1).expect("one");
    assert_eq!(device.set(|state| state.secondaries.list[0].given), [4, 4]);
}

/// It is taken away while the driver turns it off, and the next one has it when that would reset it.
#[test]
fn a_controller_that_is_anothers_by_now_is_not_reset() {
    let (bench, device) = primary(FUNCTION_LEVEL_RESET);
    let (iommu, function, of_device) = (bench.iommu.clone(), bench.dma.function(), device.clone());
    bench.before_write(move |offset, value| {
        let is_turned_off = (offset, value) == (CONFIGURATION, 0);
        if is_turned_off && of_device.set(|state| state.secondaries.has_given_up()) {
            iommu.release(function, |_| true).unwrap();
            iommu.claim(function).unwrap();
        }
    });
    assert_eq!(open(&bench).err(), Some(NvmeError::Gone));
    assert_eq!((bench.dma.was_taken_back(), device.set(|state| state.secondaries.resets)), (true, 0));
}

#[test]
fn what_is_no_primary_controller_is_refused() {
    let (bench, _device) = primary(0);
    assert_eq!(open(&bench).err(), Some(NvmeError::Reset(ResetError::NoMethod)));
    let (bench, device) = primary(FUNCTION_LEVEL_RESET);
    device.set(|state| state.identity[256] = 0x08);
    assert_eq!(open(&bench).err(), Some(NvmeError::NoSecondaries));
    assert!(!bench.host.is_bus_master());
}
