//! What a device reaches.

use std::sync::atomic::{AtomicU64, Ordering};

use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{LeafSizes, TableMemory},
};
use vtd_model::Access;

use super::{
    ABSENT, CODE, DATA, HEAP, KERNEL, KERNELS, NO_WRITE, PROGRAM, SUPERVISORS, machine,
    process::{Process, Space, space_on, x86},
    units,
};

/// The same pointers with the same rights, and nothing of the kernel's.
#[test]
fn a_device_uses_an_address_space_as_it_stands() {
    for caching_mode in [false, true] {
        let process = Process::on(machine(caching_mode));
        let (_handle, device) = process.give(0);
        let (code, heap, kernel) = (process.allocate(2, 1), process.allocate(3, 1), process.allocate(1, 1));
        assert_eq!(device.probe(PROGRAM, Access::Read), Err(ABSENT));
        process.map(PROGRAM, &code, CODE);
        process.map(HEAP, &heap, DATA);
        process.map(HEAP + (1 << 30), &kernel, KERNELS);
        process.space.map(KERNEL, kernel.physical, PAGE_BYTES, KERNELS);
        process.domain.publish(KERNEL, PAGE_BYTES).expect("units that work");
        assert_eq!(device.probe(PROGRAM + 5, Access::Read), Ok(code.physical + 5));
        assert_eq!(device.probe(PROGRAM + 5, Access::Write), Err(NO_WRITE));
        assert_eq!(device.probe(HEAP + 2 * PAGE_BYTES, Access::Write), Ok(heap.physical + 2 * PAGE_BYTES));
        assert_eq!(device.probe(HEAP + 3 * PAGE_BYTES, Access::Read), Err(ABSENT));
        for kernels in [HEAP + (1 << 30), KERNEL] {
            for access in [Access::Read, Access::Write] {
                assert_eq!(device.probe(kernels, access), Err(SUPERVISORS), "{kernels:#x}");
            }
        }
        process.driven.assert_content("a device that uses it");
    }
}

