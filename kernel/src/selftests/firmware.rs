//! What is said of memory that firmware speaks of.

use harness::{check, check_eq, test};
use mm::PhysAddr;

use crate::{cmdline, memory};

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

test! {
    /// The command line is read strictly.
    fn unknown_words_are_reported(_context) {
        let mut unknown = alloc::vec::Vec::new();
        let line = "exit test=disk::* quiet log=loud iommu=strict,verbose test-from=a selftest=x bench=*";
        let options = cmdline::parse(line, |word| unknown.push(word.0));
        check_eq!(unknown, ["quiet", "log=loud", "selftest=x"]);
        check!(options.exit, "exit");
        check_eq!(options.tests.glob, "disk::*");
        check_eq!(options.tests.from, Some("a"));
        check_eq!(options.iommu, "strict,verbose");
        check_eq!(options.bench, Some("*"));
    }
}
