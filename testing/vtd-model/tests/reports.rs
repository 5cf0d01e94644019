//! What is shown of requests that were blocked: the way through the tables, and no more of what nobody sent than of
//! what a single device does.

use std::cell::RefCell;

use driven::Driven;
use iommu::{
    Bidirectional, Iommu, Iova, Options, PciAddress, SourceId, ToDevice,
    dump::{GroupStanding, Leads, StepReport, TableKind, Visitor},
    fault::Fault,
    options::Quarantine,
    policy::Limits,
};
use vtd_model::{Access, MachineConfig, ReservedMemory};

const PAGE: u64 = 0x1000;

fn config() -> MachineConfig {
    let mut config = MachineConfig::plain(3);
    config.relax_ns = 1_000_000;
    config
}

#[derive(Default)]
struct Shown {
    ways: Vec<(SourceId, usize)>,
    steps: Vec<StepReport>,
    faults: Vec<Fault>,
    lost: u64,
    strangers: u64,
}

impl Visitor for Shown {
    fn way(&mut self, source: SourceId, unit: usize) {
        self.ways.push((source, unit));
    }

    fn step(&mut self, step: &StepReport) {
        self.steps.push(*step);
    }

    fn fault(&mut self, fault: &Fault) {
        self.faults.push(*fault);
    }

    fn lost_faults(&mut self, count: u64) {
        self.lost = count;
    }

    fn stranger_faults(&mut self, count: u64) {
        self.strangers = count;
    }
}

/// The way for `address`: its tables, and where it ends.
fn way(iommu: &Iommu, function: PciAddress, address: Option<u64>) -> (Vec<TableKind>, Leads) {
    let mut shown = Shown::default();
    assert!(iommu.trace(function, address.map(Iova::new), &mut shown));
    assert_eq!(shown.ways, [(function.source_id(), 0)]);
    let (last, way) = shown.steps.split_last().expect("an entry at least");
    assert!(way.iter().all(|step| step.leads == Leads::On && step.raw != 0));
    (shown.steps.iter().map(|step| step.table).collect(), last.leads)
}

fn levels(tables: &[TableKind]) -> Vec<u8> {
    let level = |table: &TableKind| match *table {
        TableKind::Page { level, .. } => Some(level),
        _ => None,
    };
    tables.iter().filter_map(level).collect()
}

#[test]
fn the_way_of_a_request_ends_where_its_translation_does() {
    let driven = Driven::start(config()).expect("units that work");
    let function = driven.function(0);
    assert_eq!(way(&driven.iommu, function, Some(0)), (vec![TableKind::Root], Leads::Nowhere));
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    let device = driven.device(function);
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let mapping = handle.dma_map(buffer, ToDevice).expect("room");
    let iova = mapping.iova().as_u64();
    let memory = device.probe(iova, Access::Read).expect("mapped");
    let (tables, end) = way(&driven.iommu, function, Some(iova));
    let Leads::Memory { start, read: true, write: false } = end else { panic!("{end:?}") };
    assert_eq!(start.as_u64(), memory);
    assert_eq!(tables[..2], [TableKind::Root, TableKind::Context]);
    assert_eq!(levels(&tables), [4, 3, 2, 1]);
    let (tables, end) = way(&driven.iommu, function, Some(iova + PAGE));
    assert_eq!((levels(&tables), end), (vec![4, 3, 2, 1], Leads::Nowhere));
    let (tables, end) = way(&driven.iommu, function, Some(iova ^ 1 << 47));
    assert_eq!((levels(&tables), end), (vec![4], Leads::Nowhere));
    // Without an address, or beyond the width, there are no entries to show.
    for address in [None, Some(1 << 60)] {
        let (tables, end) = way(&driven.iommu, function, address);
        assert_eq!((tables, end), (vec![TableKind::Root, TableKind::Context], Leads::On));
    }
    // Another function of the bus has an entry, which is empty.
    let (tables, end) = way(&driven.iommu, driven.function(1), Some(iova));
    assert_eq!((tables, end), (vec![TableKind::Root, TableKind::Context], Leads::Nowhere));
    mapping.unmap().expect("a unit that works");
    assert_eq!(way(&driven.iommu, function, Some(iova)).1, Leads::Nowhere);
    let nobody = PciAddress::from_devfn(7, 0, 0);
    assert!(!driven.iommu.trace(nobody, None, &mut Shown::default()));
}

