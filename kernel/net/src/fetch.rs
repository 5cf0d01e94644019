//! Files by HTTP/1.0.

use alloc::{format, vec::Vec};
use core::fmt;

use smoltcp::{
    iface::SocketHandle,
    socket::tcp,
    time::Duration,
    wire::{IpAddress, Ipv4Address},
};

use crate::{
    http::{self, Authority, HEAD_LIMIT_BYTES, Head, NotHttp, Url},
    job::{Job, Promise, Step},
    resolve::{Query, ResolveError},
    stack::Net,
};

/// How long nothing may come from the other side.
const SILENCE_NS: u64 = 20_000_000_000;
/// How long the other side may leave what was sent to it unconfirmed.
const TCP_TIMEOUT: Duration = Duration::from_secs(15);

const RECEIVE_BYTES: usize = 256 * 1024;
/// The request, whose parts are bounded by the URL's.
const SEND_BYTES: usize = 4096;

/// Where the bytes of a file go, in their order.
pub trait Sink: Send + 'static {
    /// The next bytes.
    fn take(&mut self, bytes: &[u8]);
}

/// A file that has come in whole.
#[derive(Debug)]
pub struct Fetched<S> {
    /// Bytes of it.
    pub bytes: u64,
    /// Where they went.
    pub sink: S,
}

/// Why a file did not come, or not in whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchError {
    /// The interface has no address of its own.
    NoAddress,
    /// There is no address of the name.
    Resolve(ResolveError),
    /// The connection was refused.
    Refused,
    /// The connection was broken off.
    Broken,
    /// Nothing came for too long.
    TimedOut,
    /// It is no HTTP.
    NotHttp,
    /// The server has another answer than the file.
    Status(u16),
    /// The connection ended before the file did.
    Short {
        /// Bytes that came.
        bytes: u64,
        /// Bytes that the server had promised.
        promised: u64,
    },
}

impl fmt::Display for FetchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAddress => f.write_str("the interface has no address"),
            Self::Resolve(error) => error.fmt(f),
            Self::Refused => f.write_str("the connection was refused"),
            Self::Broken => f.write_str("the connection was broken off"),
            Self::TimedOut => f.write_str("nothing came for too long"),
            Self::NotHttp => NotHttp.fmt(f),
            Self::Status(status) => write!(f, "the server answers with status {status}"),
            Self::Short { bytes, promised } => write!(f, "{bytes} of {promised} bytes came"),
        }
    }
}

impl core::error::Error for FetchError {}

/// The job of somebody who wants a file.
pub struct Fetch<S> {
    url: Url,
    phase: Phase,
    sink: Option<S>,
    promise: Promise<Result<Fetched<S>, FetchError>>,
    socket: Option<tcp::Socket<'static>>,
    connection: Option<SocketHandle>,
    /// What has come of the response's head.
    head: Vec<u8>,
    silent_until_ns: u64,
}

enum Phase {
    Begin,
    Resolve(Query),
    Connect,
    Head,
    Body { promised: Option<u64>, bytes: u64 },
}

impl<S: Sink> Fetch<S> {
    /// `None` without memory for the connection.
    pub fn new(url: Url, sink: S, promise: Promise<Result<Fetched<S>, FetchError>>) -> Option<Self> {
        let mut head = Vec::new();
        head.try_reserve_exact(HEAD_LIMIT_BYTES).ok()?;
        let mut socket = tcp::Socket::new(buffer(RECEIVE_BYTES)?, buffer(SEND_BYTES)?);
        socket.set_timeout(Some(TCP_TIMEOUT));
        Some(Self {
            url,
            phase: Phase::Begin,
            sink: Some(sink),
            promise,
            socket: Some(socket),
            connection: None,
            head,
            silent_until_ns: u64::MAX,
        })
    }

    /// Goes on as far as it can. `None` if it has to wait.
    fn advance(&mut self, net: &mut Net<'_>) -> Option<Result<u64, FetchError>> {
        loop {
            let moved = match &mut self.phase {
                Phase::Begin => self.begin(net),
                Phase::Resolve(query) => {
                    let answer = query.poll(net)?.map_err(FetchError::Resolve);
                    answer.and_then(|address| self.connect(net, address))
                }
                Phase::Connect => self.ask(net)?,
                Phase::Head => self.read_head(net)?,
                Phase::Body { .. } => return self.read_body(net),
            };
            if let Err(error) = moved {
                return Some(Err(error));
            }
        }
    }

    fn begin(&mut self, net: &mut Net<'_>) -> Result<(), FetchError> {
        net.address.ok_or(FetchError::NoAddress)?;
        self.silent_until_ns = net.now_ns.saturating_add(SILENCE_NS);
        match &self.url.authority {
            Authority::Address(address) => {
                let address = *address;
                self.connect(net, address)
            }
            Authority::Name(name) => {
                self.phase = Phase::Resolve(Query::start(net, name).map_err(FetchError::Resolve)?);
                Ok(())
            }
        }
    }

    fn connect(&mut self, net: &mut Net<'_>, address: Ipv4Address) -> Result<(), FetchError> {
        let mut socket = self.socket.take().ok_or(FetchError::Broken)?;
        let port = net.port();
        let to = (IpAddress::Ipv4(address), self.url.port);
        socket.connect(net.interface.context(), to, port).map_err(|_| FetchError::Refused)?;
        self.connection = Some(net.sockets.add(socket));
        self.phase = Phase::Connect;
        Ok(())
    }

