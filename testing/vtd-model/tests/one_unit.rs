//! One unit of the driver against a unit of the model that misbehaves, and interrupts through its table.

use std::{num::NonZeroU8, sync::Arc};

use iommu::{
    Iova, Platform, SourceId,
    interrupts::Sender,
    vtd::{
        BringUp, ContextScope, InterruptSetup, Invalidation, InvalidationError, IotlbScope, Location,
        QueueReport, Route, RouteError, TranslationMode, Unit,
        spec::{DeviceTlbScope, DomainId},
    },
};
use mm::{PAGE_BYTES, PhysAddr, table::TableMemory};
use vtd_model::{InterruptOutcome, Machine, MachineConfig, Misbehaviour, ModelPlatform, Reason};

const DOMAIN: DomainId = DomainId::new(3);
const MINUTE_NS: u64 = 60_000_000_000;

struct Bench {
    machine: Arc<Machine>,
    platform: ModelPlatform,
    unit: Unit<ModelPlatform>,
}

impl Bench {
    /// Unit 0 of a machine, translating, with every function blocked.
    fn new(config: MachineConfig) -> Self {
        let coherent = config.units[0].coherent;
        let base = PhysAddr::new(config.units[0].base);
        let location = Location { base, segment: 0, host_address_bits: config.host_address_bits };
        let machine = Machine::new(config);
        let platform = ModelPlatform::new(&machine);
        let mut unit = Unit::discover(&platform, 0, location).unwrap();
        let root = platform.tables().allocate().unwrap();
        if !coherent {
            // SAFETY: the page was just allocated.
            let table = unsafe { platform.tables().table(root) };
            platform.tables().write_back(table.as_ptr().cast(), PAGE_BYTES as usize);
        }
        let interrupts = Some(InterruptSetup { entries_order: 8, x2apic: true });
        let how = BringUp {
            root,
            mode: TranslationMode::Legacy,
            queue: true,
            queue_order: machine.config().queue_order,
            interrupts,
        };
        // SAFETY: the root table is empty, and is never freed.
        unsafe { unit.bring_up(&platform, &how) }.unwrap();
        unit.enable_translation(&platform).unwrap();
        Self { machine, platform, unit }
    }

    fn misbehave(&self, change: impl FnOnce(&mut Misbehaviour)) {
        self.machine.misbehave(0, change);
        // Deadlines are long: let each look at the clock cost a millisecond.
        self.machine.clock().set_relax_ns(1_000_000);
    }

    fn invalidate(&self, batch: &[Invalidation]) -> Result<(), InvalidationError> {
        self.unit.invalidate(&self.platform, batch)
    }

    fn assert_stuck(&self, batch: &[Invalidation]) {
        let stuck = |result| matches!(result, Err(InvalidationError::Stuck(_)));
        assert!(stuck(self.invalidate(batch)) && self.unit.is_stuck());
        let before = self.machine.clock().now_ns();
        assert!(stuck(self.invalidate(batch)));
        assert!(self.machine.clock().now_ns() - before < 1_000_000, "at once, the second time");
    }

    fn assert_content(&self) {
        let complaints = self.machine.take_complaints();
        assert!(complaints.is_empty(), "{complaints:#?}");
    }
}

fn plain() -> MachineConfig {
    let mut config = MachineConfig::plain(3);
    config.functions.iter_mut().for_each(|function| (function.ats, function.ats_queue_depth) = (true, 1));
    config
}

fn everything() -> [Invalidation; 3] {
    let pages = IotlbScope::Pages { domain: DOMAIN, first: Iova::new(0x4000), order: 2, leaf_only: true };
    [
        Invalidation::Iotlb(pages),
        Invalidation::Iotlb(IotlbScope::Domain(DOMAIN)),
        Invalidation::Context(ContextScope::Domain(DOMAIN)),
    ]
}

/// The TLB of function `index`.
fn device_tlb(bench: &Bench, index: usize) -> Invalidation {
    let config = bench.machine.config();
    let function = &config.functions[index];
    let names_physical = config.units[0].names_physical_function;
    let physical = function.physical.unwrap_or(function.address).source_id().requester;
    Invalidation::DeviceTlb {
        source: SourceId { segment: 0, requester: function.requester },
        physical_function: if names_physical { physical } else { 0 },
        queue_depth: NonZeroU8::new(function.ats_queue_depth)
            .unwrap_or(const { NonZeroU8::new(32).unwrap() }),
        scope: DeviceTlbScope::All,
    }
}

