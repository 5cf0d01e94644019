//! Mappings that are given up without waiting: what a device reaches of them, when their buffers come back, and what
//! that costs.

mod part;

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, FromDevice, Mapping, Options, ToDevice,
    dma::{Direction, Late, Retired, Stuck},
    options::{Flush, Mode},
    platform::Work,
};
use part::Part;
use vtd_model::{Access, Device, MachineConfig, ModelBuffer};

const BOTH: [Flush; 2] = [Flush::Strict, Flush::Deferred];

/// What `deferred` puts up with.
const MAX_RETIRED: usize = 256;
const MAX_DELAY_NS: u64 = 5_000_000;

fn start(flush: Flush) -> (Driven, DmaDevice, Device) {
    let mut config = MachineConfig::plain(2);
    config.relax_ns = 1_000_000;
    start_on(config, Options { flush, ..Options::default() })
}

fn start_on(config: MachineConfig, options: Options) -> (Driven, DmaDevice, Device) {
    let driven = Driven::start_with(config, options).expect("units that work");
    let (handle, device) = claim(&driven);
    (driven, handle, device)
}

fn claim(driven: &Driven) -> (DmaDevice, Device) {
    let function = driven.function(0);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn map<D: Direction>(driven: &Driven, handle: &DmaDevice, direction: D) -> Mapping<ModelBuffer, D> {
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    handle.dma_map(buffer, direction).map_err(|rejected| rejected.error).expect("room")
}

fn pending<B: iommu::DmaBuffer, D: Direction>(retired: Retired<B, D>) -> Retired<B, D> {
    match retired.poll().expect("a unit that works") {
        Late::Pending(retired) => retired,
        Late::Ready(_) => panic!("it came back before its flush"),
    }
}

/// What `pump` does, and nothing for work that is not due.
fn reap(driven: &Driven) {
    driven.machine.take_work();
    driven.iommu.reap();
}

#[test]
fn a_buffer_comes_back_after_its_flush_and_not_before() {
    for flush in BOTH {
        let (driven, handle, device) = start(flush);
        let mapping = map(&driven, &handle, Bidirectional);
        let iova = mapping.iova().as_u64();
        // The unit has it in its cache.
        let physical = device.probe(iova, Access::Write).expect("mapped");
        let writes = driven.machine.register_writes(0);
        let retired = pending(mapping.retire());
        assert_eq!(driven.machine.register_writes(0), writes, "{flush:?}: nothing is waited for");
        assert!(driven.machine.is_lent(physical));
        assert_eq!(device.reach_of_tables(), Some(Vec::new()), "its leaves are cleared");
        // Its address is nobody else's meanwhile.
        let other = map(&driven, &handle, Bidirectional);
        assert_ne!(other.iova().as_u64(), iova);
        let buffer = retired.wait().expect("a unit that works");
        assert_eq!(buffer.physical(), physical);
        assert!(device.probe(iova, Access::Write).is_err());
        drop(other.unmap().expect("a unit that works"));
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0);
        driven.assert_content("after a retirement");
    }
}

#[test]
fn strict_flushes_at_once_in_a_thread() {
    let (driven, handle, device) = start(Flush::Strict);
    let mapping = map(&driven, &handle, FromDevice);
    let iova = mapping.iova().as_u64();
    assert!(device.probe(iova, Access::Write).is_ok());
    let retired = pending(mapping.retire());
    assert_eq!(driven.machine.take_work(), [Work::Reap]);
    driven.iommu.reap();
    assert!(device.probe(iova, Access::Write).is_err());
    assert!(matches!(retired.poll(), Ok(Late::Ready(_))));
    assert_eq!(driven.iommu.next_reap_ns(), u64::MAX);
}

#[test]
fn deferred_flushes_after_a_time_that_it_says() {
    let (driven, handle, _) = start(Flush::Deferred);
    let retired = map(&driven, &handle, FromDevice).retire();
    assert_eq!(driven.machine.take_work(), [Work::Reap], "the thread learns when to wake");
    let due_ns = driven.iommu.next_reap_ns();
    let now_ns = driven.machine.clock().now_ns();
    assert!(due_ns > now_ns && due_ns - now_ns <= MAX_DELAY_NS);
    reap(&driven);
    let retired = pending(retired);
    assert_eq!(driven.iommu.next_reap_ns(), due_ns);
    // What comes later does not put it off.
    let later = map(&driven, &handle, FromDevice).retire();
    driven.machine.clock().advance(MAX_DELAY_NS);
    reap(&driven);
    for retired in [retired, later] {
        assert!(matches!(retired.poll(), Ok(Late::Ready(_))));
    }
    assert_eq!(driven.iommu.next_reap_ns(), u64::MAX);
}

