//! The interrupts that a kernel asks the subsystem for, with remapping and without.

use driven::Driven;
use iommu::{
    Options, PciAddress, SourceId,
    dump::{InterruptReport, Visitor},
    fault::{Fault, FaultTarget},
    interrupts::{Destination, InterruptError, MAX_MESSAGES, MessageSource, Sender, WireMode},
    platform::MsiMessage,
    vtd::RouteError,
};
use vtd_model::{
    FunctionConfig, FunctionKind, HpetConfig, InterruptOutcome, IoApicConfig, MachineConfig, Reason,
    UnitConfig,
};

/// Where something arrived: vector and APIC id.
type Arrival = Result<(u8, u32), Reason>;

const HERE: Destination = Destination { apic: 0, vector: 0x31 };
const IO_APIC: IoApicConfig = IoApicConfig { id: 2, unit: 0, source: 0xff00 };

fn machine() -> MachineConfig {
    let mut config = MachineConfig::plain(2);
    config.ioapics.push(IO_APIC);
    config.functions.iter_mut().for_each(|function| function.bus_master = true);
    config
}

fn start(config: MachineConfig, options: Options) -> Driven {
    let driven = Driven::start_with(config, options).expect("units that work");
    (0..driven.machine.config().functions.len()).for_each(|index| driven.enable(driven.function(index)));
    driven
}

fn arrival(outcome: InterruptOutcome) -> Arrival {
    match outcome {
        InterruptOutcome::Delivered(delivered) => Ok((delivered.vector, delivered.destination)),
        InterruptOutcome::Blocked(reason) => Err(reason),
        InterruptOutcome::NotBusMaster => panic!("not a bus master"),
    }
}

fn send(driven: &Driven, index: usize, message: MsiMessage) -> Arrival {
    arrival(driven.device(driven.function(index)).interrupt(message))
}

fn source(driven: &Driven, index: usize) -> MessageSource {
    MessageSource::Function(driven.function(index))
}

#[derive(Default)]
struct Shown {
    interrupts: Vec<InterruptReport>,
    faults: Vec<Fault>,
}

impl Visitor for Shown {
    fn interrupt(&mut self, interrupt: &InterruptReport) {
        self.interrupts.push(*interrupt);
    }

    fn fault(&mut self, fault: &Fault) {
        self.faults.push(*fault);
    }
}

fn shown(driven: &Driven) -> Shown {
    driven.pump();
    let mut shown = Shown::default();
    driven.iommu.visit(&mut shown);
    shown
}

#[test]
fn a_function_raises_what_was_routed_to_it_and_nobody_else_does() {
    for coherent in [true, false] {
        let mut config = machine();
        config.units[0].coherent = coherent;
        let driven = start(config, Options::default());
        let interrupts = driven.iommu.message_interrupts(source(&driven, 0), 1).expect("an entry");
        let message = interrupts.route(0, HERE).expect("a route");
        assert_eq!(send(&driven, 0, message), Ok((0x31, 0)));
        assert_eq!(send(&driven, 1, message), Err(Reason::InterruptSourceRefused));
        let (unit, index) = interrupts.first_entry().expect("remapped");
        let sender = Some(Sender::Function(driven.function(0).source_id()));
        let Shown { interrupts: entries, faults } = shown(&driven);
        let level_triggered = false;
        let entry = InterruptReport { unit, index, sender, vector: 0x31, apic: 0, level_triggered };
        assert_eq!(entries, [entry]);
        let blocked = faults.last().expect("a fault");
        assert_eq!(blocked.source, driven.function(1).source_id());
        assert_eq!((blocked.target, blocked.reason.code), (FaultTarget::Interrupt(Some(index)), 0x26));
        interrupts.release().expect("a unit that works");
        assert_eq!(send(&driven, 0, message), Err(Reason::InterruptNotPresent));
        assert_eq!(shown(&driven).interrupts, []);
        driven.assert_content("released");
    }
}

#[test]
fn what_names_its_own_vector_is_blocked_and_reported_without_an_index() {
    let driven = start(machine(), Options::default());
    let forged = MsiMessage { address: 0xfee0_0000, data: 0x31 };
    assert_eq!(send(&driven, 0, forged), Err(Reason::CompatibilityBlocked));
    let fault = *shown(&driven).faults.last().expect("a fault");
    assert_eq!((fault.target, fault.reason.code), (FaultTarget::Interrupt(None), 0x25));
    let line = format!("{fault}");
    assert!(line.contains("interrupt in compatibility format blocked (reason 0x25)"), "{line}");
    let wild = MsiMessage { address: 0xfeef_fff0, data: 0 };
    assert_eq!(send(&driven, 0, wild), Err(Reason::InterruptIndexTooLarge));
    let line = format!("{}", shown(&driven).faults.last().expect("a fault"));
    assert!(line.contains("interrupt 0x7fff blocked: interrupt index beyond the table"), "{line}");
    driven.assert_content("attacked");
}