#[test]
fn thousands_of_batches_go_through_on_every_kind_of_unit() {
    for seed in 0..200 {
        let mut config = MachineConfig::random(seed);
        config.units.truncate(1);
        let orders = config.units[0].page_selective;
        let queued = config.units[0].queued;
        let device_tlbs = config.units[0].device_tlb && queued;
        config.functions.retain(|function| function.unit == 0);
        config.reserved.clear();
        config.ioapics.clear();
        let bench = Bench::new(config);
        for round in 0..64 {
            let order = orders.map_or(0, |order| round as u8 % (order + 1));
            let first = Iova::new((round << order) << 12);
            let pages = IotlbScope::Pages { domain: DOMAIN, first, order, leaf_only: round % 2 == 0 };
            let pages = if orders.is_some() { pages } else { IotlbScope::Domain(DOMAIN) };
            let source = SourceId { segment: 0, requester: 0x10 };
            let mask = iommu::vtd::spec::FunctionMask::Exact;
            let mut batch = vec![
                Invalidation::Iotlb(pages),
                Invalidation::Context(ContextScope::Device { domain: DOMAIN, source, mask }),
                Invalidation::Iotlb(IotlbScope::Global),
            ];
            if device_tlbs && !bench.machine.config().functions.is_empty() {
                batch.push(device_tlb(&bench, 0));
            }
            bench.invalidate(&batch).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
        bench.assert_content();
    }
}

#[test]
fn a_refused_descriptor_is_reported_and_made_up_for() {
    let bench = Bench::new(plain());
    for refused in 1..=6 {
        bench.misbehave(|unit| unit.refused_descriptors = 1);
        bench.invalidate(&everything()).unwrap();
        assert!(matches!(bench.unit.take_queue_report(&bench.platform), Some(QueueReport::Refused { .. })));
        assert_eq!(bench.unit.queue_statistics(&bench.platform).unwrap().refused, refused);
    }
    bench.assert_content();
}

#[test]
fn a_unit_that_goes_on_refusing_is_given_up() {
    let bench = Bench::new(plain());
    bench.misbehave(|unit| unit.refused_descriptors = u32::MAX);
    bench.assert_stuck(&everything());
}

#[test]
fn an_unasked_completion_is_cleared() {
    let bench = Bench::new(plain());
    bench.misbehave(|unit| unit.completion_error = true);
    bench.invalidate(&everything()).unwrap();
    bench.invalidate(&everything()).unwrap();
    let report = bench.unit.take_queue_report(&bench.platform);
    assert!(matches!(report, Some(QueueReport::UnexpectedCompletion { .. })));
    bench.assert_content();
}

/// Invariant 6: no wait is endless, and the unit is given up.
#[test]
fn every_way_of_not_answering_is_noticed() {
    let ways: [fn(&mut Misbehaviour); 3] =
        [|unit| unit.queue_stalled = true, |unit| unit.statuses_lost = true, |unit| unit.gone = true];
    for way in ways {
        let bench = Bench::new(plain());
        bench.misbehave(way);
        bench.assert_stuck(&everything());
    }
}

#[test]
fn registers_that_stall_or_refuse_are_noticed() {
    let ways: [fn(&mut Misbehaviour); 2] =
        [|unit| unit.registers_stalled = true, |unit| unit.registers_refuse = true];
    for way in ways {
        let mut config = plain();
        (config.units[0].queued, config.units[0].interrupt_remapping) = (false, false);
        let bench = Bench::new(config);
        bench.invalidate(&everything()).unwrap();
        bench.misbehave(way);
        bench.assert_stuck(&everything());
    }
}

/// Invariant 10: a completion that comes late is nobody else's.
#[test]
fn slow_statuses_are_waited_for_and_never_mixed_up() {
    let bench = Bench::new(plain());
    bench.misbehave(|unit| unit.status_delay_ns = 500_000_000);
    let batch = everything();
    for _ in 0..20 {
        let before = bench.machine.clock().now_ns();
        let tickets = [(); 4].map(|()| bench.unit.submit(&bench.platform, &batch).unwrap());
        for ticket in tickets {
            ticket.wait(&bench.platform).unwrap();
            assert!(bench.machine.clock().now_ns() - before >= 500_000_000);
        }
    }
    bench.assert_content();
}

/// Invariant 11: a device that does not answer costs that device, and nobody else.
#[test]
fn a_device_that_does_not_answer_harms_no_other() {
    let bench = Bench::new(plain());
    let functions = [0, 1].map(|index| bench.machine.config().functions[index].address);
    bench.machine.device(functions[0]).set_answers_from_ns(u64::MAX);
    bench.misbehave(|_| {});
    let (silent, other) =
        ([everything()[1], device_tlb(&bench, 0)], [everything()[0], device_tlb(&bench, 1)]);
    let before = bench.machine.clock().now_ns();
    let first = bench.unit.submit(&bench.platform, &silent).unwrap();
    let second = bench.unit.submit(&bench.platform, &other).unwrap();
    second.wait(&bench.platform).unwrap();
    assert!(bench.machine.clock().now_ns() - before >= MINUTE_NS, "it was not given up sooner");
    let source = functions[0].source_id();
    assert_eq!(first.wait(&bench.platform), Err(InvalidationError::DeviceTimeout { source, others: false }));
    let report = bench.unit.take_queue_report(&bench.platform);
    assert_eq!(report, Some(QueueReport::DeviceTimeout { source }));
    assert!(!bench.unit.is_stuck());
    bench.invalidate(&other).unwrap();
    bench.assert_content();
}

/// The unit gives up on the device later than the driver does.
#[test]
fn a_device_that_is_later_than_the_unit_allows_for() {
    let bench = Bench::new(plain());
    let function = bench.machine.config().functions[0].address;
    bench.machine.device(function).set_answers_from_ns(u64::MAX);
    bench.misbehave(|unit| unit.device_limit_ns = 10 * MINUTE_NS);
    let source = function.source_id();
    let late = bench.invalidate(&[device_tlb(&bench, 0)]);
    assert_eq!(late, Err(InvalidationError::DeviceTimeout { source, others: false }));
    assert!(!bench.unit.is_stuck());
}

#[test]
fn commands_that_are_not_obeyed_end() {
    let bench = Bench::new(plain());
    bench.misbehave(|unit| unit.deaf_to = 1 << 31);
    let before = bench.machine.clock().now_ns();
    assert!(bench.unit.shut_down(&bench.platform).is_err());
    assert!(bench.machine.clock().now_ns() - before > 1_000_000_000);
}

#[test]
fn shutting_down_leaves_nothing_on() {
    for seed in 0..50 {
        let mut config = MachineConfig::random(seed);
        config.units.truncate(1);
        config.functions.retain(|function| function.unit == 0);
        config.reserved.clear();
        config.ioapics.clear();
        let bench = Bench::new(config);
        bench.unit.shut_down(&bench.platform).unwrap();
        assert_eq!(bench.machine.is_on(0), (false, false), "seed {seed}");
        assert_eq!(bench.unit.read_global_status().into_bits() & 0x8680_0000, 0, "seed {seed}");
        bench.assert_content();
    }
}

fn route(source: SourceId, vector: u8, apic: u32) -> Route {
    Route { sender: Sender::Function(source), vector, apic, level_triggered: false }
}

/// A device raises the vectors that were given to it, where they were sent, and no others (invariant 7).
#[test]
fn interrupts_go_where_their_entry_says_and_only_from_its_owner() {
    for (eim, coherent, esirtps) in [(false, true, false), (true, false, true), (true, true, false)] {
        let mut config = plain();
        let unit = &mut config.units[0];
        (unit.eim, unit.coherent, unit.esirtps) = (eim, coherent, esirtps);
        config.functions.iter_mut().for_each(|function| function.bus_master = true);
        let bench = Bench::new(config);
        let [owner, other] = [0, 1].map(|index| bench.machine.config().functions[index].address);
        let (owner_device, other_device) = (bench.machine.device(owner), bench.machine.device(other));
        let sender = |function: iommu::PciAddress| Sender::Function(function.source_id());
        let block = bench.unit.allocate_interrupts(&bench.platform, 0, sender(owner)).unwrap();
        let message = block.message(0).unwrap();
        let send = |device: &vtd_model::Device| match device.interrupt(message) {
            InterruptOutcome::Delivered(delivered) => Ok((delivered.vector, delivered.destination)),
            InterruptOutcome::Blocked(reason) => Err(reason),
            InterruptOutcome::NotBusMaster => panic!("not a bus master"),
        };
        assert_eq!(send(&owner_device), Err(Reason::InterruptNotPresent));
        for (vector, apic) in [(0x31, 1), (0x77, 2), (0xff, 0xfe), (0x20, 0)] {
            bench
                .unit
                .route_interrupt(&bench.platform, &block, 0, &route(owner.source_id(), vector, apic))
                .unwrap();
            assert_eq!(send(&owner_device), Ok((vector, apic)));
            assert_eq!(send(&other_device), Err(Reason::InterruptSourceRefused));
        }
        let stolen =
            bench.unit.route_interrupt(&bench.platform, &block, 0, &route(other.source_id(), 0x31, 1));
        assert!(matches!(stolen, Err(RouteError::OtherSender { .. })));
        bench.unit.free_interrupts(&bench.platform, block).unwrap();
        assert_eq!(send(&owner_device), Err(Reason::InterruptNotPresent));
        let block = bench.unit.allocate_interrupts(&bench.platform, 0, sender(other)).unwrap();
        bench.unit.route_interrupt(&bench.platform, &block, 0, &route(other.source_id(), 0x31, 1)).unwrap();
        assert_eq!(send(&other_device), Ok((0x31, 1)));
        bench.assert_content();
    }
}
