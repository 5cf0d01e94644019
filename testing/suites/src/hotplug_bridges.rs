//! Bridges that the host plugs in with something behind them.
//!
//! QEMU 10.0 was seen to crash when something else was plugged in after a bridge had been taken out: each test has a
//! machine to itself, and plugs once.

use drivers::{edu::Edu, pci::Slot};
use harness::{Failure, check_eq, failure, test};
use iommu::PciAddress;

use crate::{
    hotplug::come_and_go,
    machine::{ClaimedEdu, Machine, lacks},
};

test! {
    /// An `edu` behind a bridge to PCI: the bridge gets a bus and a window, and requests and interrupts of the device
    /// have ids of that bus.
    deadline_ms = 90_000,
    lacks = lacks::plugs,
    fn one_comes_and_goes_with_what_is_behind_it(context) {
        come_and_go(context, "bridge", 1, |machine, slot, edu| {
            check_eq!(bridges_between(machine, edu.dma.function(), slot)?, 1);
            Ok(edu)
        })?;
    }
}

test! {
    /// The same behind two bridges.
    ///
    /// QEMU takes the ends of a range of buses in an interrupt entry the wrong way round: it blocks all interrupts from
    /// behind a bridge to PCI that has more than one bus. So the device does without.
    deadline_ms = 90_000,
    lacks = lacks::plugs,
    fn two_come_and_go_with_what_is_behind_them(context) {
        come_and_go(context, "bridges", 1, |machine, slot, edu| {
            check_eq!(bridges_between(machine, edu.dma.function(), slot)?, 2);
            let ClaimedEdu { device, dma } = edu;
            drop(device);
            let found = machine.hotplug.function(dma.function()).ok_or_else(|| failure!("it is gone"))?;
            Ok(ClaimedEdu { device: Edu::open_polled(&machine.host, &found)?, dma })
        })?;
    }
}

test! {
    /// The slot of a port of a switch: the addresses of what comes are out of windows that the whole switch passes on.
    deadline_ms = 90_000,
    lacks = lacks::plugs,
    fn a_slot_behind_a_switch_is_served(context) {
        come_and_go(context, "edu", 2, |machine, slot, edu| {
            check_eq!(bridges_between(machine, edu.dma.function(), slot)?, 0);
            check_eq!(bridges_between(machine, edu.dma.function(), &root(machine, slot)?)?, 2);
            Ok(edu)
        })?;
    }
}

/// The port on a root bus that `slot` is behind.
fn root(machine: &Machine, slot: &Slot) -> Result<Slot, Failure> {
    let functions = machine.hotplug.functions()?;
    let parent = |&function: &PciAddress| functions.iter().find(|found| found.address == function)?.parent;
    let top = core::iter::successors(Some(slot.port()), parent).take(functions.len()).last();
    let above = top.and_then(|top| Slot::open(&machine.host, &machine.hotplug.function(top)?));
    above.ok_or_else(|| failure!("{} is behind no other slot", slot.port()))
}

/// How many bridges are between `function` and the port of `slot`.
fn bridges_between(machine: &Machine, function: PciAddress, slot: &Slot) -> Result<usize, Failure> {
    let functions = machine.hotplug.functions()?;
    let parent = |&function: &PciAddress| functions.iter().find(|found| found.address == function)?.parent;
    let above = core::iter::successors(parent(&function), parent);
    above
        .take(functions.len())
        .position(|bridge| bridge == slot.port())
        .ok_or_else(|| failure!("{function} is not behind the slot"))
}
