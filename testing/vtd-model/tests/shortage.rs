//! The Nth allocation of each operation fails, for every N: the operation says so, and everything is as before. Table
//! pages (which hold the IOVA allocator's bookkeeping as well) and pieces of the heap, however small, are counted
//! alike. Giving back takes no memory at all.

mod short;

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use driven::{Driven, functions_of};
use iommu::{
    Bidirectional, ClaimError, DmaBuffer, DmaDevice, DmaError, FromDevice, HotplugError, Incident, Iova,
    Options,
    dma::{Late, ScatterList},
    dump::{DomainReport, GroupReport, GroupStanding, UnitReport, Visitor},
    interrupts::{Destination, MessageSource},
    options::Mode,
    topology::{Function, TopologyError},
};
use short::{Short, with_enough};
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, Reach};

/// A machine whose first function is claimed, whose second one is free, and whose third one is not plugged in.
struct Bench {
    driven: Driven,
    handle: DmaDevice,
    device: Device,
    /// What is short when an operation calls the driver, and after how many allocations.
    short: Cell<Option<(Short, u64)>>,
}

const FREE: usize = 1;
const ABSENT: usize = 2;

/// Everything that is counted.
#[derive(PartialEq, Eq, Debug)]
struct Counts {
    /// What the tables let each device reach.
    reach: Vec<Option<Vec<Reach>>>,
    live_mappings: usize,
    mapped_pages: u64,
    domains: usize,
    groups: usize,
    claimed: usize,
}

/// What a visitor adds up, which takes no memory.
#[derive(Default)]
struct Sum {
    mapped_pages: u64,
    domains: usize,
    groups: usize,
    claimed: usize,
}

impl Visitor for Sum {
    fn unit(&mut self, unit: &UnitReport) {
        self.domains += unit.domains;
    }

    fn group(&mut self, group: &GroupReport<'_>) {
        self.groups += 1;
        self.claimed += usize::from(group.standing == GroupStanding::Claimed);
    }

    fn domain(&mut self, domain: &DomainReport) {
        self.mapped_pages += domain.mapped_pages;
    }
}

impl Bench {
    fn new() -> Self {
        let driven = Driven::start(config()).expect("a unit that works");
        let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
        driven.enable(driven.function(0));
        let device = driven.device(driven.function(0));
        driven.iommu.functions_gone(&[driven.function(ABSENT)], |_| true).expect("a free function");
        Self { driven, handle, device, short: Cell::new(None) }
    }

    fn counts(&self) -> Counts {
        let mut sum = Sum::default();
        self.driven.iommu.visit(&mut sum);
        let reach = |index| self.driven.device(self.driven.function(index)).reach_of_tables();
        Counts {
            reach: (0..3).map(reach).collect(),
            live_mappings: self.driven.iommu.live_mappings(),
            mapped_pages: sum.mapped_pages,
            domains: sum.domains,
            groups: sum.groups,
            claimed: sum.claimed,
        }
    }

    fn buffer(&self, pages: u32) -> ModelBuffer {
        self.driven.machine.allocate_buffer(pages, 1).expect("buffers")
    }

    /// Calls the driver, short of memory.
    fn call<R>(&self, call: impl FnOnce() -> R) -> R {
        match self.short.get() {
            Some((short, granted)) => short.after(granted, &self.driven, call).0,
            None => call(),
        }
    }

