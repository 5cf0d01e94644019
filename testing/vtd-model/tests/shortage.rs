//! The Nth allocation of each operation of the DMA API fails, for every N: the operation says so, and everything is as
//! before. Table pages (which hold the IOVA allocator's bookkeeping as well) and large pieces of the heap are counted
//! alike. Giving back takes no memory at all.

mod driver;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use driver::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaError, FromDevice, Iova,
    dump::{DomainReport, Visitor},
};
use vtd_model::{Access, Device, MachineConfig, Reach};

/// Refuses large pieces to a thread that asks for it. The model takes small ones only.
struct Refusing;

/// What the driver asks the heap for, and the model does not.
const LARGE_BYTES: usize = 4096;

std::thread_local! {
    /// Large pieces that are still granted.
    static GRANTED: Cell<u64> = const { Cell::new(u64::MAX) };
}

fn is_refused(layout: Layout) -> bool {
    if layout.size() < LARGE_BYTES {
        return false;
    }
    GRANTED.with(|granted| match granted.get() {
        u64::MAX => false,
        0 => true,
        left => {
            granted.set(left - 1);
            false
        }
    })
}

// SAFETY: every call is passed on unchanged, or refused.
unsafe impl GlobalAlloc for Refusing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_refused(layout) {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller keeps the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static HEAP: Refusing = Refusing;

/// Where memory runs short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Short {
    Tables,
    Heap,
}

/// A machine with one function claimed.
struct Bench {
    driven: Driven,
    handle: DmaDevice,
    device: Device,
}

/// Everything that is counted.
#[derive(PartialEq, Eq, Debug)]
struct Counts {
    /// What the tables let the device reach.
    reach: Option<Vec<Reach>>,
    live_mappings: usize,
    mapped_pages: u64,
}

/// Does `work` with `granted` allocations allowed.
fn with<R>(driven: &Driven, short: Short, granted: u64, work: impl FnOnce() -> R) -> R {
    match short {
        Short::Tables => driven.machine.set_shortage(Some(granted)),
        Short::Heap => GRANTED.set(granted),
    }
    let result = work();
    driven.machine.set_shortage(None);
    GRANTED.set(u64::MAX);
    result
}

#[derive(Default)]
struct MappedPages(u64);

impl Visitor for MappedPages {
    fn domain(&mut self, domain: &DomainReport) {
        self.0 += domain.mapped_pages;
    }
}

impl Bench {
    fn new() -> Self {
        let driven = Driven::start(config()).expect("a unit that works");
        let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
        driven.enable(driven.function(0));
        let device = driven.device(driven.function(0));
        Self { driven, handle, device }
    }

    fn counts(&self) -> Counts {
        let mut mapped = MappedPages::default();
        self.driven.iommu.visit(&mut mapped);
        Counts {
            reach: self.device.reach_of_tables(),
            live_mappings: self.driven.iommu.live_mappings(),
            mapped_pages: mapped.0,
        }
    }

    fn map(&self, pages: u32) -> Result<Undo<'_>, DmaError> {
        let buffer = self.driven.machine.allocate_buffer(pages, 1).expect("buffers");
        let mapping = self.handle.dma_map(buffer, FromDevice).map_err(|rejected| {
            assert_eq!(rejected.buffer.map(|buffer| buffer.bytes()), Some(pages as usize * 4096));
            rejected.error
        })?;
        Ok(Box::new(move |drops| if drops { drop(mapping) } else { drop(mapping.unmap().expect("works")) }))
    }

    fn map_at(&self, pages: u32, iova: u64) -> Result<Undo<'_>, DmaError> {
        let buffer = self.driven.machine.allocate_buffer(pages, 1).expect("buffers");
        let mapping = self.handle.dma_map_at(buffer, Bidirectional, Iova::new(iova)).map_err(|rejected| {
            assert!(rejected.buffer.is_some());
            rejected.error
        })?;
        assert!(self.device.probe(iova, Access::Write).is_ok());
        Ok(Box::new(move |drops| if drops { drop(mapping) } else { drop(mapping.unmap().expect("works")) }))
    }

    fn coherent(&self) -> Result<Undo<'_>, DmaError> {
        let memory = self.handle.alloc_coherent::<u64>(1500)?;
        Ok(Box::new(move |_| drop(memory)))
    }
}