#[test]
fn a_live_interrupt_moves_without_a_stale_or_torn_entry() {
    for eim in [false, true] {
        let mut config = machine();
        (config.units[0].eim, config.units[0].coherent) = (eim, !eim);
        let driven = start(config, Options::default());
        let interrupts = driven.iommu.message_interrupts(source(&driven, 0), 4).expect("entries");
        for round in 0..2_000_u32 {
            let number = (round % 4) as u16;
            let apic = if eim { round * 0x101 } else { round % 0xff };
            let to = Destination { apic, vector: 0x30 + (round % 100) as u8 };
            let message = interrupts.route(number, to).expect("a route");
            for _ in 0..3 {
                assert_eq!(send(&driven, 0, message), Ok((to.vector, apic)), "round {round}");
            }
        }
        let far = interrupts.route(0, Destination { apic: 0x1_0000, vector: 0x31 });
        let refused = InterruptError::Route(RouteError::Destination { apic: 0x1_0000 });
        assert_eq!(far.err(), (!eim).then_some(refused));
        drop(interrupts);
        assert_eq!(shown(&driven).interrupts, []);
        driven.assert_content("moved");
    }
}

#[test]
fn messages_in_a_row_come_out_on_vectors_in_a_row_and_move_apart() {
    let driven = start(machine(), Options::default());
    let _other = driven.iommu.message_interrupts(source(&driven, 1), 1).expect("an entry");
    let interrupts = driven.iommu.message_interrupts(source(&driven, 0), 8).expect("entries");
    // No multiple of 8: remapped, any vector is as good.
    let message = interrupts.route_all(Destination { apic: 1, vector: 0x43 }).expect("a route");
    let raise = |number| send(&driven, 0, MsiMessage { data: message.data | number, ..message });
    for number in 0..8 {
        assert_eq!(raise(number), Ok((0x43 + number as u8, 1)));
    }
    assert_eq!(raise(8), Err(Reason::InterruptNotPresent));
    interrupts.route(5, Destination { apic: 3, vector: 0x99 }).expect("a route");
    assert_eq!(raise(5), Ok((0x99, 3)));
    assert_eq!(raise(4), Ok((0x47, 1)));
    interrupts.release().expect("a unit that works");
    assert!((0..8).all(|number| raise(number) == Err(Reason::InterruptNotPresent)));
    driven.assert_content("released");
}

#[test]
fn a_row_of_entries_changes_hands_only_when_the_unit_has_forgotten_it() {
    const COUNT: u16 = 32;
    let driven = start(machine(), Options::default());
    let row = |index, vector| {
        let interrupts = driven.iommu.message_interrupts(source(&driven, index), COUNT).expect("entries");
        let message = interrupts.route_all(Destination { apic: 1, vector }).expect("a route");
        (interrupts, message)
    };
    let raise = |index, message: MsiMessage, number| {
        send(&driven, index, MsiMessage { data: message.data | u32::from(number), ..message })
    };
    let (first, message) = row(0, 0x40);
    let entry = first.first_entry();
    // Each arrives on a vector of its own, and is cached by the unit from then on.
    (0..COUNT).for_each(|number| assert_eq!(raise(0, message, number), Ok((0x40 + number as u8, 1))));
    first.release().expect("a unit that works");
    let (second, again) = row(1, 0x80);
    assert_eq!((second.first_entry(), again), (entry, message), "the row is free again");
    for number in 0..COUNT {
        assert_eq!(raise(0, message, number), Err(Reason::InterruptSourceRefused));
        assert_eq!(raise(1, again, number), Ok((0x80 + number as u8, 1)));
    }
    driven.assert_content("a row that changed hands");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for options in [Options::default(), Options { interrupt_remapping: false, ..Options::default() }] {
        let driven = start(machine(), options);
        let ask = |count| driven.iommu.message_interrupts(source(&driven, 0), count);
        for count in [0, 3, MAX_MESSAGES + 1, 2 * MAX_MESSAGES] {
            assert_eq!(ask(count).err(), Some(InterruptError::BadCount { count }));
        }
        let two = ask(2).expect("entries");
        assert_eq!(two.route(2, HERE), Err(InterruptError::NoSuchNumber { number: 2 }));
        let last = Destination { apic: 0, vector: 0xff };
        assert_eq!(two.route_all(last), Err(InterruptError::TooManyVectors { first: 0xff, count: 2 }));
        let nowhere = MessageSource::Function(PciAddress::from_devfn(9, 9, 9));
        let unknown = driven.iommu.message_interrupts(nowhere, 1).err();
        assert_eq!(unknown, Some(InterruptError::Unknown(nowhere)));
        driven.assert_content("refused");
    }
}

