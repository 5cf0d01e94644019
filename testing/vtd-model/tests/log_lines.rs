//! How much is logged when a unit fails: what there is to say, and not a line for each thing that fails for it.

use std::sync::Mutex;

use driven::Driven;
use iommu::Bidirectional;
use vtd_model::MachineConfig;

/// More than anybody would read.
const MAPPINGS: usize = 400;

static ERRORS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.level() == log::Level::Error {
            ERRORS.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

#[test]
fn a_unit_that_does_not_answer_is_logged_once_and_pinned_mappings_in_bulk() {
    log::set_logger(&Logger).expect("the only logger");
    log::set_max_level(log::LevelFilter::Error);
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
    let errors = std::mem::take(&mut *ERRORS.lock().unwrap());
    let about = |what: &str| errors.iter().filter(|line| line.contains(what)).count();
    assert!(about("unit 0") >= 1, "{errors:#?}");
    assert!((1..=8).contains(&about("stay pinned, the last")), "{errors:#?}");
    assert!(errors.len() <= 16, "{errors:#?}");
}
