//! Whether somebody is there, by ICMP echo.

use alloc::vec::Vec;
use core::fmt;

use smoltcp::{
    iface::SocketHandle,
    phy::ChecksumCapabilities,
    socket::icmp,
    wire::{Icmpv4Packet, Icmpv4Repr, IpAddress, Ipv4Address},
};

use crate::{
    job::{Job, Promise, Step},
    stack::Net,
};

/// How long an answer may take.
const DEADLINE_NS: u64 = 5_000_000_000;

/// What is sent along, and must come back.
const PAYLOAD: &[u8] = b"Sluice asks whether you are there";

const BUFFER_BYTES: usize = 256;

/// Why there was no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PingError {
    /// The interface has no address of its own.
    NoAddress,
    /// No answer came in time.
    TimedOut,
    /// The question could not be sent.
    NotSent,
}

impl fmt::Display for PingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAddress => "the interface has no address",
            Self::TimedOut => "no answer",
            Self::NotSent => "the question could not be sent",
        })
    }
}

impl core::error::Error for PingError {}

/// The job of somebody who wants to know. The result is how long the answer took, in nanoseconds.
pub struct Ping {
    pub to: Ipv4Address,
    pub buffers: Option<Buffers>,
    pub sent: Option<Sent>,
    pub promise: Promise<Result<u64, PingError>>,
}

/// Memory for a question and an answer.
pub struct Buffers {
    receive: (Vec<icmp::PacketMetadata>, Vec<u8>),
    send: (Vec<icmp::PacketMetadata>, Vec<u8>),
}

/// A question on its way.
pub struct Sent {
    socket: SocketHandle,
    identifier: u16,
    at_ns: u64,
}

impl Buffers {
    /// `None` without memory.
    pub fn new() -> Option<Self> {
        let buffer = || {
            let (mut packets, mut bytes) = (Vec::new(), Vec::new());
            packets.try_reserve_exact(1).ok()?;
            bytes.try_reserve_exact(BUFFER_BYTES).ok()?;
            packets.push(icmp::PacketMetadata::EMPTY);
            bytes.resize(BUFFER_BYTES, 0);
            Some((packets, bytes))
        };
        Some(Self { receive: buffer()?, send: buffer()? })
    }
}

impl Ping {
    fn send(&mut self, net: &mut Net<'_>) -> Result<Sent, PingError> {
        net.address.ok_or(PingError::NoAddress)?;
        let Buffers { receive, send } = self.buffers.take().ok_or(PingError::NotSent)?;
        let receive = icmp::PacketBuffer::new(receive.0, receive.1);
        let send = icmp::PacketBuffer::new(send.0, send.1);
        let identifier = net.port();
        let mut socket = icmp::Socket::new(receive, send);
        socket.bind(icmp::Endpoint::Ident(identifier)).map_err(|_| PingError::NotSent)?;
        let question = Icmpv4Repr::EchoRequest { ident: identifier, seq_no: 1, data: PAYLOAD };
        let room = socket.send(question.buffer_len(), IpAddress::Ipv4(self.to));
        let room = room.map_err(|_| PingError::NotSent)?;
        question.emit(&mut Icmpv4Packet::new_unchecked(room), &ChecksumCapabilities::default());
        Ok(Sent { socket: net.sockets.add(socket), identifier, at_ns: net.now_ns })
    }
}

impl Sent {
    /// How long it took until the answer came, if it has.
    fn poll(&self, net: &mut Net<'_>, to: Ipv4Address) -> Option<u64> {
        let socket = net.sockets.get_mut::<icmp::Socket<'_>>(self.socket);
        while let Ok((packet, IpAddress::Ipv4(from))) = socket.recv() {
            let Ok(packet) = Icmpv4Packet::new_checked(packet) else { continue };
            let answer = Icmpv4Repr::parse(&packet, &ChecksumCapabilities::default());
            if let Ok(Icmpv4Repr::EchoReply { ident, seq_no: 1, data: PAYLOAD }) = answer
                && ident == self.identifier
                && from == to
            {
                return Some(net.now_ns - self.at_ns);
            }
        }
        None
    }
}

impl Job for Ping {
    fn step(&mut self, net: &mut Net<'_>) -> Step {
        if !self.promise.is_wanted() {
            return Step::Done;
        }
        if self.sent.is_none() {
            match self.send(net) {
                Ok(sent) => self.sent = Some(sent),
                Err(error) => {
                    self.promise.keep(Err(error));
                    return Step::Done;
                }
            }
        }
        let Some(sent) = &self.sent else { return Step::Done };
        let until_ns = sent.at_ns.saturating_add(DEADLINE_NS);
        match sent.poll(net, self.to) {
            Some(took_ns) => self.promise.keep(Ok(took_ns)),
            None if net.now_ns >= until_ns => self.promise.keep(Err(PingError::TimedOut)),
            None => return Step::Wait { until_ns },
        }
        Step::Done
    }

    fn end(&mut self, net: &mut Net<'_>) {
        if let Some(sent) = self.sent.take() {
            net.sockets.remove(sent.socket);
        }
    }
}