    /// Sends the request once there is a connection.
    fn ask(&mut self, net: &mut Net<'_>) -> Option<Result<(), FetchError>> {
        let request = format!(
            "GET {} HTTP/1.0\r\nHost: {}\r\nUser-Agent: Sluice\r\nConnection: close\r\n\r\n",
            self.url.path,
            Host(&self.url),
        );
        let socket = net.sockets.get_mut::<tcp::Socket<'_>>(self.connection?);
        if !socket.is_open() {
            return Some(Err(FetchError::Refused));
        }
        if !socket.may_send() {
            return None;
        }
        // The buffer is empty, and larger than any request.
        Some(match socket.send_slice(request.as_bytes()) {
            Ok(bytes) if bytes == request.len() => {
                self.phase = Phase::Head;
                Ok(())
            }
            _ => Err(FetchError::Broken),
        })
    }

    fn read_head(&mut self, net: &mut Net<'_>) -> Option<Result<(), FetchError>> {
        let socket = net.sockets.get_mut::<tcp::Socket<'_>>(self.connection?);
        let room = HEAD_LIMIT_BYTES - self.head.len();
        let head = &mut self.head;
        let read = socket.recv(|bytes| {
            let bytes = &bytes[..bytes.len().min(room)];
            head.extend_from_slice(bytes);
            (bytes.len(), bytes.len())
        });
        match http::parse_head(&self.head) {
            Err(NotHttp) => Some(Err(FetchError::NotHttp)),
            Ok(Some(Head { status: 200, length, bytes })) => {
                let rest = self.head.split_off(bytes);
                self.phase = Phase::Body { promised: length, bytes: 0 };
                Some(self.deliver(&rest))
            }
            Ok(Some(Head { status, .. })) => Some(Err(FetchError::Status(status))),
            Ok(None) => match read {
                Ok(0) => None,
                Ok(_) => self.heard(net),
                Err(_) => Some(Err(FetchError::Broken)),
            },
        }
    }

    fn read_body(&mut self, net: &mut Net<'_>) -> Option<Result<u64, FetchError>> {
        let connection = self.connection?;
        loop {
            let socket = net.sockets.get_mut::<tcp::Socket<'_>>(connection);
            let Phase::Body { promised, bytes: before } = self.phase else { return None };
            if promised.is_some_and(|promised| before >= promised) {
                return Some(Ok(before));
            }
            let left = promised.map_or(u64::MAX, |promised| promised - before);
            let sink = &mut self.sink;
            let read = socket.recv(|bytes| {
                let bytes = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
                sink.iter_mut().for_each(|sink| sink.take(bytes));
                (bytes.len(), bytes.len())
            });
            match read {
                Ok(0) => return None,
                Ok(more) => {
                    let bytes = before + more as u64;
                    self.phase = Phase::Body { promised, bytes };
                    self.promise.report(bytes);
                    self.silent_until_ns = net.now_ns.saturating_add(SILENCE_NS);
                }
                Err(tcp::RecvError::Finished) if promised.is_none() => return Some(Ok(before)),
                Err(_) => {
                    let short = |promised| FetchError::Short { bytes: before, promised };
                    return Some(Err(promised.map_or(FetchError::Broken, short)));
                }
            }
        }
    }

    /// Hands on the part of the body that came with the head.
    fn deliver(&mut self, rest: &[u8]) -> Result<(), FetchError> {
        if let (Phase::Body { promised, bytes }, Some(sink)) = (&mut self.phase, &mut self.sink) {
            let most = promised.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX));
            let rest = &rest[..rest.len().min(most)];
            sink.take(rest);
            *bytes = rest.len() as u64;
        }
        Ok(())
    }

    fn heard<T>(&mut self, net: &Net<'_>) -> Option<T> {
        self.silent_until_ns = net.now_ns.saturating_add(SILENCE_NS);
        None
    }
}

impl<S: Sink> Job for Fetch<S> {
    fn step(&mut self, net: &mut Net<'_>) -> Step {
        if !self.promise.is_wanted() {
            return Step::Done;
        }
        let result = match self.advance(net) {
            None if net.now_ns < self.silent_until_ns => {
                return Step::Wait { until_ns: self.silent_until_ns };
            }
            None => Err(FetchError::TimedOut),
            Some(result) => result,
        };
        if let Some(sink) = self.sink.take() {
            self.promise.keep(result.map(|bytes| Fetched { bytes, sink }));
        }
        Step::Done
    }

    fn end(&mut self, net: &mut Net<'_>) {
        if let Some(connection) = self.connection.take() {
            net.sockets.remove(connection);
        }
        if let Phase::Resolve(query) = &mut self.phase {
            query.cancel(net);
        }
    }
}

/// What the `Host` field of a request says.
struct Host<'a>(&'a Url);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0.authority {
            Authority::Address(address) => write!(f, "{address}:{}", self.0.port),
            Authority::Name(name) => write!(f, "{name}:{}", self.0.port),
        }
    }
}

/// A socket's buffer, if there is memory for it.
pub fn buffer(bytes: usize) -> Option<tcp::SocketBuffer<'static>> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes).ok()?;
    buffer.resize(bytes, 0);
    Some(tcp::SocketBuffer::new(buffer))
}
