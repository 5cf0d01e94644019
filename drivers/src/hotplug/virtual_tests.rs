//! Who may have virtual functions made of a physical one.

use std::{sync::Arc, vec, vec::Vec};

use iommu::{ClaimError, PciAddress};

use super::{super::Drivers, *};
use crate::{
    doubles::Bench,
    pci::{Apertures, Claims, Config, fake::FakeFunction},
};

const SRIOV: u16 = 0x100;
const EXPRESS: u16 = 0x40;
const INITIATE: u32 = 1 << 15;

/// Nobody drives what comes.
struct Nobody;

impl Drivers for Nobody {
    fn bind(&self, _function: &Function) {}

    fn unbind(&self, _function: PciAddress, _is_gone: bool) {}
}

/// A function that can have virtual ones, for whose registers there are no addresses, and that can be reset.
fn physical() -> FakeFunction {
    FakeFunction::new(0x10c9_8086, 0x0200_0000, 0)
        .with(0x34, EXPRESS.into())
        .with(EXPRESS, 0x0002_0010)
        .with(EXPRESS + 4, 1 << 28)
        .with(EXPRESS + 8, 0x10)
        .writable(EXPRESS + 8, 0xffff)
        .with(SRIOV, 0x0001_0010)
        .with(SRIOV + 0x0c, 0x0007_0007)
        .with(SRIOV + 0x1c, 1)
}

/// Hotplug with [`physical`] as the bench's function, which a function-level reset clears.
fn machine() -> (Bench, Arc<Hotplug>, PciAddress) {
    let bench = Bench::new(physical());
    bench.host.space.react(|functions, (address, offset, value)| {
        if offset == EXPRESS + 8 && value & INITIATE != 0 {
            functions.get_mut(&address).expect("the function").reset();
        }
    });
    let function = bench.dma.function();
    let found = Function::read(Config::new(&bench.host.space, function), None).expect("it answers");
    let functions: Vec<Function> = vec![found];
    let hotplug = Hotplug::start(
        &bench.as_host(),
        &bench.iommu,
        functions,
        Apertures::nothing(),
        Claims::new(),
        Arc::new(Nobody),
    );
    (bench, hotplug, function)
}

fn owned(bench: &Bench) -> Owned {
    Owned { dma: bench.dma.clone(), primary: None, is_starting: true }
}

#[test]
fn a_physical_function_that_somebody_has_gets_none() {
    let (bench, hotplug, function) = machine();
    // The bench's driver has it.
    let claimed = VirtualError::Claim(ClaimError::Claimed { function });
    assert_eq!(hotplug.enable_virtual(function, 1), Err(claimed));
    // Who can say that it is its driver gets further.
    let no_addresses = VirtualError::Sriov(SriovError::NoAddresses);
    assert_eq!(hotplug.enable_virtual_of(&bench.dma, 1), Err(no_addresses));
    bench.dma.release(|_| true).expect("it is quiet");
    assert_eq!(hotplug.enable_virtual(function, 1), Err(no_addresses));
    // It was given back.
    assert!(bench.iommu.claim(function).is_ok());
}

#[test]
fn what_is_being_turned_on_is_turned_off_by_nobody() {
    let (bench, hotplug, function) = machine();
    assert!(hotplug.keep(owned(&bench)).is_none());
    assert_eq!(hotplug.disable_virtual(function), Err(VirtualError::Busy));
    assert_eq!(hotplug.settle(function, None), Ok(()));
    assert_eq!(hotplug.disable_virtual(function), Ok(()));
    // It was given back, and is not kept any more.
    assert!(bench.iommu.claim(function).is_ok());
    assert_eq!(hotplug.settle(function, None), Err(VirtualError::Unknown { function }));
}

#[test]
fn without_room_to_keep_it_a_function_is_not_touched() {
    let (bench, hotplug, function) = machine();
    for _ in 0..OWNED_MAX {
        assert!(hotplug.keep(owned(&bench)).is_none());
    }
    bench.dma.release(|_| true).expect("it is quiet");
    assert_eq!(hotplug.enable_virtual(function, 1), Err(VirtualError::TooMany));
    assert!(bench.iommu.claim(function).is_ok(), "it was given back");
}