/// Many mappings for one flush, whose number is the bound.
#[test]
fn deferred_flushes_after_so_many() {
    let (driven, handle, _) = start(Flush::Deferred);
    let mappings: Vec<_> = (0..2 * MAX_RETIRED).map(|_| map(&driven, &handle, FromDevice)).collect();
    let mut mappings = mappings.into_iter();
    let writes = driven.machine.register_writes(0);
    let mut first: Vec<_> = mappings.by_ref().take(MAX_RETIRED - 1).map(Mapping::retire).collect();
    reap(&driven);
    assert_eq!(driven.machine.register_writes(0), writes, "it is not due");
    first.extend(mappings.next().map(Mapping::retire));
    assert_eq!(driven.machine.take_work(), [Work::Reap]);
    driven.iommu.reap();
    assert_eq!(driven.machine.register_writes(0), writes + 1, "one doorbell for all of them");
    assert!(first.into_iter().all(|retired| matches!(retired.poll(), Ok(Late::Ready(_)))));
    // A thread that does not come is not waited for without bound.
    let more: Vec<_> = mappings.map(Mapping::retire).collect();
    let more: Vec<_> = more.into_iter().map(pending).collect();
    let extra: Vec<_> = (0..MAX_RETIRED).map(|_| map(&driven, &handle, FromDevice).retire()).collect();
    assert!(more.into_iter().chain(extra).any(|retired| matches!(retired.poll(), Ok(Late::Ready(_)))));
}

#[test]
fn unmap_waits_for_its_own_flush_in_either_mode() {
    for flush in BOTH {
        let (driven, handle, device) = start(flush);
        let (one, other) = (map(&driven, &handle, Bidirectional), map(&driven, &handle, Bidirectional));
        let iova = other.iova().as_u64();
        assert!(device.probe(iova, Access::Write).is_ok());
        let retired = one.retire();
        drop(other.unmap().expect("a unit that works"));
        assert!(device.probe(iova, Access::Write).is_err());
        drop(retired);
        driven.pump();
        driven.machine.clock().advance(MAX_DELAY_NS);
        reap(&driven);
        assert_eq!(driven.iommu.live_mappings(), 0);
        driven.assert_content("after an unmap");
    }
}

#[test]
fn bytes_can_be_copied_before_the_flush() {
    for flush in BOTH {
        let (driven, handle, device) = start(flush);
        for (offset, bytes) in [(0, 4096), (100, 64), (4000, 5000)] {
            let mapping = handle.dma_map(Part::new(offset, bytes), FromDevice);
            let mapping = mapping.map_err(|rejected| rejected.error).expect("room");
            let sent: Vec<u8> = (0..bytes).map(|index| index as u8).collect();
            device.write(mapping.iova().as_u64(), &sent).expect("mapped");
            let mut retired = mapping.retire();
            let mut got = vec![0; bytes - 3];
            retired.copy_to(3, &mut got);
            assert_eq!(got, sent[3..], "{bytes} at {offset}");
            let part = retired.wait().expect("a unit that works");
            assert!(part.bytes() == sent && part.is_intact());
        }
        driven.pump();
        assert_eq!(driven.iommu.live_mappings(), 0);
    }
}

#[test]
fn a_dropped_one_is_the_reapers() {
    for flush in BOTH {
        let (driven, handle, device) = start(flush);
        let mapping = map(&driven, &handle, ToDevice);
        let physical = device.probe(mapping.iova().as_u64(), Access::Read).expect("mapped");
        drop(mapping.retire());
        assert!(driven.machine.is_lent(physical));
        driven.pump();
        assert!(!driven.machine.is_lent(physical));
        assert_eq!(driven.iommu.live_mappings(), 0);
        driven.assert_content("after a drop");
    }
}

#[test]
fn what_was_retired_before_a_revocation_comes_back_when_the_device_is_quiet() {
    for flush in BOTH {
        let (driven, handle, device) = start(flush);
        let function = handle.function();
        let (before, polled) = (map(&driven, &handle, Bidirectional), map(&driven, &handle, Bidirectional));
        let (after, dropped) = (map(&driven, &handle, Bidirectional), map(&driven, &handle, Bidirectional));
        let memory = [&before, &polled, &after, &dropped];
        let memory =
            memory.map(|mapping| device.probe(mapping.iova().as_u64(), Access::Write).expect("mapped"));
        let (before, polled) = (before.retire(), polled.retire());
        driven.iommu.quarantine(function).expect("a unit that works");
        drop(dropped.retire());
        assert_eq!(polled.poll().map(drop), Err(DmaError::Revoked));
        assert_eq!(after.retire().wait().map(drop), Err(DmaError::Revoked));
        driven.pump();
        assert!(memory.iter().all(|&memory| driven.machine.is_lent(memory)), "too early");
        driven.iommu.release(function, |_| true).expect("a quiet device");
        driven.pump();
        let lent = memory.map(|memory| driven.machine.is_lent(memory));
        assert_eq!(lent, [true, false, false, false], "{flush:?}");
        assert!(matches!(before.poll(), Ok(Late::Ready(_))), "{flush:?}");
        assert_eq!(driven.iommu.live_mappings(), 0);
        driven.assert_content("after a revocation");
    }
}

