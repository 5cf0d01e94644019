//! A cable whose other end answers with packets that were recorded on QEMU's user network.
//!
//! What differs from one run to the next (transaction ids, ports) is put into them; their UDP checksums are left out,
//! which IPv4 allows. The answers with an address are put together after RFC 1035, with an alias and compressed names.

use alloc::{collections::VecDeque, sync::Arc};
use std::{sync::Mutex, vec, vec::Vec};

use drivers::{
    host::Event,
    net::{
        Checksum, Counters, FRAME_LIMIT_BYTES, Link, MacAddress, NetDevice, NetInfo, NotQuiet, TransmitError,
    },
};
use iommu::DmaDevice;

use smoltcp::wire::Ipv4Address;

use super::host::Flag;

/// A DHCP offer of QEMU's user network, as recorded.
pub const OFFER: &str = "\
    ffffffffffff52550a0002020800451002400000000040116c9c0a000202ffffffff00430044022c8108020106009b4a\
    9f1e00000000000000000a00020f0a000202000000005254001234560000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    00000000000000000000000000000000000000000000000000000000000000000000000000006382536335010236040a\
    0002020104ffffff0003040a00020206040a000203330400015180ff\
    ";

/// Its acknowledgement of the request that followed.
pub const ACK: &str = "\
    ffffffffffff52550a0002020800451002400001000040116c9b0a000202ffffffff00430044022c7e08020106009b4a\
    9f1e00000000000000000a00020f0a000202000000005254001234560000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
    00000000000000000000000000000000000000000000000000000000000000000000000000006382536335010536040a\
    0002020104ffffff0003040a00020206040a000203330400015180ff\
    ";

/// The name server's answer to who has its address.
pub const ARP_REPLY: &str = "\
    52540012345652550a0002030806000108000604000252550a0002030a0002035254001234560a00020f000000000000\
    00000000000000000000000000000000\
    ";

/// What it says of a name that it does not know (`example.org`).
pub const UNKNOWN: &str = "\
    52540012345652550a00020208004500003900030000401162a00a0002030a00020f00354c90002559b3ee2281830001\
    000000000000076578616d706c65036f72670000010001\
    ";

/// Router and name server of the recorded network.
pub const ROUTER: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
pub const NAME_SERVER: Ipv4Address = Ipv4Address::new(10, 0, 2, 3);

/// Where they are in [`OFFER`] and [`ACK`].
const LEASED_AT: [usize; 2] = [299, 305];

/// What a name server makes of a query, if it answers.
pub type NameServer = fn(&[u8]) -> Option<Vec<u8>>;

/// What both ends share.
#[derive(Default)]
struct Wire {
    to_host: VecDeque<Vec<u8>>,
    to_network: VecDeque<Vec<u8>>,
    /// The interface's end takes nothing.
    is_full: bool,
}

/// The interface's end.
pub struct Cable(Arc<Mutex<Wire>>);

/// The network's end.
pub struct CableEnd {
    wire: Arc<Mutex<Wire>>,
    /// What the name server answers; without one it knows no name.
    pub name_server: Option<NameServer>,
    /// Router and name server, as leases say.
    pub leased: [Ipv4Address; 2],
    /// Who was asked for the last name.
    pub asked: Ipv4Address,
    /// Whose hardware address was asked for last.
    pub looked_for: Ipv4Address,
    /// How many questions it was asked.
    pub questions: usize,
    /// All that was delivered.
    pub delivered: Vec<Vec<u8>>,
}

impl Cable {
    pub fn new() -> (Self, CableEnd) {
        let wire = Arc::new(Mutex::new(Wire::default()));
        let end = CableEnd {
            wire: wire.clone(),
            name_server: None,
            leased: [ROUTER, NAME_SERVER],
            asked: Ipv4Address::UNSPECIFIED,
            looked_for: Ipv4Address::UNSPECIFIED,
            questions: 0,
            delivered: vec![],
        };
        (Self(wire), end)
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    hex.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
}

fn address(octets: &[u8]) -> Ipv4Address {
    Ipv4Address::new(octets[0], octets[1], octets[2], octets[3])
}

impl CableEnd {
    /// Answers everything that has come. False if nothing had.
    pub fn answer(&mut self) -> bool {
        let mut any = false;
        loop {
            let Some(frame) = self.wire.lock().unwrap().to_network.pop_front() else { return any };
            any = true;
            if let Some(response) = self.response(&frame) {
                self.deliver(&response);
            }
        }
    }

    pub fn deliver(&mut self, frame: &[u8]) {
        self.delivered.push(frame.to_vec());
        self.wire.lock().unwrap().to_host.push_back(frame.to_vec());
    }

    /// Has the interface's end take nothing more, or take frames again.
    pub fn fill(&mut self, is_full: bool) {
        self.wire.lock().unwrap().is_full = is_full;
    }

