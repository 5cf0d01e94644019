//! Memory protection and the heap.

use alloc::{
    alloc::{alloc, dealloc},
    vec::Vec,
};
use core::{alloc::Layout, ptr::NonNull};

use harness::{Failure, check, check_eq, failure, test};
use mm::{PAGE_BYTES, PhysAddr, PhysRange, table::x86::X86Access};

use crate::{
    arch::{PageFault, probe},
    memory::{self, Alias, frames, layout},
};

/// Fails unless `address` is unmapped, by the table and by experiment.
pub(super) fn check_unmapped(address: u64) -> Result<(), Failure> {
    check!(memory::lookup(address).is_none(), "{address:#x} is in the table");
    // SAFETY: not mapped, as just checked.
    let fault = unsafe { probe::write(address, 0) };
    check_fault(fault, address, |fault| !fault.is_protection() && fault.is_write())
}

fn check_fault(
    result: Result<(), PageFault>,
    address: u64,
    is_expected: impl Fn(&PageFault) -> bool,
) -> Result<(), Failure> {
    let fault = result.err().ok_or(failure!("the access to {address:#x} succeeded"))?;
    check_eq!(fault.address, address);
    check!(is_expected(&fault), "{fault}");
    Ok(())
}

test! {
    /// No page of the whole address space is both writable and executable; none is open to user mode; and only the
    /// kernel's code is executable.
    fn no_page_is_writable_and_executable(_context) {
        let text = layout::text();
        let mut executable = 0;
        let halves = [(0, u64::MAX >> 17), (u64::MAX << 47, u64::MAX)];
        for (first, last) in halves {
            for run in memory::runs(first, last).ok_or(failure!("no address space"))? {
                let access = run.access;
                check!(!access.contains(X86Access::USER), "{:#x} is open to user mode", run.input);
                if !access.contains(X86Access::NO_EXECUTE) {
                    check!(!access.contains(X86Access::WRITE), "{:#x} is writable and executable", run.input);
                    check!(text.contains(&run.input), "{:#x} is executable", run.input);
                    executable += run.bytes;
                }
            }
        }
        check_eq!(executable, text.end - text.start, "bytes of executable memory");
    }
}

test! {
    /// Code and constants cannot be written, data cannot be executed, and the CPU says so.
    fn protection_is_enforced(_context) {
        static CONSTANT: u8 = 1;
        let (code, constant) = (layout::text().start, &raw const CONSTANT as u64);
        // SAFETY: if the write went through, it would put back what is there.
        let on_code = unsafe { probe::write(code, probe::read(code).unwrap_or(0)) };
        check_fault(on_code, code, |fault| fault.is_protection() && fault.is_write())?;
        // SAFETY: as above.
        let on_constant = unsafe { probe::write(constant, 1) };
        check_fault(on_constant, constant, |fault| fault.is_protection() && fault.is_write())?;

        const RETURN: u8 = 0xc3;
        let data = alloc::boxed::Box::new(RETURN);
        let address = &raw const *data as u64;
        // SAFETY: the byte is a return instruction.
        let on_data = unsafe { probe::execute(address) };
        check_fault(on_data, address, |fault| fault.is_protection() && fault.is_fetch())?;
        // SAFETY: a function of the kernel that does nothing.
        check!(unsafe { probe::execute(returns_at_once as *const () as u64) }.is_ok(), "code can be executed");
    }
}

extern "C" fn returns_at_once() {}

test! {
    /// Neither address 0 nor the addresses that the kernel booted at are mapped, and the direct map leaves the image
    /// out.
    fn nothing_else_is_mapped(_context) {
        check_unmapped(0)?;
        let image = layout::image_physical().start;
        check_unmapped(image.as_u64())?;
        check_unmapped(layout::direct(image))?;
        check_unmapped(layout::STACKS)?;
    }
}

test! {
    /// All RAM is in use, above 4 GiB too, and the direct map shows it.
    fn the_direct_map_shows_every_frame(_context) {
        let total = frames::statistics().total as u64 * PAGE_BYTES;
        let mut mapped = 0;
        for run in memory::runs(layout::DIRECT_MAP, layout::WINDOW.start - 1).ok_or(failure!("no address space"))? {
            check_eq!(Some(run.output), layout::direct_to_physical(run.input));
            mapped += run.bytes;
        }
        check!(mapped >= total, "{mapped:#x} bytes mapped, {total:#x} in use");
        // What is not given out: tables, records.
        check!(mapped - total < mapped / 32, "{mapped:#x} bytes mapped, only {total:#x} in use");
    }
}

