//! The driver against a controller in software, behind a remapping unit in software.

use alloc::{boxed::Box, sync::Arc};

use super::{E1000eError, await_quiet, open};
use crate::{
    doubles::{
        Bench,
        e1000e::{ADDRESS, Behaviour, CONTROL, E1000e, bench},
        frames::{assert_room_wakes_its_owner, frame, receive},
    },
    net::{
        Checksum, Counters, FRAME_LIMIT_BYTES, Link, MacAddress, NetDevice, NotQuiet, TransmitError,
        engine::{TRANSMIT_DEADLINE_NS, WATCH_INTERVAL_NS},
    },
};

/// Descriptors that the controller can have.
const DEPTH: usize = 255;

fn opened() -> (Bench, Arc<E1000e>, Box<dyn NetDevice>) {
    let (bench, device) = bench();
    let net = open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    (bench, device, net)
}

/// Frames pass in both directions.
fn assert_works(device: &E1000e, net: &mut dyn NetDevice) {
    device.set(|state| state.behaviour = Behaviour::Honest);
    assert!(device.arrive(&frame(7)));
    net.transmit(&frame(9), None).unwrap();
    net.flush();
    net.service();
    assert_eq!(receive(net).as_deref(), Some(&frame(7)[..]));
    assert_eq!(device.set(|state| state.sent.pop()), Some((frame(9), None)));
}

#[test]
fn frames_pass_in_both_directions_and_wrap_around_the_rings() {
    let (bench, device, mut net) = opened();
    let (event, live) = (net.event(), bench.iommu.live_mappings());
    for number in 0..1000 {
        assert!(device.arrive(&frame(number)), "frame {number} finds a buffer");
        assert!(event.wait(0), "frame {number} raises the event");
        let checksum = (number % 3 == 0).then_some(Checksum { start: 34, offset: 16 });
        net.transmit(&frame(number + 1), checksum).unwrap();
        net.flush();
        net.service();
        assert_eq!(receive(&mut *net).as_deref(), Some(&frame(number)[..]));
        assert!(!net.rearm());
    }
    device.set(|state| {
        for (number, (sent, checksum)) in (0..).zip(&state.sent) {
            assert_eq!((sent, *checksum), (&frame(number + 1), (number % 3 == 0).then_some((34, 50))));
        }
    });
    let Counters { received, sent, resets, .. } = net.counters();
    assert_eq!((received, sent, resets), (1000, 1000, 0));
    assert_eq!(bench.iommu.live_mappings(), live, "nothing is mapped for a frame");
}

#[test]
fn the_controller_says_who_it_is_unless_it_makes_no_sense() {
    let (_bench, _device, net) = opened();
    assert_eq!((net.info().mac, net.info().receive_depth), (MacAddress(ADDRESS), DEPTH));
    for mac in [[0; 6], [0xff; 6]] {
        let (bench, device) = bench();
        device.set(|state| state.mac = mac);
        assert_eq!(
            open(&bench.as_host(), bench.dma.clone(), &bench.function()).err(),
            Some(E1000eError::NoMac)
        );
        assert!(!bench.host.is_bus_master());
    }
}

#[test]
fn interrupts_come_once_until_they_are_asked_for_again() {
    let (_bench, device, mut net) = opened();
    let event = net.event();
    assert!(device.arrive(&frame(1)) && event.wait(0));
    assert!(device.arrive(&frame(2)) && !event.wait(0));
    // It is raised at once for what has come meanwhile.
    assert!(net.rearm() && event.wait(0));
}

#[test]
fn a_full_ring_refuses_and_its_room_comes_back_with_an_event() {
    let (_bench, device, mut net) = opened();
    let room = net.room();
    for number in 0..2 * room {
        // The checksum changes every time, so that each frame takes two descriptors.
        let checksum = Checksum { start: 34, offset: (number % 2) as u8 };
        if net.transmit(&frame(0), Some(checksum)) == Err(TransmitError::Full) {
            assert_eq!((number, net.room()), (room, 0));
            break;
        }
    }
    let event = net.event();
    net.rearm();
    event.wait(0);
    net.flush();
    assert!(event.wait(0));
    net.service();
    assert_eq!((net.room(), net.counters().sent), (room, room as u64));
    assert_eq!(device.set(|state| state.sent.len()), room);
}

