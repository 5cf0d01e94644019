//! Memory that firmware reserves for a device and that the kernel has as its own: the device does not get it.

use driven::Driven;
use iommu::{Bidirectional, Options, options::Quarantine};
use vtd_model::{Access, MachineConfig, ReservedMemory};

const PAGE: u64 = 0x1000;
/// Neither the kernel's nor firmware's.
const ELSEWHERE: u64 = 0x5000_0000;

#[test]
fn memory_of_the_kernel_is_refused_and_the_rest_is_mapped() {
    let plain = MachineConfig::plain(3).memory;
    let (tables, buffers) = (plain.tables, plain.buffers);
    let last_buffer = buffers + plain.buffer_bytes as u64 - PAGE;
    // First and last byte of regions in it, and over its edges.
    let refused = [
        (tables, tables + PAGE - 1),
        (buffers + 4 * PAGE, buffers + 8 * PAGE - 1),
        (buffers - PAGE, buffers + PAGE - 1),
        (last_buffer, last_buffer + 2 * PAGE - 1),
    ];
    for (base, limit) in refused {
        let mut config = MachineConfig::plain(3);
        config.relax_ns = 1_000_000;
        let [one, other] = [0, 1].map(|index| config.functions[index].address);
        config.reserved.push(ReservedMemory { function: one, base, limit });
        config.reserved.push(ReservedMemory { function: one, base: ELSEWHERE, limit: ELSEWHERE + PAGE - 1 });
        config.reserved.push(ReservedMemory { function: other, base, limit });
        let driven = Driven::start(config).expect("units that work");
        let reach = |function| -> Vec<_> {
            let runs = driven.device(function).reach_of_tables().unwrap_or_default();
            runs.iter().map(|run| (run.address, run.bytes)).collect()
        };
        assert_eq!(reach(one), [(ELSEWHERE, PAGE)], "{base:#x}");
        assert_eq!(reach(other), [], "{base:#x}");
        assert!(!driven.device(other).is_bus_master(), "it has nothing that it could go on using");
        // It can be used all the same.
        let handle = driven.iommu.claim(other).expect("a free function");
        driven.enable(other);
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        let mapping = handle.dma_map(buffer, Bidirectional).expect("room");
        assert!(driven.device(other).probe(mapping.iova().as_u64(), Access::Write).is_ok());
        assert_eq!(reach(other).len(), 1);
        mapping.unmap().expect("a unit that works");
        driven.machine.audit();
        driven.assert_content("reserved memory of the kernel");
    }
}

#[test]
fn memory_next_to_that_of_the_kernel_is_mapped() {
    let plain = MachineConfig::plain(3).memory;
    for base in [plain.buffers - PAGE, plain.buffers + plain.buffer_bytes as u64] {
        let mut config = MachineConfig::plain(3);
        let function = config.functions[0].address;
        config.reserved.push(ReservedMemory { function, base, limit: base + PAGE - 1 });
        let driven = Driven::start(config).expect("units that work");
        let reach = driven.device(function).reach_of_tables().expect("translated");
        assert_eq!(reach.iter().map(|run| (run.address, run.bytes)).collect::<Vec<_>>(), [(base, PAGE)]);
    }
}

/// Firmware decides how much: without a limit it decides how many table pages the kernel has left.
#[test]
fn more_than_anything_needs_is_refused_and_what_is_left_is_mapped() {
    const GIB: u64 = 1 << 30;
    const FIRST: u64 = 16 * GIB;
    for quarantine in [Quarantine::Basic, Quarantine::ScratchPage] {
        let mut config = MachineConfig::plain(2);
        config.units[0].superpages_1g = false;
        config.memory.tables = 0x2000_0000;
        (config.memory.buffers, config.memory.foreign) = (4 * GIB, 8 * GIB);
        let [one, other] = [0, 1].map(|index| config.functions[index].address);
        let whole = ReservedMemory { function: one, base: FIRST, limit: FIRST + 512 * GIB - 1 };
        let small = ReservedMemory { function: other, base: FIRST, limit: FIRST + 4 * GIB + PAGE - 1 };
        config.host_address_bits = 42;
        config.reserved.extend([whole, small]);
        let options = Options { quarantine, ..Options::default() };
        let driven = Driven::start_with(config, options).expect("units that work");
        let pages = driven.machine.live_table_pages();
        driven.iommu.quarantine(one).expect("a unit that works");
        driven.iommu.quarantine(other).expect("a unit that works");
        driven.enable(other);
        // One table for each GiB, none for each 2 MiB.
        assert!(driven.machine.live_table_pages() < pages + 64);
        let reach = |function, address| driven.device(function).probe(address, Access::Write).ok();
        for inside in [FIRST, FIRST + 3 * GIB + 5 * PAGE, FIRST + 4 * GIB] {
            assert_eq!(reach(other, inside), Some(inside));
        }
        driven.enable(one);
        for outside in [(one, FIRST), (one, FIRST + 100 * GIB), (other, FIRST + 4 * GIB + PAGE)] {
            assert_ne!(reach(outside.0, outside.1), Some(outside.1));
        }
        driven.machine.audit();
        driven.assert_content("reserved memory");
    }
}