test! {
    /// An allocation that cannot be met is null, large or small, and nothing is lost by asking.
    fn an_exhausted_heap_says_so(_context) {
        let before = frames::statistics().free;
        for bytes in [1 << 40, isize::MAX as usize & !0xfff] {
            let layout = Layout::from_size_align(bytes, 4096).map_err(|_| failure!("layout"))?;
            // SAFETY: the size is not zero.
            check!(core::hint::black_box(unsafe { alloc(layout) }).is_null(), "{bytes:#x} bytes were allocated");
        }
        let mut too_much = Vec::<u8>::new();
        check!(too_much.try_reserve(1 << 45).is_err(), "32 TiB were reserved");
        check_eq!(frames::statistics().free, before);
    }
}

test! {
    /// With every frame taken, allocations fail, and afterwards as much is free as before.
    deadline_ms = 60_000,
    fn memory_runs_out_and_comes_back(_context) {
        let before = frames::statistics().free;
        let exhausted = memory::Exhausted::new();
        let left = frames::statistics().free;
        let page = PAGE_BYTES as usize;
        let found = [page, 4 * page].map(|bytes| {
            let layout = Layout::from_size_align(bytes, page).ok()?;
            // SAFETY: the size is not zero. The optimizer must not take the pair of calls out.
            NonNull::new(core::hint::black_box(unsafe { alloc(layout) }))
        });
        let registers = memory::map_registers(PhysAddr::new(0xfed0_0000), 1 << 30);
        drop(exhausted);
        check_eq!(left, 0, "frames left");
        check!(found.iter().all(Option::is_none), "memory was found where there was none");
        check!(registers.is_none(), "tables were found where there was no memory");
        check_eq!(frames::statistics().free, before);
    }
}

test! {
    /// Blocks of all sizes are aligned, do not overlap, and come back.
    fn heap_blocks_are_apart(_context) {
        let mut blocks = Vec::new();
        for round in 0..400_usize {
            let bytes = 1 + (round * 7919) % 20_000;
            let layout = Layout::from_size_align(bytes, 1 << (round % 13)).map_err(|_| failure!("layout"))?;
            // SAFETY: the size is not zero.
            let block = core::hint::black_box(unsafe { alloc(layout) });
            check!(!block.is_null(), "no memory for {layout:?}");
            check!((block as usize).is_multiple_of(layout.align()), "{layout:?} at {block:?}");
            // SAFETY: the block is as long as its layout says.
            unsafe { block.write_bytes(round as u8, bytes) };
            blocks.push((block, layout, round as u8));
        }
        for (block, layout, pattern) in blocks {
            // SAFETY: allocated and written above.
            let bytes = unsafe { core::slice::from_raw_parts(block, layout.size()) };
            check!(bytes.iter().all(|&byte| byte == pattern), "{layout:?} at {block:?} was overwritten");
            // SAFETY: allocated above with this layout, and not used any more.
            unsafe { dealloc(block, layout) };
        }
    }
}

test! {
    /// Only memory that the frame allocator gives out has a physical address to hand to a device.
    fn stacks_and_image_are_not_for_devices(_context) {
        static IN_THE_IMAGE: u8 = 0;
        let on_the_stack = 0_u8;
        check_eq!(memory::physical(NonNull::from(&IN_THE_IMAGE), 1), None);
        check_eq!(memory::physical(NonNull::from(&on_the_stack), 1), None);
        let buffer = alloc::vec![0_u8; 3 * PAGE_BYTES as usize];
        let first = NonNull::from(&buffer[0]);
        check!(memory::physical(first, buffer.len()).is_some(), "a buffer in the heap");
        check_eq!(memory::physical(first, 1 << 50), None);
        check_eq!(memory::physical(first, 0), None);
    }
}