#[test]
fn a_wire_is_raised_by_its_io_apic_alone() {
    let driven = start(machine(), Options::default());
    let wire = driven.iommu.wired_interrupt(IO_APIC.id).expect("an entry");
    let mode = WireMode { active_low: true, level_triggered: true };
    let entry = wire.route(mode, Destination { apic: 4, vector: 0x55 }).expect("a route");
    // An end of interrupt is matched against the redirection entry's vector.
    assert_eq!(entry.low, 1 << 15 | 1 << 13 | 0x55);
    // Bits 63:48 of a redirection entry are address bits 19:4 of its message.
    let message = MsiMessage { address: 0xfee0_0000 | u64::from(entry.high >> 16) << 4, data: 0 };
    assert_eq!(arrival(driven.machine.ioapic_interrupt(0, message)), Ok((0x55, 4)));
    assert_eq!(send(&driven, 0, message), Err(Reason::InterruptSourceRefused));
    let entries = shown(&driven).interrupts;
    let id = SourceId { segment: 0, requester: IO_APIC.source };
    assert_eq!(entries.iter().map(|entry| entry.sender).collect::<Vec<_>>(), [Some(Sender::Function(id))]);
    assert!(entries[0].level_triggered);
    let moved = wire.route(mode, Destination { apic: 5, vector: 0x55 }).expect("a route");
    assert_eq!(moved, entry, "the entry names no CPU");
    assert_eq!(arrival(driven.machine.ioapic_interrupt(0, message)), Ok((0x55, 5)));
    drop(wire);
    assert_eq!(arrival(driven.machine.ioapic_interrupt(0, message)), Err(Reason::InterruptNotPresent));
    assert_eq!(driven.iommu.wired_interrupt(9).err(), Some(InterruptError::UnknownIoApic { id: 9 }));
    driven.assert_content("released");
}

#[test]
fn a_timer_is_raised_by_its_hpet_alone_whatever_function_it_sends_under() {
    const HPET: HpetConfig = HpetConfig { id: 0, unit: 0, source: 0xfe00 };
    let driven = start(MachineConfig { hpets: vec![HPET], ..machine() }, Options::default());
    let timer = driven.iommu.message_interrupts(MessageSource::Hpet { id: HPET.id }, 1).expect("an entry");
    let message = timer.route(0, HERE).expect("a route");
    for function in [0, 3, 7] {
        assert_eq!(arrival(driven.machine.hpet_interrupt(0, function, message)), Ok((0x31, 0)));
    }
    assert_eq!(send(&driven, 0, message), Err(Reason::InterruptSourceRefused));
    let io_apic = driven.machine.ioapic_interrupt(0, message);
    assert_eq!(arrival(io_apic), Err(Reason::InterruptSourceRefused));
    let unknown = MessageSource::Hpet { id: 1 };
    let refused = driven.iommu.message_interrupts(unknown, 1).map(drop);
    assert!(matches!(refused, Err(InterruptError::Unknown(source)) if source == unknown), "{refused:?}");
    driven.assert_content("a timer");
}

#[test]
fn behind_a_bridge_its_buses_are_checked() {
    let mut config = machine();
    let bridge = PciAddress::from_devfn(0, 0, 6 << 3);
    let kind = FunctionKind::PciBridge { secondary: 3, subordinate: 3 };
    config.functions.push(FunctionConfig { kind, ..FunctionConfig::endpoint(bridge, 0) });
    for devfn in [0x08, 0x10] {
        let address = PciAddress::from_devfn(0, 3, devfn);
        let kind = FunctionKind::Conventional;
        // The bridge puts its own id in.
        config.functions.push(FunctionConfig {
            kind,
            requester: 0x300,
            ..FunctionConfig::endpoint(address, 0)
        });
    }
    let driven = start(config, Options::default());
    let interrupts = driven.iommu.message_interrupts(source(&driven, 3), 1).expect("an entry");
    let message = interrupts.route(0, HERE).expect("a route");
    assert_eq!(send(&driven, 3, message), Ok((0x31, 0)));
    // The hardware cannot tell them apart, which is why they are one group.
    assert_eq!(send(&driven, 4, message), Ok((0x31, 0)));
    for outside in [0, 1, 2] {
        assert_eq!(send(&driven, outside, message), Err(Reason::InterruptSourceRefused));
    }
    let sender = shown(&driven).interrupts[0].sender;
    assert_eq!(sender, Some(Sender::Buses { first: 3, last: 3 }));
    driven.assert_content("attacked");
}

