//! What is logged: of a unit that fails what there is to say, and not a line for each thing that fails for it; where
//! interrupts are not remapped, what that costs.

use std::cell::RefCell;

use driven::Driven;
use iommu::{Bidirectional, DmaDevice, DmaError, Options, dma::Late};
use vtd_model::{FunctionConfig, MachineConfig, ReservedMemory, UnitConfig};

/// More than anybody would read.
const MAPPINGS: usize = 400;

thread_local! {
    /// What this test's thread has logged.
    static LOGGED: RefCell<Vec<(log::Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.with_borrow_mut(|lines| lines.push((record.level(), record.args().to_string())));
    }

    fn flush(&self) {}
}

fn listen() {
    // Fails if another test was first: there is one logger.
    let _ = log::set_logger(&Logger);
    log::set_max_level(log::LevelFilter::Warn);
}

#[test]
fn a_unit_that_does_not_answer_is_logged_once_and_pinned_mappings_in_bulk() {
    listen();
    let mut config = MachineConfig::plain(1);
    config.relax_ns = 1_000_000;
    let driven = Driven::start(config).expect("units that work");
    let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
    let mut mappings = Vec::new();
    for _ in 0..MAPPINGS {
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        mappings.push(handle.dma_map(buffer, Bidirectional).expect("room"));
    }
    driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    for mapping in mappings.split_off(MAPPINGS / 2) {
        let _pinned = mapping.unmap().expect_err("no answer");
    }
    drop(mappings);
    driven.pump();
    let logged = LOGGED.take().into_iter();
    let errors: Vec<String> =
        logged.filter(|(level, _)| *level == log::Level::Error).map(|(_, line)| line).collect();
    let about = |what: &str| errors.iter().filter(|line| line.contains(what)).count();
    assert!(about("unit 0") >= 1, "{errors:#?}");
    assert!((1..=8).contains(&about("stay pinned, the last")), "{errors:#?}");
    assert!(errors.len() <= 16, "{errors:#?}");
}

/// What is retired behind it is not told again each time that something is due elsewhere.
#[test]
fn what_is_retired_behind_a_unit_that_failed_is_logged_once() {
    listen();
    let mut config = MachineConfig::plain(2);
    config.relax_ns = 1_000_000;
    config.units.push(UnitConfig::plain(0xfed9_1000));
    config.functions[1] = FunctionConfig::endpoint(config.functions[1].address, 1);
    let driven = Driven::start(config).expect("units that work");
    let claim = |index| driven.iommu.claim(driven.function(index)).expect("a free function");
    let map = |handle: &DmaDevice| {
        let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
        handle.dma_map(buffer, Bidirectional).expect("room")
    };
    let (failing, working) = (claim(0), claim(1));
    let [first, later] = [map(&failing), map(&failing)];
    driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    let stay = [first.retire(), {
        driven.pump();
        later.retire()
    }];
    let pinned = |(_, line): &(_, String)| line.contains("retired mappings stay pinned");
    assert_eq!(LOGGED.take().iter().filter(|entry| pinned(entry)).count(), 1);
    for _ in 0..MAPPINGS {
        let retired = map(&working).retire();
        driven.pump();
        assert!(matches!(retired.poll(), Ok(Late::Ready(_))));
    }
    let logged = LOGGED.take();
    assert!(!logged.iter().any(pinned), "{} lines", logged.len());
    for retired in stay {
        assert!(matches!(retired.wait(), Err(DmaError::Stuck(_))), "its unit does not answer");
    }
}

/// Nothing is lost by it, and it says that driver and unit differ about a descriptor.
#[test]
fn what_a_unit_refuses_is_logged_with_its_reason() {
    listen();
    let driven = Driven::start(MachineConfig::plain(1)).expect("units that work");
    let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let mapping = handle.dma_map(buffer, Bidirectional).expect("room");
    LOGGED.take();
    driven.machine.misbehave(0, |unit| unit.refused_descriptors = 1);
    mapping.unmap().expect("asked for again");
    driven.pump();
    let refused = |(_, line): &(_, String)| line.starts_with("unit 0: ") && line.contains("refused");
    let logged = LOGGED.take();
    assert_eq!(logged.iter().filter(|entry| refused(entry)).count(), 1, "{logged:#?}");
}

#[test]
fn where_interrupts_are_not_remapped_the_log_says_why_and_what_that_costs() {
    listen();
    let unwanted = Options { interrupt_remapping: false, ..Options::default() };
    let mut unable = MachineConfig::plain(1);
    unable.units[0].interrupt_remapping = false;
    let warnings = |config, options| {
        LOGGED.take();
        Driven::start_with(config, options).expect("units that work");
        let lines = LOGGED.take().into_iter().map(|(_, line)| line);
        lines.filter(|line| line.contains("interrupts are not remapped")).collect::<Vec<_>>()
    };
    let line = |why: &str| {
        [format!(
            "interrupts are not remapped: {why}; a device can raise any vector on any CPU, NMIs and SMIs too"
        )]
    };
    assert_eq!(warnings(MachineConfig::plain(1), Options::default()), [""; 0]);
    assert_eq!(warnings(MachineConfig::plain(1), unwanted), line("iommu=no-intremap was given"));
    assert_eq!(warnings(unable, Options::default()), line("unit 0 cannot"));
}

#[test]
fn what_firmware_reserves_and_its_memory_map_does_not_is_mapped_and_logged() {
    const ELSEWHERE: u64 = 0x5000_0000;
    listen();
    let firmware = MachineConfig::plain(1).memory.firmware;
    for (base, lines) in [(firmware, 0), (ELSEWHERE, 1), (firmware - 0x1000, 1)] {
        let _before = LOGGED.take();
        let mut config = MachineConfig::plain(1);
        let function = config.functions[0].address;
        config.reserved.push(ReservedMemory { function, base, limit: base + 0x1fff });
        let driven = Driven::start(config).expect("units that work");
        let reach = driven.device(function).reach_of_tables().expect("translated");
        assert_eq!(reach.iter().map(|run| run.address).min(), Some(base));
        let logged = LOGGED.take();
        let about =
            logged.iter().filter(|(_, line)| line.contains("reserved for it, are not in the memory map"));
        assert_eq!(about.count(), lines, "{base:#x}: {logged:#?}");
    }
}

/// That devices can read what is only lent to them to be written is not to be found out from documents alone.
#[test]
fn first_stage_tables_are_warned_of() {
    listen();
    let warnings = |config: MachineConfig| {
        LOGGED.take();
        let options = Options { scalable: true, ..Options::default() };
        let _driven = Driven::start_with(config, options).expect("a unit that works");
        LOGGED.take().into_iter().filter(|(_, line)| line.starts_with("first-stage tables")).count()
    };
    assert_eq!((warnings(MachineConfig::first_stage(1)), warnings(MachineConfig::scalable(1))), (1, 0));
}
