//! Units without a queue.

use super::*;
use crate::{
    Iova, SourceId,
    vtd::{
        queue::ContextScope,
        spec::{DomainId, FunctionMask},
        testing::Manner,
    },
};

fn without_queue(platform: &FakePlatform) -> Unit<FakePlatform> {
    let unit = brought_up(platform, &BringUp { queue: false, ..plain() });
    platform.unit.take_log();
    unit
}

const DOMAIN: DomainId = DomainId::new(0x1234);
const SOURCE: SourceId = SourceId { segment: 1, requester: 0x0308 };

#[test]
fn registers_invalidate_where_there_is_no_queue() {
    let platform = FakePlatform::new(CAP, ECAP & !QI);
    let unit = brought_up(&platform, &plain());
    let global = [
        Executed::ByRegister { command: 1 << 63 | 1 << 61, address: 0 },
        Executed::ByRegister { command: 1 << 63 | 1 << 60 | 3 << 48, address: 0 },
    ];
    let log = platform.unit.take_log();
    assert!(global.iter().all(|event| log.contains(event)), "after the root pointer: {log:?}");
    let pages =
        IotlbScope::Pages { domain: DOMAIN, first: Iova::new(0x1_2340_0000), order: 9, leaf_only: true };
    let device = ContextScope::Device { domain: DOMAIN, source: SOURCE, mask: FunctionMask::Device };
    let batch = [
        Invalidation::Context(device),
        Invalidation::Context(ContextScope::Domain(DOMAIN)),
        Invalidation::Iotlb(pages),
        Invalidation::Iotlb(IotlbScope::Domain(DOMAIN)),
    ];
    let ticket = unit.submit(&platform, &batch).unwrap();
    assert!(ticket.is_complete(&platform));
    ticket.wait(&platform).unwrap();
    let by_register = |event: &Executed| match event {
        Executed::ByRegister { command, address } => Some((*command, *address)),
        _ => None,
    };
    let log = platform.unit.take_log();
    let done: Vec<_> = log.iter().filter_map(by_register).collect();
    assert_eq!(done[0], (1 << 63 | 3 << 61 | 3 << 32 | 0x0308 << 16 | 0x1234, 0));
    assert_eq!(done[1], (1 << 63 | 2 << 61 | 0x1234, 0));
    assert_eq!(done[2], (1 << 63 | 3 << 60 | 3 << 48 | 0x1234 << 32, 0x1_2340_0000 | 1 << 6 | 9));
    assert_eq!(done[3].0, 1 << 63 | 2 << 60 | 3 << 48 | 0x1234 << 32);
    assert_eq!(done.len(), 4);
}

/// A stale context that is still cached fills the IOTLB again.
#[test]
fn by_register_too_contexts_go_before_translations() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = without_queue(&platform);
    let batch = [
        Invalidation::Iotlb(IotlbScope::Domain(DOMAIN)),
        Invalidation::Context(ContextScope::Domain(DOMAIN)),
    ];
    unit.invalidate(&platform, &batch).unwrap();
    let log = platform.unit.take_log();
    let context = 1 << 63 | 2 << 61 | 0x1234;
    let at = position(&log, |event| *event == Executed::ByRegister { command: context, address: 0 });
    assert_eq!((at, log.len()), (0, 2), "{log:?}");
}

#[test]
fn a_granularity_that_is_refused_is_widened() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = without_queue(&platform);
    platform.unit.behave(|manner| manner.coarsest = Some(1));
    let batch = [
        Invalidation::Context(ContextScope::Domain(DOMAIN)),
        Invalidation::Iotlb(IotlbScope::Domain(DOMAIN)),
    ];
    unit.invalidate(&platform, &batch).unwrap();
    let log = platform.unit.take_log();
    let commands: Vec<_> = log
        .iter()
        .filter_map(|event| match event {
            Executed::ByRegister { command, .. } => Some(*command),
            _ => None,
        })
        .collect();
    assert_eq!(commands, [1 << 63 | 1 << 61, 1 << 63 | 1 << 60 | 3 << 48]);
    platform.unit.behave(|manner| manner.coarsest = Some(0));
    assert!(unit.invalidate(&platform, &batch).is_err() && unit.is_stuck());
}

#[test]
fn a_register_invalidation_that_never_ends_gives_the_unit_up() {
    for batch in [Invalidation::Context(ContextScope::Global), Invalidation::Iotlb(IotlbScope::Global)] {
        let platform = FakePlatform::new(CAP, ECAP);
        let unit = without_queue(&platform);
        platform.unit.behave(|manner| manner.busy = true);
        let start = platform.now_ns();
        let stuck = Err(InvalidationError::Stuck(Stuck { unit: 3 }));
        assert_eq!(unit.invalidate(&platform, &[batch]), stuck);
        let waited = platform.elapsed_since(start);
        assert!((1_000_000_000..10_000_000_000).contains(&waited));
        platform.unit.behave(|manner| *manner = Manner::default());
        let start = platform.now_ns();
        assert_eq!(unit.invalidate(&platform, &[batch]), stuck, "given up for good");
        assert!(platform.elapsed_since(start) < 1_000_000, "and at once");
    }
}

#[test]
fn what_registers_cannot_invalidate_is_said() {
    let platform = FakePlatform::new(CAP, ECAP);
    let unit = without_queue(&platform);
    let entries = Invalidation::InterruptEntries(crate::vtd::queue::InterruptScope::Global);
    let error = unit.invalidate(&platform, &[entries]).unwrap_err();
    assert_eq!(error, InvalidationError::Unsupported { unit: 3, what: "interrupt entries" });
}
