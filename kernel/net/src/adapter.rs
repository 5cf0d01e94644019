//! A network device as `smoltcp` sees one.

use alloc::{boxed::Box, vec::Vec};

use drivers::net::{self, HEADER_BYTES, NetDevice};
use smoltcp::{
    phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken},
    time::Instant,
};

/// A device, and a frame in each direction on its way between a pool's buffer and `smoltcp`, which wants a slice.
pub struct Adapter {
    pub device: Box<dyn NetDevice>,
    received: Vec<u8>,
    sent: Vec<u8>,
    computes: bool,
    frame_bytes: usize,
}

impl Adapter {
    /// `None` without memory for two frames.
    pub fn new(device: Box<dyn NetDevice>) -> Option<Self> {
        let info = device.info();
        let (mut received, mut sent) = (Vec::new(), Vec::new());
        for frame in [&mut received, &mut sent] {
            frame.try_reserve_exact(info.frame_bytes).ok()?;
            frame.resize(info.frame_bytes, 0);
        }
        let (computes, frame_bytes) = (info.transmit_checksum, info.frame_bytes);
        Some(Self { device, received, sent, computes, frame_bytes })
    }
}

impl Device for Adapter {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Free<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received<'_>, Free<'_>)> {
        // What arrives may want an answer.
        if self.device.room() == 0 {
            return None;
        }
        let bytes = self.device.receive(&mut self.received)?;
        let received = Received(self.received.get(..bytes)?);
        Some((received, Free { device: &mut *self.device, frame: &mut self.sent, computes: self.computes }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Free<'_>> {
        let free = Free { device: &mut *self.device, frame: &mut self.sent, computes: self.computes };
        (free.device.room() > 0).then_some(free)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = self.frame_bytes;
        if self.computes {
            // What arrives is summed here in any case: that a device calls a frame undamaged counts for nothing.
            capabilities.checksum.tcp = Checksum::Rx;
            capabilities.checksum.udp = Checksum::Rx;
        }
        capabilities
    }
}

/// A frame that has arrived.
pub struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, use_frame: F) -> R {
        use_frame(self.0)
    }
}

/// Room for a frame.
pub struct Free<'a> {
    device: &'a mut dyn NetDevice,
    frame: &'a mut [u8],
    computes: bool,
}

impl TxToken for Free<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, bytes: usize, fill: F) -> R {
        // `smoltcp` keeps to the limit that it was told.
        let frame = &mut self.frame[..bytes];
        let result = fill(frame);
        let checksum = if self.computes { leave_checksum(frame) } else { None };
        // There was room; a device that has been given up meanwhile loses the frame, like any cable.
        if let Err(error) = self.device.transmit(frame, checksum) {
            log::debug!("frame lost: {error}");
        }
        result
    }
}

/// Prepares a TCP or UDP packet whose checksum the device completes: its field gets the sum of the pseudo-header.
fn leave_checksum(frame: &mut [u8]) -> Option<net::Checksum> {
    const IPV4: [u8; 2] = [0x08, 0x00];
    if frame.get(12..HEADER_BYTES)? != IPV4 {
        return None;
    }
    let packet = frame.get_mut(HEADER_BYTES..)?;
    let header_bytes = usize::from(packet.first()? & 0xf) * 4;
    let total_bytes = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let protocol = *packet.get(9)?;
    let offset = match protocol {
        6 => 16,
        17 => 6,
        _ => return None,
    };
    let segment_bytes = u32::try_from(total_bytes.checked_sub(header_bytes)?).ok()?;
    let mut sum = u32::from(protocol) + segment_bytes;
    for word in packet.get(12..20)?.chunks_exact(2) {
        sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
    }
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let field = packet.get_mut(header_bytes + offset..header_bytes + offset + 2)?;
    field.copy_from_slice(&(sum as u16).to_be_bytes());
    let start = u8::try_from(HEADER_BYTES + header_bytes).ok()?;
    Some(net::Checksum { start, offset: offset as u8 })
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    /// A UDP datagram from 10.0.2.15:68 to 10.0.2.2:67 with the three bytes `abc`, without its checksum.
    fn datagram() -> Vec<u8> {
        let mut frame = std::vec![0; 12];
        frame.extend([0x08, 0x00, 0x45, 0, 0, 31, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
        frame.extend([0, 68, 0, 67, 0, 11, 0, 0, b'a', b'b', b'c']);
        frame
    }

    fn fold(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum >> 16) + (sum & 0xffff);
        }
        sum as u16
    }

    #[test]
    fn what_the_device_completes_is_a_valid_checksum() {
        let mut frame = datagram();
        let net::Checksum { start, offset } = leave_checksum(&mut frame).unwrap();
        assert_eq!((start, offset), (34, 6));
        // What the device does.
        let sum = !fold(&frame[34..]);
        frame[40..42].copy_from_slice(&sum.to_be_bytes());
        // What the receiver does.
        let pseudo = [&frame[26..34], &[0, 17, 0, 11], &frame[34..]].concat();
        assert_eq!(fold(&pseudo), 0xffff);
    }

    #[test]
    fn other_packets_and_stumps_are_left_alone() {
        for bytes in 0..datagram().len() - 3 {
            let mut frame = datagram();
            frame.truncate(bytes);
            let before = frame.clone();
            assert!(leave_checksum(&mut frame).is_none() || bytes >= 42, "{bytes} bytes");
            assert!(bytes >= 42 || frame == before);
        }
        let mut frame = datagram();
        frame[23] = 1;
        assert_eq!(leave_checksum(&mut frame), None);
        frame[12] = 0x86;
        assert_eq!(leave_checksum(&mut frame), None);
    }
}
