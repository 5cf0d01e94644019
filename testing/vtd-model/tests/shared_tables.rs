//! Domains over an address space of the CPU's: devices use it as it stands, and nothing of it is used again while they may.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use driven::Driven;
use iommu::{
    DmaDevice, DmaError, DomainError, FromDevice, Options, PciAddress, Platform, ToDevice,
    dma::{DmaBuffer, NotShareable, RawBuffer, SharedDomain, SharedTable},
    dump::{DomainKind, DomainReport, Visitor},
};
use mm::{
    PAGE_BYTES, PhysAddr, PhysRange,
    table::{
        LeafSizes, PageTable, Table, TableMemory,
        x86::{X86Access, X86Format},
    },
};
use vtd_model::{
    Access, Denied, Device, MachineConfig, ModelBuffer, ModelPlatform, Reason, ReservedMemory, UnitConfig,
};

/// Where programs have things, and where the kernel's half begins.
const PROGRAM: u64 = 0x20_0000;
const HEAP: u64 = 1 << 32;
const KERNEL: u64 = 0xffff_8000_0000_0000;

const DATA: X86Access = X86Access::USER.union(X86Access::WRITE).union(X86Access::NO_EXECUTE);
const CODE: X86Access = X86Access::USER;
const KERNELS: X86Access = X86Access::WRITE;

const ABSENT: Denied = Denied::Fault(Reason::FirstStageNotPresent);
const SUPERVISORS: Denied = Denied::Fault(Reason::Supervisors);
const NO_WRITE: Denied = Denied::Fault(Reason::ScalableNoWrite);

fn options() -> Options {
    Options { scalable: true, ..Options::default() }
}

fn x86(levels: u8, sizes: LeafSizes) -> X86Format {
    X86Format::new(levels, sizes, 46).expect("a format")
}

/// Tables for units that do not snoop are written back.
fn format_for(config: &MachineConfig) -> X86Format {
    let format = x86(4, LeafSizes::all());
    if config.units.iter().all(|unit| unit.scalable_coherent) { format } else { format.written_back() }
}

/// Table pages of the machine's.
struct Pages(Arc<ModelPlatform>);

// SAFETY: the platform's table memory keeps the contract.
unsafe impl TableMemory for Pages {
    fn allocate(&self) -> Option<PhysAddr> {
        self.0.tables().allocate()
    }

    unsafe fn free(&self, page: PhysAddr) {
        // SAFETY: the caller's promise.
        unsafe { self.0.tables().free(page) }
    }

    unsafe fn table(&self, page: PhysAddr) -> &Table {
        // SAFETY: the caller's promise.
        unsafe { self.0.tables().table(page) }
    }

    fn write_back(&self, first: *const u8, bytes: usize) {
        self.0.tables().write_back(first, bytes);
    }
}

/// An address space: it goes with the last who keeps it, and says so.
struct Space {
    table: Option<PageTable<X86Format, Pages>>,
    is_gone: Arc<AtomicBool>,
}

impl Space {
    fn table(&self) -> &PageTable<X86Format, Pages> {
        self.table.as_ref().expect("it is there until it is dropped")
    }

    fn map(&self, at: u64, physical: u64, bytes: u64, access: X86Access) {
        let range = PhysRange::new(PhysAddr::new(physical), bytes);
        // SAFETY: no CPU walks the table, and the memory is the test's.
        let emptied = unsafe { self.table().map(at, &[range], access) }.expect("free addresses");
        assert!(emptied.is_none());
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        self.is_gone.store(true, Ordering::SeqCst);
        // SAFETY: no CPU has walked it, and whoever kept it for devices is done. The machine complains if that is not so.
        unsafe { self.table.take().expect("once").destroy() };
    }
}

/// A process, and a device that uses what it has.
struct Process {
    driven: Driven,
    space: Arc<Space>,
    is_gone: Arc<AtomicBool>,
    domain: SharedDomain,
}

/// Memory of a process, which is the machine's to check.
struct Memory {
    raw: RawBuffer,
    physical: u64,
    bytes: u64,
}

