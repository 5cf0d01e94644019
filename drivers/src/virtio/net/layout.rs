//! What a virtio network device reads and writes: its configuration, and the header before each frame.

use crate::{
    mmio::{Mmio, OutsideWindow, ReadOnly, Register},
    net::{Checksum, FRAME_LIMIT_BYTES, HEADER_BYTES, Link, MacAddress},
};

/// Feature bits.
pub mod feature {
    /// The device completes checksums.
    pub const CHECKSUM: u64 = 1 << 0;
    /// The configuration says how long a packet may be.
    pub const MTU: u64 = 1 << 3;
    /// The configuration has the device's address.
    pub const MAC: u64 = 1 << 5;
    /// The configuration says whether there is a link.
    pub const STATUS: u64 = 1 << 16;
}

/// Shortest packet that every IPv4 network carries.
const LEAST_MTU: u16 = 576;

/// The fields of the configuration that the driver reads.
pub struct Configuration {
    mac: [Register<u8, ReadOnly>; 6],
    status: Option<Register<u16, ReadOnly>>,
    mtu: Option<Register<u16, ReadOnly>>,
}

impl Configuration {
    /// The fields that there are with these features.
    pub fn at(window: &Mmio, features: u64) -> Result<Self, OutsideWindow> {
        const LINK_STATUS: usize = 6;
        const MTU: usize = 10;
        let byte = |at| window.register(at);
        let word = |feature, at| {
            let is_there = features & feature != 0;
            is_there.then(|| window.register(at)).transpose()
        };
        Ok(Self {
            mac: [byte(0)?, byte(1)?, byte(2)?, byte(3)?, byte(4)?, byte(5)?],
            status: word(feature::STATUS, LINK_STATUS)?,
            mtu: word(feature::MTU, MTU)?,
        })
    }

    /// The device's address, if one interface can have it.
    pub fn mac(&self) -> Option<MacAddress> {
        let [a, b, c, d, e, f] = &self.mac;
        let mac = MacAddress([a.read(), b.read(), c.read(), d.read(), e.read(), f.read()]);
        mac.is_usable().then_some(mac)
    }

    /// Longest frame that makes sense, whatever the device says.
    pub fn frame_bytes(&self) -> usize {
        let mtu = self.mtu.as_ref().map_or(u16::MAX, Register::read).max(LEAST_MTU);
        (HEADER_BYTES + usize::from(mtu)).min(FRAME_LIMIT_BYTES)
    }

    /// Whether there is a link; a device that does not say has one.
    pub fn link(&self) -> Link {
        const LINK_UP: u16 = 1;
        match &self.status {
            Some(status) if status.read() & LINK_UP == 0 => Link::Down,
            _ => Link::Up,
        }
    }
}

/// Bytes of the header before each frame: `flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers`.
pub const FRAME_HEADER_BYTES: usize = 12;

/// The header of a frame to send.
pub fn frame_header(checksum: Option<Checksum>) -> [u8; FRAME_HEADER_BYTES] {
    const NEEDS_CHECKSUM: u8 = 1;
    let mut header = [0; FRAME_HEADER_BYTES];
    if let Some(Checksum { start, offset }) = checksum {
        header[0] = NEEDS_CHECKSUM;
        header[6..8].copy_from_slice(&u16::from(start).to_le_bytes());
        header[8..10].copy_from_slice(&u16::from(offset).to_le_bytes());
    }
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_says_what_is_to_be_summed() {
        assert_eq!(frame_header(None), [0; 12]);
        let header = frame_header(Some(Checksum { start: 0x22, offset: 16 }));
        assert_eq!(header, [1, 0, 0, 0, 0, 0, 0x22, 0, 16, 0, 0, 0]);
    }
}