/// Without the flush the device goes on: that is what the others are about.
#[test]
fn what_is_not_flushed_is_still_reached() {
    let process = Process::on(machine(false));
    let (_handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    assert!(device.probe(HEAP, Access::Write).is_ok());
    // SAFETY: nobody uses it by this address.
    let stale = unsafe { process.space.table().unmap(HEAP, PAGE_BYTES) }.expect("mapped");
    assert!(device.probe(HEAP, Access::Write).is_ok(), "the unit remembers it");
    process.domain.flush(&stale).expect("a unit that works");
    assert_eq!(device.probe(HEAP, Access::Write), Err(ABSENT));
    // SAFETY: flushed.
    process.space.table().redeem(unsafe { stale.assume_flushed() });
    drop(Process::take_back(memory));
    process.driven.assert_content("at the end");
}

/// Pages, superpages and tables, mapped, protected and unmapped at random, on units of all kinds; what comes back is
/// reached by nobody.
#[test]
fn what_is_flushed_can_be_used_for_anything() {
    for (seed, caching_mode, write_buffer, coherent) in [
        (1, false, false, true),
        (2, true, false, true),
        (3, false, true, true),
        (4, true, true, true),
        (5, false, false, false),
        (6, true, true, false),
    ] {
        let mut config = machine(caching_mode);
        config.units[0].write_buffer = write_buffer;
        config.units[0].scalable_coherent = coherent;
        (config.seed, config.evict_once_in) = (seed, 4);
        let process = Process::on(config);
        let (_handle, device) = process.give(0);
        for round in 0..40_u64 {
            let (pages, align) = if round % 5 == 0 { (1024, 512) } else { (1 + (round % 7) as u32, 1) };
            let at = HEAP + (round * seed % 13) * (8 << 20);
            let memory = process.allocate(pages, align);
            process.map(at, &memory, DATA);
            for offset in [0, memory.bytes - 1] {
                assert_eq!(device.probe(at + offset, Access::Write), Ok(memory.physical + offset), "{round}");
            }
            // SAFETY: the test does not use it by this address.
            let stale = unsafe { process.space.table().protect(at, PAGE_BYTES, CODE) }.expect("mapped");
            process.domain.flush(&stale).expect("units that work");
            // SAFETY: flushed.
            process.space.table().redeem(unsafe { stale.assume_flushed() });
            assert_eq!(device.probe(at, Access::Write), Err(NO_WRITE), "{round}");
            assert_eq!(device.probe(at, Access::Read), Ok(memory.physical), "{round}");
            process.unmap(at, memory.bytes);
            assert!(device.probe(at, Access::Read).is_err(), "{round}");
            drop(Process::take_back(memory));
        }
        process.driven.assert_content("at the end");
    }
}

/// A domain behind two units: a flush is for both.
#[test]
fn several_devices_share_one_space() {
    let process = Process::on(units(2));
    let devices = [process.give(0), process.give(1)];
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    for (_, device) in &devices {
        assert_eq!(device.probe(HEAP, Access::Write), Ok(memory.physical));
    }
    process.unmap(HEAP, PAGE_BYTES);
    for (_, device) in &devices {
        assert_eq!(device.probe(HEAP, Access::Write), Err(ABSENT));
    }
    drop(Process::take_back(memory));
    process.driven.assert_content("both");
}

/// The first entry of the upper half.
fn upper_half(space: &Space) -> &AtomicU64 {
    let table = space.table();
    // SAFETY: the root is there as long as the space.
    let root = unsafe { table.memory().table(table.root()) };
    &root[256]
}

/// A kernel's half: copied entries of a root, and tables below them that come and go without a word to the units. They
/// block at the copies, which are for the supervisor.
#[test]
fn a_supervisors_half_is_closed_at_its_root() {
    let process = Process::on(machine(false));
    let (_handle, device) = process.give(0);
    let kernel = space_on(&process.driven, x86(4, LeafSizes::all()));
    let memory = process.allocate(1, 1);
    const USER: u64 = 1 << 2;
    for round in 0..16 {
        kernel.map(KERNEL, memory.physical, PAGE_BYTES, KERNELS);
        let entry = upper_half(&kernel).load(Ordering::SeqCst);
        upper_half(&process.space).store(entry & !USER, Ordering::SeqCst);
        assert_eq!(device.probe(KERNEL, Access::Read), Err(SUPERVISORS), "{round}");
        // SAFETY: nobody uses the page by this address.
        let stale = unsafe { kernel.table().unmap(KERNEL, PAGE_BYTES) }.expect("mapped");
        // SAFETY: no unit has come to what was taken away.
        kernel.table().redeem(unsafe { stale.assume_flushed() });
        // What was a table of the kernel's is one of the process's now.
        process.map(HEAP, &memory, DATA);
        assert_eq!(device.probe(KERNEL, Access::Read), Err(SUPERVISORS), "{round}");
        process.unmap(HEAP, PAGE_BYTES);
    }
    upper_half(&process.space).store(0, Ordering::SeqCst);
    drop(kernel);
    process.driven.assert_content("a half that nobody reaches");
}

/// Which addresses are what devices reach there.
#[test]
fn addresses_at_which_others_answer_are_told_apart() {
    let mut config = machine(false);
    config.registers = vec![PhysRange::new(PhysAddr::new(0x8000_0000), 0x4000)];
    let process = Process::on(config);
    for (first, bytes, is_reached) in [
        (HEAP, 1 << 40, true),
        (PROGRAM, 0x1000, true),
        (0xfedf_f000, 0x1000, true),
        (0xfedf_f000, 0x1001, false),
        (0xfeef_f000, 0x1000, false),
        (0x7fff_f000, 0x1000, true),
        (0x8000_3000, 0x1000, false),
        (0x8000_4000, 0x1000, true),
        ((1 << 47) - 0x1000, 0x1000, true),
        ((1 << 47) - 0x1000, 0x1001, false),
        (u64::MAX, 2, false),
    ] {
        assert_eq!(process.domain.reaches(first, bytes), is_reached, "{first:#x}");
    }
}