fn space_on(driven: &Driven, format: X86Format) -> Arc<Space> {
    let table = PageTable::new(format, Pages(driven.platform.clone())).expect("memory");
    Arc::new(Space { table: Some(table), is_gone: Arc::new(AtomicBool::new(false)) })
}

fn share(
    driven: &Driven,
    space: &Arc<Space>,
    functions: &[PciAddress],
    physical_bits: u8,
) -> Result<SharedDomain, DomainError> {
    // SAFETY: the space goes when its last owner does; what is unmapped is flushed first; the devices are the test's.
    let table = unsafe { SharedTable::new(space.table(), physical_bits, space.clone()) };
    driven.iommu.share_table(functions, table)
}

impl Process {
    fn on(config: MachineConfig) -> Self {
        let format = format_for(&config);
        let driven = Driven::start_with(config, options()).expect("units that work");
        let space = space_on(&driven, format);
        let functions: Vec<_> =
            (0..driven.machine.config().functions.len()).map(|index| driven.function(index)).collect();
        let domain = share(&driven, &space, &functions, 39).expect("units that walk it");
        let is_gone = space.is_gone.clone();
        Self { driven, space, is_gone, domain }
    }

    fn give(&self, index: usize) -> (DmaDevice, Device) {
        let function = self.driven.function(index);
        let handle =
            self.driven.iommu.assign(function, self.domain.domain(), |_| true).expect("a free function");
        self.driven.enable(function);
        (handle, self.driven.device(function))
    }

    fn allocate(&self, pages: u32, align_pages: u32) -> Memory {
        let buffer = self.driven.machine.allocate_buffer(pages, align_pages).expect("memory");
        let (physical, bytes) = (buffer.physical(), buffer.bytes() as u64);
        Memory { raw: buffer.into_raw(), physical, bytes }
    }

    fn map(&self, at: u64, memory: &Memory, access: X86Access) {
        self.space.map(at, memory.physical, memory.bytes, access);
        self.domain.publish(at, memory.bytes).expect("units that work");
    }

    /// Unmaps what is at `at`, and does without a flush of CPUs, as none has walked the table.
    fn unmap(&self, at: u64, bytes: u64) {
        // SAFETY: the memory is the test's, which does not use it by these addresses.
        let stale = unsafe { self.space.table().unmap(at, bytes) }.expect("mapped");
        self.domain.flush(&stale).expect("units that work");
        // SAFETY: flushed in the line above; there are no CPUs.
        self.space.table().redeem(unsafe { stale.assume_flushed() });
    }

    /// Has the memory back, which no device reaches any more, or the machine complains.
    fn take_back(memory: Memory) -> ModelBuffer {
        // SAFETY: of `into_raw`, once.
        unsafe { ModelBuffer::from_raw(memory.raw) }
    }
}

/// With as many units, and a function behind each.
fn units(count: u8) -> MachineConfig {
    let mut config = MachineConfig::first_stage(count);
    let unit = |index| {
        let base = 0xfed9_0000 + u64::from(index) * 0x1_0000;
        UnitConfig { scalable_coherent: true, ..UnitConfig::first_stage(base) }
    };
    config.units = (0..count).map(unit).collect();
    config.functions.iter_mut().enumerate().for_each(|(index, function)| function.unit = index);
    config.audit_once_in = 1;
    config
}

fn machine(caching_mode: bool) -> MachineConfig {
    let mut config = units(1);
    config.units[0].caching_mode = caching_mode;
    config
}

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

/// Pages, superpages and tables, mapped, protected and unmapped at random, on units of all kinds; what comes back is reached by
/// nobody.
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

#[derive(Default)]
struct Domains(Vec<DomainReport>);

impl Visitor for Domains {
    fn created_domain(&mut self, domain: &DomainReport, _groups: usize) {
        self.0.push(*domain);
    }
}

/// What a domain over a table takes besides is no page.
#[test]
fn a_domain_without_a_table_of_its_own_takes_no_pages() {
    let driven = Driven::start_with(machine(false), options()).expect("units that work");
    let space = space_on(&driven, x86(4, LeafSizes::all()));
    let live = driven.machine.live_table_pages();
    let domain = share(&driven, &space, &[driven.function(0)], 39).expect("units that walk it");
    assert_eq!(driven.machine.live_table_pages(), live);
    domain.destroy().expect("nobody is in it");
    driven.assert_content("a domain");
}

