//! TCP/IP on network devices: `smoltcp` between [`drivers::net`] and whoever wants something of the network.
//!
//! ```text
//!   shell, tests ── Interface ── jobs (fetch, ping, resolve) ──┐
//!                                              web server ─────┤ one thread: smoltcp's interface and sockets
//!                                                 Adapter ─────┘
//!                                                    │
//!                                            dyn NetDevice, woken by its event
//! ```
//!
//! An interface is one thread that owns its device and all sockets, so that nothing on the way of a packet is locked.
//! It sleeps until its device's event, until the next time that `smoltcp` names, or until somebody hands it a job. A
//! job is a small state machine that is stepped whenever something may have changed.
//!
//! Everything has a bound: jobs, sockets and their buffers, what is read of a request or of a response's head, the page
//! that the server shows. What comes from the network is parsed by `smoltcp` and by [`http`], and neither panics nor
//! allocates by what it says.
#![no_std]
#![cfg_attr(not(test), forbid(unsafe_code))]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod adapter;
mod fetch;
pub mod http;
mod interface;
mod job;
mod ping;
mod resolve;
mod server;
mod stack;
#[cfg(test)]
mod tests;

pub use self::{
    fetch::{FetchError, Fetched, Sink},
    interface::{Interface, StartError},
    job::{NoResult, Pending, Refused},
    ping::PingError,
    resolve::ResolveError,
    server::Pages,
    stack::{Address, Status},
};
pub use smoltcp::wire::{Ipv4Address, Ipv4Cidr};