#[test]
fn entries_of_a_unit_that_does_not_answer_are_lost_and_the_rest_goes_on() {
    let driven = start(machine(), Options::default());
    let interrupts = driven.iommu.message_interrupts(source(&driven, 0), 1).expect("an entry");
    let (_, index) = interrupts.first_entry().expect("remapped");
    let message = interrupts.route(0, HERE).expect("a route");
    assert_eq!(send(&driven, 0, message), Ok((0x31, 0)), "the unit caches the entry");
    driven.machine.misbehave(0, |unit| unit.queue_stalled = true);
    let moved = interrupts.route(0, Destination { apic: 1, vector: 0x32 }).expect_err("no answer");
    assert!(moved.leaves_old_route(), "{moved}");
    let lost = interrupts.release().expect_err("no answer");
    assert!(lost.leaves_old_route(), "{lost}");
    driven.machine.misbehave(0, |unit| unit.queue_stalled = false);
    while let Ok(other) = driven.iommu.message_interrupts(source(&driven, 1), 1) {
        assert_ne!(other.first_entry(), Some((0, index)));
        core::mem::forget(other);
    }
    driven.pump();
}

/// Whether unit 0 has remapping on, and what interrupts look like then.
fn compatible(driven: &Driven) -> bool {
    let interrupts = driven.iommu.message_interrupts(source(driven, 0), 4).expect("interrupts");
    let to = Destination { apic: 7, vector: 0x44 };
    let message = interrupts.route_all(to).expect("a route");
    for number in 0..4 {
        let raised = send(driven, 0, MsiMessage { data: message.data | number, ..message });
        assert_eq!(raised, Ok((0x44 + number as u8, 7)));
    }
    assert_eq!(send(driven, 0, interrupts.route(1, HERE).expect("a route")), Ok((0x31, 0)));
    let on = driven.units()[0].remaps_interrupts();
    assert_eq!(interrupts.first_entry().is_some(), on);
    if !on {
        let unaligned = Destination { vector: 0x42, ..to };
        let refused = InterruptError::Unaligned { first: 0x42, count: 4 };
        assert_eq!(interrupts.route_all(unaligned), Err(refused));
        for apic in [0xff, 0x100] {
            let far = Destination { apic, ..to };
            assert_eq!(interrupts.route(0, far), Err(InterruptError::FarCpu { apic }));
        }
        let wire = driven.iommu.wired_interrupt(IO_APIC.id).expect("a wire");
        let mode = WireMode { active_low: false, level_triggered: true };
        let entry = wire.route(mode, to).expect("a route");
        assert_eq!((entry.low, entry.high), (1 << 15 | 0x44, 7 << 24));
    }
    driven.assert_content("raised");
    !on
}

#[test]
fn remapping_is_on_unless_something_stands_against_it_and_interrupts_work_either_way() {
    assert!(!compatible(&start(machine(), Options::default())));
    let unwanted = Options { interrupt_remapping: false, ..Options::default() };
    assert!(compatible(&start(machine(), unwanted)));
    let no_queue = Options { queued_invalidation: false, ..Options::default() };
    assert!(compatible(&start(machine(), no_queue)));
    let mut silent = machine();
    silent.dmar_flags = 0;
    assert!(compatible(&start(silent, Options::default())));
    let mut unable = machine();
    unable.units[0].interrupt_remapping = false;
    assert!(compatible(&start(unable, Options::default())));
}

#[test]
fn an_io_apic_in_no_scope_leaves_remapping_off() {
    let mut config = machine();
    config.ioapics.clear();
    let driven = start(config.clone(), Options::default());
    assert!(driven.units()[0].remaps_interrupts());
    let driven = Driven::start_with_io_apics(config, &[IO_APIC.id]).expect("units that work");
    assert!(!driven.units()[0].remaps_interrupts());
}

