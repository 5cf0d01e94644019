//! The driver against a device in software, behind a remapping unit in software.

use alloc::{boxed::Box, sync::Arc};
use std::vec;

use super::{VirtioNetError, open};
use crate::{
    doubles::{
        Bench,
        frames::{assert_room_wakes_its_owner, frame, receive},
        virtio_net::{self, ADDRESS, Behaviour, CHECKSUM, MAC, MTU, STATUS, VirtioNet, bench},
    },
    net::{
        Checksum, Counters, FRAME_LIMIT_BYTES, Link, MacAddress, NetDevice, NotQuiet, TransmitError,
        engine::{FRUITLESS_RESETS, TRANSMIT_DEADLINE_NS, WATCH_INTERVAL_NS},
    },
    virtio::TransportError,
};

/// Buffers that the device can have: the double's queues.
const DEPTH: usize = 64;

fn opened() -> (Bench, Arc<VirtioNet>, Box<dyn NetDevice>) {
    let (bench, device) = bench();
    let net = open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    (bench, device, net)
}

/// Frames pass in both directions.
fn assert_works(device: &VirtioNet, net: &mut dyn NetDevice) {
    device.set(|state| (state.behaviour, state.restless) = (Behaviour::Honest, false));
    assert!(device.arrive(&frame(7)));
    net.transmit(&frame(9), None).unwrap();
    net.flush();
    net.service();
    assert_eq!(receive(net).as_deref(), Some(&frame(7)[..]));
    assert_eq!(device.set(|state| state.sent.pop()).unwrap()[12..], frame(9)[..]);
}

#[test]
fn frames_pass_in_both_directions_and_wrap_around_the_rings() {
    let (_bench, device, mut net) = opened();
    let event = net.event();
    for number in 0..1000 {
        assert!(device.arrive(&frame(number)), "frame {number} finds a buffer");
        assert!(event.wait(0), "frame {number} raises the event");
        net.transmit(&frame(number + 1), None).unwrap();
        net.flush();
        net.service();
        assert_eq!(receive(&mut *net).as_deref(), Some(&frame(number)[..]));
        assert_eq!(receive(&mut *net), None);
        assert!(!net.rearm());
    }
    device.set(|state| {
        for (number, sent) in (1..).zip(&state.sent) {
            assert_eq!((&sent[..12], &sent[12..]), (&[0; 12][..], &frame(number)[..]));
        }
    });
    let Counters { received, sent, resets, .. } = net.counters();
    assert_eq!((received, sent, resets), (1000, 1000, 0));
}

#[test]
fn the_device_says_what_it_is_like() {
    let (bench, device) = bench();
    device.set(|state| (state.offered, state.mtu, state.link) = (state.offered | MTU, 1000, 0));
    let net = open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    let info = net.info();
    assert_eq!((info.mac, info.frame_bytes, info.transmit_checksum), (MacAddress(ADDRESS), 1014, true));
    assert_eq!((info.transmit_depth, info.receive_depth, net.link()), (DEPTH, DEPTH, Link::Down));
}

#[test]
fn nonsense_in_the_configuration_is_refused_or_bounded() {
    for mac in [[0; 6], [1, 0, 0, 0, 0, 0], [0xff; 6]] {
        let (bench, device) = bench();
        device.set(|state| state.mac = mac);
        assert_eq!(
            open(&bench.as_host(), bench.dma.clone(), &bench.function()).err(),
            Some(VirtioNetError::NoMac)
        );
        assert!(!bench.host.is_bus_master());
    }
    let (bench, device) = bench();
    device.set(|state| state.offered &= !MAC);
    assert_eq!(
        open(&bench.as_host(), bench.dma.clone(), &bench.function()).err(),
        Some(VirtioNetError::NoMac)
    );
    for (mtu, expected) in [(0, 590), (0xffff, FRAME_LIMIT_BYTES)] {
        let (bench, device) = virtio_net::bench();
        device.set(|state| (state.offered, state.mtu) = (state.offered | MTU, mtu));
        let net = open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
        assert_eq!(net.info().frame_bytes, expected);
    }
}

#[test]
fn a_device_that_goes_around_the_iommu_is_refused() {
    let (bench, device) = bench();
    device.set(|state| state.offered &= !(1 << 33));
    let refused = VirtioNetError::Transport(TransportError::BypassesIommu);
    assert_eq!(open(&bench.as_host(), bench.dma.clone(), &bench.function()).err(), Some(refused));
    assert!(!bench.host.is_bus_master());
}

