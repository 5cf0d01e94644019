//! Who may change which functions there are, who waits for it how long, and how they are found.

use std::{sync::Arc, vec::Vec};

use super::*;
use crate::{
    doubles::Bench,
    pci::fake::{FakeFunction, at},
};

/// Nothing is plugged in.
struct Nobody;

impl Drivers for Nobody {
    fn bind(&self, _function: &Function) {}

    fn unbind(&self, _function: PciAddress, _is_gone: bool) {}
}

fn hotplug(bench: &Bench) -> Arc<Hotplug> {
    hotplug_of(bench, Vec::new())
}

fn hotplug_of(bench: &Bench, functions: Vec<Function>) -> Arc<Hotplug> {
    Hotplug::start(
        &bench.as_host(),
        &bench.iommu,
        functions,
        Apertures::nothing(),
        Claims::new(),
        Arc::new(Nobody),
    )
}

#[test]
fn who_waits_for_a_turn_in_vain_gives_up_at_the_deadline() {
    let bench = Bench::new(FakeFunction::new(0x11e8_1234, 0x00ff_0000, 0));
    let hotplug = hotplug(&bench);
    let held = hotplug.turn().expect("nobody else has it");
    let start_ns = bench.host.now_ns();
    assert!(hotplug.turn().is_none());
    let waited_ns = bench.host.now_ns() - start_ns;
    assert!((TURN_DEADLINE_NS..2 * TURN_DEADLINE_NS).contains(&waited_ns), "{waited_ns} ns");
    // It has taken nothing from who has the turn, and left nothing behind.
    assert!(hotplug.changing.load(Ordering::Relaxed));
    drop(held);
    let start_ns = bench.host.now_ns();
    for _ in 0..2 {
        assert!(hotplug.turn().is_some());
    }
    assert_eq!(bench.host.now_ns(), start_ns, "nobody is waited for");
}

#[test]
fn functions_are_found_by_their_addresses_and_in_their_order() {
    let bench = Bench::new(FakeFunction::new(0x11e8_1234, 0x00ff_0000, 0));
    let known = [at(3, 0, 0), at(0, 2, 0), at(1, 4, 1), at(1, 4, 0)];
    let of = |address| Function { address, ..bench.function() };
    let hotplug = hotplug_of(&bench, known.map(of).into());
    let addresses = || hotplug.each().map(|function| function.address).collect::<Vec<_>>();
    assert_eq!(addresses(), [at(0, 2, 0), at(1, 4, 0), at(1, 4, 1), at(3, 0, 0)]);
    assert!(known.iter().all(|&address| hotplug.function(address).is_some_and(|it| it.address == address)));
    assert!(hotplug.function(at(1, 4, 2)).is_none());
    // Some go while they are looked at.
    let mut each = hotplug.each();
    assert_eq!(each.next().map(|function| function.address), Some(at(0, 2, 0)));
    hotplug.forget(&[at(0, 2, 0), at(1, 4, 0)]);
    assert_eq!(each.map(|function| function.address).collect::<Vec<_>>(), addresses());
    assert_eq!(addresses(), [at(1, 4, 1), at(3, 0, 0)]);
}