#[test]
fn long_destinations_only_if_all_units_have_them_and_firmware_agrees() {
    let all_but = |unable: Option<usize>, flags: u8| {
        let mut config = machine();
        config.units.push(UnitConfig::plain(0xfeda_0000));
        let other = FunctionConfig::endpoint(PciAddress::from_devfn(0, 0, 0x80), 1);
        config.functions.push(other);
        config.dmar_flags = flags;
        config.units.iter_mut().enumerate().for_each(|(index, unit)| unit.eim = unable != Some(index));
        let driven = start(config, Options::default());
        let far = Destination { apic: 0x100, vector: 0x31 };
        let reach = |index| {
            let interrupts = driven.iommu.message_interrupts(source(&driven, index), 1).expect("an entry");
            interrupts.route(0, far).is_ok()
        };
        [reach(0), reach(2)]
    };
    assert_eq!(all_but(None, 1), [true, true]);
    assert_eq!(all_but(Some(0), 1), [false, false]);
    assert_eq!(all_but(Some(1), 1), [false, false]);
    assert_eq!(all_but(None, 0b11), [false, false], "X2APIC_OPT_OUT");
}

#[test]
fn in_quarantine_nothing_is_routed_that_was_not_before_and_nothing_new_is_given_out() {
    let driven = start(machine(), Options::default());
    let function = driven.function(0);
    let interrupts = driven.iommu.message_interrupts(source(&driven, 0), 2).expect("entries");
    let (_, first) = interrupts.first_entry().expect("remapped");
    driven.iommu.quarantine(function).expect("a unit that works");
    // A device that ignores that it is no bus master.
    driven.enable(function);
    for number in 0..2 {
        let muted = InterruptError::Route(RouteError::Muted { index: first + number });
        assert_eq!(interrupts.route(number, HERE), Err(muted));
    }
    let fresh = driven.iommu.message_interrupts(source(&driven, 0), 1).map(drop);
    assert_eq!(fresh, Err(InterruptError::Quarantined { function }));
    assert_eq!(shown(&driven).interrupts.len(), 0);
    let others = driven.iommu.message_interrupts(source(&driven, 1), 1).expect("an entry");
    let other = others.route(0, HERE).expect("a route");
    assert_eq!(send(&driven, 1, other), Ok((0x31, 0)), "others go on");
    driven.iommu.release(function, &mut |_| true).expect("a quiet device");
    driven.enable(function);
    assert!(interrupts.route(0, HERE).is_err(), "what was taken from its owner stays so");
    let again = driven.iommu.message_interrupts(source(&driven, 0), 2).expect("entries");
    assert_eq!(send(&driven, 0, again.route(0, HERE).expect("a route")), Ok((0x31, 0)));
    driven.assert_content("released");
}

#[test]
fn a_group_in_quarantine_raises_nothing_whatever_its_driver_and_its_device_do() {
    let driven = start(machine(), Options::default());
    let interrupts = driven.iommu.message_interrupts(source(&driven, 0), 2).expect("entries");
    let others = driven.iommu.message_interrupts(source(&driven, 1), 1).expect("an entry");
    let messages = [0, 1].map(|number| interrupts.route(number, HERE).expect("a route"));
    let other = others.route(0, HERE).expect("a route");
    assert!(messages.iter().all(|&message| send(&driven, 0, message) == Ok((0x31, 0))));
    driven.iommu.quarantine(driven.function(0)).expect("a unit that works");
    // A device that ignores that it is no bus master.
    driven.enable(driven.function(0));
    for (number, message) in messages.into_iter().enumerate() {
        assert_eq!(send(&driven, 0, message), Err(Reason::InterruptNotPresent));
        let (_, first) = interrupts.first_entry().expect("remapped");
        let muted = InterruptError::Route(RouteError::Muted { index: first + number as u16 });
        assert_eq!(interrupts.route(number as u16, HERE), Err(muted));
        assert_eq!(send(&driven, 0, message), Err(Reason::InterruptNotPresent));
    }
    assert_eq!(send(&driven, 1, other), Ok((0x31, 0)), "others go on");
    interrupts.release().expect("a unit that works");
    driven.iommu.release(driven.function(0), &mut |_| true).expect("a quiet device");
    driven.enable(driven.function(0));
    let again = driven.iommu.message_interrupts(source(&driven, 0), 2).expect("entries");
    let message = again.route(0, HERE).expect("a route");
    assert_eq!(message, messages[0], "the entries are free again");
    assert_eq!(send(&driven, 0, message), Ok((0x31, 0)));
    driven.assert_content("released");
}
