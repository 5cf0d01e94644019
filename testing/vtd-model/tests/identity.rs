//! Identity domains: a trusted group reaches all of RAM and nothing else, one to one, and is taken back like any other.

mod short;

use driven::Driven;
use iommu::{
    Bidirectional, ClaimError, DmaDevice, DmaError, Iova, Options,
    dma::ScatterList,
    dump::{DomainKind, DomainReport, Visitor},
    options::Quarantine,
};
use short::Short;
use vtd_model::{Access, Device, MachineConfig, ModelBuffer, ReservedMemory, Rule, UnitConfig};

const PAGE: u64 = 0x1000;
const RESERVED: (u64, u64) = (0x5000_0000, 0x5000_1fff);

fn machine(options: Options, change: impl FnOnce(&mut MachineConfig)) -> Driven {
    let mut config = MachineConfig::plain(3);
    config.relax_ns = 1_000_000;
    change(&mut config);
    Driven::start_with(config, options).expect("a unit that works")
}

fn passthrough() -> Options {
    Options { passthrough: true, ..Options::default() }
}

fn claim(driven: &Driven, index: usize) -> (DmaDevice, Device) {
    let function = driven.function(index);
    let handle = driven.iommu.claim(function).expect("a free function");
    driven.enable(function);
    (handle, driven.device(function))
}

fn buffer(driven: &Driven) -> ModelBuffer {
    driven.machine.allocate_buffer(2, 1).expect("memory")
}

/// First and last bytes of what a device reaches, and that it is one to one.
fn reach(device: &Device) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for run in device.reach_of_tables().unwrap_or_default() {
        assert_eq!(device.probe(run.address, Access::Write), Ok(run.address));
        match joined.last_mut() {
            Some((_, last)) if *last + 1 == run.address => *last += run.bytes,
            _ => joined.push((run.address, run.address + (run.bytes - 1))),
        }
    }
    joined
}

/// The same of RAM.
fn ram(driven: &Driven) -> Vec<(u64, u64)> {
    let ram = driven.machine.config().memory.ram();
    let mut ram: Vec<_> = ram.iter().map(|r| (r.start.as_u64(), r.start.as_u64() + (r.bytes - 1))).collect();
    ram.sort_unstable();
    ram
}

/// A buffer that came back is reached as before: that is what trust is. The model knows no such thing.
fn assert_content(driven: &Driven, when: &str) {
    let complaints = driven.machine.take_complaints();
    assert!(
        complaints.iter().all(|complaint| complaint.rule == Rule::BufferStillReachable),
        "{when}: {complaints:?}"
    );
}

struct Kinds(Vec<DomainKind>);

impl Visitor for Kinds {
    fn domain(&mut self, domain: &DomainReport) {
        self.0.push(domain.kind);
    }
}

#[test]
fn with_the_word_every_group_reaches_ram_and_nothing_else() {
    for superpages_1g in [true, false] {
        let driven = machine(passthrough(), |config| config.units[0].superpages_1g = superpages_1g);
        let (handle, device) = claim(&driven, 0);
        assert_eq!(reach(&device), ram(&driven));
        for outside in [0, 0xfee0_0000, ram(&driven)[0].0 - PAGE, ram(&driven)[0].1 + 1, 0xfed9_0000] {
            assert!(device.probe(outside, Access::Read).is_err(), "{outside:#x}");
        }
        let memory = buffer(&driven);
        let physical = memory.physical();
        let mapping = handle.dma_map(memory, Bidirectional).expect("RAM");
        assert_eq!(mapping.iova().as_u64(), physical);
        device.write(physical + 5, b"there").expect("mapped");
        let back = mapping.unmap().expect("a unit that works");
        assert_eq!(&back.as_slice()[5..10], b"there");
        // One that nobody has claimed reaches nothing.
        driven.enable(driven.function(1));
        assert!(driven.device(driven.function(1)).probe(physical, Access::Read).is_err());
        let mut kinds = Kinds(Vec::new());
        driven.iommu.visit(&mut kinds);
        assert_eq!(kinds.0, [DomainKind::Identity]);
        driven.machine.audit();
        assert_content(&driven, "with identity");
    }
}

/// How large they are shows in how many pages of tables all of RAM takes.
#[test]
fn identity_takes_the_largest_leaves_of_the_first_stage() {
    let pages = |first_stage_1g: bool| {
        let driven = machine(Options { scalable: true, ..passthrough() }, |config| {
            // What the second stage has does not matter.
            let (superpages_2m, superpages_1g) = (false, false);
            let base = UnitConfig::first_stage(config.units[0].base);
            config.units[0] = UnitConfig { first_stage_1g, superpages_2m, superpages_1g, ..base };
        });
        let before = driven.machine.live_table_pages();
        let (_handle, device) = claim(&driven, 0);
        assert_eq!(reach(&device), ram(&driven));
        driven.machine.live_table_pages() - before
    };
    let ram = MachineConfig::first_stage(1).memory.ram();
    let leaves: usize = ram.iter().map(|range| (range.bytes >> 30) as usize).sum();
    assert!(leaves > 0);
    // Where there are none of 1 GiB, a table with leaves of 2 MiB takes the place of each.
    assert_eq!(pages(false), pages(true) + leaves);
}

