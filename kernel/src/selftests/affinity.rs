//! Interrupts that move while they arrive, and the CPUs that they go to.

use alloc::{boxed::Box, sync::Arc, vec::Vec};
use core::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use drivers::host::{Interrupt, InterruptError};
use harness::{Failure, check, check_eq, failure, test};
use iommu::{
    PciAddress,
    interrupts::{Destination, MessageInterrupts, MessageSource},
    platform::MsiMessage,
};
use suites::{Machine, lacks, reports};

use crate::{
    arch::{
        Cpu, apic, clock,
        interrupts::{self, Vector},
    },
    platform::interrupts::{cpus, event_message},
};

/// Vectors that an interrupt changes between.
const VECTORS: usize = 2;

/// How often something arrived on each CPU.
type OnEachCpu = Arc<Vec<AtomicUsize>>;

/// An interrupt that counts, and goes to another CPU and another vector at each move.
struct Moving {
    message: MsiMessage,
    // Dropped first: as long as there is a way to them, the vectors stay.
    interrupts: MessageInterrupts,
    vectors: [Vector; VECTORS],
}

impl Moving {
    fn new(machine: &Machine, function: PciAddress, arrived: [OnEachCpu; VECTORS]) -> Result<Self, Failure> {
        let interrupts = machine.iommu.message_interrupts(MessageSource::Function(function), 1)?;
        let [one, other] = arrived.map(|arrived| {
            interrupts::allocate(Box::new(move || {
                arrived[Cpu::current_index()].fetch_add(1, SeqCst);
            }))
        });
        let vectors = [one, other].map(|vector| vector.ok_or_else(|| failure!("no vector is free")));
        let [one, other] = vectors;
        let mut moving =
            Self { message: MsiMessage { address: 0, data: 0 }, interrupts, vectors: [one?, other?] };
        moving.retarget(0)?;
        Ok(moving)
    }
}

impl Interrupt for Moving {
    fn message(&self) -> MsiMessage {
        self.message
    }

    /// The number is that of the move.
    fn retarget(&mut self, number: usize) -> Result<(), InterruptError> {
        let cpu = cpus().nth(number % cpus().count()).ok_or(InterruptError::NoCpu { cpu: number })?;
        let vector = self.vectors[number / cpus().count() % VECTORS].number();
        self.message = self.interrupts.route(0, Destination { apic: cpu.apic_id(), vector })?;
        Ok(())
    }
}

test! {
    /// 10,000 interrupts of a device, each acknowledged, while CPU and vector change every 10: each arrives once. The
    /// last one before a change is on its way while the entry changes.
    deadline_ms = 120_000,
    lacks = lacks::remapped_edu,
    fn each_interrupt_arrives_once_while_it_moves(context) {
        const COUNT: usize = 10_000;
        const BETWEEN_MOVES: usize = 10;
        let machine = Machine::of(context)?;
        let mut edu = machine.edu(0)?;
        let arrived: [OnEachCpu; VECTORS] =
            core::array::from_fn(|_| Arc::new(cpus().map(|_| AtomicUsize::new(0)).collect()));
        let counts = || arrived.iter().flat_map(|on| on.iter().map(|count| count.load(SeqCst)));
        let counted = || counts().sum::<usize>();
        let unexpected = interrupts::unexpected();
        let moving = Moving::new(machine, edu.device.function(), arrived.clone())?;
        edu.device.use_interrupt(Box::new(moving), machine.host.event())?;
        for number in 1..=COUNT {
            edu.device.send_interrupt();
            if number % BETWEEN_MOVES == 0 {
                edu.device.retarget_interrupt(number / BETWEEN_MOVES)?;
            }
            let deadline_ns = context.now_ns() + clock::NS_PER_S;
            while counted() < number {
                check!(context.now_ns() < deadline_ns, "interrupt {number} did not arrive");
                core::hint::spin_loop();
            }
        }
        edu.device.use_own_interrupt()?;
        check_eq!(counted(), COUNT);
        check_eq!(interrupts::unexpected(), unexpected);
        let share = COUNT / VECTORS / cpus().count() / 2;
        check!(counts().all(|count| count > share), "not every vector on every CPU had its share: {arrived:?}");
    }
}

test! {
    /// Drivers get interrupts on one CPU after the other: of as many as there are CPUs, each CPU gets one.
    lacks = lacks::remapped_edu,
    fn drivers_interrupts_go_to_the_cpus_in_turn(context) {
        let machine = Machine::of(context)?;
        let function = machine.edu(0)?.device.function();
        let on_each = || -> Vec<usize> {
            let entries = reports::interrupts(&machine.iommu);
            let on = |cpu: &Cpu| entries.iter().filter(|entry| entry.apic == cpu.apic_id()).count();
            cpus().map(on).collect()
        };
        let before = on_each();
        let interrupts: Result<Vec<_>, _> =
            cpus().map(|_| machine.host.allocate_interrupt(function, machine.host.event())).collect();
        let interrupts = interrupts?;
        check_eq!(on_each(), before.iter().map(|count| count + 1).collect::<Vec<_>>());
        drop(interrupts);
        check_eq!(on_each(), before);
    }
}

test! {
    /// Fault events of units go to one CPU after the other, as far as messages that are not remapped reach.
    fn units_events_go_to_the_cpus_in_turn(_context) {
        let vector = interrupts::allocate(Box::new(|| {})).ok_or_else(|| failure!("no vector is free"))?;
        let reachable: Vec<u32> = cpus().map(Cpu::apic_id).filter(|&id| apic::has_message(id)).collect();
        let messages: Option<Vec<MsiMessage>> = reachable.iter().map(|_| event_message(&vector)).collect();
        let messages = messages.ok_or_else(|| failure!("a unit reaches no CPU"))?;
        for id in reachable {
            let to_it = apic::message(id, vector.number()).ok_or_else(|| failure!("APIC id {id:#x}"))?;
            check_eq!(messages.iter().filter(|&&message| message == to_it).count(), 1, "APIC id {id:#x}");
        }
    }
}
