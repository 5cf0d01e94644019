//! One machine with everything that QEMU has between a device and the unit: which functions are one group, and what
//! reaches memory from behind each bridge.

use alloc::{collections::BTreeSet, vec::Vec};

use drivers::pci::{Config, Function, Layout, Window};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{Bidirectional, DmaError, Iova, PciAddress};
use mm::PAGE_BYTES;

use crate::{
    edu::BYTES,
    faults::Expected,
    machine::{Machine, lacks},
    pattern,
};

/// Devices and functions from the root bus down, whatever numbers the buses have.
type Path = &'static [(u8, u8)];

/// The groups of what the scenario puts on the first root bus. What has a group of its own is alone there.
const GROUPS: &[&[Path]] = &[
    // A root port with access control, and what is behind it.
    &[&[(0xa, 0)]],
    &[&[(0xa, 0), (0, 0)]],
    // A switch without: its ports, and what is behind both of those to devices.
    &[&[(0xb, 0)]],
    &[
        &[(0xb, 0), (0, 0)],
        &[(0xb, 0), (0, 0), (0, 0)],
        &[(0xb, 0), (0, 0), (1, 0)],
        &[(0xb, 0), (0, 0), (0, 0), (0, 0)],
        &[(0xb, 0), (0, 0), (1, 0), (0, 0)],
    ],
    // A bridge from PCI Express to PCI: all of its bus has its alias.
    &[&[(0xc, 0)]],
    &[&[(0xc, 0), (0, 0)], &[(0xc, 0), (0, 0), (2, 0)], &[(0xc, 0), (0, 0), (3, 0)]],
    // A device of two functions without access control.
    &[&[(0xd, 0)], &[(0xd, 1)]],
    // The bridge of the chip set to a conventional bus, which sends everything under its own id.
    &[&[(0x1e, 0)], &[(0x1e, 0), (1, 0)]],
];

/// The same on the second root bus: a root port with access control, and what is behind it.
const ON_SECOND_ROOT: &[&[Path]] = &[&[&[(0, 0)]], &[&[(0, 0), (0, 0)]]];

/// Where a function is, from its root bus down.
fn path(functions: &[Function], address: PciAddress) -> (u8, Vec<(u8, u8)>) {
    let parent = |address: &PciAddress| functions.iter().find(|found| found.address == *address)?.parent;
    let above: Vec<_> = core::iter::successors(Some(address), parent).take(functions.len()).collect();
    let root = above.last().map_or(address.bus, |top| top.bus);
    (root, above.iter().rev().map(|place| (place.device(), place.function())).collect())
}

fn find(functions: &[Function], root: u8, wanted: Path) -> Result<PciAddress, Failure> {
    let is_it = |function: &&Function| path(functions, function.address) == (root, wanted.to_vec());
    let found = functions.iter().find(is_it).map(|function| function.address);
    found.ok_or_else(|| failure!("nothing is at {wanted:x?} from bus {root:#x}"))
}

test! {
    /// The groups are those that the machine was built for.
    lacks = lacks::topologies,
    fn groups_are_those_of_the_machine(context) {
        let machine = Machine::of(context)?;
        let functions = &machine.functions[..];
        let roots = functions.iter().filter(|function| function.parent.is_none());
        let roots: BTreeSet<u8> = roots.map(|function| function.address.bus).collect();
        let [first, second] = roots.iter().copied().collect::<Vec<_>>()[..] else {
            return Err(failure!("root buses {roots:x?}"));
        };
        for (root, group) in GROUPS.iter().map(|group| (first, group)).chain(ON_SECOND_ROOT.iter().map(|group| (second, group))) {
            let mut wanted = group.iter().map(|path| find(functions, root, path)).collect::<Result<Vec<_>, _>>()?;
            wanted.sort_unstable();
            for &function in &wanted {
                check_eq!(machine.iommu.group(function)?, wanted);
            }
        }
    }
}

test! {
    /// Behind each of the bridges a device writes to what is mapped for it, and when that is unmapped is blocked, and
    /// known by one of the ids of its group.
    deadline_ms = 120_000,
    lacks = lacks::topologies,
    fn each_device_reaches_what_is_mapped_and_no_more(context) {
        let machine = Machine::of(context)?;
        // Nine of this machine's own, and of every machine's three the two that are claimed.
        check_eq!(machine.edus(), 2 + 9);
        for index in 0..machine.edus() {
            let mut edu = machine.edu(index)?;
            let (function, page) = (edu.device.function(), machine.fresh_page());
            edu.load(index as u64 + 1)?;
            let faults = edu.dma.fault_count();
            let mapping = edu.dma.dma_map_at(pattern::pages(1, 99)?, Bidirectional, page)?;
            edu.push(page, BYTES)?;
            check_eq!(edu.dma.fault_count(), faults);
            let buffer = mapping.unmap()?;
            check!(pattern::matches(&buffer[..BYTES], index as u64 + 1), "{function} has not written");
            edu.push(page, BYTES)?;
            Expected::write(function, page).await_recorded(machine)?;
            check!(pattern::matches(&buffer[..BYTES], index as u64 + 1), "{function} has written to what was unmapped");
        }
    }
}

test! {
    /// What a bridge passes on to the devices behind it never comes to the unit when one of them asks for it: it is no
    /// address of memory.
    lacks = lacks::topologies,
    fn what_bridges_pass_on_is_no_iova(context) {
        let machine = Machine::of(context)?;
        let edu = machine.edu(0)?;
        let bridges = machine.functions.iter().filter(|function| matches!(function.layout, Layout::Bridge(_)));
        let mut windows = 0;
        for bridge in bridges {
            let config = Config::new(&*machine.host, bridge.address);
            for (first, last) in [Window::Memory, Window::Prefetchable].into_iter().filter_map(|window| window.read(config)) {
                for iova in [first, last & !(PAGE_BYTES - 1)].map(Iova::new) {
                    let refused = edu.dma.dma_map_at(pattern::pages(1, 1)?, Bidirectional, iova).map(drop);
                    check_eq!(refused.map_err(|rejected| rejected.error), Err(DmaError::IovaReserved { iova }));
                }
                windows += 1;
            }
        }
        check!(windows >= 8, "{windows} windows");
    }
}
