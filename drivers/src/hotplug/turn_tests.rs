//! Who may change which functions there are, and who waits for it how long.

use std::{sync::Arc, vec::Vec};

use super::*;
use crate::{doubles::Bench, pci::fake::FakeFunction};

/// Nothing is plugged in.
struct Nobody;

impl Drivers for Nobody {
    fn bind(&self, _function: &Function) {}

    fn unbind(&self, _function: PciAddress, _is_gone: bool) {}
}

fn hotplug(bench: &Bench) -> Arc<Hotplug> {
    Hotplug::start(
        &bench.as_host(),
        &bench.iommu,
        Vec::new(),
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