    fn response(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        match frame[12..14] {
            // Everybody has the address that was recorded.
            [0x08, 0x06] => {
                self.looked_for = address(&frame[38..42]);
                let mut reply = bytes(ARP_REPLY);
                reply[28..32].copy_from_slice(&frame[38..42]);
                Some(reply)
            }
            [0x08, 0x00] if frame[23] == 17 && port(36) == 67 => {
                const REQUEST: [u8; 3] = [53, 1, 3];
                let is_request = frame[282..].starts_with(&REQUEST);
                let mut reply = bytes(if is_request { ACK } else { OFFER });
                reply.resize(590, 0);
                reply[40..42].fill(0);
                reply[46..50].copy_from_slice(&frame[46..50]);
                for (at, address) in LEASED_AT.into_iter().zip(self.leased) {
                    reply[at..at + 4].copy_from_slice(&address.octets());
                }
                Some(reply)
            }
            [0x08, 0x00] if frame[23] == 17 && port(36) == 53 => {
                self.questions += 1;
                self.asked = address(&frame[30..34]);
                let message = (self.name_server?)(&frame[42..])?;
                Some(datagram(self.asked, &frame[34..36], &message))
            }
            _ => None,
        }
    }
}

/// A datagram of the name server's, which is at `from`, with the headers that were recorded.
fn datagram(from: Ipv4Address, to_port: &[u8], message: &[u8]) -> Vec<u8> {
    let mut frame = bytes(UNKNOWN);
    frame.truncate(42);
    frame[26..30].copy_from_slice(&from.octets());
    frame.extend_from_slice(message);
    let total = (frame.len() - 14) as u16;
    frame[16..18].copy_from_slice(&total.to_be_bytes());
    frame[24..26].fill(0);
    let mut sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    sum = (sum >> 16) + (sum & 0xffff);
    frame[24..26].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    frame[36..38].copy_from_slice(to_port);
    frame[38..40].copy_from_slice(&(total - 20).to_be_bytes());
    frame[40..42].fill(0);
    frame
}

/// As recorded, for the question that was asked.
pub fn unknown(query: &[u8]) -> Option<Vec<u8>> {
    let mut message = bytes(UNKNOWN).split_off(42);
    message[..2].copy_from_slice(&query[..2]);
    Some(message)
}

/// The question, and these records.
fn response(query: &[u8], answers: u16, records: &[u8]) -> Vec<u8> {
    let mut message = query.to_vec();
    message[2..4].copy_from_slice(&[0x81, 0x80]);
    message[6..8].copy_from_slice(&answers.to_be_bytes());
    message.extend_from_slice(records);
    message
}

/// An alias of the name that was asked for, `web.example.org`, and its address; `www.example.org` is at 12, its domain
/// at 16.
const ALIAS_AND_ADDRESS: [u8; 34] = [
    0xc0, 12, 0, 5, 0, 1, 0, 0, 14, 16, 0, 6, 3, b'w', b'e', b'b', 0xc0, 16, //
    0xc0, 45, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4, 192, 0, 2, 80,
];

pub fn answer_with_alias(query: &[u8]) -> Option<Vec<u8>> {
    Some(response(query, 2, &ALIAS_AND_ADDRESS))
}

pub fn silence(_query: &[u8]) -> Option<Vec<u8>> {
    None
}

/// Two records are promised, and the second has no end.
pub fn cut_off(query: &[u8]) -> Option<Vec<u8>> {
    Some(response(query, 2, &ALIAS_AND_ADDRESS[..30]))
}

/// A compressed name that leads to itself.
pub fn loops(query: &[u8]) -> Option<Vec<u8>> {
    let at = query.len() as u8;
    Some(response(query, 1, &[0xc0, at, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 192, 0, 2, 80]))
}

/// A right answer under another identifier.
pub fn of_another_question(query: &[u8]) -> Option<Vec<u8>> {
    let mut message = answer_with_alias(query)?;
    message[0] ^= 1;
    Some(message)
}

impl NetDevice for Cable {
    fn info(&self) -> NetInfo {
        NetInfo {
            driver: "cable",
            // As in the recording.
            mac: MacAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]),
            frame_bytes: FRAME_LIMIT_BYTES,
            transmit_checksum: false,
            transmit_depth: usize::MAX,
            receive_depth: usize::MAX,
        }
    }

    fn link(&self) -> Link {
        Link::Up
    }

    fn event(&self) -> Arc<dyn Event> {
        Arc::new(Flag::default())
    }

    fn service_by_ns(&self) -> u64 {
        u64::MAX
    }

    fn service(&mut self) {}

    fn receive(&mut self, frame: &mut [u8]) -> Option<usize> {
        let arrived = self.0.lock().unwrap().to_host.pop_front()?;
        frame[..arrived.len()].copy_from_slice(&arrived);
        Some(arrived.len())
    }

    fn room(&self) -> usize {
        if self.0.lock().unwrap().is_full { 0 } else { usize::MAX }
    }

    fn transmit(&mut self, frame: &[u8], _checksum: Option<Checksum>) -> Result<(), TransmitError> {
        let mut wire = self.0.lock().unwrap();
        if wire.is_full {
            return Err(TransmitError::Full);
        }
        wire.to_network.push_back(frame.to_vec());
        Ok(())
    }

    fn flush(&mut self) {}

    fn rearm(&mut self) -> bool {
        false
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn dma(&self) -> &DmaDevice {
        unreachable!("a cable reaches no memory")
    }

    fn reset(&mut self) {}

    fn shut_down(self: alloc::boxed::Box<Self>) -> Result<(), NotQuiet> {
        Ok(())
    }
}