/// Registers of a unit are memory to a device that may reach them: it could turn translation off.
#[test]
fn neither_registers_of_a_unit_nor_what_raises_interrupts_is_memory() {
    let unit = MachineConfig::plain(1).units[0].base;
    // First and last byte.
    let refused = [
        (unit, unit + PAGE - 1),
        (unit - PAGE, unit + PAGE - 1),
        (0xfee0_0000, 0xfee0_0fff),
        (0xfedf_f000, 0xfee0_0fff),
        (0xfeef_f000, 0xfef0_0fff),
    ];
    for (base, limit) in refused {
        let mut config = MachineConfig::plain(1);
        let function = config.functions[0].address;
        config.reserved.push(ReservedMemory { function, base, limit });
        config.reserved.push(ReservedMemory { function, base: ELSEWHERE, limit: ELSEWHERE + PAGE - 1 });
        let driven = Driven::start(config).expect("units that work");
        let reach = driven.device(function).reach_of_tables().unwrap_or_default();
        let runs: Vec<_> = reach.iter().map(|run| (run.address, run.bytes)).collect();
        assert_eq!(runs, [(ELSEWHERE, PAGE)], "{base:#x}");
        driven.iommu.claim(function).expect("it can be used all the same");
    }
    // Right beside them it is.
    for base in [unit - PAGE, 0xfedf_f000, 0xfef0_0000] {
        let mut config = MachineConfig::plain(1);
        let function = config.functions[0].address;
        config.reserved.push(ReservedMemory { function, base, limit: base + PAGE - 1 });
        let driven = Driven::start(config).expect("units that work");
        let reach = driven.device(function).reach_of_tables().expect("translated");
        assert_eq!(reach.iter().map(|run| run.address).collect::<Vec<_>>(), [base]);
    }
}

/// Two functions of different groups that firmware wants to reach the same, and one that is to have more of it: each
/// has its own, whatever becomes of the others.
#[test]
fn regions_that_overlap_are_each_functions_own() {
    let mut config = MachineConfig::plain(3);
    config.relax_ns = 1_000_000;
    let [one, other, third] = [0, 1, 2].map(|index| config.functions[index].address);
    let region = |function, pages: u64| ReservedMemory {
        function,
        base: ELSEWHERE,
        limit: ELSEWHERE + pages * PAGE - 1,
    };
    config.reserved.extend([region(one, 2), region(other, 2), region(other, 4)]);
    let driven = Driven::start(config).expect("units that work");
    let bytes = |function| {
        driven.device(function).reach_of_tables().unwrap_or_default().iter().map(|run| run.bytes).sum::<u64>()
    };
    let all = || [one, other, third].map(bytes);
    assert_eq!(all(), [2 * PAGE, 4 * PAGE, 0]);
    driven.iommu.quarantine(one).expect("a unit that works");
    assert_eq!(all(), [2 * PAGE, 4 * PAGE, 0]);
    driven.iommu.claim(other).expect("free");
    driven.iommu.release(other, |_| true).expect("a quiet device");
    driven.iommu.release(one, |_| true).expect("a quiet device");
    assert_eq!(all(), [2 * PAGE, 4 * PAGE, 0]);
    driven.machine.audit();
    driven.assert_content("regions that overlap");
}
