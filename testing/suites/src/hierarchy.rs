//! Bus numbers, windows and addresses of the PCI hierarchy, whoever has assigned them.

use alloc::vec::Vec;

use drivers::pci::{Bridge, Config, Function, Layout, Window};
use harness::{check, test};

use crate::machine::Machine;

/// Command: memory space is decoded, or passed on.
const MEMORY: u16 = 1 << 1;
const BARS: u16 = 0x10;

test! {
    /// The buses of each bridge are out of those of the one above it, and of no other; what decodes or passes on memory
    /// behind it lies in its windows.
    fn what_is_behind_a_bridge_is_within_it(context) {
        let machine = Machine::of(context)?;
        let functions = machine.hotplug.functions()?;
        let of = |address| functions.iter().find(|function| function.address == address);
        let buses = |function: &Function| match function.layout {
            Layout::Bridge(Bridge { secondary, subordinate }) => Some((secondary, subordinate)),
            _ => None,
        };
        let windows = |function: &Function| -> Vec<(u64, u64)> {
            let config = Config::new(&*machine.host, function.address);
            [Window::Memory, Window::Prefetchable].into_iter().filter_map(|window| window.read(config)).collect()
        };
        for function in &functions {
            if let Some((first, last)) = buses(function) {
                check!(function.address.bus < first && first <= last, "{}: buses {first}-{last}", function.address);
                let others = functions.iter().filter(|other| {
                    other.address.segment == function.address.segment && other.parent == function.parent && *other != function
                });
                for (low, high) in others.filter_map(buses) {
                    check!(high < first || last < low, "{}: buses {first}-{last} of another", function.address);
                }
            }
            let Some(parent) = function.parent.and_then(of) else { continue };
            let (low, high) = buses(parent).unwrap_or_default();
            let own = buses(function).unwrap_or((function.address.bus, function.address.bus));
            check!(low <= own.0 && own.1 <= high, "{} is not within {}", function.address, parent.address);
            let config = Config::new(&*machine.host, function.address);
            if function.physical.is_some() || config.read16(4) & MEMORY == 0 {
                continue;
            }
            let open = windows(parent);
            let holds = |first, last| open.iter().any(|&(low, high)| low <= first && last <= high);
            for (first, last) in windows(function) {
                check!(buses(function).is_none() || holds(first, last), "{}: {first:#x}-{last:#x}", function.address);
            }
            let registers = if buses(function).is_some() { 2 } else { 6 };
            let mut index = 0;
            while index < registers {
                let low = config.read32(BARS + 4 * index);
                let is_wide = low & 0b111 == 0b100;
                let high = if is_wide { config.read32(BARS + 4 * (index + 1)) } else { 0 };
                let base = u64::from(high) << 32 | u64::from(low & !0xf);
                check!(low & 1 != 0 || base == 0 || holds(base, base), "{}: BAR {index} at {base:#x}", function.address);
                index += if is_wide { 2 } else { 1 };
            }
        }
    }
}
