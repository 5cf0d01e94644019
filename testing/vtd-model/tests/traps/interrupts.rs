//! The interrupt-remapping table.

use iommu::{
    SourceId,
    interrupts::{IgnoredBits, Sender},
    platform::MsiMessage,
    vtd::{InterruptSetup, Route},
};
use vtd_model::{InterruptOutcome, MachineConfig, Reason};

use crate::{plain, unit::UnitBench};

// SVT and SQ mixed up in the interrupt-remapping entry, or no source check at all.

#[test]
fn an_interrupt_entry_serves_its_sender_and_nobody_else() {
    let mut config = MachineConfig::plain(3);
    for devfn in [0x11, 0x12, 0x14] {
        let address = iommu::PciAddress::from_devfn(0, 0, devfn);
        config.functions.push(vtd_model::FunctionConfig::endpoint(address, 0));
    }
    for (bus, devfn) in [(2, 8), (3, 0)] {
        let address = iommu::PciAddress::from_devfn(0, bus, devfn);
        config.functions.push(vtd_model::FunctionConfig::endpoint(address, 0));
    }
    let bench = UnitBench::new(config);
    let source = SourceId { segment: 0, requester: 0x10 };
    let senders: [(Sender, &[u16]); 5] = [
        (Sender::Function(source), &[0x10]),
        (Sender::Functions { source, ignored: IgnoredBits::Bit2 }, &[0x10, 0x14]),
        (Sender::Functions { source, ignored: IgnoredBits::Bits210 }, &[0x10, 0x11, 0x12, 0x14]),
        (Sender::Buses { first: 2, last: 2 }, &[0x208]),
        (Sender::Buses { first: 2, last: 3 }, &[0x208, 0x300]),
    ];
    for (sender, allowed) in senders {
        let block = bench.unit.allocate_interrupts(&bench.platform, 0, sender).expect("an entry");
        let route = Route { sender, vector: 0x61, apic: 2, level_triggered: false };
        bench.unit.route_interrupt(&bench.platform, &block, 0, &route).expect("a route");
        let message = remappable(block.first());
        for (index, function) in bench.machine.config().functions.iter().enumerate() {
            let outcome = bench.device(index).interrupt(message);
            if allowed.contains(&function.requester) {
                let InterruptOutcome::Delivered(delivered) = outcome else {
                    panic!("{sender:?}: {outcome:?}")
                };
                assert_eq!((delivered.vector, delivered.destination), (0x61, 2));
            } else {
                let refused = InterruptOutcome::Blocked(Reason::InterruptSourceRefused);
                assert_eq!(outcome, refused, "{sender:?} from {:#06x}", function.requester);
            }
        }
        bench.unit.free_interrupts(&bench.platform, block).expect("a unit that works");
        let gone = bench.device(0).interrupt(message);
        assert_eq!(gone, InterruptOutcome::Blocked(Reason::InterruptNotPresent));
    }
    bench.drain();
    bench.assert_content();
}

pub(crate) fn remappable(index: u16) -> MsiMessage {
    let handle = u64::from(index & 0x7fff) << 5 | u64::from(index >> 15) << 2;
    MsiMessage { address: 0xfee0_0010 | handle, data: 0 }
}

#[test]
fn a_moved_interrupt_goes_to_the_new_place_at_once() {
    let bench = UnitBench::new(plain());
    let sender = Sender::Function(bench.source(0));
    let block = bench.unit.allocate_interrupts(&bench.platform, 2, sender).expect("entries");
    for round in 0..200_u8 {
        let (offset, vector, apic) = (u16::from(round % 4), 0x30 + round % 100, u32::from(round));
        let route = Route { sender, vector, apic, level_triggered: false };
        bench.unit.route_interrupt(&bench.platform, &block, offset, &route).expect("a route");
        let outcome = bench.device(0).interrupt(remappable(block.first() + offset));
        let InterruptOutcome::Delivered(delivered) = outcome else { panic!("{outcome:?}") };
        assert_eq!((delivered.vector, delivered.destination), (vector, apic));
    }
    bench.unit.free_interrupts(&bench.platform, block).expect("a unit that works");
    bench.assert_content();
}

// EIME set although EIM is not reported.

#[test]
fn long_destinations_only_where_the_unit_has_them() {
    for eim in [false, true] {
        let mut config = plain();
        config.units[0].eim = eim;
        let setup = InterruptSetup { entries_order: 8, x2apic: true };
        let bench = UnitBench::try_new(config, Some(setup)).expect("a unit that works");
        assert_eq!(bench.unit.interrupts().expect("a table").is_extended(), eim);
        bench.assert_content();
        let sender = Sender::Function(bench.source(0));
        let block = bench.unit.allocate_interrupts(&bench.platform, 0, sender).expect("an entry");
        let far = Route { sender, vector: 0x61, apic: 0x1234, level_triggered: false };
        let routed = bench.unit.route_interrupt(&bench.platform, &block, 0, &far);
        assert_eq!(routed.is_ok(), eim, "{routed:?}");
        let near = Route { apic: 0x12, ..far };
        bench.unit.route_interrupt(&bench.platform, &block, 0, &near).expect("a route");
        let outcome = bench.device(0).interrupt(remappable(block.first()));
        assert!(matches!(outcome, InterruptOutcome::Delivered(d) if d.destination == 0x12), "{outcome:?}");
        bench.assert_content();
    }
}
