//! What the suites of the first kernel show in QEMU, on the second one: each test is called as the one in
//! `testing/suites` that it does the same as.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use iommu::{
    Bidirectional, ClaimError, DmaDevice, FromDevice, Incident, Iova, PageBuffer, PciAddress, ToDevice,
    interrupts::{Destination, MessageSource},
};
use second_host::Kernel;
use vtd_model::{Access, Denied, Device, InterruptOutcome, MachineConfig, Reason};

const PAGE: u64 = 4096;
const AT: u64 = 0x50_0000_1000;
/// How long the worker may take, on a host that has better things to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// A kernel, two functions that a driver may claim, and the hands that are not quite theirs.
struct Bench {
    kernel: Kernel,
}

/// A claimed function: its driver's side and the device's.
struct Claimed {
    dma: DmaDevice,
    device: Device,
}

impl Bench {
    fn new() -> Self {
        let mut config = MachineConfig::plain(2);
        // As QEMU's: what is not written back it need not see.
        config.units[0].coherent = false;
        Self { kernel: Kernel::boot(config).expect("units that work") }
    }

    fn function(&self, index: usize) -> PciAddress {
        self.kernel.machine.config().functions[index].address
    }

    fn claim(&self, index: usize) -> Claimed {
        let dma = self.kernel.iommu.claim(self.function(index)).expect("a free function");
        self.started(dma)
    }

    fn started(&self, dma: DmaDevice) -> Claimed {
        self.kernel.set_bus_master(dma.function(), true);
        let device = self.kernel.machine.device(dma.function());
        Claimed { dma, device }
    }

