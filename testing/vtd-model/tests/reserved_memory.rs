//! Memory that firmware reserves for a device and that the kernel has as its own: the device does not get it.

mod driver;

use driver::Driven;
use iommu::Bidirectional;
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
