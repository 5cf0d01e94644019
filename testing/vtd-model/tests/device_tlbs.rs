//! Functions with TLBs of their own (ATS): who may have one, and what unmapping means then.

use driven::Driven;
use iommu::{
    Bidirectional, DmaDevice, DmaError, Options, PciAddress, Platform, SourceId,
    dma::{Silent, Stuck},
};
use vtd_model::{Access, Denied, Device, FunctionConfig, MachineConfig, ModelBuffer, Reason, ReservedMemory};

const SECOND_NS: u64 = 1_000_000_000;
const ATS_CONTROL: u16 = 0x104;
const ATS_ENABLE: u32 = 1 << 31;
const DEVICE_CONTROL: u16 = 0x48;
const FUNCTION_LEVEL_RESET: u32 = 1 << 15;

/// Functions with TLBs behind one unit.
fn machine(functions: u8) -> MachineConfig {
    let mut config = MachineConfig::plain(functions);
    config.functions.iter_mut().for_each(|function| function.ats = true);
    // Waiting for devices takes minutes.
    config.relax_ns = 1_000_000;
    config
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim_trusted(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven) -> ModelBuffer {
    driven.machine.allocate_buffer(3, 1).expect("memory")
}

/// Uses a mapping until its translation is in the device's TLB.
fn fill_tlb(device: &Device, iova: u64) {
    // Now and then the device sends a request that it has not translated.
    const TIMES: usize = 50;
    (0..TIMES).for_each(|_| device.write(iova, b"in").expect("mapped"));
    assert!(device.cached_translations().iter().any(|&(address, _)| address == iova));
}

#[test]
fn a_function_that_nobody_trusts_gets_no_translations() {
    let driven = Driven::start(machine(1)).expect("a unit that works");
    let function = driven.function(0);
    // Firmware left it on.
    driven.platform.write_config(function, ATS_CONTROL, ATS_ENABLE);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    let device = driven.device(function);
    assert!(!device.uses_ats());
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let iova = mapping.iova().as_u64();
    device.write(iova, b"untranslated").expect("mapped");
    // It turns it on by itself: neither its questions nor its answers get through.
    driven.platform.write_config(function, ATS_CONTROL, ATS_ENABLE);
    assert!(device.uses_ats());
    let blocked = (0..100).filter(|_| device.probe(iova, Access::Write).is_err()).count();
    assert!(blocked > 50, "{blocked}");
    let refused = std::iter::repeat_with(|| device.write(iova, b"x")).find_map(Result::err);
    assert_eq!(refused, Some(Denied::Fault(Reason::RequestBlocked)));
    mapping.unmap().expect("a unit that works");
    driven.assert_content("after a function that translates by itself");
}

#[test]
fn a_trusted_function_loses_from_its_tlb_what_is_unmapped() {
    let driven = Driven::start(machine(1)).expect("a unit that works");
    let (handle, device) = claim(&driven, 0);
    assert!(device.uses_ats());
    for _ in 0..20 {
        let [kept, gone] = [(); 2].map(|()| handle.dma_map(buffer(&driven), Bidirectional).expect("room"));
        let (kept_iova, gone_iova) = (kept.iova().as_u64(), gone.iova().as_u64());
        // The last of the three pages: a mask that is too small leaves it.
        [kept_iova, gone_iova, gone_iova + 0x2000].iter().for_each(|&iova| fill_tlb(&device, iova));
        gone.unmap().expect("a unit that works");
        for page in 0..3 {
            assert!(device.probe(gone_iova + page * 0x1000, Access::Write).is_err());
        }
        assert!(device.probe(kept_iova, Access::Write).is_ok());
        kept.unmap().expect("a unit that works");
        driven.assert_content("after an unmap");
    }
}

/// A machine, and whether a function of it that is trusted uses its TLB.
struct Case {
    what: &'static str,
    change: fn(&mut MachineConfig),
    options: Options,
    uses: bool,
}

#[test]
fn a_trusted_function_uses_its_tlb_only_where_everything_permits_it() {
    let case = |what, uses, change| Case { what, change, options: Options::default(), uses };
    let no_queue = Options { queued_invalidation: false, ..Options::default() };
    let cases = [
        case("plain", true, |_| {}),
        case("no capability, no ATSR", false, |config| config.functions[0].ats = false),
        case("no device TLBs in the unit", false, |config| config.units[0].device_tlb = false),
        case("reserved memory", false, |config| {
            let base = config.memory.firmware;
            let function = config.functions[0].address;
            config.reserved.push(ReservedMemory { function, base, limit: base + 0xfff });
        }),
        case("nothing keeps it from its neighbour", false, |config| {
            let neighbour = PciAddress::from_devfn(0, 0, config.functions[0].address.devfn() | 1);
            config.functions.push(FunctionConfig::endpoint(neighbour, 0));
        }),
        Case { options: no_queue, ..case("the queue is not to be used", false, |_| {}) },
    ];
    for Case { what, change, options, uses } in cases {
        let mut config = machine(1);
        change(&mut config);
        let driven = Driven::start_with(config, options).expect("a unit that works");
        let (handle, device) = claim(&driven, 0);
        assert_eq!(device.uses_ats(), uses, "{what}");
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        device.write(mapping.iova().as_u64(), b"on").expect("mapped");
        assert_eq!(&mapping.unmap().expect("a unit that works").as_slice()[..2], b"on", "{what}");
        driven.assert_content(what);
    }
}

/// The model complains if an invalidation names another physical function or queue depth than it should.
#[test]
fn invalidations_name_the_physical_function_where_the_unit_wants_it() {
    for names_physical_function in [false, true] {
        let mut config = machine(1);
        config.units[0].names_physical_function = names_physical_function;
        config.functions[0].ats_queue_depth = 5;
        let physical = config.functions[0].address;
        let address = PciAddress::from_devfn(0, 0, 0x80);
        let virtual_function = FunctionConfig::endpoint(address, 0);
        config.functions.push(FunctionConfig { ats: true, physical: Some(physical), ..virtual_function });
        let driven = Driven::start(config).expect("a unit that works");
        for index in [0, 1] {
            let (handle, device) = claim(&driven, index);
            assert!(device.uses_ats());
            let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
            fill_tlb(&device, mapping.iova().as_u64());
            mapping.unmap().expect("a unit that works");
        }
        driven.assert_content("with and without DIT");
    }
}

// Invariant 11: slower than the unit's own caches may be, and then not at all.

#[test]
fn a_device_that_takes_its_time_is_waited_for() {
    let driven = Driven::start(machine(1)).expect("a unit that works");
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    let iova = mapping.iova().as_u64();
    fill_tlb(&device, iova);
    let start = driven.machine.clock().now_ns();
    device.set_answers_from_ns(start + 30 * SECOND_NS);
    mapping.unmap().expect("a device that answers in the end");
    assert!(driven.machine.clock().now_ns() - start >= 30 * SECOND_NS);
    assert!(device.probe(iova, Access::Write).is_err());
    driven.pump();
    assert!(device.is_bus_master());
    driven.assert_content("after a slow device");
}

#[test]
fn a_silent_device_costs_its_group_and_nothing_else() {
    let driven = Driven::start(machine(2)).expect("a unit that works");
    let ((silent, silent_device), (fine, fine_device)) = (claim(&driven, 0), claim(&driven, 1));
    let source: SourceId = driven.function(0).source_id();
    let mut mappings: Vec<_> =
        (0..4).map(|_| silent.dma_map(buffer(&driven), Bidirectional).expect("room")).collect();
    let addresses: Vec<u64> = mappings.iter().map(|mapping| mapping.iova().as_u64()).collect();
    let physical: Vec<u64> =
        addresses.iter().map(|&iova| silent_device.probe(iova, Access::Write).expect("mapped")).collect();
    addresses.iter().for_each(|&iova| fill_tlb(&silent_device, iova));
    silent_device.set_answers_from_ns(u64::MAX);

    // The unit gives the device a minute; nothing is given up before.
    let start = driven.machine.clock().now_ns();
    let lost = DmaError::Silent(Silent { source });
    assert_eq!(mappings.pop().map(|mapping| mapping.unmap().map(drop)), Some(Err(lost)));
    let waited = driven.machine.clock().now_ns() - start;
    assert!((60 * SECOND_NS..130 * SECOND_NS).contains(&waited), "{waited} ns");
    // Nobody waits another minute, although it is not in quarantine yet.
    let start = driven.machine.clock().now_ns();
    assert_eq!(mappings.pop().map(|mapping| mapping.unmap().map(drop)), Some(Err(lost)));
    assert!(driven.machine.clock().now_ns() - start < SECOND_NS);
    driven.pump();

    // Stopped, and blocked even if it masters the bus again: with what it holds, and without.
    assert!(!silent_device.is_bus_master());
    driven.enable(driven.function(0));
    for &iova in &addresses {
        assert!((0..50).all(|_| silent_device.write(iova, b"still here").is_err()));
    }
    // Nothing that it had comes back.
    let start = driven.machine.clock().now_ns();
    assert_eq!(mappings.pop().map(|mapping| mapping.unmap().map(drop)), Some(Err(DmaError::Revoked)));
    let refused = silent.dma_map(buffer(&driven), Bidirectional);
    assert!(matches!(refused, Err(rejected) if rejected.error == lost && rejected.buffer.is_some()));
    drop(mappings);
    driven.iommu.reap();
    assert!(driven.machine.clock().now_ns() - start < SECOND_NS);
    assert!(physical.iter().all(|&memory| driven.machine.is_lent(memory)), "a buffer came back");

    // The unit, and who else is behind it, go on.
    assert!(driven.units()[0].alive && fine_device.is_bus_master());
    let mapping = fine.dma_map(buffer(&driven), Bidirectional).expect("room");
    fill_tlb(&fine_device, mapping.iova().as_u64());
    assert_eq!(&mapping.unmap().expect("a unit that works").as_slice()[..2], b"in");

    // A reset empties the TLB: what was not given up for lost comes back, and the function can be claimed again.
    let reset = |function| {
        driven.platform.write_config(function, DEVICE_CONTROL, FUNCTION_LEVEL_RESET);
        silent_device.set_answers_from_ns(0);
        true
    };
    driven.iommu.release(driven.function(0), reset).expect("a unit that works");
    driven.pump();
    driven.iommu.reap();
    assert_eq!(physical.iter().filter(|&&memory| driven.machine.is_lent(memory)).count(), 2);
    let (again, device) = claim(&driven, 0);
    let mapping = again.dma_map(buffer(&driven), Bidirectional).expect("room");
    fill_tlb(&device, mapping.iova().as_u64());
    mapping.unmap().expect("a device that answers");
    driven.assert_content("after a silent device");
}

#[test]
fn a_unit_that_dies_with_a_device_is_what_is_reported() {
    let driven = Driven::start(machine(1)).expect("a unit that works");
    let (handle, device) = claim(&driven, 0);
    let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
    fill_tlb(&device, mapping.iova().as_u64());
    device.set_answers_from_ns(u64::MAX);
    driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    assert_eq!(mapping.unmap().map(drop), Err(DmaError::Stuck(Stuck { unit: 0 })));
    driven.pump();
    assert!(!device.is_bus_master() && !driven.units()[0].alive);
}

#[test]
fn a_tlb_that_outlives_its_driver_is_of_no_use_to_the_next() {
    // What the device does in between is drawn.
    for seed in 1..20 {
        let driven = Driven::start(MachineConfig { seed, ..machine(1) }).expect("a unit that works");
        let (handle, device) = claim(&driven, 0);
        let function = handle.function();
        let mapping = handle.dma_map(buffer(&driven), Bidirectional).expect("room");
        let iova = mapping.iova().as_u64();
        fill_tlb(&device, iova);
        // Its own means of a reset leave its TLB alone.
        let reset = |_| {
            device.reset();
            true
        };
        driven.iommu.release(function, reset).expect("a unit that works");
        assert!(device.cached_translations().iter().any(|&(address, _)| address == iova));
        // Blocked it makes no use of it, and so the buffer comes back.
        let is_refused = |_| device.probe(iova, Access::Write).is_err();
        assert!((0..50).all(is_refused));
        drop(mapping.unmap().expect("a quiet device"));
        driven.assert_content("after a release");
        // Nor does it at any moment while its next driver comes.
        device.keep_trying(&[iova]);
        let next = driven.iommu.claim_trusted(function).expect("a free function");
        assert!(device.uses_ats());
        driven.assert_content("after the next claim");
        assert!((0..50).all(is_refused));
        drop(next);
    }
}