#[test]
fn an_owner_without_room_is_woken_by_room_and_not_by_frames() {
    let (_bench, device, mut net) = opened();
    while net.room() > 0 {
        let checksum = Checksum { start: 34, offset: (net.room() % 2) as u8 };
        net.transmit(&frame(0), Some(checksum)).unwrap();
    }
    assert_room_wakes_its_owner(&mut *net, DEPTH, |frame| device.arrive(frame));
}

#[test]
fn a_controller_that_lies_about_a_length_is_reset_and_works_again() {
    let (_bench, device, mut net) = opened();
    for (resets, bytes) in (1..).zip([2049, u16::MAX]) {
        device.set(|state| state.behaviour = Behaviour::Wrote(bytes));
        device.arrive(&frame(3));
        net.service();
        assert_eq!((receive(&mut *net), net.counters().resets), (None, resets));
        assert_works(&device, &mut *net);
    }
}

#[test]
fn what_is_no_whole_good_frame_is_dropped_and_counted() {
    let (_bench, device, mut net) = opened();
    // Too short, too long, a bad checksum, a bad check sequence; a frame in two pieces, both of which go.
    let bad = [
        Behaviour::Wrote(13),
        Behaviour::Wrote(FRAME_LIMIT_BYTES as u16 + 1),
        Behaviour::Says(3 | 1 << 13),
        Behaviour::Says(3 | 1 << 8),
        Behaviour::Says(1),
        Behaviour::Honest,
    ];
    for (damaged, behaviour) in (1..).zip(bad) {
        device.set(|state| state.behaviour = behaviour);
        device.arrive(&frame(3));
        net.service();
        assert_eq!((receive(&mut *net), net.counters().damaged), (None, damaged), "{behaviour:?}");
    }
    assert_works(&device, &mut *net);
    assert_eq!(net.counters().resets, 0);
}

#[test]
fn frames_that_arrive_while_the_controller_is_blocked_are_not_believed() {
    let (_bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::Strays);
    device.arrive(&frame(2));
    net.service();
    assert_eq!((receive(&mut *net), net.counters().doubtful), (None, 1));
}

#[test]
fn a_silent_controller_is_reset_and_what_it_had_is_lost() {
    let (bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::Silent);
    net.transmit(&frame(0), Some(Checksum { start: 34, offset: 16 })).unwrap();
    net.transmit(&frame(1), None).unwrap();
    net.flush();
    bench.host.advance(TRANSMIT_DEADLINE_NS + WATCH_INTERVAL_NS);
    net.service();
    let Counters { resets, lost, .. } = net.counters();
    assert_eq!((resets, lost), (1, 2));
    device.set(|state| state.sent.clear());
    assert_works(&device, &mut *net);
}

/// Nothing is sent without a cable, and nobody is to blame for that.
#[test]
fn a_controller_without_a_cable_keeps_what_it_has_and_is_not_given_up() {
    let (bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::Silent);
    net.transmit(&frame(0), None).unwrap();
    net.flush();
    device.change_link(false);
    net.service();
    assert_eq!((net.room(), net.transmit(&frame(1), None)), (0, Err(TransmitError::NoLink)));
    for _ in 0..10 {
        bench.host.advance(TRANSMIT_DEADLINE_NS + WATCH_INTERVAL_NS);
        net.service();
    }
    assert_eq!((net.link(), net.counters().resets), (Link::Down, 0));
    device.change_link(true);
    net.service();
    bench.host.advance(TRANSMIT_DEADLINE_NS);
    net.service();
    assert!(net.room() > 0);
    assert_eq!(net.counters().resets, 0, "its time is counted anew");
    bench.host.advance(WATCH_INTERVAL_NS);
    net.service();
    assert_eq!(net.counters().resets, 1);
    device.set(|state| state.sent.clear());
    assert_works(&device, &mut *net);
}

