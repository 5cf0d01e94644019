//! A driver gives its own device back: never that of the next one.

use driven::Driven;
use iommu::{Bidirectional, DmaError, Options, ReleaseError, ToDevice, options::Mode};
use vtd_model::{Access, MachineConfig};

fn start() -> Driven {
    let mut config = MachineConfig::plain(2);
    config.relax_ns = 1_000_000;
    Driven::start(config).expect("a unit that works")
}

#[test]
fn who_is_late_takes_the_device_from_nobody() {
    let driven = start();
    let function = driven.function(0);
    let old = driven.iommu.claim(function).expect("free");
    let clone = old.clone();
    driven.iommu.release(function, |_| true).expect("a quiet device");
    let over = Err(ReleaseError::Over { function });
    assert_eq!(old.release(|_| panic!("nobody has it")), over);
    let new = driven.iommu.claim(function).expect("free");
    driven.enable(function);
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let mapping = new.dma_map(buffer, Bidirectional).expect("room");
    for late in [&old, &clone] {
        assert_eq!(late.release(|_| panic!("another has it")), over);
    }
    let device = driven.device(function);
    assert!(device.is_bus_master() && device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    // In quarantine it is still the second one's to give back; not the first one's.
    driven.iommu.quarantine(function).expect("a unit that works");
    assert_eq!(old.release(|_| panic!("another has it")), over);
    assert_eq!(new.release(|_| false), Err(ReleaseError::NotQuiet { function }));
    assert_eq!(new.release(|_| true), Ok(()));
    assert_eq!(new.release(|_| panic!("nobody has it")), over);
    mapping.unmap().expect("it is quiet");
    driven.machine.audit();
    driven.assert_content("after two owners");
}

/// Whoever is plugged in where another was begins with a count of its own.
#[test]
fn who_is_late_takes_nothing_from_what_was_plugged_in_since() {
    let driven = start();
    let function = driven.function(0);
    let old = driven.iommu.claim(function).expect("free");
    driven.iommu.functions_gone(&[function], |_| true).expect("nobody else is at it");
    assert_eq!(old.release(|_| panic!("it is gone")), Err(ReleaseError::Over { function }));
    let found = driven::functions_of(driven.machine.config());
    driven.iommu.functions_appeared(&found[..1]).expect("room");
    let new = driven.iommu.claim(function).expect("free");
    assert_eq!(old.release(|_| panic!("another has it")), Err(ReleaseError::Over { function }));
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    new.dma_map(buffer, ToDevice).expect("it was not taken").unmap().expect("a unit that works");
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let refused = old.dma_map(buffer, ToDevice).map(drop);
    assert!(refused.is_err_and(|rejected| rejected.error == DmaError::Revoked));
    driven.assert_content("after a replacement");
}

#[test]
fn without_a_unit_there_is_nothing_to_give_back() {
    let config = MachineConfig::plain(1);
    let options = Options { mode: Mode::Off, ..Options::default() };
    let driven = Driven::start_with(config, options).expect("no unit is asked for");
    let function = driven.function(0);
    let handle = driven.iommu.claim(function).expect("everybody gets everything");
    assert_eq!(handle.release(|_| panic!("nothing is isolated")), Err(ReleaseError::Unknown { function }));
}