#[test]
fn a_checksum_is_left_to_a_device_that_can() {
    let (_bench, device, mut net) = opened();
    let checksum = Checksum { start: 34, offset: 16 };
    net.transmit(&frame(1), Some(checksum)).unwrap();
    net.flush();
    assert_eq!(device.set(|state| state.sent.pop()).unwrap()[..12], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
    let outside = Checksum { start: 60, offset: 0 };
    assert_eq!(net.transmit(&frame(1), Some(outside)), Err(TransmitError::BadChecksum));
    let far = Checksum { start: u8::MAX, offset: u8::MAX };
    assert_eq!(net.transmit(&frame(1), Some(far)), Err(TransmitError::BadChecksum));
    let (bench, device) = bench();
    device.set(|state| state.offered &= !CHECKSUM);
    let mut net = open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap();
    assert_eq!(net.transmit(&frame(1), Some(checksum)), Err(TransmitError::BadChecksum));
}

#[test]
fn what_does_not_fit_is_refused_and_room_comes_back() {
    let (_bench, device, mut net) = opened();
    for bytes in [0, 13, FRAME_LIMIT_BYTES + 1] {
        assert_eq!(net.transmit(&vec![0; bytes], None), Err(TransmitError::BadLength { bytes }));
    }
    for number in 0..DEPTH {
        assert_eq!(net.room(), DEPTH - number);
        net.transmit(&frame(number), None).unwrap();
    }
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Full));
    net.flush();
    net.service();
    assert_eq!((net.room(), net.counters().sent), (DEPTH, DEPTH as u64));
    assert_eq!(device.set(|state| state.sent.len()), DEPTH);
}

#[test]
fn without_an_owner_that_reads_frames_the_device_runs_out_of_buffers() {
    let (bench, device, mut net) = opened();
    let live = bench.iommu.live_mappings();
    let mut arrived = 0;
    for _ in 0..4 * DEPTH {
        arrived += usize::from(device.arrive(&frame(arrived)));
        net.service();
    }
    assert_eq!(arrived, 2 * DEPTH, "all that there are buffers for");
    for number in 0..arrived {
        let next = receive(&mut *net).or_else(|| {
            net.service();
            receive(&mut *net)
        });
        assert_eq!(next.as_deref(), Some(&frame(number)[..]));
    }
    net.rearm();
    assert_works(&device, &mut *net);
    assert_eq!(bench.iommu.live_mappings(), live, "nothing is mapped for a frame");
}

#[test]
fn an_owner_without_room_is_woken_by_room_and_not_by_frames() {
    let (_bench, device, mut net) = opened();
    for number in 0..DEPTH {
        net.transmit(&frame(number), None).unwrap();
    }
    assert_room_wakes_its_owner(&mut *net, DEPTH, |frame| device.arrive(frame));
}

#[test]
fn a_device_that_lies_in_its_rings_is_reset_and_works_again() {
    let lies = [
        Behaviour::WrongHead(64),
        Behaviour::WrongHead(0xffff_0000),
        Behaviour::Jump(64),
        Behaviour::Jump(0x8000),
        Behaviour::Wrote(12 + FRAME_LIMIT_BYTES as u32 + 1),
        Behaviour::Wrote(u32::MAX),
        Behaviour::Wrote(11),
        Behaviour::Wrote(0),
    ];
    let (bench, device, mut net) = opened();
    let live = bench.iommu.live_mappings();
    for (resets, lie) in (1..).zip(lies) {
        device.set(|state| state.behaviour = lie);
        device.arrive(&frame(3));
        net.service();
        assert_eq!((receive(&mut *net), net.counters().resets), (None, resets), "{lie:?}");
        assert_works(&device, &mut *net);
    }
    assert_eq!(bench.iommu.live_mappings(), live);
}

#[test]
fn a_frame_of_no_length_is_damaged() {
    let (_bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::Wrote(12 + 13));
    device.arrive(&frame(3));
    net.service();
    assert_eq!((receive(&mut *net), net.counters().damaged), (None, 1));
    assert_works(&device, &mut *net);
}

#[test]
fn frames_that_arrive_while_the_device_is_blocked_are_not_believed() {
    let (_bench, device, mut net) = opened();
    assert!(device.arrive(&frame(1)));
    net.service();
    device.set(|state| state.behaviour = Behaviour::Strays);
    device.arrive(&frame(2));
    device.set(|state| state.behaviour = Behaviour::Honest);
    device.arrive(&frame(3));
    net.service();
    // Before the fault, in its company, and in a buffer that the device had when it happened.
    assert_eq!(receive(&mut *net).as_deref(), Some(&frame(1)[..]));
    device.arrive(&frame(4));
    net.service();
    assert_eq!((receive(&mut *net), net.counters().doubtful), (None, 3));
    // Every buffer that it had then comes back and is given out anew.
    for _ in 0..2 * DEPTH {
        device.arrive(&frame(5));
        net.service();
        receive(&mut *net);
        net.rearm();
    }
    assert_works(&device, &mut *net);
}

#[test]
fn a_silent_device_is_reset_and_what_it_had_is_lost() {
    let (bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::Silent);
    for number in 0..3 {
        net.transmit(&frame(number), None).unwrap();
    }
    net.flush();
    net.service();
    bench.host.advance(TRANSMIT_DEADLINE_NS);
    net.service();
    assert_eq!(net.counters().resets, 0, "the time is not over");
    bench.host.advance(WATCH_INTERVAL_NS);
    assert!(net.service_by_ns() <= bench.as_host().now_ns());
    net.service();
    let Counters { resets, lost, .. } = net.counters();
    assert_eq!((resets, lost, net.room()), (1, 3, DEPTH));
    assert_works(&device, &mut *net);
}