/// The table is its owner's: nobody maps in it by the API, and its pages are none of the domain's.
#[test]
fn the_owner_alone_maps() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let before = process.driven.machine.live_table_pages();
    let buffer = || process.driven.machine.allocate_buffer(1, 1).expect("memory");
    let rejected = handle.dma_map(buffer(), FromDevice).expect_err("the owner's alone");
    assert_eq!(rejected.error, DmaError::SharedTable);
    let rejected = process.domain.domain().dma_map(buffer(), ToDevice).expect_err("the owner's alone");
    assert_eq!((rejected.error, rejected.buffer.is_some()), (DmaError::SharedTable, true));
    assert!(matches!(handle.alloc_coherent::<u64>(1), Err(DmaError::SharedTable)));
    assert_eq!(process.driven.machine.live_table_pages(), before);
    let mut shown = Domains::default();
    process.driven.iommu.visit(&mut shown);
    let [report] = shown.0[..] else { panic!("{:?}", shown.0) };
    assert_eq!((report.kind, report.root), (DomainKind::Shared, process.space.table().root()));
    assert_eq!((report.table_pages, report.mapped_pages), (0, 0));
    assert!(device.probe(HEAP, Access::Read).is_err());
    process.driven.assert_content("a refusal");
}

/// The table and its memory stay until the device is known to be quiet, also if its owner ends first.
#[test]
fn what_keeps_the_table_goes_with_the_last_device() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    device.write(HEAP, b"x").expect("mapped");
    let Process { driven, space, is_gone, domain } = process;
    drop(space);
    assert!(domain.destroy().is_err(), "the device is in it");
    assert!(device.probe(HEAP, Access::Write).is_ok());
    assert!(handle.release(|_| false).is_err(), "it may not be quiet");
    assert!(device.probe(HEAP, Access::Write).is_err() && device.write(HEAP, b"x").is_err());
    domain.destroy().expect("nobody is in it");
    assert!(!is_gone.load(Ordering::SeqCst), "what the device had translated may be on its way");
    driven.iommu.release(driven.function(0), |_| true).expect("quiet");
    assert!(is_gone.load(Ordering::SeqCst), "handles keep nothing");
    drop((handle, domain));
    drop(Process::take_back(memory));
    driven.assert_content("the end of a process");
}

/// In the plain order: the device goes, the domain, the space.
#[test]
fn a_space_that_no_device_uses_is_its_owners_alone() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    assert!(device.probe(HEAP, Access::Write).is_ok());
    handle.release(|_| true).expect("quiet");
    assert_eq!(Arc::strong_count(&process.space), 2, "another device may come");
    process.domain.destroy().expect("nobody is in it");
    let Process { driven, space, is_gone, domain } = process;
    assert_eq!(Arc::strong_count(&space), 1);
    drop(space);
    assert!(is_gone.load(Ordering::SeqCst));
    let function = driven.function(0);
    assert!(driven.iommu.assign(function, domain.domain(), |_| true).is_err(), "it has ended");
    drop((handle, Process::take_back(memory)));
    driven.assert_content("the end of a process");
}

/// A unit that does not answer may walk the table for ever: nothing of it comes back.
#[test]
fn nothing_comes_back_from_a_unit_that_is_silent() {
    let process = Process::on(machine(false));
    let (handle, device) = process.give(0);
    let memory = process.allocate(1, 1);
    process.map(HEAP, &memory, DATA);
    assert!(device.probe(HEAP, Access::Write).is_ok());
    process.driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    // SAFETY: nobody uses it by this address.
    let stale = unsafe { process.space.table().unmap(HEAP, PAGE_BYTES) }.expect("mapped");
    assert!(matches!(process.domain.flush(&stale), Err(DmaError::Stuck(_))));
    drop(stale);
    assert!(handle.release(|_| true).is_err());
    let _still_in_it = process.domain.destroy();
    let Process { driven, space, is_gone, domain } = process;
    drop((handle, space, domain));
    drop(driven.iommu);
    assert!(!is_gone.load(Ordering::SeqCst));
}

