//! Addresses of names, by DNS.

use alloc::string::String;
use core::fmt;

use smoltcp::{
    socket::dns::{self, GetQueryResultError, QueryHandle},
    wire::{DnsQueryType, IpAddress, Ipv4Address},
};

use crate::{
    job::{Job, Promise, Step},
    stack::Net,
};

/// How long a name server may take, with all the times that it is asked again.
const DEADLINE_NS: u64 = 15_000_000_000;

/// Why there is no address of a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResolveError {
    /// The interface has no address of its own, or was told of no name server.
    NoNameServer,
    /// It is no name.
    BadName,
    /// Somebody else is asking.
    Busy,
    /// The name server knows none.
    Unknown,
    /// The name server did not answer in time.
    TimedOut,
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoNameServer => "there is no name server",
            Self::BadName => "that is no name",
            Self::Busy => "another name is being asked for",
            Self::Unknown => "the name server knows no address",
            Self::TimedOut => "the name server did not answer in time",
        })
    }
}

impl core::error::Error for ResolveError {}

/// A question to the name server.
pub struct Query {
    handle: Option<QueryHandle>,
    until_ns: u64,
}

impl Query {
    /// Asks.
    pub fn start(net: &mut Net<'_>, name: &str) -> Result<Self, ResolveError> {
        net.address.and_then(|address| address.name_server).ok_or(ResolveError::NoNameServer)?;
        let socket = net.sockets.get_mut::<dns::Socket<'_>>(net.dns);
        let handle = socket.start_query(net.interface.context(), name, DnsQueryType::A);
        let handle = handle.map_err(|error| match error {
            dns::StartQueryError::NoFreeSlot => ResolveError::Busy,
            dns::StartQueryError::InvalidName | dns::StartQueryError::NameTooLong => ResolveError::BadName,
        })?;
        Ok(Self { handle: Some(handle), until_ns: net.now_ns.saturating_add(DEADLINE_NS) })
    }

    /// Until when an answer must have come.
    pub fn until_ns(&self) -> u64 {
        self.until_ns
    }

    /// The answer, once there is one.
    pub fn poll(&mut self, net: &mut Net<'_>) -> Option<Result<Ipv4Address, ResolveError>> {
        let handle = self.handle?;
        let socket = net.sockets.get_mut::<dns::Socket<'_>>(net.dns);
        let answer = match socket.get_query_result(handle) {
            Err(GetQueryResultError::Pending) if net.now_ns < self.until_ns => return None,
            Err(GetQueryResultError::Pending) => {
                self.cancel(net);
                return Some(Err(ResolveError::TimedOut));
            }
            Err(GetQueryResultError::Failed) => Err(ResolveError::Unknown),
            Ok(addresses) => {
                let mut addresses = addresses.iter().map(|&IpAddress::Ipv4(address)| address);
                addresses.next().ok_or(ResolveError::Unknown)
            }
        };
        // The socket has forgotten it.
        self.handle = None;
        Some(answer)
    }

    /// Wants no answer any more.
    pub fn cancel(&mut self, net: &mut Net<'_>) {
        if let Some(handle) = self.handle.take() {
            net.sockets.get_mut::<dns::Socket<'_>>(net.dns).cancel_query(handle);
        }
    }
}

/// The job of somebody who wants to know an address.
pub struct Resolve {
    pub name: String,
    pub query: Option<Query>,
    pub promise: Promise<Result<Ipv4Address, ResolveError>>,
}

impl Job for Resolve {
    fn step(&mut self, net: &mut Net<'_>) -> Step {
        if !self.promise.is_wanted() {
            return Step::Done;
        }
        let query = match &mut self.query {
            Some(query) => query,
            None => match Query::start(net, &self.name) {
                Ok(query) => self.query.insert(query),
                Err(error) => {
                    self.promise.keep(Err(error));
                    return Step::Done;
                }
            },
        };
        match query.poll(net) {
            None => Step::Wait { until_ns: query.until_ns() },
            Some(answer) => {
                self.promise.keep(answer);
                Step::Done
            }
        }
    }

    fn end(&mut self, net: &mut Net<'_>) {
        if let Some(query) = &mut self.query {
            query.cancel(net);
        }
    }
}
