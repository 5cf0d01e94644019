//! What must not fail for want of memory, or cannot be taken back: a device that is taken from its driver, one that is
//! gone, and one that comes with reserved memory. In doubt its group is blocked.

mod short;

use std::cell::Cell;

use driven::{Driven, functions_of};
use iommu::{
    ClaimError, DmaDevice, FromDevice, HotplugError, Mapping, Options, options::Quarantine,
    topology::TopologyError,
};
use short::Short;
use vtd_model::{Access, Complaint, MachineConfig, ModelBuffer, ReservedMemory, Rule};

/// Does `work` on a machine of `start` each with 0, 1, 2 ... allocations, until none is refused.
fn for_every_shortage<S>(start: impl Fn() -> (Driven, S), work: impl Fn(&Driven, S, Tight<'_>)) {
    for short in Short::ALL {
        let mut granted = 0;
        loop {
            let (driven, state) = start();
            let refused = Cell::new(0);
            work(&driven, state, Tight { driven: &driven, short, granted, refused: &refused });
            driven.machine.audit();
            if refused.get() == 0 {
                assert!(granted > 0 || short == Short::Tables, "it takes nothing: the test is void");
                break driven.assert_content("with enough memory");
            }
            // A group that there is no memory for stays blocked, also if it has reserved memory.
            let complaints = driven.machine.take_complaints();
            let is_meant = |complaint: &Complaint| complaint.rule == Rule::ReservedMemoryBlocked;
            assert!(complaints.iter().all(is_meant), "{granted} granted of {short:?}: {complaints:#?}");
            granted += 1;
            assert!(granted < 256, "there is no end of it");
        }
    }
}

/// A shortage that lies ahead.
struct Tight<'a> {
    driven: &'a Driven,
    short: Short,
    granted: u64,
    refused: &'a Cell<u64>,
}

impl Tight<'_> {
    /// Calls the driver in it.
    fn call<R>(&self, call: impl FnOnce() -> R) -> R {
        let (result, refused) = self.short.after(self.granted, self.driven, call);
        self.refused.set(self.refused.get() + refused);
        result
    }
}

/// A change of the hierarchy that there is no memory for.
const NO_MEMORY: Result<(), HotplugError> = Err(HotplugError::Topology(TopologyError::OutOfMemory));

/// Memory that firmware reserved for the first function.
const RESERVED: (u64, u64) = (0x5000_0000, 0x5000_3fff);

fn with_reserved_memory(quarantine: Quarantine) -> Driven {
    let mut config = MachineConfig::plain(3);
    // Each entry is looked at as soon as it is written back.
    config.units[0].coherent = false;
    config.audit_once_in = 1;
    config.relax_ns = 1_000_000;
    let function = config.functions[0].address;
    config.reserved.push(ReservedMemory { function, base: RESERVED.0, limit: RESERVED.1 });
    let options = Options { quarantine, ..Options::default() };
    let driven = Driven::start_with(config, options).expect("a unit that works");
    // From here on it need not reach its reserved memory at all times.
    driven.disable(driven.function(0));
    driven
}

/// A driver that has a page mapped.
fn claimed(quarantine: Quarantine) -> (Driven, (DmaDevice, Mapping<ModelBuffer, FromDevice>)) {
    let driven = with_reserved_memory(quarantine);
    let handle = driven.iommu.claim(driven.function(0)).expect("a free function");
    let buffer = driven.machine.allocate_buffer(1, 1).expect("memory");
    let mapping = handle.dma_map(buffer, FromDevice).map_err(|rejected| rejected.error).expect("room");
    (driven, (handle, mapping))
}

/// Where the device finds its reserved memory, and that it finds nothing else.
fn assert_reserved_only(driven: &Driven) {
    let reach = driven.device(driven.function(0)).reach_of_tables().expect("translated");
    let runs: Vec<_> = reach.iter().map(|run| (run.address, run.address + run.bytes - 1)).collect();
    assert_eq!(runs, [RESERVED]);
}

