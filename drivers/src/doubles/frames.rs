//! What tests of all network drivers do with frames.

use std::{vec, vec::Vec};

use crate::net::{FRAME_LIMIT_BYTES, NetDevice};

/// A frame that is like no other.
pub fn frame(number: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; 60 + number % 1400];
    frame[..8].copy_from_slice(&(number as u64).to_le_bytes());
    frame
}

/// The next frame that has arrived.
pub fn receive(net: &mut dyn NetDevice) -> Option<Vec<u8>> {
    let mut buffer = vec![0xee; FRAME_LIMIT_BYTES];
    let bytes = net.receive(&mut buffer)?;
    buffer.truncate(bytes);
    Some(buffer)
}

/// The owner of `net` has no room, and takes no frame that it might have to answer: room wakes it, and frames do not.
/// More arrive, by `arrive`, than `net` has buffers for `depth` frames in its ring, and as many that it keeps.
pub fn assert_room_wakes_its_owner(net: &mut dyn NetDevice, depth: usize, arrive: impl Fn(&[u8]) -> bool) {
    let event = net.event();
    assert!(!net.rearm());
    for number in 0..2 * depth {
        assert!(arrive(&frame(number)));
        net.service();
    }
    while event.wait(0) {}
    assert_eq!((net.room(), net.rearm(), event.wait(0)), (0, false, false), "it has nothing to do");
    net.flush();
    assert!(event.wait(0), "there is room");
    net.service();
    assert!(net.room() > 0);
    for number in 0..2 * depth {
        let next = receive(net).or_else(|| {
            assert!(net.rearm(), "there are more");
            net.service();
            receive(net)
        });
        assert_eq!(next.as_deref(), Some(&frame(number)[..]));
    }
    while event.wait(0) {}
    assert!(!net.rearm() && arrive(&frame(0)) && event.wait(0), "and of more it hears again");
}