#[test]
fn one_function_is_trusted_and_the_others_are_not() {
    let driven = machine(Options::default(), |_| {});
    let trusted = driven.iommu.claim_identity(driven.function(0)).expect("free");
    driven.enable(driven.function(0));
    let (other, other_device) = claim(&driven, 1);
    let (one, two) = (buffer(&driven), buffer(&driven));
    let (first, second) = (one.physical(), two.physical());
    let mapping = other.dma_map(two, Bidirectional).expect("room");
    let device = driven.device(driven.function(0));
    assert_eq!([first, second].map(|at| device.probe(at, Access::Write).ok()), [Some(first), Some(second)]);
    assert!(other_device.probe(first, Access::Read).is_err());
    let elsewhere = trusted.dma_map_at(one, Bidirectional, Iova::new(0x7000_0000));
    let rejected = elsewhere.expect_err("it is where its memory is");
    assert_eq!(rejected.error, DmaError::IovaTaken { iova: Iova::new(0x7000_0000) });
    let at = Iova::new(first);
    trusted
        .dma_map_at(rejected.buffer.expect("it"), Bidirectional, at)
        .expect("there")
        .unmap()
        .expect("works");
    mapping.unmap().expect("a unit that works");
    assert_content(&driven, "with one trusted function");
}

#[test]
fn it_is_taken_back_like_any_other() {
    for quarantine in [Quarantine::Basic, Quarantine::ScratchPage] {
        let driven = machine(Options { quarantine, ..passthrough() }, |_| {});
        // Room for dropped mappings stays.
        let mut after_first = None;
        for _ in 0..4 {
            let (handle, device) = claim(&driven, 0);
            let memory = buffer(&driven);
            let physical = memory.physical();
            let mapping = handle.dma_map(memory, Bidirectional).expect("RAM");
            let list = |buffers: [ModelBuffer; 2]| {
                let mut list = ScatterList::with_capacity(2).expect("memory");
                buffers.into_iter().for_each(|buffer| drop(list.push(buffer)));
                handle.dma_map_sg(list, Bidirectional).expect("RAM")
            };
            let scattered = list([buffer(&driven), buffer(&driven)]);
            let retired = handle.dma_map(buffer(&driven), Bidirectional).expect("RAM");
            // It is in the caches.
            assert_eq!(device.probe(physical, Access::Write), Ok(physical));
            driven.iommu.quarantine(driven.function(0)).expect("a unit that works");
            driven.enable(driven.function(0));
            assert_ne!(device.probe(physical, Access::Write), Ok(physical));
            assert_eq!(mapping.unmap().map(drop), Err(DmaError::Revoked));
            assert_eq!(scattered.unmap().map(drop), Err(DmaError::Revoked));
            assert_eq!(retired.retire().wait().map(drop), Err(DmaError::Revoked));
            let refused = handle.dma_map(buffer(&driven), Bidirectional);
            assert!(refused.is_err_and(|rejected| rejected.error == DmaError::Revoked));
            driven.pump();
            assert!(driven.machine.is_lent(physical), "the device may not be quiet");
            let function = driven.function(0);
            let release = driven.iommu.release(function, |_| driven.machine.is_lent(physical));
            release.expect("a quiet device");
            driven.pump();
            assert!(!driven.machine.is_lent(physical) && handle.was_taken_back());
            assert_eq!((driven.iommu.live_mappings(), reach(&device)), (0, vec![]));
            let now = driven.machine.live_table_pages();
            assert_eq!(*after_first.get_or_insert(now), now);
        }
        driven.machine.audit();
        driven.assert_content("after four owners");
    }
}

/// In RAM, too, which no firmware should do: then it is mapped once.
#[test]
fn reserved_memory_stays_what_it_is() {
    // The second is in what the host program has, which the model does not call the kernel's.
    for base in [RESERVED.0, 0x8_1000_0000] {
        let reserved = (base, base + 2 * PAGE - 1);
        let driven = machine(Options::default(), |config| {
            let function = config.functions[0].address;
            config.reserved.push(ReservedMemory { function, base: reserved.0, limit: reserved.1 });
        });
        driven.disable(driven.function(0));
        let device = driven.device(driven.function(0));
        assert_eq!(reach(&device), [reserved]);
        driven.iommu.claim_identity(driven.function(0)).expect("free");
        driven.enable(driven.function(0));
        let mut expected = ram(&driven);
        if expected.iter().all(|&(first, last)| base < first || base > last) {
            expected.push(reserved);
            expected.sort_unstable();
        }
        assert_eq!(reach(&device), expected);
        driven.iommu.release(driven.function(0), |_| true).expect("a quiet device");
        assert_eq!(reach(&device), [reserved]);
        driven.machine.audit();
        driven.assert_content("with reserved memory");
    }
}

#[test]
fn without_memory_for_its_tables_nothing_is_claimed() {
    for short in Short::ALL {
        for granted in 0.. {
            let driven = machine(passthrough(), |config| {
                let function = config.functions[0].address;
                config.reserved.push(ReservedMemory { function, base: RESERVED.0, limit: RESERVED.1 });
            });
            driven.disable(driven.function(0));
            let (result, refused) = short.after(granted, &driven, || driven.iommu.claim(driven.function(0)));
            if let Err(error) = &result {
                assert_eq!(*error, ClaimError::Domain(DmaError::OutOfMemory));
                assert_eq!(reach(&driven.device(driven.function(0))), [RESERVED], "{granted} of {short:?}");
                driven.iommu.claim(driven.function(0)).expect("with enough");
            }
            driven.enable(driven.function(0));
            assert!(reach(&driven.device(driven.function(0))).len() > 3);
            driven.machine.audit();
            driven.assert_content("after a shortage");
            if refused == 0 {
                assert!(granted > 2, "it takes nothing: the test is void");
                break;
            }
        }
    }
}