#[test]
fn the_link_comes_and_goes() {
    let (_bench, device, mut net) = opened();
    let event = net.event();
    event.wait(0);
    for (is_up, link) in [(false, Link::Down), (true, Link::Up)] {
        device.change_link(is_up);
        assert!(event.wait(0));
        net.service();
        assert_eq!(net.link(), link);
    }
}

#[test]
fn shutting_down_gives_everything_back() {
    let (bench, device, mut net) = opened();
    net.reset();
    assert_works(&device, &mut *net);
    assert_eq!(net.shut_down(), Ok(()));
    assert!(!bench.host.is_bus_master());
    bench.await_live_mappings(0);
    assert_eq!(bench.host.live_vectors(), 0);
    assert_eq!(await_quiet(&bench.device()), Ok(()));
}

#[test]
fn a_controller_that_was_pulled_out_gives_everything_back() {
    let (bench, device, mut net) = opened();
    net.transmit(&frame(1), None).unwrap();
    device.set(|state| state.is_gone = true);
    let function = bench.dma.function();
    bench.host.space.remove(function);
    bench.iommu.functions_gone(&[function], |_| true).unwrap();
    bench.host.advance(WATCH_INTERVAL_NS);
    let before_ns = bench.as_host().now_ns();
    net.service();
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert_eq!(net.shut_down(), Ok(()));
    assert_eq!(bench.as_host().now_ns(), before_ns, "nothing is waited for");
    bench.await_live_mappings(0);
    assert_eq!(bench.host.live_vectors(), 0);
}

/// Its removal ends while the driver waits for the end of a reset that it will not see.
#[test]
fn a_controller_that_is_pulled_out_in_its_reset_gives_everything_back() {
    let (bench, _device, mut net) = opened();
    net.transmit(&frame(1), None).unwrap();
    bench.pull_out_at_write(CONTROL);
    net.reset();
    assert!(bench.dma.was_taken_back());
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert_eq!(net.shut_down(), Ok(()));
    bench.await_live_mappings(0);
    assert_eq!(bench.host.live_vectors(), 0);
}

#[test]
fn a_controller_that_somebody_else_has_is_left_alone() {
    type End = fn(Box<dyn NetDevice>);
    let ends: [End; 3] = [
        |mut net| net.reset(),
        |net| assert_eq!(net.shut_down(), Ok(())),
        |net| {
            assert_eq!(net.counters().resets, 0);
        },
    ];
    for end in ends {
        let (bench, device, old) = opened();
        bench.iommu.release(bench.dma.function(), |_| true).unwrap();
        let dma = bench.iommu.claim(bench.dma.function()).unwrap();
        let mut net = open(&bench.as_host(), dma, &bench.function()).unwrap();
        end(old);
        assert!(bench.host.is_bus_master());
        let event = net.event();
        while event.wait(0) {}
        net.rearm();
        assert_works(&device, &mut *net);
        assert!(event.wait(0), "its interrupts are still on");
        assert_eq!(net.counters().resets, 0);
    }
}

#[test]
fn a_controller_that_does_not_become_quiet_keeps_its_memory() {
    for change in [(|state| state.restless = true) as fn(&mut crate::doubles::e1000e::State), |state| {
        state.hangs_in_reset = true
    }] {
        let (bench, device, net) = opened();
        let live = bench.iommu.live_mappings();
        device.set(change);
        assert_eq!(net.shut_down(), Err(NotQuiet));
        assert!(!bench.host.is_bus_master());
        assert!(matches!(await_quiet(&bench.device()), Err(E1000eError::NotQuiet { .. })));
        bench.iommu.reap();
        assert_eq!(bench.iommu.live_mappings(), live, "rings and pools stay");
    }
}