/// The same if that shows when a device comes: the unit may have seen its entry.
#[test]
fn nothing_comes_back_from_a_unit_that_falls_silent_over_an_assignment() {
    let process = Process::on(machine(true));
    process.driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    let function = process.driven.function(0);
    let refused = process.driven.iommu.assign(function, process.domain.domain(), |_| true);
    assert!(refused.is_err());
    let _in_it_or_not = process.domain.destroy();
    let Process { driven, space, is_gone, domain } = process;
    drop((space, domain));
    assert!(!is_gone.load(Ordering::SeqCst), "while the subsystem is there");
    drop(driven.iommu);
    assert!(!is_gone.load(Ordering::SeqCst));
}

/// The first entry of the upper half.
fn upper_half(space: &Space) -> &AtomicU64 {
    let table = space.table();
    // SAFETY: the root is there as long as the space.
    let root = unsafe { table.memory().table(table.root()) };
    &root[256]
}

/// A kernel's half: copied entries of a root, and tables below them that come and go without a word to the units. They block at
/// the copies, which are for the supervisor.
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

/// What a unit, or a group, does not take.
#[test]
fn tables_that_units_do_not_walk_are_refused() {
    let refused = |config: MachineConfig, options, format, physical_bits| {
        let driven = Driven::start_with(config, options).expect("units that work");
        let space = space_on(&driven, format);
        let live = driven.machine.live_table_pages();
        let result = share(&driven, &space, &[driven.function(0)], physical_bits);
        assert_eq!((Arc::strong_count(&space), driven.machine.live_table_pages()), (1, live));
        match result {
            Err(DomainError::NotShareable(why)) => why,
            other => panic!("{other:?}"),
        }
    };
    let plain = x86(4, LeafSizes::all());
    assert_eq!(refused(MachineConfig::plain(1), options(), plain, 39), NotShareable::SecondStage);
    let mut config = machine(false);
    config.units[0].first_stage_1g = false;
    assert_eq!(refused(config, options(), plain, 39), NotShareable::LeafSizes);
    let mut config = machine(false);
    config.units[0].scalable_coherent = false;
    assert_eq!(refused(config, options(), plain, 39), NotShareable::NotCoherent);
    let five = x86(5, LeafSizes::all());
    assert_eq!(refused(machine(false), options(), five, 39), NotShareable::Levels(5));
    let beyond = NotShareable::PhysicalBits { memory: 40, units: 39 };
    assert_eq!(refused(machine(false), options(), plain, 40), beyond);
    // Units that have both stages use the second, unless they are asked for the first.
    let both = || {
        let mut config = units(1);
        config.units[0].scalable_second_stage = true;
        config
    };
    assert_eq!(refused(both(), options(), plain, 39), NotShareable::SecondStage);
    let driven = Driven::start_with(both(), Options { first_stage: true, ..options() }).expect("a unit");
    let space = space_on(&driven, plain);
    share(&driven, &space, &[driven.function(0)], 39)
        .expect("a unit that walks it")
        .destroy()
        .expect("empty");
    driven.assert_content("refusals");
}

/// Memory that firmware reserves for a device is in no address space of a program.
#[test]
fn a_group_with_reserved_memory_does_not_come_in() {
    let mut config = machine(false);
    let function = config.functions[0].address;
    let base = config.memory.firmware;
    config.reserved = vec![ReservedMemory { function, base, limit: base + 0xfff }];
    let options = Options { rmrr: iommu::options::ReservedPolicy::Relaxed, ..options() };
    let driven = Driven::start_with(config, options).expect("units that work");
    let space = space_on(&driven, x86(4, LeafSizes::all()));
    let domain = share(&driven, &space, &[function], 39).expect("units that walk it");
    let refused = driven.iommu.assign(function, domain.domain(), |_| true).expect_err("reserved memory");
    assert_eq!(refused, DmaError::SharedTable.into());
    driven.assert_content("a refusal");
}