#[test]
fn a_device_that_asks_for_a_reset_gets_it() {
    let (_bench, device, mut net) = opened();
    let event = net.event();
    event.wait(0);
    device.set(|state| state.behaviour = Behaviour::AsksForReset);
    net.transmit(&frame(0), None).unwrap();
    net.flush();
    assert!(event.wait(0));
    net.service();
    assert_eq!(net.counters().resets, 1);
    assert_works(&device, &mut *net);
}

#[test]
fn a_device_that_never_works_is_given_up() {
    let (bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::WrongHead(64));
    for _ in 0..=FRUITLESS_RESETS {
        assert!(device.arrive(&frame(0)));
        net.service();
    }
    assert_eq!(net.counters().resets, u64::from(FRUITLESS_RESETS) + 1);
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert_eq!((net.link(), net.room(), net.service_by_ns()), (Link::Down, 0, u64::MAX));
    assert!(!bench.host.is_bus_master());
    drop(net);
    bench.await_live_mappings(0);
}

#[test]
fn a_device_in_quarantine_is_stopped_for_good() {
    let (bench, device, mut net) = opened();
    assert_works(&device, &mut *net);
    net.transmit(&frame(9), None).unwrap();
    let event = net.event();
    while event.wait(0) {}
    bench.iommu.quarantine(bench.dma.function()).unwrap();
    assert!(event.wait(0), "its owner is woken");
    net.service();
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert_eq!((net.link(), net.room(), net.service_by_ns()), (Link::Down, 0, u64::MAX));
    net.reset();
    net.service();
    assert_eq!((net.counters().resets, bench.host.is_bus_master()), (0, false));
    assert_eq!(net.shut_down(), Ok(()));
    bench.iommu.release(bench.dma.function(), |_| true).unwrap();
    bench.await_live_mappings(0);
    let dma = bench.iommu.claim(bench.dma.function()).unwrap();
    assert_works(&device, &mut *open(&bench.as_host(), dma, &bench.function()).unwrap());
}

/// Its owner hears of it at once, and nothing is asked of what may be another driver's.
#[test]
fn a_device_that_is_taken_away_is_let_go_of() {
    let (bench, device, mut net) = opened();
    assert_works(&device, &mut *net);
    let event = net.event();
    while event.wait(0) {}
    bench.iommu.release(bench.dma.function(), |_| true).unwrap();
    assert!(event.wait(0), "its owner is woken");
    let before = bench.writes();
    net.service();
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert_eq!((net.link(), net.shut_down()), (Link::Down, Ok(())));
    assert_eq!(bench.writes(), before);
    bench.await_live_mappings(0);
}

/// One that was being reset when it happened is not started again.
#[test]
fn a_device_in_quarantine_is_not_restarted() {
    let (bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::WrongHead(64));
    bench.iommu.quarantine(bench.dma.function()).unwrap();
    net.reset();
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert!(!bench.host.is_bus_master());
}

/// Nothing is sent without a cable, and nobody is to blame for that.
#[test]
fn a_device_without_a_cable_keeps_what_it_has_and_is_not_given_up() {
    let (bench, device, mut net) = opened();
    device.set(|state| state.behaviour = Behaviour::Silent);
    net.transmit(&frame(0), None).unwrap();
    net.flush();
    device.change_link(0);
    net.service();
    assert_eq!((net.room(), net.transmit(&frame(1), None)), (0, Err(TransmitError::NoLink)));
    for _ in 0..10 {
        bench.host.advance(TRANSMIT_DEADLINE_NS + WATCH_INTERVAL_NS);
        net.service();
    }
    assert_eq!((net.link(), net.counters().resets), (Link::Down, 0));
    device.change_link(1);
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
    for (status, link) in [(0, Link::Down), (1, Link::Up)] {
        device.change_link(status);
        assert!(event.wait(0));
        net.service();
        assert_eq!(net.link(), link);
    }
    let (bench, device) = bench();
    device.set(|state| (state.offered, state.link) = (state.offered & !STATUS, 0));
    assert_eq!(open(&bench.as_host(), bench.dma.clone(), &bench.function()).unwrap().link(), Link::Up);
}

#[test]
fn shutting_down_gives_everything_back() {
    let (bench, device, mut net) = opened();
    assert_works(&device, &mut *net);
    net.reset();
    assert_works(&device, &mut *net);
    assert_eq!(net.shut_down(), Ok(()));
    assert!(!bench.host.is_bus_master());
    bench.await_live_mappings(0);
    assert_eq!(bench.host.live_vectors(), 0);
}

#[test]
fn a_device_that_does_not_become_quiet_keeps_its_memory() {
    let (bench, device, mut net) = opened();
    let live = bench.iommu.live_mappings();
    device.set(|state| state.restless = true);
    net.reset();
    assert_eq!(net.transmit(&frame(0), None), Err(TransmitError::Gone));
    assert_eq!(net.shut_down(), Err(NotQuiet));
    assert!(!bench.host.is_bus_master());
    bench.iommu.reap();
    assert_eq!(bench.iommu.live_mappings(), live, "rings and pools stay");
}