test! {
    /// A memory map that contradicts itself yields memory that nothing else claims.
    fn ranges_do_not_overlap(_context) {
        let mut ranges = memory::RangeSet::new();
        ranges.add(0x1234, 0x9000);
        ranges.add(0x4000, 0xa800);
        ranges.add(0x2_0000, 0x3_0000);
        ranges.add(0, 0x4_0000);
        check_eq!(ranges.bytes(), 0x4_0000);
        ranges.remove(0x1_0fff, 0x1_1001);
        check_eq!(ranges.bytes(), 0x3_e000);
        let at = |start, bytes| mm::PhysRange::new(PhysAddr::new(start), bytes);
        check!(!ranges.overlaps(at(0x1_0000, 0x2000)), "what was taken out is still there");
        check!(ranges.overlaps(at(0x1_1fff, 2)), "more was taken out than asked for");
        check!(ranges.contains(at(0x1_2000, 0x1000)) && !ranges.contains(at(0x1_1000, 0x2000)), "a border is wrong");
        for (index, one) in ranges.as_slice().iter().enumerate() {
            let rest = &ranges.as_slice()[index + 1..];
            let is_apart = |other: &mm::PhysRange| {
                other.start.as_u64() >= one.start.as_u64() + one.bytes
                    || one.start.as_u64() >= other.start.as_u64() + other.bytes
            };
            check!(rest.iter().all(is_apart), "{one:?} is in there twice");
        }
        ranges.keep_largest(1);
        check_eq!(ranges.as_slice().len(), 1);
        check!(ranges.bytes() >= 0x1_0000, "a smaller one was kept");
    }
}

test! {
    /// Firmware cannot reserve the kernel's memory for a device: what is the kernel's own, up to its edges, is known.
    fn what_is_the_kernels_own_is_known(_context) {
        let page_at = |address: u64| PhysRange::new(PhysAddr::new(address & !(PAGE_BYTES - 1)), PAGE_BYTES);
        let on_heap: Vec<u8> = alloc::vec![1; PAGE_BYTES as usize];
        let address = memory::physical(NonNull::from(&on_heap[0]), on_heap.len());
        let address = address.ok_or(failure!("the heap is no RAM"))?.as_u64();
        let image = layout::image_physical();
        let (image_start, image_end) = (image.start.as_u64(), image.start.as_u64() + image.bytes);
        let cpu_start = memory::start_page().ok_or(failure!("no page to start CPUs at"))?.as_u64();
        for own in [address, image_start, image_end - 1, cpu_start] {
            check!(memory::is_own(page_at(own)), "{own:#x}");
            let around = PhysRange::new(PhysAddr::new(page_at(own).start.as_u64() - PAGE_BYTES), 3 * PAGE_BYTES);
            check!(memory::is_own(around), "around {own:#x}");
        }
        const REGISTERS: u64 = 0xfed9_0000;
        const FIRST_PAGE: u64 = 0;
        for other in [REGISTERS, FIRST_PAGE] {
            check!(!memory::is_own(page_at(other)), "{other:#x}");
        }
    }
}

test! {
    /// Addresses that come back are used again for shorter pieces and, once their neighbours have come back, for longer
    /// ones.
    fn addresses_of_aliases_are_split_and_joined(_context) {
        const PAGES: u64 = 8;
        let frames_start = frames::allocate_zeroed(PAGES as usize).ok_or(failure!("no memory"))?;
        let alias = |first: u64, pages: u64| {
            let start = PhysAddr::new(frames_start.as_u64() + first * PAGE_BYTES);
            // SAFETY: the memory is this test's, and nobody reads or writes it.
            let alias = unsafe { Alias::writable(PhysRange::new(start, pages * PAGE_BYTES)) };
            alias.ok_or(failure!("no memory for tables"))
        };
        let before = memory::window_bytes();
        let whole = alias(0, PAGES)?;
        let guard = alias(0, 1)?;
        let (first, used) = (whole.as_ptr(), memory::window_bytes());
        drop(whole);
        for _ in 0..3 {
            let pieces = [alias(0, 3)?, alias(3, 1)?, alias(4, PAGES - 4)?];
            check_eq!(memory::window_bytes(), used, "bytes of the window");
            // In an order in which the middle one comes last.
            let [left, middle, right] = pieces;
            drop((left, right));
            drop(middle);
        }
        let whole = alias(0, PAGES)?;
        check_eq!(memory::window_bytes(), used, "bytes of the window");
        check_eq!(whole.as_ptr(), first, "where all of it was");
        drop((whole, guard));
        check_eq!(memory::window_bytes(), before, "bytes of the window");
        // SAFETY: no alias is left.
        unsafe { frames::free(frames_start, PAGES as usize) };
    }
}