    fn map<B: DmaBuffer>(&self, buffer: B) -> Result<Undo<'_>, DmaError> {
        let mapping = self.call(|| self.handle.dma_map(buffer, FromDevice)).map_err(|rejected| {
            assert!(rejected.buffer.is_some());
            rejected.error
        })?;
        Ok(Box::new(move |drops| if drops { drop(mapping) } else { drop(mapping.unmap().expect("works")) }))
    }

    fn map_at(&self, pages: u32, iova: u64) -> Result<Undo<'_>, DmaError> {
        let buffer = self.buffer(pages);
        let mapped = self.call(|| self.handle.dma_map_at(buffer, Bidirectional, Iova::new(iova)));
        let mapping = mapped.map_err(|rejected| {
            assert!(rejected.buffer.is_some());
            rejected.error
        })?;
        assert!(self.device.probe(iova, Access::Write).is_ok());
        Ok(Box::new(move |drops| if drops { drop(mapping) } else { drop(mapping.unmap().expect("works")) }))
    }

    fn map_list(&self) -> Result<Undo<'_>, DmaError> {
        let buffers = [1, 3, 2, 5, 1, 1].map(|pages| self.buffer(pages));
        let mapping = self.call(|| {
            let mut list = ScatterList::with_capacity(1)?;
            for buffer in buffers {
                list.push(buffer).map_err(|rejected| rejected.error)?;
            }
            self.handle.dma_map_sg(list, FromDevice).map_err(|rejected| rejected.error)
        })?;
        Ok(Box::new(move |drops| if drops { drop(mapping) } else { drop(mapping.unmap().expect("works")) }))
    }

    /// Parts of pages among the pieces, and more of them than were announced.
    fn link(&self, syncs: bool) -> Result<Undo<'_>, DmaError> {
        let pieces = [100, 5000, 8192].map(|bytes| vec![0x5a_u8; bytes]);
        let request = self.call(|| {
            let mut request = self.handle.dma_reserve(1, 12 << 12, FromDevice)?;
            for piece in pieces {
                if let Err(rejected) = request.link(piece) {
                    assert!(rejected.buffer.is_some_and(|piece| piece[0] == 0x5a));
                    drop(request.unlink().expect("a unit that works"));
                    return Err(rejected.error);
                }
            }
            Ok(request)
        })?;
        Ok(Box::new(move |drops| match (syncs, drops) {
            (true, true) => drop(request.sync()),
            (true, false) => drop(request.sync().unmap().expect("works")),
            (false, true) => drop(request),
            (false, false) => drop(request.unlink().expect("works")),
        }))
    }

    fn retire(&self) -> Result<Undo<'_>, DmaError> {
        let buffer = self.buffer(1);
        let mapping =
            self.call(|| self.handle.dma_map(buffer, FromDevice)).map_err(|rejected| rejected.error)?;
        Ok(Box::new(move |drops| {
            let retired = mapping.retire();
            if drops {
                return drop(retired);
            }
            match retired.poll().expect("a unit that works") {
                Late::Ready(buffer) => drop(buffer),
                Late::Pending(retired) => drop(retired.wait().expect("a unit that works")),
            }
        }))
    }

    fn coherent(&self) -> Result<Undo<'_>, DmaError> {
        let memory = self.call(|| self.handle.alloc_coherent::<u64>(1500))?;
        Ok(Box::new(move |_| drop(memory)))
    }

    fn pool(&self) -> Result<Undo<'_>, DmaError> {
        let pool = self.call(|| {
            // What was mapped of it is the reaper's.
            self.handle.dma_pool(2048, 70, FromDevice).inspect_err(|_| self.driven.iommu.reap())
        })?;
        Ok(Box::new(move |_| {
            let buffer = pool.take();
            drop((pool, buffer));
        }))
    }

    fn claim(&self) -> Result<Undo<'_>, DmaError> {
        let (iommu, function) = (&self.driven.iommu, self.driven.function(FREE));
        let handle = self.call(|| iommu.claim(function)).map_err(|error| match error {
            ClaimError::Domain(error) => error,
            error => panic!("{error}"),
        })?;
        Ok(Box::new(move |_| {
            drop(handle);
            iommu.release(function, |_| true).expect("a quiet device");
        }))
    }

    fn appear(&self) -> Result<Undo<'_>, DmaError> {
        let function = self.found(ABSENT);
        self.call(|| self.driven.iommu.functions_appeared(&[function])).map_err(refused)?;
        Ok(Box::new(move |_| {
            with_enough(|| self.driven.iommu.functions_gone(&[function.address], |_| true))
                .expect("a free function");
        }))
    }

    fn vanish(&self) -> Result<Undo<'_>, DmaError> {
        let function = self.found(FREE);
        self.call(|| self.driven.iommu.functions_gone(&[function.address], |_| true)).map_err(refused)?;
        Ok(Box::new(move |_| {
            with_enough(|| self.driven.iommu.functions_appeared(&[function])).expect("room");
        }))
    }

    /// A function as the host finds it.
    fn found(&self, index: usize) -> Function {
        functions_of(self.driven.machine.config())[index]
    }
}