    /// Waits until the worker has brought about what is to be, and takes interrupts meanwhile.
    fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let begin = Instant::now();
        while !is_so() {
            self.kernel.take_interrupts();
            assert!(begin.elapsed() < PATIENCE, "{what}");
            thread::yield_now();
        }
    }

    /// Nothing was done to the units that may not be done.
    fn is_content(&self) {
        self.kernel.machine.audit();
        let complaints = self.kernel.machine.take_complaints();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

impl Claimed {
    /// It may neither read nor write at `address`, and both are counted.
    fn is_blocked_at(&self, bench: &Bench, address: u64) {
        let before = self.dma.fault_count();
        assert_eq!(self.device.write(address, &[1; 64]), Err(Denied::Fault(Reason::NoWrite)));
        bench.until("the write's fault", || self.dma.fault_count() > before);
        let before = self.dma.fault_count();
        assert_eq!(self.device.read(address, &mut [0; 64]), Err(Denied::Fault(Reason::NoRead)));
        bench.until("the read's fault", || self.dma.fault_count() > before);
    }
}

fn page(value: u8) -> PageBuffer {
    let mut page = PageBuffer::zeroed(1).expect("memory");
    page.fill(value);
    page
}

mod isolation {
    use super::*;

    #[test]
    fn the_pages_around_a_mapping_are_blocked() {
        let bench = Bench::new();
        let owner = bench.claim(0);
        let mapping = owner.dma.dma_map_at(page(1), Bidirectional, Iova::new(AT)).expect("a free address");
        owner.device.write(AT, &[7; 64]).expect("it is mapped");
        owner.is_blocked_at(&bench, AT - PAGE);
        owner.is_blocked_at(&bench, AT + PAGE);
        let buffer = mapping.unmap().expect("a unit that works");
        assert!(buffer[..64] == [7; 64] && buffer[64..].iter().all(|&byte| byte == 1));
        bench.is_content();
    }

    #[test]
    fn a_transfer_over_the_end_is_blocked() {
        let bench = Bench::new();
        let owner = bench.claim(0);
        let mapping = owner.dma.dma_map_at(page(3), FromDevice, Iova::new(AT)).expect("a free address");
        let end = AT + PAGE - 64;
        assert_eq!(owner.device.write(end, &[9; 128]), Err(Denied::Fault(Reason::NoWrite)));
        let buffer = mapping.unmap().expect("a unit that works");
        assert!(buffer[..PAGE as usize - 64].iter().all(|&byte| byte == 3));
        bench.is_content();
    }

    #[test]
    fn a_physical_address_reaches_nothing() {
        let bench = Bench::new();
        let (owner, attacker) = (bench.claim(0), bench.claim(1));
        let secret = owner.dma.dma_map(page(4), Bidirectional).expect("room");
        let physical = owner.device.probe(secret.iova().as_u64(), Access::Read).expect("it is mapped");
        attacker.is_blocked_at(&bench, physical);
        attacker.is_blocked_at(&bench, secret.iova().as_u64());
        assert!(secret.unmap().expect("a unit that works").iter().all(|&byte| byte == 4));
        bench.is_content();
    }
}

mod mapping {
    use super::*;

    #[test]
    fn the_direction_is_kept_to() {
        let bench = Bench::new();
        let owner = bench.claim(0);
        let read = owner.dma.dma_map(page(5), ToDevice).expect("room");
        let written = owner.dma.dma_map(page(6), FromDevice).expect("room");
        let mut seen = [0; 64];
        owner.device.read(read.iova().as_u64(), &mut seen).expect("it may read");
        assert_eq!(seen, [5; 64]);
        let denied = |reason| Err(Denied::Fault(reason));
        assert_eq!(owner.device.write(read.iova().as_u64(), &[0; 8]), denied(Reason::NoWrite));
        assert_eq!(owner.device.read(written.iova().as_u64(), &mut seen), denied(Reason::NoRead));
        owner.device.write(written.iova().as_u64(), &[8; 64]).expect("it may write");
        assert!(read.unmap().expect("a unit that works").iter().all(|&byte| byte == 5));
        assert_eq!(written.unmap().expect("a unit that works")[..64], [8; 64]);
        bench.is_content();
    }

    #[test]
    fn what_was_unmapped_is_out_of_reach_at_once() {
        let bench = Bench::new();
        let owner = bench.claim(0);
        for round in 0..100 {
            let mapping =
                owner.dma.dma_map_at(page(2), Bidirectional, Iova::new(AT)).expect("a free address");
            owner.device.write(AT, &[round; 64]).expect("it is mapped");
            let buffer = mapping.unmap().expect("a unit that works");
            // What the unit still holds would answer. No fault is recorded.
            assert_eq!(owner.device.probe(AT, Access::Write), Err(Denied::Fault(Reason::NoWrite)));
            assert_eq!(buffer[..64], [round; 64]);
        }
        bench.is_content();
    }

    #[test]
    fn unmap_gives_everything_back() {
        let bench = Bench::new();
        let pages = || bench.kernel.machine.live_table_pages();
        map_and_release(&bench);
        let before = pages();
        map_and_release(&bench);
        bench.until("the pages of the second domain", || pages() <= before);
        bench.is_content();
    }

    /// Maps far apart, gives half back by a call and half by the worker, and releases the function.
    fn map_and_release(bench: &Bench) {
        const COUNT: u64 = 200;
        let owner = bench.claim(0);
        let before = bench.kernel.machine.live_table_pages();
        let map = |number| {
            let iova = Iova::new(AT + number * (2 << 20));
            owner.dma.dma_map_at(page(1), Bidirectional, iova).expect("a free address")
        };
        let mappings: Vec<_> = (0..COUNT).map(map).collect();
        // Each has a last table of its own.
        assert!(bench.kernel.machine.live_table_pages() >= before + COUNT as usize);
        for (number, mapping) in mappings.into_iter().enumerate() {
            if number % 2 == 0 {
                mapping.unmap().expect("a unit that works");
            } else {
                drop(mapping);
            }
        }
        bench.until("the reaper", || bench.kernel.iommu.live_mappings() == 0);
        let function = owner.dma.function();
        drop(owner);
        bench.kernel.iommu.release(function, |_| true).expect("it is quiet");
    }
}

mod storm {
    use super::*;

    #[test]
    fn the_offender_is_quarantined_and_the_others_go_on() {
        let bench = Bench::new();
        let (offender, other) = (bench.claim(0), bench.claim(1));
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        offender.dma.on_incident(Arc::new(move |incident| {
            if matches!(incident, Incident::Quarantined) {
                count.fetch_add(1, SeqCst);
            }
        }));
        let mapping = other.dma.dma_map(page(1), Bidirectional).expect("room");
        bench.until("the quarantine", || {
            let _blocked = offender.device.write(AT, &[0; 64]);
            told.load(SeqCst) == 1
        });
        bench.until("the end of its mastering", || !offender.device.is_bus_master());
        other.device.write(mapping.iova().as_u64(), &[3; 64]).expect("it did nothing wrong");
        mapping.unmap().expect("a unit that works");
        // Taken back, reset, and anybody's again.
        let function = offender.dma.function();
        assert!(matches!(bench.kernel.iommu.claim(function), Err(ClaimError::Quarantined { .. })));
        bench.kernel.iommu.release(function, |_| true).expect("it is quiet");
        let again = bench.claim(0);
        let mapping = again.dma.dma_map(page(1), Bidirectional).expect("room");
        again.device.write(mapping.iova().as_u64(), &[3; 64]).expect("it is mapped");
        mapping.unmap().expect("a unit that works");
        bench.is_content();
    }
}

mod assigned {
    use super::*;

    #[test]
    fn a_device_reaches_what_its_owner_maps() {
        let bench = Bench::new();
        let (function, iommu) = (bench.function(0), &bench.kernel.iommu);
        let create = || iommu.create_domain(&[function]).expect("a unit that works");
        let (first, second) = (create(), create());
        let of_first = first.dma_map_at(page(1), Bidirectional, Iova::new(AT)).expect("a free address");
        let of_second = second.dma_map_at(page(2), Bidirectional, Iova::new(AT)).expect("a free address");
        let only_first =
            first.dma_map_at(page(3), Bidirectional, Iova::new(AT + PAGE)).expect("a free address");
        for (domain, value) in [(&first, 1), (&second, 2), (&first, 1)] {
            let owner = bench.started(iommu.assign(function, domain, |_| true).expect("a free function"));
            let mut seen = [0; 64];
            owner.device.read(AT, &mut seen).expect("it is mapped");
            assert_eq!(seen, [value; 64]);
            if value == 2 {
                owner.is_blocked_at(&bench, AT + PAGE);
            }
            drop(owner);
            iommu.release(function, |_| true).expect("it is quiet");
        }
        of_first.unmap().expect("nothing is attached");
        of_second.unmap().expect("nothing is attached");
        only_first.unmap().expect("nothing is attached");
        first.destroy().expect("it is empty");
        second.destroy().expect("it is empty");
        bench.is_content();
    }
}

mod interrupts {
    use super::*;

    #[test]
    fn a_device_raises_its_own_and_no_others() {
        let bench = Bench::new();
        let (owner, other) = (bench.claim(0), bench.claim(1));
        let source = MessageSource::Function(owner.dma.function());
        let entries = bench.kernel.iommu.message_interrupts(source, 1).expect("room in the table");
        let message = entries.route(0, Destination { apic: 1, vector: 0x51 }).expect("a unit that works");
        match owner.device.interrupt(message) {
            InterruptOutcome::Delivered(delivered) => {
                assert_eq!((delivered.vector, delivered.destination), (0x51, 1));
            }
            outcome => panic!("{outcome:?}"),
        }
        let refused = InterruptOutcome::Blocked(Reason::InterruptSourceRefused);
        assert_eq!(other.device.interrupt(message), refused);
        entries.release().expect("a unit that works");
        let gone = InterruptOutcome::Blocked(Reason::InterruptNotPresent);
        assert_eq!(owner.device.interrupt(message), gone);
        bench.is_content();
    }
}