/// Gives back what an operation made: by dropping it, or in the proper way.
type Undo<'b> = Box<dyn FnOnce(bool) + 'b>;
type Operation = for<'b> fn(&'b Bench) -> Result<Undo<'b>, DmaError>;

fn config() -> MachineConfig {
    let mut config = MachineConfig::plain(1);
    // Each entry is looked at as soon as it is written back.
    config.units[0].coherent = false;
    config.audit_once_in = 1;
    config.seed = 0;
    config.memory.buffer_bytes = 16 << 20;
    config
}

/// Each operation that takes table pages and large pieces of the heap on a new machine.
const OPERATIONS: [(&str, Operation); 6] = [
    ("map of a page", |bench| bench.map(1)),
    ("map of a run", |bench| bench.map(33)),
    ("map of more than magazines hold", |bench| bench.map(600)),
    ("map at an address", |bench| bench.map_at(1, 0x12_3456_7000)),
    ("map across tables", |bench| bench.map_at(3, 0x20_001f_f000)),
    ("coherent memory", |bench| bench.coherent()),
];

/// Does `operation` with 0, 1, 2 ... allocations until it succeeds, then gives back. Returns how often it failed, and the
/// table pages that are left in the end.
fn exhaust(name: &str, operation: Operation, short: Short, drops: bool) -> (u64, usize) {
    let bench = Bench::new();
    let before = bench.counts();
    let mut failures = 0;
    let undo = loop {
        match with(&bench.driven, short, failures, || operation(&bench)) {
            Ok(undo) => break undo,
            Err(error) => assert_eq!(error, DmaError::OutOfMemory, "{name}"),
        }
        assert_eq!(bench.counts(), before, "{name}, {failures} granted of {short:?}");
        failures += 1;
        assert!(failures < 64, "{name} always fails");
    };
    assert_ne!(bench.counts(), before);
    // Neither the unmap nor the reaper takes memory.
    with(&bench.driven, short, 0, || {
        undo(drops);
        bench.driven.iommu.reap();
    });
    assert_eq!(bench.counts(), before, "{name}");
    bench.driven.machine.audit();
    bench.driven.assert_content(name);
    (failures, bench.driven.machine.live_table_pages())
}

#[test]
fn an_operation_that_fails_for_want_of_memory_leaves_no_trace() {
    for (name, operation) in OPERATIONS {
        for drops in [false, true] {
            let unharmed = {
                let bench = Bench::new();
                operation(&bench).expect("memory")(drops);
                bench.driven.iommu.reap();
                bench.driven.machine.live_table_pages()
            };
            for short in [Short::Tables, Short::Heap] {
                let (failures, pages) = exhaust(name, operation, short, drops);
                assert!(failures > 0, "{name} took nothing of {short:?}: the test is void");
                // It may be one less: a page of bookkeeping that went back when the operation failed.
                assert!(pages <= unharmed, "{name}: {pages} table pages instead of {unharmed}");
            }
        }
    }
}

#[test]
fn a_claim_that_failed_takes_no_more_in_the_end() {
    let claim = |short: Short, mut granted: u64| {
        let driven = Driven::start(config()).expect("a unit that works");
        let mut failures = 0;
        loop {
            match with(&driven, short, granted, || driven.iommu.claim(driven.function(0))) {
                Ok(_) => return (failures, driven.machine.live_table_pages()),
                Err(error) => assert_eq!(error, ClaimError::Domain(DmaError::OutOfMemory)),
            }
            (granted, failures) = (granted + 1, failures + 1);
        }
    };
    for short in [Short::Tables, Short::Heap] {
        let (failures, taken) = claim(short, 0);
        assert!(failures > 0, "{short:?}");
        assert_eq!(claim(short, u64::MAX), (0, taken), "{short:?}");
    }
}