#[test]
fn on_a_scratch_page_every_way_ends_at_it() {
    const RESERVED: u64 = 0x5000_3000;
    let options = Options { quarantine: Quarantine::ScratchPage, ..Options::default() };
    for (sagaw, bits, depth) in [(0b0010, 39, 3), (0b0100, 48, 4), (0b1000, 57, 5)] {
        let mut config = config();
        (config.units[0].sagaw, config.units[0].mgaw) = (sagaw, bits);
        let function = config.functions[0].address;
        config.reserved.push(ReservedMemory { function, base: RESERVED, limit: RESERVED + PAGE - 1 });
        let driven = Driven::start_with(config, options).expect("units that work");
        driven.iommu.quarantine(function).expect("a unit that works");
        driven.enable(function);
        let page = driven.device(function).probe(0x5000, Access::Write).expect("a scratch page");
        for address in [0, 0x5000, (1 << bits) - 1] {
            let (tables, end) = way(&driven.iommu, function, Some(address));
            assert_eq!(levels(&tables), (1..=depth).rev().collect::<Vec<_>>());
            let Leads::Memory { start, read: true, write: true } = end else { panic!("{end:?}") };
            assert_eq!(start.as_u64(), page);
        }
        let end = way(&driven.iommu, function, Some(RESERVED)).1;
        let Leads::Memory { start, .. } = end else { panic!("{end:?}") };
        assert_eq!(start.as_u64(), RESERVED, "but that of reserved memory");
        let (tables, end) = way(&driven.iommu, function, Some(1 << bits));
        assert_eq!((levels(&tables), end), (vec![], Leads::On));
    }
}

fn shown(driven: &Driven) -> Shown {
    let mut shown = Shown::default();
    driven.iommu.visit(&mut shown);
    shown
}

#[test]
fn faults_of_nobody_are_counted_and_leave_room_for_those_of_others() {
    const FLOOD: u64 = 2_000;
    let driven = Driven::start_with_a_stranger(config()).expect("units that work");
    let stranger = driven.device(driven.function(0));
    let handle = driven.iommu.claim(driven.function(1)).expect("a free function");
    driven.enable(driven.function(0));
    driven.enable(driven.function(1));
    let device = driven.device(driven.function(1));
    // No thread comes to take them out of the ring meanwhile.
    for fault in 0..FLOOD {
        assert!(stranger.write(fault * PAGE, b"x").is_err());
        // Slow enough for the unit to be heard each time.
        driven.machine.clock().advance(2_000_000);
        driven.machine.deliver_events(|event| driven.iommu.handle_event(event));
    }
    assert!(device.write(0x1234_5000, b"x").is_err());
    driven.pump();
    let after = shown(&driven);
    assert_eq!(after.strangers, FLOOD, "each is counted");
    assert_eq!(after.lost, 0, "the flood took the ring");
    let kept = after.faults.iter().filter(|fault| fault.source == driven.function(0).source_id()).count();
    assert_eq!(kept, Limits::default().quarantine_at() as usize - 1);
    assert_eq!(after.faults.last().map(|fault| fault.source), Some(driven.function(1).source_id()));
    // Nobody is blamed, and what was flooded works.
    assert_eq!(handle.fault_count(), 1);
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let mapping = handle.dma_map(buffer, Bidirectional).expect("room");
    assert!(device.probe(mapping.iova().as_u64(), Access::Write).is_ok());
    mapping.unmap().expect("a unit that works");
    driven.assert_content("after a flood of nobody's");
}

#[test]
fn nobody_is_heard_again_after_a_while() {
    const QUIET_NS: u64 = 1 << 40;
    let driven = Driven::start_with_a_stranger(config()).expect("units that work");
    let stranger = driven.device(driven.function(0));
    driven.enable(driven.function(0));
    let fault = || {
        let before = shown(&driven).faults.len();
        assert!(stranger.write(0x5000, b"x").is_err());
        driven.pump();
        shown(&driven).faults.len() - before
    };
    let heard: usize = (0..30).map(|_| fault()).sum();
    assert_eq!(heard, Limits::default().quarantine_at() as usize - 1);
    assert_eq!(fault(), 0);
    driven.machine.clock().advance(QUIET_NS);
    assert_eq!(fault(), 1);
}

thread_local! {
    /// What this test's thread has logged.
    static LOGGED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push(record.args().to_string()));
    }

    fn flush(&self) {}
}

/// A device that blunders now and then, too seldom for quarantine, does not keep another's fault out of the log.
#[test]
fn the_log_has_room_for_each_source() {
    const GAP_NS: u64 = 51_000_000;
    let blunders = if cfg!(miri) { 50 } else { 2_000 };
    // Fails if another test was first: there is one logger.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Warn);
    let driven = Driven::start(config()).expect("units that work");
    let functions = [0, 1].map(|index| driven.function(index));
    let _handles = functions.map(|function| driven.iommu.claim(function).expect("a free function"));
    functions.iter().for_each(|&function| driven.enable(function));
    LOGGED.take();
    let fault = |function, page| {
        assert!(driven.device(function).write(page * PAGE, b"x").is_err());
        driven.pump();
    };
    for blunder in 0..blunders {
        fault(functions[0], blunder + 0x1_0000);
        driven.machine.clock().advance(GAP_NS);
    }
    assert!(matches!(driven.standing(functions[0]), (GroupStanding::Claimed, count) if count == blunders));
    fault(functions[1], 0x5);
    let logged = LOGGED.take();
    let lines_of = |function: PciAddress| {
        let name = function.source_id().to_string();
        logged.iter().filter(|line| line.starts_with(&name)).count() as u64
    };
    let ten_seconds = blunders * GAP_NS / 10_000_000_000;
    assert!((4..=4 + ten_seconds).contains(&lines_of(functions[0])), "{logged:#?}");
    assert_eq!(lines_of(functions[1]), 1, "{logged:#?}");
}