#[test]
fn a_device_is_taken_away_and_given_back_with_whatever_memory_there_is() {
    for quarantine in [Quarantine::Basic, Quarantine::ScratchPage] {
        for in_quarantine in [true, false] {
            let work = |driven: &Driven, (handle, mapping): (DmaDevice, Mapping<_, _>), tight: Tight<'_>| {
                let (function, device) = (driven.function(0), driven.device(driven.function(0)));
                let iova = mapping.iova().as_u64();
                driven.enable(function);
                let memory = device.probe(iova, Access::Write).expect("mapped");
                if in_quarantine {
                    tight.call(|| driven.iommu.quarantine(function)).expect("a unit that works");
                    driven.enable(function);
                    assert_ne!(device.probe(iova, Access::Write), Ok(memory));
                    assert!(driven.machine.is_lent(memory), "it came back too early");
                }
                tight.call(|| driven.iommu.release(function, |_| true)).expect("a quiet device");
                driven.enable(function);
                assert!(device.probe(iova, Access::Write).is_err());
                mapping.unmap().expect("the device is quiet");
                assert_eq!((driven.iommu.live_mappings(), handle.was_taken_back()), (0, true));
                // Without memory the group may have lost what was reserved, which the next claim gives back.
                driven.iommu.claim(function).expect("a free function");
                assert_reserved_only(driven);
                assert_eq!(driven.units()[0].domains, 1);
            };
            for_every_shortage(|| claimed(quarantine), work);
        }
    }
}

#[test]
fn a_function_that_is_gone_is_taken_away_with_whatever_memory_there_is() {
    let work = |driven: &Driven, (handle, mapping): (DmaDevice, Mapping<_, _>), tight: Tight<'_>| {
        let function = driven.function(0);
        driven.device(function).set_unplugged(true);
        let gone = tight.call(|| driven.iommu.functions_gone(&[function], |_| true));
        assert!(gone.is_ok() || gone == NO_MEMORY, "{gone:?}");
        assert!(handle.was_taken_back());
        mapping.unmap().expect("it is gone");
        assert_eq!(driven.iommu.claim(function).map(drop), Err(ClaimError::Unknown { function }));
        assert_eq!(driven.units()[0].domains, 0);
        // What was refused can be done again.
        assert_eq!(driven.iommu.functions_gone(&[function], |_| true), Ok(()));
        assert_eq!(driven.groups().len(), 2);
        driven.device(function).set_unplugged(false);
        driven.iommu.functions_appeared(&[functions_of(driven.machine.config())[0]]).expect("memory");
        assert_reserved_only(driven);
    };
    for_every_shortage(|| claimed(Quarantine::Basic), work);
}

#[test]
fn a_function_that_appears_is_blocked_or_not_there_without_memory() {
    let start = || {
        let driven = with_reserved_memory(Quarantine::Basic);
        driven.iommu.functions_gone(&[driven.function(0)], |_| true).expect("a free function");
        let pages = driven.machine.live_table_pages();
        (driven, pages)
    };
    for_every_shortage(start, |driven, pages, tight| {
        let found = [functions_of(driven.machine.config())[0]];
        let appeared = tight.call(|| driven.iommu.functions_appeared(&found));
        let reach = driven.device(found[0].address).reach_of_tables();
        if appeared.is_err() || tight.refused.get() > 0 {
            assert_eq!((reach, driven.units()[0].domains), (Some(Vec::new()), 0));
            assert_eq!(driven.machine.live_table_pages(), pages);
        }
        if appeared.is_err() {
            assert_eq!(appeared, NO_MEMORY);
            assert_eq!(driven.groups().len(), 2);
            driven.iommu.functions_appeared(&found).expect("memory");
        }
        driven.iommu.claim(found[0].address).expect("a free function");
        assert_reserved_only(driven);
    });
}