#[test]
fn behind_a_unit_that_does_not_answer_it_stays_pinned() {
    for flush in BOTH {
        let (driven, handle, device) = start(flush);
        let mapping = map(&driven, &handle, Bidirectional);
        let physical = device.probe(mapping.iova().as_u64(), Access::Write).expect("mapped");
        driven.machine.misbehave(0, |unit| unit.statuses_lost = true);
        let (waited, polled) = (mapping.retire(), map(&driven, &handle, Bidirectional).retire());
        let stuck = DmaError::Stuck(Stuck { unit: 0 });
        assert_eq!(waited.wait().map(drop), Err(stuck));
        assert_eq!(polled.poll().map(drop), Err(stuck));
        driven.pump();
        assert!(driven.machine.is_lent(physical));
        assert!(handle.dma_map(Part::new(0, 1), Bidirectional).is_err());
    }
}

/// So many that the call which retires the last ones has to flush, and cannot: who waits is told why.
#[test]
fn however_many_stay_pinned_the_reason_is_the_unit() {
    let (driven, handle, _) = start(Flush::Deferred);
    let mappings: Vec<_> = (0..3 * MAX_RETIRED).map(|_| map(&driven, &handle, FromDevice)).collect();
    driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    let retired: Vec<_> = mappings.into_iter().map(Mapping::retire).collect();
    for retired in retired {
        assert_eq!(retired.wait().map(drop), Err(DmaError::Stuck(Stuck { unit: 0 })));
    }
}

#[test]
fn without_isolation_there_is_nothing_to_wait_for() {
    let options = Options { mode: Mode::Off, flush: Flush::Deferred, ..Options::default() };
    let (driven, handle, _) = start_on(MachineConfig::plain(1), options);
    let retired = map(&driven, &handle, FromDevice).retire();
    assert!(matches!(retired.poll(), Ok(Late::Ready(_))));
    drop(map(&driven, &handle, FromDevice).retire());
    driven.pump();
    assert_eq!(driven.iommu.live_mappings(), 0);
}

/// Random machines: caching mode, write buffers, device TLBs, register-based invalidation.
#[test]
fn nothing_is_stale_when_a_retired_buffer_is_back() {
    for seed in 0..40 {
        for flush in BOTH {
            let options = Options { flush, ..Options::default() };
            let driven = Driven::start_with(MachineConfig::random(seed), options).expect("units that work");
            let functions = driven.machine.config().functions.iter().filter(|f| f.kind.buses().is_none());
            let Some((handle, device)) = functions.clone().find_map(|function| {
                let handle = driven.iommu.claim_trusted(function.address).ok()?;
                driven.enable(function.address);
                Some((handle, driven.device(function.address)))
            }) else {
                continue;
            };
            let mut waiting = Vec::new();
            for round in 0..60 {
                let mapping = map(&driven, &handle, Bidirectional);
                let iova = mapping.iova().as_u64();
                let physical = device.probe(iova, Access::Write).expect("mapped");
                waiting.push((iova, physical, mapping.retire()));
                if round % 7 == 0 {
                    driven.pump();
                }
                if round % 3 == 0 {
                    let (iova, physical, retired) = waiting.swap_remove(round % waiting.len());
                    match retired.poll().expect("a unit that works") {
                        Late::Ready(_) => {
                            assert_ne!(device.probe(iova, Access::Write), Ok(physical), "seed {seed}: stale");
                        }
                        Late::Pending(retired) => waiting.push((iova, physical, retired)),
                    }
                }
            }
            for (iova, physical, retired) in waiting {
                let _buffer = retired.wait().expect("a unit that works");
                assert_ne!(device.probe(iova, Access::Write), Ok(physical), "seed {seed}: stale");
            }
            driven.pump();
            assert_eq!(driven.iommu.live_mappings(), 0, "seed {seed}");
            driven.machine.audit();
            driven.assert_content(&format!("seed {seed}, {flush:?}"));
        }
    }
}