/// The error of a change of the hierarchy, as all others say it.
fn refused(error: HotplugError) -> DmaError {
    match error {
        HotplugError::Topology(TopologyError::OutOfMemory) => DmaError::OutOfMemory,
        error => panic!("{error}"),
    }
}

/// Gives back what an operation made: by dropping it, or in the proper way.
type Undo<'b> = Box<dyn FnOnce(bool) + 'b>;
type Operation = for<'b> fn(&'b Bench) -> Result<Undo<'b>, DmaError>;

fn config() -> MachineConfig {
    let mut config = MachineConfig::plain(3);
    // Each entry is looked at as soon as it is written back.
    config.units[0].coherent = false;
    config.audit_once_in = 1;
    config.seed = 0;
    config.memory.buffer_bytes = 16 << 20;
    config
}

/// Each operation that takes memory on a new machine: whether table pages, and how many pieces of the heap at
/// least; 0: none at all.
const OPERATIONS: [(&str, bool, u64, Operation); 15] = [
    ("map of a page", true, 0, |bench| bench.map(bench.buffer(1))),
    ("map of a run", true, 0, |bench| bench.map(bench.buffer(33))),
    ("map of more than magazines hold", true, 0, |bench| bench.map(bench.buffer(600))),
    ("map at an address", true, 0, |bench| bench.map_at(1, 0x12_3456_7000)),
    ("map across tables", true, 0, |bench| bench.map_at(3, 0x20_001f_f000)),
    // A list of what stands in for ends, one of what is free of it, and the first of it.
    ("map of a part of pages", true, 3, |bench| bench.map(vec![0x5a_u8; 5000])),
    ("map of a list", true, 6, |bench| bench.map_list()),
    // Room for the list, for a longer one, and what stands in for ends.
    ("pieces that are linked", true, 5, |bench| bench.link(false)),
    ("pieces that are linked and synced", true, 5, |bench| bench.link(true)),
    ("map that is retired", true, 0, |bench| bench.retire()),
    ("coherent memory", true, 1, |bench| bench.coherent()),
    ("pool", true, 6, |bench| bench.pool()),
    ("claim", true, 4, |bench| bench.claim()),
    ("functions that appear", false, 20, |bench| bench.appear()),
    ("functions that go", false, 20, |bench| bench.vanish()),
];

