//! What firmware says, and what it must not achieve.

use alloc::{vec, vec::Vec};

use harness::{check, check_eq, test};
use iommu::options::Flush;
use mm::PhysAddr;

use crate::{
    acpi::{EcamSegment, IoApicEntry, Tables, Wire},
    cmdline, memory,
};

test! {
    /// RAM cannot be mapped as registers, nor can addresses that wrap.
    fn registers_are_not_ram(_context) {
        let frame = memory::frames::allocate(1).ok_or(harness::failure!("no frame"))?;
        check!(memory::map_registers(frame, 4096).is_none(), "RAM was mapped as registers");
        check!(memory::map_registers(memory::layout::image_physical().start, 4096).is_none(), "the image was mapped");
        // SAFETY: allocated above.
        unsafe { memory::frames::free(frame, 1) };
        check!(memory::map_registers(PhysAddr::new(PhysAddr::LIMIT - 4096), 8192).is_none(), "beyond the end");
        check!(memory::map_registers(PhysAddr::new(0xfee0_0000), 0).is_none(), "nothing at all");
    }
}

test! {
    /// A root pointer that leads nowhere is an error, not the end.
    fn a_bad_root_pointer_is_refused(_context) {
        for address in [0, 0x1000, 0xf_0000, 0xfee0_0000, PhysAddr::LIMIT - 1] {
            check!(crate::acpi::read(PhysAddr::new(address)).is_err(), "tables at {address:#x}");
        }
    }
}

/// Header and fixed fields of the tables read here.
const FIXED_BYTES: usize = 44;

fn table(entries: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![0; FIXED_BYTES];
    entries.iter().for_each(|entry| bytes.extend_from_slice(entry));
    bytes
}

test! {
    /// CPUs, I/O APICs and rerouted interrupts come out of a MADT; entries that lie about their length end it.
    fn an_interrupt_table_is_read_with_care(_context) {
        const CPU: &[u8] = &[0, 8, 0, 3, 1, 0, 0, 0];
        const CPU_OFF: &[u8] = &[0, 8, 1, 4, 0, 0, 0, 0];
        const CPU_TO_COME: &[u8] = &[0, 8, 1, 5, 2, 0, 0, 0];
        const CPU_BROADCAST: &[u8] = &[0, 8, 1, 255, 1, 0, 0, 0];
        const CPU_IN_BOTH: &[u8] = &[9, 16, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        const CPU_X2APIC: &[u8] = &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        const IO_APIC: &[u8] = &[1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 24, 0, 0, 0];
        const REROUTED: &[u8] = &[2, 10, 0, 9, 20, 0, 0, 0, 0x0f, 0];
        let read = |entries: &[&[u8]]| {
            let mut tables = Tables::default();
            tables.read_madt(&table(entries));
            tables
        };
        let cpus = read(&[CPU, CPU_OFF, CPU_TO_COME, CPU_BROADCAST, CPU_X2APIC, CPU_IN_BOTH]);
        check_eq!(cpus.cpus, [3, 256]);
        check_eq!(cpus.cpus_to_come, 1);
        let all = read(&[CPU, CPU_OFF, &[0x7f, 3, 0], CPU_X2APIC, IO_APIC, REROUTED]);
        check_eq!(all.cpus, [3, 256]);
        let io_apic = IoApicEntry { id: 2, address: PhysAddr::new(0xfec0_0000), first_input: 24 };
        check_eq!(all.io_apics, [io_apic]);
        check_eq!(all.isa_wire(9), Wire { input: 20, is_active_low: true, is_level: true });
        check_eq!(all.isa_wire(4), Wire { input: 4, is_active_low: false, is_level: false });
        check_eq!(all.entries_ignored, 0);

        let bad: [&[u8]; 5] = [&[0, 0], &[0, 1], &[0, 9, 0, 3, 1, 0, 0], &[0], &[1, 255]];
        for last in bad {
            check_eq!(read(&[CPU, last]).cpus, [3], "after {last:?}");
        }
        let short: [&[u8]; 3] = [&[0, 4, 0, 3], &[2, 5, 0, 9, 1], &[1, 2]];
        for middle in short {
            check_eq!(read(&[middle, CPU]).cpus, [3], "after {middle:?}");
        }
        for bytes in 0..FIXED_BYTES {
            let mut tables = Tables::default();
            tables.read_madt(&vec![0xff; bytes]);
            tables.read_mcfg(&vec![0xff; bytes]);
            check!(tables.cpus.is_empty() && tables.segments.is_empty(), "a table of {bytes} bytes");
        }
    }
}

test! {
    /// Configuration space comes out of an MCFG, unless it makes no sense.
    fn a_configuration_table_is_read_with_care(_context) {
        const GOOD: &[u8] = &[0, 0, 0, 0xb0, 0, 0, 0, 0, 2, 0, 0, 0xff, 0, 0, 0, 0];
        const BACKWARDS: &[u8] = &[0, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 8, 7, 0, 0, 0, 0];
        const MISALIGNED: &[u8] = &[1, 0, 0, 0xb0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0];
        const TOO_HIGH: &[u8] = &[0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 7, 0, 0, 0, 0];
        let mut tables = Tables::default();
        tables.read_mcfg(&table(&[BACKWARDS, MISALIGNED, TOO_HIGH, GOOD, &GOOD[..15]]));
        let base = PhysAddr::new(0xb000_0000);
        check_eq!(tables.segments, [EcamSegment { segment: 2, first_bus: 0, last_bus: 255, base }]);
        check_eq!(tables.entries_ignored, 3);
    }
}

test! {
    /// The command line is read strictly.
    fn unknown_words_are_reported(_context) {
        let mut unknown = alloc::vec::Vec::new();
        let line = "exit test=disk::* quiet log=loud iommu=verbose,no-snoop,fast test-from=a iommu=deferred,snoop \
            selftest=x bench=*";
        let options = cmdline::parse(line, |word| unknown.push(word.0));
        check_eq!(unknown, ["quiet", "log=loud", "fast", "selftest=x"]);
        check!(options.exit, "exit");
        check_eq!(options.tests.glob, "disk::*");
        check_eq!(options.tests.from, Some("a"));
        // All of them count, the last word about a thing.
        let iommu = iommu::Options { verbose: true, flush: Flush::Deferred, ..iommu::Options::default() };
        check_eq!(options.iommu, iommu);
        check_eq!(options.bench, Some("*"));
    }
}