/// Does `operation` with 0, 1, 2 ... allocations until it succeeds, then gives back. Returns how often it failed, and
/// the table pages that are left in the end.
fn exhaust(name: &str, operation: Operation, short: Short, drops: bool) -> (u64, usize) {
    let bench = Bench::new();
    let before = bench.counts();
    let mut failures = 0;
    let undo = loop {
        bench.short.set(Some((short, failures)));
        match operation(&bench) {
            Ok(undo) => break undo,
            Err(error) => assert_eq!(error, DmaError::OutOfMemory, "{name}"),
        }
        assert_eq!(bench.counts(), before, "{name}, {failures} granted of {short:?}");
        failures += 1;
        assert!(failures < 256, "{name} always fails");
    };
    assert_ne!(bench.counts(), before);
    // Neither the unmap nor the reaper takes memory.
    let lasting = if short == Short::Tables { Short::Tables } else { Short::Heap };
    lasting.after(0, &bench.driven, || {
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
    for (name, takes_tables, pieces, operation) in OPERATIONS {
        for drops in [false, true] {
            let unharmed = {
                let bench = Bench::new();
                operation(&bench).expect("memory")(drops);
                bench.driven.iommu.reap();
                bench.driven.machine.live_table_pages()
            };
            for short in Short::ALL {
                let (failures, pages) = exhaust(name, operation, short, drops);
                match short {
                    Short::Tables => assert_eq!(failures > 0, takes_tables, "{name}"),
                    Short::Heap | Short::HeapOnce => {
                        assert!(failures >= pieces, "{name}: {failures} of {short:?}");
                        assert!(pieces > 0 || failures == 0, "{name} takes {failures} of {short:?}");
                    }
                }
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
            match short.after(granted, &driven, || driven.iommu.claim(driven.function(0))).0 {
                Ok(_) => return (failures, driven.machine.live_table_pages()),
                Err(error) => assert_eq!(error, ClaimError::Domain(DmaError::OutOfMemory)),
            }
            (granted, failures) = (granted + 1, failures + 1);
        }
    };
    for short in Short::ALL {
        let (failures, taken) = claim(short, 0);
        assert!(failures > 0, "{short:?}");
        assert_eq!(claim(short, u64::MAX), (0, taken), "{short:?}");
    }
}

#[test]
fn without_isolation_a_claim_fails_as_well() {
    let options = Options { mode: Mode::Off, ..Options::default() };
    for short in [Short::Heap, Short::HeapOnce] {
        let driven = Driven::start_with(config(), options).expect("no unit is needed");
        let claim = |granted| short.after(granted, &driven, || driven.iommu.claim(driven.function(0))).0;
        let failures = (0..).map(claim).map_while(Result::err).inspect(|error| {
            assert_eq!(*error, ClaimError::Domain(DmaError::OutOfMemory));
        });
        // The handle, the space, and where its faults come from.
        assert_eq!(failures.count(), 3, "{short:?}");
    }
}

#[test]
fn what_is_left_takes_no_memory() {
    let bench = Bench::new();
    let iommu = &bench.driven.iommu;
    let function = bench.driven.function(0);
    let mappings = Vec::from([1, 2].map(|pages| {
        let mapped = bench.handle.dma_map(bench.buffer(pages), FromDevice);
        mapped.map_err(|rejected| rejected.error).expect("memory")
    }));
    let third = bench.map(bench.buffer(1)).expect("memory");
    third(true);
    let incidents = Arc::new(AtomicU64::new(0));
    let count = incidents.clone();
    let listener = Arc::new(move |_: Incident| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    assert!(bench.device.write(0x7000_0000, b"x").is_err());
    let mut sum = Sum::default();
    for short in [Short::Tables, Short::Heap] {
        let ((), refused) = short.after(0, &bench.driven, || {
            bench.handle.on_incident(listener.clone());
            assert_eq!(bench.handle.fault_count(), 1);
            iommu.process_faults();
            iommu.reap();
            iommu.visit(&mut sum);
            assert!(iommu.trace(function, Some(mappings[0].iova()), &mut sum));
            let interrupts = iommu.message_interrupts(MessageSource::Function(function), 4).expect("four");
            interrupts.route(3, Destination { apic: 0, vector: 0x31 }).expect("a route");
            interrupts.release().expect("a unit that works");
        });
        assert_eq!(refused, 0, "{short:?}");
    }
    assert_eq!(incidents.load(Ordering::Relaxed), 1);
    let (all, refused) = Short::Heap.after(0, &bench.driven, || {
        let unmapped = bench.handle.unmap_batch(mappings).expect("a unit that works");
        iommu.quarantine(function).expect("a unit that works");
        iommu.release(function, |_| true).expect("a quiet device");
        unmapped.map(|buffer| buffer.bytes()).sum::<usize>()
    });
    assert_eq!((all, refused), (3 * 4096, 0));
    // It says who is in a group by a list.
    let (group, _) = Short::Heap.after(0, &bench.driven, || iommu.group(function));
    assert!(group.is_err());
}
